"""What the storage drivers raise, turned into the project's errors: lasting, or worth a try.

Known by errno, HTTP status, service code and class name, because the drivers' own types cannot be
imported where they are not installed. Imports `errors`, `hrefs` and `retry` only.
"""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator
from typing import Any

from geosam_stac import hrefs
from geosam_stac.errors import (
    ConfigurationError,
    DataError,
    GeosamStacError,
    StorageError,
    TemporaryError,
)
from geosam_stac.retry import retry_after_s

_HINT_ACCESS = "Check the permissions there, or choose another --out"
_HINT_LOGIN = (
    "Set the store's credentials in the environment (AWS_PROFILE or AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY; GOOGLE_APPLICATION_CREDENTIALS)"
)
_HINT_AGAIN = "Try again: what is written already is kept"
_LASTING = {
    errno.ENOSPC: ("the disk is full", "Free space, or choose another --out"),
    errno.EDQUOT: ("the quota is used up", "Free space, or choose another --out"),
    errno.EROFS: ("the file system is read-only", "Choose another --out"),
    errno.ENOTDIR: ("a file stands where a folder is needed", "Choose another --out"),
    errno.EEXIST: ("a file stands where a folder is needed", "Choose another --out"),
    errno.EISDIR: ("a folder stands where a file is needed", "Choose another --out"),
    errno.EACCES: ("access is denied", _HINT_ACCESS),
    errno.EPERM: ("access is denied", _HINT_ACCESS),
}
_TEMPORARY_ERRNOS = frozenset(
    {
        # How s3fs passes on SlowDown, 503 and 500 (s3fs/errors.py); macOS knows no EREMOTEIO.
        *(errno.EBUSY, getattr(errno, "EREMOTEIO", errno.ENOENT)),
        *(errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED),
        *(errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EPIPE, errno.EAGAIN),
    }
)
# Names of the drivers' own exceptions (botocore, google-auth, gcsfs, aiohttp, requests, azure),
# and of S3's error codes.
_LOGIN = re.compile(
    "NoCredentialsError|PartialCredentialsError|CredentialRetrievalError|ProfileNotFound|"
    "DefaultCredentialsError|RefreshError|TokenRetrievalError|NoAuthTokenError|SSOError|"
    "ClientAuthenticationError|InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|InvalidToken|"
    "TokenRefreshRequired"
)
_NETWORK = re.compile(
    "HTTPClientError|ConnectionError|ConnectTimeoutError|ReadTimeoutError|ResponseStreamingError|"
    "IncompleteReadError|ClientConnectionError|ClientPayloadError|ServerTimeoutError|Timeout|"
    "ChunkedEncodingError|ProxyError|TransportError|ChecksumError|FlexibleChecksumError|"
    "ServiceRequestError|ServiceResponseError|gaierror|TimeoutError|"
    "ResponseParserError|JSONDecodeError"
)


@contextlib.contextmanager
def translated(action: str, href: str) -> Iterator[None]:
    """Raise what the block raises as our own error; `action` as in "writing", `href` unsigned."""
    try:
        yield
    except GeosamStacError:
        raise
    except Exception as error:
        # Drivers raise their own libraries' types, which cannot be imported where not installed.
        raise _translate(error, action, href) from error


def _translate(error: Exception, action: str, href: str) -> GeosamStacError:
    """The project's error for a driver's: by errno, HTTP status, service code and class name."""
    names = [kind.__name__ for kind in type(error).__mro__]
    response = getattr(error.__cause__, "response", None)  # s3fs keeps botocore's error as cause
    service = response if isinstance(response, dict) else {}
    code = str(service.get("Error", {}).get("Code", ""))
    status = _status(error, service)
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (isinstance(error, PermissionError) or status == 403):
        number = errno.EACCES
    what = f"{action} failed: "
    if status == 401 or any(map(_LOGIN.fullmatch, [*names, code])):
        return ConfigurationError(
            f"{what}the store accepts no credentials from here",
            href=href,
            got=code or names[0],
            hint=_HINT_LOGIN,
        )
    if isinstance(error, FileNotFoundError) and action in ("reading", "looking up"):
        return DataError(f"{what}there is no such file", href=href)
    if number in _LASTING:
        text, hint = _LASTING[number]
        return StorageError(f"{what}{text}", href=href, got=code or None, hint=hint)
    if (
        number in _TEMPORARY_ERRNOS
        or any(map(_NETWORK.fullmatch, names))
        or (status is not None and (status in (408, 425, 429) or status >= 500))
    ):
        passing = TemporaryError(f"{what}{_reason(error)}", href=href, hint=_HINT_AGAIN)
        headers = service.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        passing.retry_after_s = retry_after_s(headers.get("retry-after"))
        return passing
    return StorageError(f"{what}{_reason(error)}", href=href, hint=_HINT_ACCESS)


def _status(error: Exception, service: dict[str, Any]) -> int | None:
    status = service.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if status is None:
        status = getattr(error, "code", getattr(error, "status", None))
    if status is None and str(error).startswith("Forbidden:"):
        return 403  # gcsfs hands on a 403 as text alone (gcsfs/retry.py)
    return int(status) if str(status).isdigit() else None


def _reason(error: Exception) -> str:
    text = (getattr(error, "strerror", None) or str(error)).strip().rstrip(".")
    # Endpoints stand in drivers' messages, at times with their query.
    return type(error).__name__ if not text or hrefs.find_secret(text) else " ".join(text.split())
