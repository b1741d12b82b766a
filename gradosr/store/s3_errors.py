"""Errors of boto3 translated to ours: one line that says what, where and what to do, and never a secret."""

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    ReadTimeoutError,
    SSOError,
    TokenRetrievalError,
)
from botocore.exceptions import ConnectionError as UnreachableError
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError as TransportError

from gradosr.errors import AccessDenied, NotFound, ObjectChanged, StoreError, system_reason

FOREIGN = (BotoCoreError, ClientError, ResponseParserError, TransportError)
"""All errors that a boto3 client raises in use; urllib3's own where the body of an error response breaks off."""


class TooSlow(TransportError):
    """An answer that comes by the byte."""

    def __init__(self) -> None:
        super().__init__("less than 64 KiB within store.read_timeout")


_TRANSIENT = (
    HTTPClientError,
    UnreachableError,
    IncompleteReadError,
    FlexibleChecksumError,
    ResponseParserError,
    TransportError,
)
_TRANSIENT_CODES = {"SlowDown", "RequestTimeout", "Throttling", "ConditionalRequestConflict", "OperationAborted"}
_NO_CREDENTIALS = (
    NoCredentialsError,
    PartialCredentialsError,
    CredentialRetrievalError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
)
_SET_KEYS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE (the standard AWS chain)"
_PUBLIC = "; a public bucket is read without them with `anonymous: true` in `store` or `stores`"
_NAMELESS = (
    "forbidden without keys, and this store is `anonymous`: keys are not sent to it; "
    "set `anonymous` for the prefixes of public buckets only, under `stores`"
)
_DENIED = {
    "InvalidAccessKeyId": f"the store does not know this access key: {_SET_KEYS}",
    "SignatureDoesNotMatch": f"the secret key does not fit the access key: {_SET_KEYS}",
    "ExpiredToken": "the credentials have expired: renew them",
    "InvalidToken": "the session token is not valid: renew the credentials",
    "RequestTimeTooSkewed": "the clock of this machine is wrong: set it",
}
_OTHER_REGION = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
_NOT_IMPLEMENTED = {"NotImplemented", "InvalidArgument"}


class UnsupportedRequest(StoreError):
    """The store does not know a parameter of the request."""


def is_transient(error: Exception) -> bool:
    """Tell whether the same request may succeed a moment later."""
    if not isinstance(error, ClientError):
        return isinstance(error, _TRANSIENT)
    code, status = _code(error), _status(error)
    return code in _TRANSIENT_CODES or status == 429 or (status >= 500 and status != 501)


def translated(error: Exception, uri: str, server: str, attempts: int, *, anonymous: bool = False) -> StoreError:
    """Make the error to raise for one of FOREIGN, after that many attempts at `uri`."""
    if isinstance(error, _NO_CREDENTIALS):
        return AccessDenied(f"{uri}: no AWS credentials ({type(error).__name__}): {_SET_KEYS}{_PUBLIC}")
    if isinstance(error, UnreachableError):
        advice = "check store.endpoint_url and the network"
        return StoreError(f"{uri}: cannot reach {server} in {attempts} attempts ({_reason(error)}): {advice}")
    if anonymous and isinstance(error, ClientError) and _status(error) in (401, 403):
        return AccessDenied(f"{uri}: {error.operation_name} is {_NAMELESS}")
    if isinstance(error, ClientError) and (known := _known_refusal(error, uri)):
        return known
    if is_transient(error):
        return StoreError(f"{uri}: given up after {attempts} attempts, the last: {_reason(error)}")
    return StoreError(f"{uri}: {_reason(error)}")


def _known_refusal(error: ClientError, uri: str) -> StoreError | None:
    code, status = _code(error), _status(error)
    bucket = "/".join(uri.split("/")[:3])
    forbidden = f"{error.operation_name} is forbidden: check the credentials and what they may do"
    # HEAD, which has no body, answers an expired token with this; where a body carries a code, _DENIED has it
    unexplained = f"{error.operation_name} was refused (400): the credentials may have expired: renew them"
    rules: list[tuple[bool, type[StoreError], str]] = [
        (code == "NoSuchBucket", NotFound, f"{bucket}: no such bucket"),
        # HEAD says no more than 404, for a missing bucket too
        (code in ("NoSuchKey", "404"), NotFound, f"{uri}: no such object"),
        (status == 412, ObjectChanged, f"{uri}: replaced after it was listed"),
        (code in _DENIED, AccessDenied, f"{uri}: {_DENIED.get(code)}"),
        (status in (401, 403), AccessDenied, f"{uri}: {forbidden}"),
        (code == "400", AccessDenied, f"{uri}: {unexplained}"),
        (code in _OTHER_REGION, StoreError, f"{uri}: the bucket is in another region: set store.region"),
        (code in _NOT_IMPLEMENTED or status == 501, UnsupportedRequest, f"{uri}: {_reason(error)}"),
    ]
    return next((kind(message) for applies, kind, message in rules if applies), None)


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _reason(error: Exception) -> str:
    """Give the reason in one line: the operating system's if it has one (`connection refused`), else boto3's."""
    if isinstance(error, ClientError):
        message = str(error.response.get("Error", {}).get("Message", ""))
        return f"{error.operation_name} answered {_code(error)}: {' '.join(message.split())[:300]}"
    if isinstance(error, ReadTimeoutError):
        return "no byte within store.read_timeout"
    return system_reason(error) or " ".join(str(error).split())[:300]
