"""A real server that answers by the byte."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def trickling(head: bytes) -> Iterator[int]:
    """Answer one connection with `head`, and then a byte now and then without end; yield the port."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def trickle() -> None:
            connection = listener.accept()[0]
            with connection, suppress(OSError):
                connection.sendall(head)
                while not over.wait(0.02):
                    connection.sendall(b"H")

        thread = threading.Thread(target=trickle, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            over.set()
            thread.join(10)
