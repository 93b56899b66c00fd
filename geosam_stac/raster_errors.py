"""GDAL's read errors turned into ours: gone for good, or worth another try. Pure text, no GDAL.

Of a request that fails in mid-read GDAL's error says only that bytes are missing. The HTTP status
stands in its debug messages, which rasterio hands to `logging`: `heard_statuses` listens there.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import threading
from collections.abc import Iterator, Sequence

from geosam_stac.errors import (
    ConfigurationError,
    DataError,
    ForbiddenError,
    GeosamStacError,
    TemporaryError,
    WrongContentError,
)
from geosam_stac.hrefs import is_local, unsigned

# Codes are looked for where GDAL writes them: a file name may well hold "403" (20240403).
_HTTP_CODE = re.compile(
    r"http (?:response|error) code[^:]*:\s*(\d{3})|^(\d{3}): range downloading", re.IGNORECASE
)
_FORBIDDEN = ("access denied", "accessdenied", "permission denied")
_GONE = ("no such file", "does not exist", "nosuchkey", "nosuchbucket")
# What GDAL says of a file whose server has hung up, as of one that is not there.
_NO_FILE = "does not exist in the file system"
_NO_RASTER = ("not recognized as", "not a supported", "range downloading not supported")
# As "AWS_SECRET_ACCESS_KEY and AWS_NO_SIGN_REQUEST configuration options not defined".
_NO_CREDENTIALS = ("configuration options not defined", "configuration option not defined")

_HEARD_CODE = re.compile(r"response_code=(\d{3})")
_heard = threading.local()


@contextlib.contextmanager
def heard_statuses() -> Iterator[list[int]]:
    """HTTP statuses that GDAL gets in this thread meanwhile, oldest first.

    It tells them where CPL_DEBUG is set as in `types.GDAL_SETTINGS`.
    """
    _listen()
    codes: list[int] = []
    _heard.codes = codes
    try:
        yield codes
    finally:
        _heard.codes = None


@functools.cache
def _listen() -> None:
    for name in ("rasterio._err", "rasterio._env"):  # while a file is read; while it is opened
        logger = logging.getLogger(name)
        logger.addFilter(_hear)
        logger.setLevel(logging.DEBUG)


def _hear(record: logging.LogRecord) -> bool:
    codes = getattr(_heard, "codes", None)
    if codes is not None and (match := _HEARD_CODE.search(record.getMessage())):
        codes.append(int(match[1]))
    # Nobody else hears more of it than before.
    return logging.getLogger("rasterio").isEnabledFor(record.levelno)


def read_error(
    error: BaseException, *, item: str | None, href: str, statuses: Sequence[int] = ()
) -> GeosamStacError:
    """Turn an error of GDAL into ours.

    Parameters
    ----------
    error
        As rasterio raises it; its causes are read too.
    item, href
        Where it happened; the href unsigned.
    statuses
        HTTP statuses of the requests until then: the last counts where the error tells none.

    Returns
    -------
    ConfigurationError (no credentials), DataError (gone for good), WrongContentError (perhaps an
    error page) or TemporaryError.
    """
    text = _all_text(error)
    low = text.lower()
    code = _HTTP_CODE.search(text)
    status = int(code[1] or code[2]) if code else None
    if status is None and statuses and statuses[-1] >= 400:
        status = statuses[-1]
        text = f"HTTP {status}: {text}"
    kind: type[GeosamStacError] = DataError
    if any(words in low for words in _NO_CREDENTIALS):
        kind, message = ConfigurationError, "there are no credentials to read the asset"
        hint = "Set them in the environment, or AWS_NO_SIGN_REQUEST=YES for a public bucket"
    elif status in (401, 403) or any(words in low for words in _FORBIDDEN):
        kind, message = ForbiddenError, "the asset may not be read"
        hint = "The store asks for credentials or a signature"
    elif _NO_FILE in low and status is None and not is_local(href):
        kind, message = WrongContentError, "the asset is not there"
        hint = "Check the asset's href in the Item, and the network"
    elif status in (404, 410) or any(words in low for words in _GONE):
        message, hint = "the asset is not there", "Check the asset's href in the Item"
    elif status is None and any(words in low for words in _NO_RASTER):
        message, hint = "the asset is no raster that GDAL can read", "Check the asset's href"
        # From afar it may be an error page, or what came before the connection broke.
        kind = DataError if is_local(href) else WrongContentError
    elif status is not None and 400 <= status < 500 and status not in (408, 425, 429):
        message, hint = "the server refuses the asset", "Check the asset's href in the Item"
    elif status is None and is_local(href):
        message, hint = "the asset could not be read", "The file may be damaged: get it again"
    else:
        kind, message = TemporaryError, "the asset could not be read"
        hint = "Try again; if it stays, the file may be damaged"
    return kind(message, item=item, href=href, got=unsigned_text(text), hint=hint)


def _all_text(error: BaseException) -> str:
    """The messages of an error and its causes: rasterio's own often only points to GDAL's."""
    texts: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(texts) < 4:
        # GDAL's own errors print as (class, number, 'message').
        text = str(getattr(cause, "errmsg", "") or cause)
        texts.append(text.replace("See previous exception for details.", "").strip())
        cause = cause.__cause__
    return " ".join(dict.fromkeys(text for text in texts if text))


def unsigned_text(text: str) -> str:
    """A message of GDAL with the query strings of its URLs cut off: they may hold a signature."""
    return " ".join(
        unsigned(word.partition("?")[0]) if "://" in word or "?" in word else word
        for word in text.split()
    )
