"""A server of this process that takes what is posted, and answers as it is told.

with webhook() as server:
    server.answers[:] = [500]       # the first request; 200 to all later ones
    notify(server.url + "/secret", {})
    server.requests[0].body
"""

import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Webhook:
    """What a server was sent, and what it is to answer."""

    url: str = ""
    answers: list[int] = field(default_factory=list)
    delay_s: float = 0.0
    requests: list[Request] = field(default_factory=list)
    is_over: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def webhook() -> Iterator[Webhook]:
    """Serve on a free port for the block."""
    hook = Webhook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            hook.requests.append(Request("POST", self.path, dict(self.headers), body))
            hook.is_over.wait(hook.delay_s)
            status = hook.answers.pop(0) if hook.answers else 200
            # Who hung may find nobody left.
            with contextlib.suppress(ConnectionError):
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", hook.url)
                self.end_headers()

        def do_GET(self) -> None:
            hook.requests.append(Request("GET", self.path, dict(self.headers), b""))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        hook.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield hook
        finally:
            hook.is_over.set()
            server.shutdown()
