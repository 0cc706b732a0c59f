"""A headless Chromium, driven over a pipe by the DevTools protocol: no port, no driver, no package.

with Chromium(find_chromium()) as browser:
    tab = browser.open(path, width=360)
    tab.run("document.title"), tab.requests, tab.complaints

Source: https://chromedevtools.github.io/devtools-protocol/
"""

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

PATIENCE_S = 60
"""A start on a busy machine with two cores takes some seconds."""

FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",  # root has no sandbox, and the page is our own
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--no-first-run",
    "--hide-scrollbars",
)

KEYS = {"Tab": 9, "Enter": 13, "Space": 32, "ArrowDown": 40, "ArrowUp": 38}


def find_chromium() -> str | None:
    """Return the browser that CROSSREC_TEST_CHROMIUM names, else one on PATH, else None."""
    if named := os.environ.get("CROSSREC_TEST_CHROMIUM"):
        return named
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for name in names if (path := shutil.which(name))), None)


class Chromium:
    """A browser for the length of a `with`; one command at a time."""

    def __init__(self, binary: str) -> None:
        self.home = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        # The browser reads file 3 and writes file 4; bash puts the pipes there. They stand above
        # 10 first, so that the one move cannot fall on the other's feet.
        to_read, self.to_write = os.pipe()
        self.to_read, to_write = os.pipe()
        theirs = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_read, to_write)]
        os.close(to_read)
        os.close(to_write)
        shell = f'exec "$@" 3<&{theirs[0]} 4>&{theirs[1]}'
        command = [binary, *FLAGS, f"--user-data-dir={self.home.name}", "about:blank"]
        self.process = subprocess.Popen(
            ["bash", "-c", shell, "bash", *command],
            pass_fds=theirs,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for end in theirs:
            os.close(end)
        self.sent, self.received = 0, b""
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> "Chromium":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """End the browser and all that it started."""
        try:
            self.call("Browser.close")
            self.process.wait(timeout=10)
        except (OSError, RuntimeError, TimeoutError, subprocess.TimeoutExpired):
            pass
        finally:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self.process.wait()
            os.close(self.to_write)
            os.close(self.to_read)
            self.home.cleanup()

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Send a command and return its result; what happens meanwhile goes to `events`."""
        self.sent += 1
        message: dict[str, Any] = {"id": self.sent, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self.to_write, json.dumps(message).encode() + b"\0")
        wanted = self.sent
        while True:
            answer = self.receive()
            if answer.get("id") == wanted:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return dict(answer["result"])

    def receive(self) -> dict[str, Any]:
        """Return the next message; an event is kept too."""
        end = time.monotonic() + PATIENCE_S
        while b"\0" not in self.received:
            ready, _, _ = select.select([self.to_read], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise TimeoutError(f"the browser said nothing for {PATIENCE_S} s")
            read = os.read(self.to_read, 1 << 20)
            if not read:
                raise RuntimeError("the browser is gone")
            self.received += read
        first, _, self.received = self.received.partition(b"\0")
        message = dict(json.loads(first))
        if "method" in message:
            self.events.append(message)
        return message

    def open(
        self, page: Path, width: int = 1280, height: int = 900, *, is_dark: bool = False
    ) -> "Tab":
        """Open a file in a tab of a size in CSS pixels, and wait until it is loaded."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = Tab(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            tab.call(f"{domain}.enable")
        tab.resize(width, height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        tab.call("Emulation.setEmulatedMedia", features=[scheme])
        tab.call("Page.navigate", url=page.as_uri())
        while not tab.said("Page.loadEventFired"):
            self.receive()
        return tab


class Tab:
    """A page in the browser."""

    def __init__(self, browser: Chromium, session: str) -> None:
        self.browser, self.session = browser, session

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self.browser.call(method, self.session, **params)

    def run(self, script: str) -> Any:
        """Return the value of an expression."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def resize(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def press(self, key: str) -> None:
        """Press a key of KEYS where the focus is."""
        text = {"Enter": "\r", "Space": " "}.get(key)
        name = {"key": " " if key == "Space" else key, "code": key}
        shared = name | {"windowsVirtualKeyCode": KEYS[key]}
        down = shared | ({"text": text} if text else {})
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **down)
        self.call("Input.dispatchKeyEvent", type="keyUp", **shared)

    def write(self, text: str) -> None:
        """Type text where the focus is."""
        for letter in text:
            self.call("Input.dispatchKeyEvent", type="char", text=letter)

    def screenshot(self, *, is_whole: bool = False) -> bytes:
        """Return a PNG of what is visible, or of the whole page."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=is_whole)
        return base64.b64decode(shot["data"])

    def said(self, method: str) -> list[dict[str, Any]]:
        """Return the events of a kind that this page has sent."""
        return [
            event["params"]
            for event in self.browser.events
            if event["method"] == method and event.get("sessionId") == self.session
        ]

    @property
    def complaints(self) -> list[dict[str, Any]]:
        """Return errors and warnings of the console and the log, and uncaught exceptions."""
        console = self.said("Runtime.consoleAPICalled")
        return [
            *self.said("Runtime.exceptionThrown"),
            *self.said("Log.entryAdded"),
            *(entry for entry in console if entry["type"] in ("error", "warning", "assert")),
        ]

    @property
    def requests(self) -> list[str]:
        """Return the addresses that the page has asked for, its own file among them."""
        return [str(sent["request"]["url"]) for sent in self.said("Network.requestWillBeSent")]
