"""Which weights a model gets: named, found in the cache or fetched into it, and checked.

Deals in files and checksums; imports no torch (`weights.py` reads what the files hold). The
environment is handed in, never read here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from geosam_stac.encoders.download import (
    Access,
    download,
    file_sha256,
    public_url,
)
from geosam_stac.encoders.registry import MODELS, ModelEntry
from geosam_stac.errors import ConfigurationError, UsageError
from geosam_stac.events import Notice, Sink, ignore
from geosam_stac.retry import Retries

__all__ = [
    "Verification",
    "Weights",
    "cached_path",
    "default_cache_dir",
    "fetch",
    "file_sha256",
    "hugging_face_token",
    "resolve",
    "verify",
]

_UNTRAINED = "untrained"
_MAX_SEED = 2**63 - 1  # what torch.manual_seed takes


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The weights that a model shall have: a file's, or random ones from a seed.

    Exactly one of `path` and `seed` is set. `sha256` is the file's (None for random weights:
    it is known when they are built). `label` names them for humans: `upstream`, a file's base
    name, `untrained:0`. `upstream`: they are, byte for byte, the published ones; for a file whose
    checksum nobody publishes, that it came from the model's own address.
    """

    entry: ModelEntry
    path: Path | None
    seed: int | None
    sha256: str | None
    label: str
    upstream: bool


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What `verify` found.

    `sha256` is the file's own, `expected` the one it should have (None: nobody says) and
    `source` who says so. `ok` is None where there is nothing to compare with.
    """

    path: Path
    sha256: str
    expected: str | None
    ok: bool | None
    source: str


def default_cache_dir(environ: Mapping[str, str]) -> Path:
    """Where checkpoints are kept.

    `GEOSAM_STAC_CACHE`, else `$XDG_CACHE_HOME/geosam-stac`, else `~/.cache/geosam-stac`. A
    relative `XDG_CACHE_HOME` is ignored, as the XDG base directory specification asks.
    """
    own = environ.get("GEOSAM_STAC_CACHE")
    if own:
        return Path(own).expanduser()
    xdg = environ.get("XDG_CACHE_HOME", "")
    if xdg and Path(xdg).is_absolute():
        return Path(xdg) / "geosam-stac"
    home = environ.get("HOME")
    return (Path(home) if home else Path.home()) / ".cache" / "geosam-stac"


def hugging_face_token(environ: Mapping[str, str]) -> str | None:
    """The token that gated weights are asked with: `HF_TOKEN`, else the one `hf auth login` keeps.

    That lies in `HF_TOKEN_PATH`, else `$HF_HOME/token`, else `~/.cache/huggingface/token`
    (huggingface_hub/constants.py). None where there is none.
    """
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if token := environ.get(name, "").strip():
            return token
    cache = environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME") or Path.home()) / ".cache"
    home = Path(environ.get("HF_HOME") or Path(cache) / "huggingface")
    path = Path(environ.get("HF_TOKEN_PATH") or home / "token").expanduser()
    try:
        return path.read_text().strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def cached_path(entry: ModelEntry, cache_dir: Path) -> Path:
    """Where the model's upstream file lies in the cache, or would lie."""
    return cache_dir / _base_name(entry.url)


def resolve(
    entry: ModelEntry,
    checkpoint: str | None,
    *,
    cache_dir: Path,
    sink: Sink = ignore,
    retries: Retries | None = None,
    token: str | None = None,
) -> Weights:
    """Turn `--checkpoint` into weights that are there, fetching them where need be.

    Parameters
    ----------
    checkpoint
        None: the model's own file, from the cache or its address. `untrained[:SEED]`: random
        weights. An http(s) URL: fetched once into the cache. Else the path of a file.
    entry, cache_dir, sink, retries
        The model, the cache, who hears of the fetch, and how often it tries.
    token
        A Hugging Face token (`hugging_face_token`), for models whose licence must be accepted.

    Raises
    ------
    UsageError
        The seed is not a whole number of 0 or more.
    ConfigurationError
        No such file or address, or a file whose sha256 is not the expected one.
    TemporaryError, StorageError
        As `fetch`.
    """
    if checkpoint is None:
        place = _Place.of(entry, cache_dir, token)
        return _cached(entry, entry.url, place, label="upstream", sink=sink, retries=retries)
    if checkpoint.partition(":")[0].lower() == _UNTRAINED:
        seed = _seed(checkpoint)
        return Weights(
            entry=entry,
            path=None,
            seed=seed,
            sha256=None,
            label=f"{_UNTRAINED}:{seed}",
            upstream=False,
        )
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", checkpoint)
    if scheme is None:
        return _local(entry, Path(checkpoint).expanduser())
    if scheme[1].lower() not in ("http", "https"):
        raise ConfigurationError(
            "checkpoints are fetched over http and https only",
            href=public_url(checkpoint),
            hint="Copy the file here and give --checkpoint PATH",
        )
    place = _Place.of(checkpoint, cache_dir, token)
    return _cached(
        entry, checkpoint, place, label=_base_name(checkpoint), sink=sink, retries=retries
    )


def fetch(
    what: ModelEntry | str,
    *,
    cache_dir: Path,
    sink: Sink = ignore,
    retries: Retries | None = None,
    token: str | None = None,
) -> Path:
    """Fetch a model's upstream file, or an http(s) URL, into the cache; its path there.

    A file that is there already is left alone (`verify` checks it). The fetch resumes what an
    earlier one began, is checked against the published sha256 or the pin of the first fetch, and
    gets its name only when it is whole and right.

    Raises
    ------
    TemporaryError
        The server cannot be reached, breaks off, throttles or fails, on every try.
    ConfigurationError
        The server refuses (4xx), or gives a file of the wrong size or sha256. Of gated weights
        it says how to get access.
    StorageError
        The cache cannot be written.
    """
    place = _Place.of(what, cache_dir, token)
    if not place.path.exists():
        url = what if isinstance(what, str) else what.url
        _fetch(url, place, sink, retries)
    return place.path


def verify(what: ModelEntry | Path, cache_dir: Path) -> Verification:
    """Compare a file's sha256 with what it should be.

    Parameters
    ----------
    what
        A model: its file in the cache. A path: that file, compared with the pin beside it, else
        with the published checksums of all models.
    cache_dir
        The cache.

    Raises
    ------
    ConfigurationError
        There is no such file.
    """
    if isinstance(what, ModelEntry):
        place = _Place.of(what, cache_dir)
        if not place.path.is_file():
            raise ConfigurationError(
                f"{what.name} is not in the cache",
                href=str(place.path),
                hint=f"`geosam-stac models fetch {what.name}` fetches it",
            )
        return _compare(place.path, *place.expected())
    _must_be_file(what)
    pin = _read_pin(what)
    if pin is not None:
        return _compare(what, pin, f"pinned in {_pin_path(what).name}")
    got = file_sha256(what)
    named = {_base_name(entry.url): entry for entry in MODELS}
    entry = next((entry for entry in MODELS if entry.sha256 == got), None) or named.get(what.name)
    if entry is None or entry.sha256 is None:
        return Verification(
            path=what, sha256=got, expected=None, ok=None, source="nobody publishes its sha256"
        )
    return Verification(
        path=what,
        sha256=got,
        expected=entry.sha256,
        ok=got == entry.sha256,
        source=f"{entry.name}: {entry.sha256_source}",
    )


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a fetched file lies, and what is known of it beforehand."""

    path: Path
    size_bytes: int | None
    sha256: str | None
    sha256_source: str | None
    access: Access

    @classmethod
    def of(cls, what: ModelEntry | str, cache_dir: Path, token: str | None = None) -> _Place:
        if isinstance(what, ModelEntry):
            return cls(
                path=cached_path(what, cache_dir),
                size_bytes=what.size_bytes,
                sha256=what.sha256,
                sha256_source=what.sha256_source,
                access=Access(token=token, licence_page=what.licence_page, licence=what.licence),
            )
        # The base name alone would make two addresses share a file.
        key = hashlib.sha256(what.partition("#")[0].encode()).hexdigest()[:16]
        path = cache_dir / f"{key}-{_base_name(what)}"
        return cls(
            path=path,
            size_bytes=None,
            sha256=None,
            sha256_source=None,
            access=Access(token=token, licence_page=_licence_page(what)),
        )

    def expected(self) -> tuple[str | None, str]:
        """The sha256 that the file must have, and who says so."""
        if self.sha256 is not None:
            return self.sha256, f"published at {self.sha256_source}"
        return _read_pin(self.path), f"pinned in {_pin_path(self.path).name}"


def _licence_page(url: str) -> str | None:
    """The page of the Hugging Face repository that a URL is of."""
    match = re.match(r"https://huggingface\.co/([\w.-]+/[\w.-]+)/resolve/", url)
    return None if match is None else f"https://huggingface.co/{match[1]}"


def _cached(
    entry: ModelEntry,
    url: str,
    place: _Place,
    *,
    label: str,
    sink: Sink,
    retries: Retries | None,
) -> Weights:
    if not place.path.exists():
        got = _fetch(url, place, sink, retries)
    else:
        found = _compare(place.path, *place.expected())
        got = found.sha256
        if found.ok is False:
            raise ConfigurationError(
                "the cached checkpoint is damaged",
                href=str(place.path),
                expected=f"sha256 {found.expected} ({found.source})",
                got=found.sha256,
                hint="Delete it; the next run fetches it again",
            )
    return Weights(
        entry=entry,
        path=place.path,
        seed=None,
        sha256=got,
        label=label,
        upstream=url == entry.url or got == entry.sha256,
    )


def _local(entry: ModelEntry, path: Path) -> Weights:
    _must_be_file(path)
    sha256 = file_sha256(path)
    return Weights(
        entry=entry,
        path=path,
        seed=None,
        sha256=sha256,
        label=path.name,
        upstream=sha256 == entry.sha256,
    )


def _fetch(url: str, place: _Place, sink: Sink, retries: Retries | None) -> str:
    expected, _ = place.expected()

    def pin(sha256: str) -> None:
        # Before the file has its name: a crash in between leaves a pin without a file, which the
        # next fetch must match, rather than a file that nothing vouches for.
        if expected is None:
            _pin_path(place.path).write_text(f"{sha256}  {place.path.name}\n")
            sink(
                Notice(
                    message=f"{place.path.name}: no sha256 is published for it, so the one of "
                    f"this first fetch is pinned: {sha256}",
                    level="warning",
                )
            )

    return download(
        url,
        place.path,
        size_bytes=place.size_bytes,
        sha256=expected,
        sink=sink,
        retries=retries or Retries(sink=sink),
        before_commit=pin,
        access=place.access,
    )


def _seed(checkpoint: str) -> int:
    _, colon, text = checkpoint.partition(":")
    if not colon:
        return 0
    if re.fullmatch(r"[0-9]{1,19}", text) and int(text) <= _MAX_SEED:
        return int(text)
    raise UsageError(
        "--checkpoint untrained takes a seed that is a whole number",
        expected="untrained or untrained:SEED, as in untrained:7",
        got=repr(checkpoint),
    )


def _must_be_file(path: Path) -> None:
    if not path.is_file():
        raise ConfigurationError(
            "there is no such checkpoint file",
            href=str(path),
            got="a folder" if path.is_dir() else None,
            hint="Check the path, or leave --checkpoint out to fetch the model's own",
        )


def _compare(path: Path, expected: str | None, source: str) -> Verification:
    got = file_sha256(path)
    return Verification(
        path=path,
        sha256=got,
        expected=expected,
        ok=None if expected is None else got == expected,
        source=source if expected is not None else "no sha256 is published or pinned",
    )


def _pin_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _read_pin(path: Path) -> str | None:
    """The sha256 in the file that `sha256sum` would write beside this one, if there is one."""
    pin = _pin_path(path)
    if not pin.is_file():
        return None
    match = re.match(r"[0-9a-f]{64}\b", pin.read_text().strip().lower())
    if match is None:
        raise ConfigurationError(
            "the checkpoint's pin file holds no sha256",
            href=str(pin),
            hint="Delete it and the checkpoint beside it; the next run fetches both again",
        )
    return match[0]


def _base_name(url: str) -> str:
    """The last part of the URL's path, as a name that is safe in a cache folder."""
    name = unquote(PurePosixPath(urlsplit(url).path).name)
    return re.sub(r"[^A-Za-z0-9._+-]", "_", name).lstrip(".") or "checkpoint"
