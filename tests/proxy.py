"""A proxy in front of an S3 server that answers for it, or changes what it is asked.

    with proxy_to(endpoint, rule) as address: ...

A rule is given method, path and headers of a request, which it may change, and returns what
happens: "pass", "reset", "hang", "lose" (passed on, but the reply is lost), or the code of an S3
error, as "503 SlowDown".
"""

import contextlib
import http.client
import itertools
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

Headers = dict[str, str]
Rule = Callable[[str, str, Headers], str]

FAULTS = ("503 SlowDown", "reset", "hang")

HOP = {"connection", "transfer-encoding", "keep-alive", "content-length"}


class FaultyStore:
    """A rule: one request in so many meets one of FAULTS, in turn."""

    def __init__(self, every: int = 20) -> None:
        self.every = every
        self.requests, self.faults = itertools.count(1), itertools.cycle(FAULTS)
        self.met: Counter[str] = Counter()

    def __call__(self, method: str, path: str, headers: Headers) -> str:
        if next(self.requests) % self.every:
            return "pass"
        fault = next(self.faults)
        self.met[fault] += 1
        return fault


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Server"

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name: value for name, value in self.headers.items() if name != "Expect"}
        deed = self.server.rule(self.command, self.path, headers)
        if deed == "hang":
            self.server.ended.wait()
        if deed in ("hang", "reset"):
            return self.cut()
        if deed not in ("pass", "lose"):
            status, _, code = deed.partition(" ")
            text = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
            return self.reply(int(status), {"Content-Type": "application/xml"}, text)
        endpoint = http.client.HTTPConnection(self.server.endpoint, timeout=30)
        endpoint.request(self.command, self.path, body, headers)
        found = endpoint.getresponse()
        data = found.read()
        endpoint.close()
        if deed == "lose":
            return self.cut()
        return self.reply(found.status, dict(found.getheaders()), data)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer

    def reply(self, status: int, headers: Headers, data: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in HOP:
                self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def cut(self) -> None:
        """Reset the connection: lingering for 0 s sends RST."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, endpoint: str, rule: Rule) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.endpoint, self.rule, self.ended = urlsplit(endpoint).netloc, rule, threading.Event()

    def handle_error(self, *_: Any) -> None:
        """A client that has gone is no news here."""


@contextlib.contextmanager
def proxy_to(endpoint: str, rule: Rule) -> Iterator[str]:
    """Run a proxy to the endpoint; give its own."""
    server = _Server(endpoint, rule)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
