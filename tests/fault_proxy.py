"""A real HTTP server in front of the S3 server that does what networks, busy stores and strict accounts do.

Requests pass verbatim, with the Host header that the client signed, so the server's signature check still holds.
"""

import http.client
import random
import socket
import struct
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

import boto3
from botocore.config import Config

Fault = Literal["503", "reset", "cut", "stall", "trickle", "lost", "expired", "denied", "missing", "unmet"]
"""cut, stall, trickle: half of the answer's body, then the end, nothing, or a byte now and then. lost: done upstream,
but no answer comes; so is a cut or stalled answer without a body. One without a body that trickles never ends."""

TRANSIENT: tuple[Fault, ...] = ("503", "reset", "cut", "stall", "lost")

_ANSWERS: dict[str, tuple[int, str, str]] = {
    "503": (503, "SlowDown", "Please reduce your request rate."),
    "expired": (400, "ExpiredToken", "The provided token has expired."),
    "denied": (403, "AccessDenied", "Access Denied"),
    "missing": (404, "NoSuchKey", "The specified key does not exist."),
    "unmet": (412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold"),
    "unknown header": (501, "NotImplemented", "A header is not implemented."),
}


class FaultProxy(ThreadingHTTPServer):
    """`with FaultProxy(server.endpoint_url) as proxy:` listens at proxy.endpoint_url."""

    daemon_threads = False  # leaving ends them: one that wakes while the interpreter goes down may crash it

    def __init__(self, upstream_url: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream_url.removeprefix("http://")
        self.method = "GET"
        self.path = ""  # what the path and query of a request contain that `faults` and `always` are for
        self.faults: deque[Fault] = deque()  # what happens to the next such requests
        self.always: Fault | None = None  # what happens to all others of them
        self.conditions: Literal["heeded", "refused", "ignored"] = "heeded"  # of a conditional PUT
        self.before: Callable[[str], None] = lambda _: None  # called with method, path and query of each request
        self.seen: list[str] = []  # the same of all requests so far
        self.read: Counter[str] = Counter()  # bytes of all bodies that GETs were answered with so far, by path
        self.dealt: Counter[Fault] = Counter()
        self.stalling = 20.0  # seconds of a stall
        self.dripping = 0.1  # seconds between two bytes of a trickle
        self.stopped = threading.Event()
        self._lock = threading.Lock()
        self._clients: set[socket.socket] = set()
        self.chaos(random.Random(), 0.0, ())

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def chaos(self, draw: random.Random, probability: float, kinds: Sequence[Fault]) -> None:
        """From now on each request of any method meets one of `kinds` with this probability."""
        self._draw, self._probability, self._kinds = draw, probability, tuple(kinds)

    def next_fault(self, method: str, path: str) -> Fault | None:
        with self._lock:
            fault = None
            if method == self.method and self.path in path:
                fault = self.faults.popleft() if self.faults else self.always
            if fault is None and self._draw.random() < self._probability:
                fault = self._draw.choice(self._kinds)
            if fault is not None:
                self.dealt[fault] += 1
            return fault

    def count(self, path: str, size: int) -> None:
        with self._lock:
            self.read[path] += size

    def __enter__(self) -> "FaultProxy":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.shutdown()
        with self._lock:
            for client in self._clients:
                with suppress(OSError):  # gone already
                    client.shutdown(socket.SHUT_RDWR)
        self.server_close()

    def get_request(self) -> tuple[socket.socket, object]:
        client, address = super().get_request()
        with self._lock:
            self._clients.add(client)
        return client, address

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._clients.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that give up are part of the game."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultProxy

    def forward(self) -> None:
        proxy = self.server
        proxy.seen.append(f"{self.command} {self.path}")
        proxy.before(proxy.seen[-1])
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = proxy.next_fault(self.command, self.path)
        conditional = self.command == "PUT" and ("If-None-Match" in self.headers or "If-Match" in self.headers)
        if fault == "reset":
            self.reset()
        elif fault in _ANSWERS:
            self.refuse(fault)
        elif conditional and proxy.conditions == "refused":
            self.refuse("unknown header")
        elif conditional and proxy.conditions == "ignored":
            self.put_plainly(body)
        else:
            self.pass_on(body, fault)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = forward

    def pass_on(self, body: bytes, fault: Fault | None) -> None:
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=30)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect"):
                    upstream.putheader(name, value)
            upstream.endheaders(body)
            response = upstream.getresponse()
            content = response.read()
            if self.command == "GET":
                self.server.count(self.path.partition("?")[0], len(content))
            if fault == "trickle" and not content:
                self.trickle(b"HTTP/1.1 200 OK\r\nX-Slow: " + bytes(10_000))
            elif fault and not (content and fault in ("cut", "stall", "trickle")):
                if fault == "stall":
                    self.server.stopped.wait(self.server.stalling)
                self.reset()
            else:
                self.answer(response.status, dict(response.getheaders()), content, fault)
        finally:
            upstream.close()

    def put_plainly(self, body: bytes) -> None:
        """Signed anew: the client's signature covers the condition."""
        config = Config(s3={"addressing_style": "path"})
        client = boto3.session.Session().client("s3", endpoint_url=f"http://{self.server.upstream}", config=config)
        bucket, _, key = self.path.lstrip("/").partition("/")
        self.answer(200, {"ETag": client.put_object(Bucket=bucket, Key=key, Body=body)["ETag"]}, b"")

    def refuse(self, kind: str) -> None:
        status, code, message = _ANSWERS[kind]
        self.answer(status, {}, f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode())

    def reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def answer(self, status: int, headers: dict[str, str], body: bytes, fault: Fault | None = None) -> None:
        self.send_response_only(status)
        if self.command == "HEAD":
            body = b""
        else:
            headers = {**headers, "Content-Length": str(len(body))}
        for name, value in headers.items():
            if name not in ("Connection", "Transfer-Encoding"):
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if fault else body)
        self.wfile.flush()
        if fault == "stall":
            self.server.stopped.wait(self.server.stalling)
        elif fault == "trickle":
            self.trickle(body[len(body) // 2 :])
        self.close_connection = fault is not None

    def trickle(self, content: bytes) -> None:
        for byte in content:
            self.wfile.write(bytes([byte]))
            if self.server.stopped.wait(self.server.dripping):
                break
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Nothing."""
