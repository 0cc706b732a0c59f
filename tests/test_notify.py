import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from crossrec import notify as hook
from crossrec.config import Config
from crossrec.notify import WEBHOOK, find_webhook, notify
from crossrec.runlog import log
from tests.webhook import Webhook, webhook

SUMMARY = {"run_id": "día 1", "status": "done"}
SECRET = "/services/T0/hunter2hunter2"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hook, "PAUSES_S", (0.05, 0.1))


@pytest.fixture
def warnings() -> Iterator[Callable[[], list[str]]]:
    """Give what crossrec warned of, whoever else has set up its logger."""
    said: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    handler = Keep(logging.WARNING)
    log.addHandler(handler)
    yield lambda: said
    log.removeHandler(handler)


@pytest.fixture
def server() -> Iterator[Webhook]:
    with webhook() as running:
        yield running


def test_hook_gets_one_post_of_the_summary(
    server: Webhook, warnings: Callable[[], list[str]]
) -> None:
    assert notify(server.url + SECRET, SUMMARY)
    (request,) = server.requests
    assert (request.method, request.path) == ("POST", SECRET)
    assert request.headers["Content-Type"] == "application/json; charset=utf-8"
    assert json.loads(request.body) == SUMMARY
    assert warnings() == []


def test_hook_that_fails_once_is_tried_again(
    server: Webhook, warnings: Callable[[], list[str]]
) -> None:
    server.answers[:] = [500]
    assert notify(server.url + SECRET, SUMMARY)
    assert [json.loads(request.body) for request in server.requests] == [SUMMARY, SUMMARY]
    assert warnings() == []


def test_hook_that_fails_for_good_is_a_warning_without_its_path(
    server: Webhook, warnings: Callable[[], list[str]]
) -> None:
    server.answers[:] = [503] * 9
    assert not notify(server.url + SECRET, SUMMARY)
    assert len(server.requests) == 1 + len(hook.PAUSES_S)
    (line,) = warnings()
    assert line == f"webhook: {server.url} did not take the summary: HTTP 503"


def test_hook_that_refuses_is_not_asked_again(server: Webhook) -> None:
    server.answers[:] = [404]
    assert not notify(server.url + SECRET, SUMMARY)
    assert len(server.requests) == 1


def test_redirect_is_not_followed(server: Webhook, warnings: Callable[[], list[str]]) -> None:
    server.answers[:] = [302]
    assert not notify(server.url + SECRET, SUMMARY)
    assert len(server.requests) == 1
    assert warnings()[0].endswith("HTTP 302")


def test_server_that_hangs_is_given_up(
    server: Webhook, warnings: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hook, "TIMEOUT_S", 0.5)
    server.delay_s = 60.0
    began = time.monotonic()
    assert not notify(server.url + SECRET, SUMMARY)
    assert time.monotonic() - began < 10
    assert len(server.requests) > 1
    assert "hunter2" not in warnings()[0]


def test_answer_that_trickles_ends_at_the_deadline(
    warnings: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No single wait is too long; all of them together are."""
    monkeypatch.setattr(hook, "DEADLINE_S", 1.0)
    is_over = threading.Event()

    class Trickle(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            while not is_over.wait(0.1):
                self.wfile.write(b"H")

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Trickle) as trickling:
        threading.Thread(target=trickling.serve_forever, daemon=True).start()
        began = time.monotonic()
        assert not notify(f"http://127.0.0.1:{trickling.server_port}{SECRET}", SUMMARY)
        assert time.monotonic() - began < 10
        is_over.set()
        trickling.shutdown()
    assert "no answer within 1 s" in warnings()[0]


def test_nobody_at_the_address_is_a_warning(warnings: Callable[[], list[str]]) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as gone:
        port = gone.server_port
    assert not notify(f"http://me:hunter2@127.0.0.1:{port}{SECRET}", SUMMARY)
    (line,) = warnings()
    assert f"http://127.0.0.1:{port} did not take" in line
    assert "hunter2" not in line


def config(**notified: str) -> Config:
    return Config.model_validate({"storage": {"root": "/nowhere"}, "notify": notified})


def test_hook_of_the_config_wins_over_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WEBHOOK, raising=False)
    assert find_webhook(config()) is None
    monkeypatch.setenv(WEBHOOK, "https://variable.example.org/a")
    assert find_webhook(config()) == "https://variable.example.org/a"
    named = "https://config.example.org/b"
    assert find_webhook(config(webhook=named)) == named


def test_variable_that_is_no_url_is_told_without_its_value(
    warnings: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(WEBHOOK, "hooks.example.org/hunter2")
    assert find_webhook(config()) is None
    assert WEBHOOK in warnings()[0]
    assert "hunter2" not in warnings()[0]
