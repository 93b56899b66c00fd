"""Hrefs as plain text: take signatures out, find ones that were left, resolve, tell what is local.

Nothing signed is written down (DESIGN section 4). Pure: opens nothing, imports `errors` only.
What `find_secret` reports in a URL's query or fragment, `unsigned` removes.
"""

from __future__ import annotations

import posixpath
import re
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

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)://")
_URL = re.compile(r"\b[A-Za-z][A-Za-z0-9+.-]+://[^\s\"'<>]+")
_QUERY = re.compile(r"[?][^\s\"'<>]+")
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
    if _SCHEME.match(href) or href.startswith("/vsi") or _is_drive(href):
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
