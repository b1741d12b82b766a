"""A real HTTP server in front of the S3 server that does what networks and busy stores do.

Requests pass verbatim, with the Host header that the client signed, so the server's signature check still holds.
"""

import http.client
import socket
import struct
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

Fault = Literal["503", "reset", "cut", "stall"]

_SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
_UNKNOWN_HEADER = b"<Error><Code>NotImplemented</Code><Message>A header is not implemented.</Message></Error>"


class FaultProxy(ThreadingHTTPServer):
    """`with FaultProxy(server.endpoint_url) as proxy:` listens at proxy.endpoint_url."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, upstream_url: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream_url.removeprefix("http://")
        self.method = "GET"
        self.faults: deque[Fault] = deque()  # what happens to the next requests of `method`
        self.always: Fault | None = None  # what happens to all others of `method`
        self.conditional_writes = True
        self.seen: list[str] = []  # method, path and query of each request
        self.stopped = threading.Event()

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> "FaultProxy":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that give up are part of the game."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultProxy

    def forward(self) -> None:
        proxy = self.server
        proxy.seen.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = None
        if self.command == proxy.method:
            fault = proxy.faults.popleft() if proxy.faults else proxy.always
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
        elif fault == "503":
            self.answer(503, {}, _SLOW_DOWN)
        elif "If-None-Match" in self.headers and not proxy.conditional_writes:
            self.answer(501, {}, _UNKNOWN_HEADER)
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
            self.answer(response.status, dict(response.getheaders()), response.read(), fault)
        finally:
            upstream.close()

    def answer(self, status: int, headers: dict[str, str], body: bytes, fault: Fault | None = None) -> None:
        self.send_response_only(status)
        if self.command != "HEAD":
            headers = {**headers, "Content-Length": str(len(body))}
        for name, value in headers.items():
            if name not in ("Connection", "Transfer-Encoding"):
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if fault else body)
        self.wfile.flush()
        if fault == "stall":
            self.server.stopped.wait(20)
        self.close_connection = fault is not None

    def log_message(self, *_: object) -> None:
        """Nothing."""
