"""The webhook: one POST of a run's summary when a job ends, well or not.

    is_delivered = notify("https://hooks.example.org/T0/secret", summary)

Nothing that goes wrong with it goes beyond a warning, which names the URL's host alone: the rest of
the URL may be a secret. An answer of 2xx is a delivery; a redirect is none, since following it
would send the summary, or an empty GET, elsewhere.
"""

import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from crossrec.config import Config
from crossrec.config_notify import is_web_address
from crossrec.runlog import log

WEBHOOK = "CROSSREC_WEBHOOK"
"""The variable that gives the URL where the config does not."""

TIMEOUT_S = 5.0
"""For each wait of a try: to connect, and for the answer."""

PAUSES_S = (1.0, 4.0)
"""Before the second try and the third, which is the last."""

DEADLINE_S = 25.0
"""For all tries: a name that is never resolved or an answer that trickles holds a job no longer."""

AGAIN = {408, 425, 429}
"""Answers below 500 after which another try may help."""


def find_webhook(config: Config) -> str | None:
    """Return the URL of `notify.webhook`, else of CROSSREC_WEBHOOK, else None."""
    if config.notify.webhook is not None:
        return config.notify.webhook.get_secret_value()
    found = os.environ.get(WEBHOOK)
    if found and not is_web_address(found):
        log.warning("webhook: %s is no http:// or https:// URL; nothing is sent", WEBHOOK)
        return None
    return found or None


def notify(url: str, summary: Mapping[str, Any]) -> bool:
    """POST the summary; return whether it was taken. Never raises, and takes DEADLINE_S at most."""
    body = json.dumps(summary, ensure_ascii=False, default=str).encode()
    outcome: list[str] = []
    # A daemon: what still hangs then ends with the process.
    sender = threading.Thread(target=_send, args=(url, body, outcome), daemon=True)
    sender.start()
    sender.join(DEADLINE_S)
    found = outcome[-1] if outcome else f"no answer within {DEADLINE_S:.0f} s"
    if found and sender.is_alive():
        found += ", and no more time to try again"
    if found:
        log.warning("webhook: %s did not take the summary: %s", _host(url), found)
    return not found


def _send(url: str, body: bytes, outcome: list[str]) -> None:
    """Try until it is taken; append what came of each try, "" for a delivery."""
    headers = {"Content-Type": "application/json; charset=utf-8", "User-Agent": "crossrec"}
    # Past these none is followed; proxies of the environment are used.
    opener = urllib.request.build_opener(_NoRedirects)
    for pause in (0.0, *PAUSES_S):
        time.sleep(pause)
        try:
            request = urllib.request.Request(url, body, headers, method="POST")
            opener.open(request, timeout=TIMEOUT_S).close()
            outcome.append("")
            return
        except urllib.error.HTTPError as error:
            error.close()
            outcome.append(f"HTTP {error.code}")
            if error.code < 500 and error.code not in AGAIN:
                return
        except Exception as error:
            # Only the kind: the text of some has the URL.
            outcome.append(_kind(error))


def _kind(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    inner = reason if isinstance(reason, Exception) else error
    return getattr(inner, "strerror", None) or type(inner).__name__


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any) -> None:
        """Let a redirect be the error that it is here."""


def _host(url: str) -> str:
    """Return what of a URL is no secret.

    >>> _host("https://me:pass@hooks.example.org:8443/services/T0/secret?x=1")
    'https://hooks.example.org:8443'
    """
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}"
