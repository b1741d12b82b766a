"""A real head of a Ray cluster with its job server, and a line to it that breaks."""

import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from gradosr.lab.seaweedfs import bound_to_parent

START_SECONDS = 300


class RayHead:
    """`with RayHead(environment) as head:` runs `ray start --head` with token authentication.

    Ports and folder are its own; its processes end with the block, and soon after this process.
    """

    def __init__(self, environment: Mapping[str, str], cpus: int = 2) -> None:
        self.token = secrets.token_hex(16)
        # Short, because what lies below it are Unix sockets, whose paths have at most 107 letters.
        self.folder = Path(tempfile.mkdtemp(prefix="ray-"))
        self._dashboard, *self._ports = _free_ports(5)
        self._cpus = cpus
        binaries = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self._environment = {**environment, "PATH": binaries, **self.client_environment()}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._dashboard}"

    def client_environment(self) -> dict[str, str]:
        """With which Ray's clients are let in."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    def get(self, path: str) -> bytes:
        """The answer of the job server to a GET."""
        request = urllib.request.Request(self.address + path, headers={"Authorization": f"Bearer {self.token}"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read()

    def __enter__(self) -> "RayHead":
        with (self.folder / "start.log").open("wb") as log:
            self._process = subprocess.Popen(
                bound_to_parent([sys.executable, "-m", "ray.scripts.scripts", *self._arguments()], signal.SIGTERM),
                env=self._environment, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            with suppress(OSError):
                self.get("/api/version")
                return self
            time.sleep(0.2)
        self.__exit__()
        raise RuntimeError((self.folder / "start.log").read_text())

    def __exit__(self, *_: object) -> None:
        self._process.terminate()  # with --block it ends what it started, unless a job hangs
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        while self._kill_all():
            time.sleep(0.1)
        self._process.wait()
        shutil.rmtree(self.folder)

    def _kill_all(self) -> bool:
        """SIGKILL whatever has our token in its environment; whether there was such a process."""
        found = False
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if self.token.encode() in (process / "environ").read_bytes():
                    os.kill(int(process.name), signal.SIGKILL)
                    found = True
        return found

    def _arguments(self) -> list[str]:
        gcs, client, agent, metrics = self._ports
        return [
            "start", "--head", "--block", "--disable-usage-stats", "--node-ip-address=127.0.0.1",
            f"--temp-dir={self.folder}", f"--num-cpus={self._cpus}", f"--object-store-memory={100 << 20}",
            "--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={self._dashboard}",
            f"--port={gcs}", f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}",
            f"--metrics-export-port={metrics}", "--min-worker-port=0", "--max-worker-port=0",
            "--include-log-monitor=false",
        ]  # fmt: skip


class Line:
    """`with Line(address) as line:` passes bytes on at line.address until it is cut; new connections work again."""

    def __init__(self, upstream: str) -> None:
        host, _, port = upstream.removeprefix("http://").partition(":")
        self._upstream = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._ends: list[socket.socket] = []
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> "Line":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        self._listener.close()
        self.cut()

    def cut(self) -> int:
        """Break all connections; how many there were."""
        ends, self._ends = self._ends, []
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        return len(ends)

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                near = self._listener.accept()[0]
                self._ends.append(near)
                threading.Thread(target=self._pass_on, args=(near,), daemon=True).start()

    def _pass_on(self, near: socket.socket) -> None:
        with near, socket.create_connection(self._upstream) as far, suppress(OSError):
            while True:
                for end in select.select([near, far], [], [])[0]:
                    data = end.recv(65536)
                    if not data:
                        return
                    (far if end is near else near).sendall(data)


def _free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports
