"""Hrefs as plain text: take signatures out, find ones that were left, resolve, tell what is local.

Nothing signed is written down (DESIGN section 4). Pure: opens nothing, imports `errors` only.
What `find_secret` reports in a URL's query or fragment, `unsigned` removes.
"""

from __future__ import annotations

import ipaddress
import posixpath
import re
import unicodedata
from pathlib import Path, PurePath
from urllib.parse import quote, unquote, unquote_plus, urlsplit

from geosam_stac.errors import DataError


def _words(*lines: str) -> frozenset[str]:
    return frozenset(" ".join(lines).split())


# Lower case, "-" as "_". Azure SAS, AWS S3 v2 and v4, Google, CloudFront, Alibaba, Tencent, Akamai,
# and the names that APIs give their keys.
_SECRET_NAMES = _words(
    "sig signature sas awsaccesskeyid googleaccessid ossaccesskeyid accesskeyid access_key_id",
    "key_pair_id access_key accesskey accountkey account_key secret_key secretkey api_key apikey",
    "x_api_key subscription_key ocp_apim_subscription_key token jwt bearer auth authorization",
    "password passwd pwd secret credential credentials hmac hdnea hdnts __gda__ q_ak",
)
_SECRET_PREFIXES = ("x_amz_", "x_goog_", "x_oss_", "x_cos_", "x_obs_")
_SECRET_SUFFIXES = ("_token", "accesstoken", "authtoken", "signature", "_secret", "_password")

# Harmless alone, part of the signature beside it: dropped only with a secret in the same query.
# Azure: "Create a service / account / user delegation SAS", learn.microsoft.com.
_COMPANIONS = _words(
    "sv se sp sr st spr sip si ss srt sdd ses skoid sktid skt ske sks skv saoid suoid scid rscc",
    "rscd rsce rscl rsct expires policy q_sign_algorithm q_sign_time q_key_time q_header_list",
    "q_url_param_list",
)

# What an Item that came over the network may name. rasterio and GDAL know many more places, and
# most of them are on this machine or run a driver that fetches what it likes.
REMOTE_SCHEMES = ("https", "http", "s3", "gs", "az")

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)://")
_URL = re.compile(r"\b[A-Za-z][A-Za-z0-9+.-]+://[^\s\"'<>]+")
_QUERY = re.compile(r"[?][^\s\"'<>]+")
# `file:/etc/x`, `NETCDF:/x`, `GTIFF_DIR:1:/x`: absolute, though nothing of a URL follows. In lower
# case a colon may well stand in a file's name, so only what is a URI's scheme counts there.
_PREFIX = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]+:/|[A-Z][A-Z0-9_]+:)")
# A bucket with other signs may end up as a host name, a port or a path of its own.
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# As inet_aton reads them, and curl with it: 2130706433, 0x7f.1, 0177.0.0.1, 127.1.
_NUMBERS = re.compile(r"(?:0[xX][0-9a-fA-F]*|\d+)(?:\.(?:0[xX][0-9a-fA-F]*|\d+))*\.?")
_USERINFO = re.compile(r"(://)[^/?#@\s\"'<>]*:[^/?#@\s\"'<>]*@")
_HTTP_USERINFO = re.compile(r"^(https?://)[^/?#@]*@", re.IGNORECASE)
_PARAMETER = re.compile(r"(?:[?&;#]|\\u0026)(?:amp;)?([A-Za-z0-9_.%-]+)=[^&;#\s\"'<>\\]")


def unsigned(href: str) -> str:
    """The href without what grants access; everything else stays as it was spelled.

    Parameters that carry signatures, tokens or keys go, with the parameters that belong to them;
    harmless ones stay. `user:password@` goes. Local paths are returned unchanged.
    """
    if not _SCHEME.match(href) and not href.startswith("/vsi"):
        return href
    # In http a lone user name can be a token too; elsewhere it is a place: abfs://container@account.
    href = _HTTP_USERINFO.sub(r"\1", href)
    href = _USERINFO.sub(r"\1", href)
    rest, hash_mark, fragment = href.partition("#")
    base, _, query = rest.partition("?")
    kept_query = _without_secrets(query)
    kept_fragment = _without_secrets(fragment) if "=" in fragment else fragment
    result = f"{base}?{kept_query}" if kept_query else base
    result = f"{result}{hash_mark}{kept_fragment}" if kept_fragment else result
    # Odd spellings (encoded separators) may hide one more: then the whole tail goes.
    return result if find_secret(result) is None else base


def without_signatures(text: str) -> str:
    """A message or traceback of another library with the URLs in it unsigned.

    Of a path alone (`/search?token=...`) the query goes as a whole, where it holds a secret.
    """
    text = _URL.sub(lambda found: unsigned(found[0]), text)
    return _QUERY.sub(lambda found: "?..." if find_secret(found[0]) else found[0], text)


def find_secret(text: str) -> str | None:
    """Name of the first signature-like parameter in a text (a URL, a JSON document), or None.

    The last check before a document is written. The secret itself is never returned.
    Percent-encoded URLs inside parameters are searched too, two levels deep.
    """
    for _ in range(3):
        if _USERINFO.search(text):
            return "user:password@"
        for match in _PARAMETER.finditer(text):
            if _is_secret(match[1]):
                return unquote(match[1])
        decoded = unquote(text)
        if decoded == text:
            return None
        text = decoded
    return None


def absolute(href: str, base: str) -> str:
    """Resolve `href` against the href of the document that holds it.

    Parameters
    ----------
    href
        Absolute (returned as it is) or relative: `./a.tif`, `../a.tif`, `/a.tif`.
    base
        Href of the document: a local path, `file://`, `http(s)://`, `s3://` and the like. Its own
        query and fragment take no part.
    """
    # Inline VRT is none of these, and no relative href either.
    if _SCHEME.match(href) or _PREFIX.match(href) or href.startswith(("/vsi", "<")):
        return href
    if _is_drive(href):
        return href
    match = _SCHEME.match(base)
    if match is None:
        # PurePath.joinpath keeps an absolute href; normpath by hand would follow no symlink either.
        joined = PurePath(base).parent.joinpath(href).as_posix()
        return posixpath.normpath(joined)
    # urljoin knows http only: for s3:// and gs:// it would return the relative href unchanged.
    parts = urlsplit(base)
    if href.startswith("//"):
        return f"{parts.scheme}:{href}"
    path, mark, tail = re.match(r"([^?#]*)([?#]?)(.*)", href, re.DOTALL).groups()  # type: ignore[union-attr]
    joined = posixpath.join(posixpath.dirname(parts.path) or "/", path) if path else parts.path
    resolved = posixpath.normpath(joined) if joined else ""
    if path.endswith("/"):
        resolved += "/"
    return f"{parts.scheme}://{parts.netloc}{resolved}{mark}{tail}"


def is_local(href: str) -> bool:
    """True for plain paths (GDAL's `/vsi...` names among them: they have no scheme) and `file://`."""
    match = _SCHEME.match(href)
    return match is None or match[1].lower() == "file"


def remote_fault(href: str) -> str | None:
    """Why an href may not be followed when a stranger named it; None when its form is in order.

    In order are http, https, s3, gs and az URLs that every parser reads alike. Not: local paths,
    `file:`, GDAL's virtual file systems (`/vsi...`), connection strings (`NETCDF:...`, `vrt://`),
    inline XML, hosts spelled as numbers. Where the host lies is `sources.hosts`'s business.
    """
    match = _SCHEME.match(href)
    fault: str | None = None
    if href.startswith("/vsi"):
        fault = "it names one of GDAL's virtual file systems"
    elif href.lstrip().startswith("<"):
        fault = "it is a document, not a URL"
    elif "\\" in href or not href.isprintable():
        fault = "it holds characters that no URL has"
    elif match is None:
        prefix = _PREFIX.match(href)
        fault = f"it names the driver {prefix[0]}" if prefix else "it names a file of this machine"
    elif match[1].lower() not in REMOTE_SCHEMES:
        fault = f"{match[1]}:// is not one of {', '.join(REMOTE_SCHEMES)}"
    else:
        fault = _place_fault(href)
    return fault


def _place_fault(href: str) -> str | None:
    try:
        parts = urlsplit(href)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        return "it is no URL"
    if parts.scheme not in ("http", "https"):
        return None if _BUCKET.fullmatch(parts.netloc) else "its bucket's name is none"
    # IDNA makes plain digits and dots of some characters: one parser's name is another's address.
    plain = unicodedata.normalize("NFKC", host).replace("\u3002", ".")
    if plain != host or any(sign in host for sign in "% "):
        return "its host is disguised"
    if not host.strip("."):
        return "it names no host"
    return "its host is a number" if _NUMBERS.fullmatch(host) and not _is_ipv4(host) else None


def _is_ipv4(host: str) -> bool:
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return True


def to_local_path(href: str) -> Path:
    """The path that a plain path or a `file://` URL means.

    Raises
    ------
    DataError
        The href is not local, or the URL names another host.
    """
    if not is_local(href):
        raise DataError("not a local file", href=unsigned(href))
    if not _SCHEME.match(href):
        return Path(href)
    parts = urlsplit(href)
    if parts.netloc not in ("", "localhost"):
        raise DataError(
            "a file URL names another host", href=href, expected="file:///path", got=parts.netloc
        )
    return Path(unquote(parts.path))


def _is_drive(href: str) -> bool:
    return re.match(r"^[A-Za-z]:[\\/]", href) is not None


def _is_secret(name: str) -> bool:
    plain = _plain(name)
    return (
        plain in _SECRET_NAMES
        or plain.startswith(_SECRET_PREFIXES)
        or plain.endswith(_SECRET_SUFFIXES)
    )


def _plain(name: str) -> str:
    return unquote_plus(name).strip().lower().replace("-", "_")


def _without_secrets(query: str) -> str:
    parts = [(part, *part.partition("=")[::2]) for part in re.split("[&;]", query)]
    signed = any(_is_secret(name) for _, name, _ in parts)
    kept = []
    for part, name, value in parts:
        if _is_secret(name) or (signed and _plain(name) in _COMPANIONS):
            continue
        # A proxy's parameter may hold a signed URL of its own: ?url=https%3A%2F%2F...%3Fsig%3D...
        inner = unquote(value)
        if find_secret(inner) is None:
            kept.append(part)
        elif find_secret(unsigned(inner)) is None:
            kept.append(f"{name}={quote(unsigned(inner), safe='')}")
    # Unchanged queries keep their spelling: ";" separates parameters too.
    return query if kept == [part for part, _, _ in parts] else "&".join(kept)


def recordable(text: str) -> str:
    """What a user gave, for a document: unsigned; `...` where it would still grant access."""
    text = without_signatures(unsigned(text))
    return text if find_secret(text) is None else "..."
