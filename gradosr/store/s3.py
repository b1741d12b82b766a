"""Objects in S3-compatible stores. boto3 stays in the files s3*.py, and none of its errors escapes."""

import io
import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from functools import partial
from typing import Any, BinaryIO, TypeVar

import boto3
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import BotoCoreError, IncompleteReadError
from botocore.exceptions import ConnectionError as UnreachableError

from gradosr.config import S3Settings
from gradosr.errors import ConfigError, NoConditionalWrites, NotFound, ObjectChanged, StoreError
from gradosr.store.backends import Backend, StoredObject
from gradosr.store.blocks import open_blocks
from gradosr.store.listing import Page, listed
from gradosr.store.ordering import in_order
from gradosr.store.s3_contents import ENTRIES, take_contents
from gradosr.store.s3_errors import FOREIGN, TooSlow, UnsupportedRequest, is_transient, translated
from gradosr.store.threads import UPLOAD_BYTES, Progress, within

ATTEMPTS = 6
REACH_ATTEMPTS = 3  # for a server that never answered: a mistyped address is likelier than a busy network
BACKOFF_SECONDS = 0.5  # doubled with each attempt; the wait is drawn between nothing and this ("full jitter")
MAX_BACKOFF_SECONDS = 10.0
CONNECT_SECONDS = 5.0
PART_BYTES = 64 * 2**20  # one PUT up to here, a multipart upload beyond
PAGE = 1000  # entries of a listing that one request brings, the most that S3 does
READ_BYTES = 2**16  # that must come within read_timeout
SERVER_SECONDS = 600.0  # for copies and the end of multipart uploads, during which AWS sends a space now and then
CONNECTIONS = 32  # kept open; more threads than these reconnect

_NEVER = threading.Event()
_JITTER = random.Random()  # a separate one: drawing from the global generator would change a seeded program's results

T = TypeVar("T")


def connect(settings: S3Settings) -> Backend:
    """Make the backend for one server."""
    return S3Backend(settings)


class S3Backend:
    """Objects of one server: see Backend. A version is an ETag without quotes. One client serves all threads.

    boto3's own retries are off, because they end where a body begins: each request is tried ATTEMPTS times here,
    together with reading its body. The scheme of a URI is not looked at, so that others can use this backend too.
    """

    def __init__(self, settings: S3Settings) -> None:
        self._server = settings.endpoint_url or "AWS S3"
        self._anonymous = settings.anonymous
        self._patience = CONNECT_SECONDS + settings.read_timeout
        self._client = _client(settings, self._server)
        self._conditional = True  # until the store refuses a conditional write
        self._unreachable: StoreError | None = None

    def list(self, uri: str) -> Iterator[StoredObject]:
        """Sort, because not every store does: SeaweedFS lists `a/b` before `a-b`, S3 Express in any order."""
        return in_order(listed(uri, self._pages))

    def folders(self, uri: str) -> Sequence[str]:
        """List with a delimiter."""
        return sorted(folder[len(uri) : -1] for page in self._pages(uri, "/") for folder in page.folders)

    def stat(self, uri: str) -> StoredObject:
        """Send one HEAD, whose answer does not tell a missing bucket from a missing object."""
        head = self._try(uri, self._client.head_object, **_target(uri))
        return StoredObject(uri, head["ContentLength"], _version(head), _modified(head))

    def read(self, uri: str) -> bytes:
        """Send one GET, so never half of one version and half of another."""

        def get(progress: Progress) -> bytes:
            content = io.BytesIO()
            with closing(self._client.get_object(**_target(uri))["Body"]) as body:
                while piece := body.read(READ_BYTES):
                    progress.step()
                    content.write(piece)
            return content.getvalue()

        return self._insist(uri, get)

    def open(self, stored: StoredObject) -> BinaryIO:
        """Read by ranged GETs of the listed ETag; the first read sends the first."""

        def fetch(start: int, stop: int, cancelled: threading.Event) -> bytearray:
            get = partial(self._get_range, stored, start, stop, cancelled)
            try:
                return self._insist(stored.uri, get, cancelled=cancelled)
            except NotFound as error:
                raise ObjectChanged(f"{stored.uri}: removed after it was listed") from error

        return open_blocks(stored.size, fetch)

    def write(self, uri: str, body: bytes | BinaryIO, *, if_absent: bool = False) -> bool:
        """Send one PUT, or a multipart upload that is aborted on failure; `if_absent` is If-None-Match."""
        stream = io.BytesIO(body) if isinstance(body, bytes) else body
        if if_absent and self._conditional:
            try:
                return self._put(uri, stream, IfNoneMatch="*")
            except UnsupportedRequest:
                self._conditional = False
        return self._put(uri, stream)

    def exchange(self, uri: str, body: bytes, version: str | None) -> str | None:
        """Send one PUT with If-Match or If-None-Match; bodies that differ have ETags that differ."""
        condition: dict[str, Any] = {"IfNoneMatch": "*"} if version is None else {"IfMatch": f'"{version}"'}
        try:
            return _version(self._try(uri, self._client.put_object, Body=body, **_target(uri), **condition))
        except ObjectChanged:
            return None
        except NotFound:  # the object; a missing bucket shows when the caller looks why
            if version is None:
                raise
            return None
        except UnsupportedRequest as error:
            raise NoConditionalWrites(str(error)) from error

    def reach(self, uri: str) -> None:
        """Send one HEAD of the bucket; any answer will do."""

        def knock(_: Progress) -> None:
            try:
                self._client.head_bucket(Bucket=uri.split("/")[2])
            except UnreachableError:
                raise
            except FOREIGN:
                pass  # anything else that is wrong, the work itself finds and retries

        if self._unreachable:
            raise StoreError(str(self._unreachable)) from self._unreachable
        try:
            self._insist("/".join(uri.split("/")[:3]), knock, attempts=REACH_ATTEMPTS)
        except StoreError as error:
            self._unreachable = error
            raise

    def move(self, source: str, target: str) -> None:
        """Copy inside the store, then delete; CopyObject ends at 5 GiB, far beyond any part."""
        copy = partial(self._client.copy_object, CopySource=_target(source), **_target(target))
        self._insist(source, lambda _: copy(), SERVER_SECONDS)
        self._try(source, self._client.delete_object, **_target(source))

    def _pages(self, uri: str, delimiter: str) -> Iterator[Page]:
        """Yield the answers to a LIST of everything that begins with `uri`, and stop at folders by a delimiter."""
        scheme, bucket, prefix = _split(uri)
        if not bucket:
            raise NotFound(f"{uri}: names no bucket: {scheme}://BUCKET/KEY")
        query: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix, "MaxKeys": PAGE}
        if delimiter:
            query["Delimiter"] = delimiter
        while True:
            answer = self._try(uri, self._client.list_objects_v2, **query)
            objects = [
                StoredObject(f"{scheme}://{bucket}/{one.key}", one.size, one.etag, one.modified)
                for one in answer[ENTRIES]
                if not one.key.endswith("/")  # what consoles put to show an empty folder
            ]
            folders = [f"{scheme}://{bucket}/{item['Prefix']}" for item in answer.get("CommonPrefixes", ())]
            last = not answer.get("IsTruncated")
            yield Page(objects, folders, last)
            if last:
                return
            query["ContinuationToken"] = answer["NextContinuationToken"]

    def _get_range(
        self, stored: StoredObject, start: int, stop: int, cancelled: threading.Event, progress: Progress
    ) -> bytearray:
        """Get bytes [start, stop) of the listed version, in one attempt."""
        span = f"{start}-{stop - 1}"
        wanted = {"Range": f"bytes={span}", "IfMatch": f'"{stored.version}"'}
        answer = self._client.get_object(**_target(stored.uri), **wanted)
        with closing(answer["Body"]) as body:
            # Checked here too, because a store that ignores the header answers all the same.
            if _version(answer) != stored.version:
                raise ObjectChanged(f"{stored.uri}: replaced after it was listed")
            if not answer.get("ContentRange", "").startswith(f"bytes {span}/"):
                raise StoreError(f"{stored.uri}: {self._server} does not serve ranges of bytes")
            return _read_exactly(body, stop - start, cancelled, progress)

    def _put(self, uri: str, stream: BinaryIO, **condition: Any) -> bool:
        """Write, and tell whether the condition held and so the object is written."""
        stream.seek(0, os.SEEK_END)
        single = stream.tell() <= PART_BYTES
        stream.seek(0)
        try:
            if single:
                self._try(uri, self._client.put_object, Body=stream.read(), **_target(uri), **condition)
            else:
                self._put_parts(uri, stream, condition)
        except ObjectChanged:
            return False
        return True

    def _put_parts(self, uri: str, stream: BinaryIO, condition: dict[str, Any]) -> None:
        client, target = self._client, _target(uri)
        target["UploadId"] = self._try(uri, client.create_multipart_upload, **target)["UploadId"]
        parts: list[dict[str, Any]] = []
        try:
            while body := stream.read(PART_BYTES):
                number = len(parts) + 1
                part = self._try(uri, client.upload_part, PartNumber=number, Body=body, **target)
                parts.append({"PartNumber": number, "ETag": part["ETag"]})
            whole = partial(client.complete_multipart_upload, MultipartUpload={"Parts": parts}, **target, **condition)
            self._insist(uri, lambda _: whole(), SERVER_SECONDS)
        except BaseException:
            with suppress(StoreError):  # leftover parts cost money, but the first error says more
                self._try(uri, client.abort_multipart_upload, **target)
            raise

    def _try(self, uri: str, call: Callable[..., T], **arguments: Any) -> T:
        """Call boto3 with what has a short answer."""
        return self._insist(uri, lambda _: call(**arguments), len(arguments.get("Body", b"")) / UPLOAD_BYTES)

    def _insist(
        self,
        uri: str,
        call: Callable[[Progress], T],
        longer: float = 0.0,
        *,
        cancelled: threading.Event = _NEVER,
        attempts: int = ATTEMPTS,
    ) -> T:
        """Call boto3: the one place where waits are bounded, transient errors are retried and all are translated.

        An answer may begin `longer` seconds later than others.
        """
        for attempt in range(1, attempts + 1):
            try:
                return within(self._patience, call, longer)
            except TimeoutError:
                error: Exception = TooSlow()
            except FOREIGN as caught:
                error = caught
            if attempt == attempts or not is_transient(error):
                raise translated(error, uri, self._server, attempt, anonymous=self._anonymous) from error
            longest = min(MAX_BACKOFF_SECONDS, BACKOFF_SECONDS * 2 ** (attempt - 1))
            if cancelled.wait(_JITTER.uniform(0, longest)):
                break
        raise StoreError(f"{uri}: closed while being read")


def _client(settings: S3Settings, server: str) -> Any:
    """Make a client with its own session: the default session is not made for threads. Opens no socket yet."""
    config = Config(
        signature_version=UNSIGNED if settings.anonymous else None,
        connect_timeout=CONNECT_SECONDS,
        read_timeout=settings.read_timeout,
        retries={"mode": "standard", "total_max_attempts": 1},
        max_pool_connections=CONNECTIONS,
        s3={"addressing_style": settings.addressing_style},
        request_checksum_calculation=settings.checksums,
        response_checksum_validation=settings.checksums,
    )
    try:
        session = boto3.session.Session(region_name=settings.region)
        client = session.client("s3", endpoint_url=settings.endpoint_url, config=config)
    except ValueError as error:  # how botocore reports a URL or region that cannot be one
        raise ConfigError(f"store: {' '.join(str(error).split())}") from error
    except BotoCoreError as error:
        raise translated(error, server, server, 1) from error
    client.meta.events.register("before-parse.s3.ListObjectsV2", take_contents)
    return client


def _target(uri: str) -> dict[str, Any]:
    scheme, bucket, key = _split(uri)
    if not bucket or not key:
        raise NotFound(f"{uri}: names no object: {scheme}://BUCKET/KEY")
    return {"Bucket": bucket, "Key": key}


def _split(uri: str) -> tuple[str, str, str]:
    """Split a URI into scheme, bucket and key."""
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    return scheme, bucket, key


def _version(answer: dict[str, Any]) -> str:
    return str(answer["ETag"]).strip('"')


def _modified(answer: dict[str, Any]) -> int | None:
    """Read the time, which S3-compatible servers leave out where they do not know it."""
    return int(answer["LastModified"].timestamp()) if "LastModified" in answer else None


def _read_exactly(body: Any, size: int, cancelled: threading.Event, progress: Progress) -> bytearray:
    content = bytearray(size)
    filled = 0
    while filled < size:
        if cancelled.is_set():
            raise StoreError("closed while being read")
        count = body.readinto(memoryview(content)[filled : filled + READ_BYTES])
        if count == 0:
            raise IncompleteReadError(actual_bytes=filled, expected_bytes=size)
        filled += count
        progress.step()
    return content
