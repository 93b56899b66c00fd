"""One file over HTTP onto a local disk: streamed, resumed, retried, checked, renamed into place.

Knows nothing of models. Imports no torch.

Two processes may fetch the same file at once: the one that holds an `flock` on `.NAME.lock`
writes `NAME.part`, the others wait and then find the finished file. The kernel drops the lock
with its process, so none goes stale. Where the file system or platform has no `flock` (Windows,
some HPC mounts), each process writes a part file of its own name, which is then not resumed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from geosam_stac.errors import ConfigurationError, StorageError, TemporaryError
from geosam_stac.events import Download, Notice, Sink
from geosam_stac.retry import Retries, retry_after_s

if TYPE_CHECKING:
    import requests  # not above: weights that are there already need no network library

# What is lost when a connection breaks: urllib3 hands out whole chunks only. With 1 MiB a line
# that breaks more often than that would never come any further.
_CHUNK_BYTES = 1 << 16
TOKEN_HOSTS = ("https://huggingface.co",)
_RETRY_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})


def public_url(url: str) -> str:
    """The URL without user, password, query and fragment: any of them may be a secret."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass(frozen=True, kw_only=True)
class Access:
    """What opens a gated file: a Hugging Face token, and the page where its licence is accepted.

    The token goes to `TOKEN_HOSTS` alone, and never into a message. `licence_page` is None
    for a file that anybody may fetch, or of which nothing is known.
    """

    token: str | None = field(default=None, repr=False)
    licence_page: str | None = None
    licence: str | None = None

    def headers(self, url: str) -> dict[str, str]:
        """What this URL is asked with; requests drops it where it is redirected to another host."""
        parts = urlsplit(url)
        if self.token is None or f"{parts.scheme}://{parts.netloc}" not in TOKEN_HOSTS:
            return {}
        return {"Authorization": f"Bearer {self.token}"}


OPEN = Access()


def _broken(url: str, reason: str, access: Access = OPEN) -> TemporaryError:
    """One try came to nothing, another may help; `access` where the file has not been given yet."""
    hint = (
        "Try again later (it goes on where it broke off), fetch it elsewhere and give "
        "--checkpoint PATH, or try the pipeline with --checkpoint untrained"
    )
    if access.licence_page is not None and access.licence is not None:
        hint += (
            ". Wherever it is fetched, it is given only to those who accept its licence "
            f"({access.licence}): ask for access at {access.licence_page}"
        )
        hint += " and set HF_TOKEN" if access.token is None else ""
    return TemporaryError(
        "cannot fetch the checkpoint", href=public_url(url), got=reason, hint=hint
    )


def download(
    url: str,
    dest: Path,
    *,
    size_bytes: int | None,
    sha256: str | None,
    sink: Sink,
    retries: Retries,
    before_commit: Callable[[str], None],
    access: Access = OPEN,
) -> str:
    """Fetch `url` to `dest`, unless another process has done so meanwhile.

    Parameters
    ----------
    url, dest
        From where to where; the folder of `dest` is made.
    size_bytes, sha256
        What the file must have; None where nobody says.
    sink
        Gets Download events.
    retries
        How it is tried again; what is tried with more bytes there than before counts as new.
    before_commit
        Called with the file's sha256 once it is whole and right, before it gets its name.
    access
        The token to ask with, and what to tell where it is refused.

    Returns
    -------
    str
        sha256 of the file, hex.

    Raises
    ------
    TemporaryError
        The server cannot be reached, breaks off or refuses, as long as `retries` tries.
    ConfigurationError
        The server has no such file or does not give it (4xx), or the file has the wrong size or
        sha256.
    StorageError
        `dest` cannot be written.
    """
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        with _own_part(dest, sink) as part:
            if not dest.exists():
                _fill(
                    url,
                    part,
                    name=dest.name,
                    total=size_bytes,
                    sha256=sha256,
                    sink=sink,
                    retries=retries,
                    access=access,
                )
                got = file_sha256(part)
                if sha256 is not None and got != sha256:
                    _drop(part)
                    raise ConfigurationError(
                        "the fetched checkpoint has the wrong sha256 and was thrown away",
                        href=public_url(url),
                        expected=sha256,
                        got=got,
                        hint="Try once more; if it stays so, a proxy or the server changes the "
                        "file: fetch it elsewhere and give --checkpoint PATH",
                    )
                before_commit(got)
                part.replace(dest)
                _drop(part)
                return got
        return file_sha256(dest)
    except OSError as error:
        raise StorageError(
            f"cannot write the checkpoint: {error.strerror or error}",
            href=str(dest),
            hint="Free space there, or set GEOSAM_STAC_CACHE to another folder",
        ) from error


def _fill(
    url: str,
    part: Path,
    *,
    name: str,
    total: int | None,
    sha256: str | None,
    sink: Sink,
    retries: Retries,
    access: Access,
) -> None:
    """Try until `part` holds the whole file, or give up."""
    import requests

    with requests.Session() as session:

        def attempt(_: int) -> None:
            _attempt(
                session,
                url,
                part,
                name=name,
                size_bytes=total,
                sha256=sha256,
                sink=sink,
                timeout_s=retries.policy.http_timeout_s,
                access=access,
            )

        retries.run(
            "checkpoint",
            attempt,
            progress=lambda: part.stat().st_size if part.exists() else 0,
        )


def _attempt(
    session: requests.Session,
    url: str,
    part: Path,
    *,
    name: str,
    size_bytes: int | None,
    sha256: str | None,
    sink: Sink,
    timeout_s: tuple[float, float],
    access: Access,
) -> None:
    """One request; appends to `part` where the server lets us, else starts it again."""
    import requests

    offset = part.stat().st_size if part.exists() else 0
    headers = access.headers(url)
    headers["Accept-Encoding"] = "identity"  # or Content-Length would be of compressed bytes
    validator = _validator(part, url)
    if offset and (validator or sha256):
        # Without a validator a changed file would be glued to the old one's head: then only a
        # known sha256, which would notice, allows to resume.
        headers["Range"] = f"bytes={offset}-"
        if validator:
            headers["If-Range"] = validator
    try:
        with session.get(url, headers=headers, stream=True, timeout=timeout_s) as response:
            if response.status_code == 416:
                # Nothing lies beyond our part: it is whole already, or of another file.
                if _total(response, 0) == offset:
                    return
                _drop(part)
                raise _broken(url, "the file on the server has changed")
            _check_status(response, url, access)
            resumed = response.status_code == 206
            if resumed and not _continues(response, offset):
                _drop(part)
                raise _broken(url, "the server answered with another range than asked for")
            done = offset if resumed else 0
            total = _total(response, done)
            if size_bytes is not None and total is not None and total != size_bytes:
                _drop(part)
                raise ConfigurationError(
                    "what lies at the checkpoint's address is another file",
                    href=public_url(url),
                    expected=f"{size_bytes} bytes",
                    got=f"{total} bytes",
                    hint="If a proxy or a sign-in page answers there, fetch the file elsewhere "
                    "and give --checkpoint PATH",
                )
            if not resumed:
                _remember(part, url, response)
            with part.open("ab" if resumed else "wb") as stream:
                sink(Download(name=name, done_bytes=done, total_bytes=total))
                for chunk in response.iter_content(_CHUNK_BYTES):
                    stream.write(chunk)
                    done += len(chunk)
                    sink(Download(name=name, done_bytes=done, total_bytes=total))
                stream.flush()
                os.fsync(stream.fileno())
    except (
        requests.ConnectionError,
        requests.Timeout,
        requests.exceptions.ChunkedEncodingError,
    ) as error:
        raise _broken(url, _reason(error), access) from error
    except requests.RequestException as error:  # a malformed URL, too many redirects, ...
        raise ConfigurationError(
            f"the checkpoint cannot be asked for ({type(error).__name__})",
            href=public_url(url),
            hint="Check the address, or give --checkpoint PATH",
        ) from error
    if total is not None and done != total:
        raise _broken(url, f"the server broke off at {done} of {total} bytes")


def _check_status(response: requests.Response, url: str, access: Access) -> None:
    status = response.status_code
    if status in (200, 206):
        return
    if status in _RETRY_STATUS or status >= 500:
        error = _broken(url, f"the server answers {status} {response.reason}", access)
        error.retry_after_s = retry_after_s(response.headers.get("Retry-After"))
        raise error
    if status in (401, 403) and access.licence_page is not None:
        raise _gated(status, url, access)
    raise ConfigurationError(
        f"the server does not give the checkpoint: {status} {response.reason}",
        href=public_url(url),
        hint="Check the address, or fetch the file elsewhere and give --checkpoint PATH",
    )


def _gated(status: int, url: str, access: Access) -> ConfigurationError:
    if access.token is None:
        got = f"no token ({status})"
        step = "then set HF_TOKEN to a read token of that account"
    elif status == 401:
        got = "a token that Hugging Face does not know (401)"
        step = "then set HF_TOKEN to a valid read token of that account"
    else:
        got = "a token whose account has no access yet (403)"
        step = "wait until access is granted (the page says so), and try again"
    return ConfigurationError(
        "these weights are given only to those who accept their licence"
        + (f" ({access.licence})" if access.licence else ""),
        href=public_url(url),
        expected="a Hugging Face account with access",
        got=got,
        hint=f"Sign in and ask for access at {access.licence_page}, {step}. Or fetch the file in a "
        "browser and give --checkpoint PATH, or try the pipeline with --checkpoint untrained",
    )


def _continues(response: requests.Response, offset: int) -> bool:
    return response.headers.get("Content-Range", "").startswith(f"bytes {offset}-")


def _total(response: requests.Response, done: int) -> int | None:
    """Size of the whole file in bytes, as the server says it."""
    ranged = response.headers.get("Content-Range", "").rpartition("/")[2]
    if ranged.isdigit():
        return int(ranged)
    length = response.headers.get("Content-Length", "")
    return done + int(length) if length.isdigit() else None


def _reason(error: Exception) -> str:
    """A short reason without the URL, which may be signed and which requests repeats."""
    import requests

    if isinstance(error, requests.Timeout):
        return "the server does not answer in time"
    if isinstance(error, requests.exceptions.SSLError):
        return "the TLS handshake fails (certificate not trusted?)"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke off"
    return "the server cannot be reached, or the connection broke off"


def _notes(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _remember(part: Path, url: str, response: requests.Response) -> None:
    """Write down which version of the file `part` is the beginning of."""
    etag = response.headers.get("ETag", "")
    if etag.startswith("W/"):  # If-Range takes strong validators only (RFC 9110, 13.1.5)
        etag = ""
    validator = etag or response.headers.get("Last-Modified", "")
    key = hashlib.sha256(url.encode()).hexdigest()
    _notes(part).write_text(json.dumps({"url_sha256": key, "validator": validator}))


def _validator(part: Path, url: str) -> str:
    try:
        notes = json.loads(_notes(part).read_text())
        same = notes["url_sha256"] == hashlib.sha256(url.encode()).hexdigest()
        return str(notes["validator"]) if same else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _drop(part: Path) -> None:
    part.unlink(missing_ok=True)
    _notes(part).unlink(missing_ok=True)


@contextlib.contextmanager
def _own_part(dest: Path, sink: Sink) -> Iterator[Path]:
    """A part file that nobody else writes meanwhile; see the module's docstring."""
    lock = dest.with_name(f".{dest.name}.lock")
    fd = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if _flock(fd, dest.name, sink):
            yield dest.with_name(dest.name + ".part")
            return
        part = dest.with_name(f"{dest.name}.{uuid.uuid4().hex}.part")
        try:
            yield part
        finally:
            _drop(part)
    finally:
        os.close(fd)  # which drops the lock


def _flock(fd: int, name: str, sink: Sink) -> bool:
    """Wait for the lock; False where there are no such locks."""
    try:
        import fcntl
    except ImportError:
        return False
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sink(Notice(message=f"another process is fetching {name}; waiting for it"))
            fcntl.flock(fd, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP):
            return False
        raise
    return True
