"""Which signer and which GDAL options an Item's assets are opened with.

Put together of the user's word (`--signer`), the catalog profile, and the Item's own `storage:`
fields. The environment is handed in. An Item comes from strangers: it names regions and endpoints,
but nothing that it says spends the user's money or sends the user's credentials anywhere.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args
from urllib.parse import urlsplit

import pystac

from geosam_stac.errors import ConfigurationError, UsageError
from geosam_stac.hrefs import absolute, unsigned
from geosam_stac.sources.profiles import CollectionProfile, Profile, Signer, profile_of
from geosam_stac.sources.signing import (
    PC_TOKEN_URL,
    Headers,
    PlanetaryComputer,
    QueryToken,
    guard_logs,
)
from geosam_stac.types import Access, PlainAccess

SIGNERS: tuple[str, ...] = get_args(Signer)
HEADERS_VARIABLE = "GEOSAM_STAC_HEADERS"
HOSTS_VARIABLE = "GEOSAM_STAC_HEADER_HOSTS"
TOKEN_VARIABLE = "GEOSAM_STAC_TOKEN"
PARAMETER_VARIABLE = "GEOSAM_STAC_TOKEN_PARAMETER"
# The names that the `planetary-computer` package reads.
PC_KEY_VARIABLE = "PC_SDK_SUBSCRIPTION_KEY"
PC_URL_VARIABLE = "PC_SDK_SAS_URL"
# What a profile may do that only the Item has led to: neither spends nor sends anything.
HARMLESS = ("none", "planetary-computer", "anonymous")

_PAYER = "AWS_REQUEST_PAYER"
_REGION = re.compile(r"[a-z0-9-]+")
_ENDPOINT = re.compile(r"[A-Za-z0-9.-]+(:\d+)?")


@dataclass(frozen=True, kw_only=True)
class ItemAccess:
    """One Item's `Access`: a signer, the GDAL options for all hrefs, and those of its buckets.

    `stores` has GDAL options by href and by bucket (`s3://bucket`); `paying` those of them that
    bill whoever reads; `pays` says that the user has agreed to that.
    """

    signer: Access
    gdal: Mapping[str, str] = field(default_factory=dict)
    stores: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    paying: frozenset[str] = frozenset()
    pays: bool = False

    def sign(self, href: str) -> str:
        """The href to open now.

        Raises ConfigurationError for a bucket that bills whoever reads, when nobody agreed to it.
        """
        if not self.pays and not self.paying.isdisjoint(_names(href)):
            raise ConfigurationError(
                "the asset lies in a requester-pays bucket: reading it costs money",
                href=unsigned(href),
                hint="Give --signer requester-pays, and your AWS account pays for the transfer",
            )
        guard_logs()  # the Item's own href may hold a signature
        return self.signer.sign(href)

    def options(self, href: str) -> Mapping[str, str]:
        """The signer's options, over the profile's, over those of the Item's own `storage:`."""
        known = next((self.stores[name] for name in _names(href) if name in self.stores), {})
        if "AWS_S3_ENDPOINT" in self.gdal:
            known = {}  # the profile knows the store as a whole
        return {**known, **self.gdal, **self.signer.options(href)}

    def renew(self, href: str) -> bool:
        """As the signer says."""
        return self.signer.renew(href)


def accesses(
    *,
    profile: Profile | None,
    signer: str | None,
    environ: Mapping[str, str],
    anonymous: bool = False,
) -> Callable[[pystac.Item], Access]:
    """How the assets of Items are opened: what `Session(access=...)` takes.

    Parameters
    ----------
    profile
        The catalog that the user named; None: told by each Item, and then good for what neither
        spends nor sends anything (`HARMLESS`).
    signer
        What the user said instead of the profile's; None: as the profile says, else none.
    environ
        The environment variables. AWS keys are not taken from here: GDAL finds them itself.
    anonymous
        Requests to S3 are not signed.

    Raises
    ------
    UsageError
        An unknown signer, or one that contradicts `anonymous`.
    ConfigurationError
        A credential is missing: names the variable. From the function returned as well, when the
        signer depends on the Item's collection.
    """
    if signer is not None and signer not in SIGNERS:
        near = difflib.get_close_matches(signer, SIGNERS, n=1)
        raise UsageError(
            f"no signer {signer!r}",
            hint=(f"Did you mean {near[0]!r}? " if near else "") + f"Signers: {', '.join(SIGNERS)}",
        )
    if anonymous and signer in ("requester-pays", "headers", "token"):
        raise UsageError(f"--signer {signer} and anonymous reads contradict each other")
    made: dict[tuple[Any, ...], Access] = {}

    def shared(kind: str, variables: tuple[str, ...]) -> Access:
        # One signer for all Items: they share its tokens.
        key = (kind, variables)
        if key not in made:
            hosts = profile.token_hosts if profile is not None else ()
            made[key] = _signer(kind, variables, hosts, environ)
        return made[key]

    def access(item: pystac.Item) -> Access:
        known = _known(profile, item)
        kind = signer or (known.signer if known is not None else "none")
        if profile is None and signer is None and kind not in HARMLESS:
            kind = "none"
        if anonymous and kind != "planetary-computer":
            kind = "anonymous"
        gdal = dict(known.gdal) if known is not None else {}
        gdal.pop(_PAYER, None)
        if kind == "requester-pays":
            gdal[_PAYER] = "requester"
        elif kind == "anonymous" or anonymous:
            gdal["AWS_NO_SIGN_REQUEST"] = "YES"
        stores, paying = _stores(item, environ)
        return ItemAccess(
            signer=shared(kind, known.credentials if known is not None else ()),
            gdal=gdal,
            stores=stores,
            paying=paying,
            pays=kind == "requester-pays" or environ.get(_PAYER, "").lower() == "requester",
        )

    if signer is not None:
        # What is missing is said at once, not after the first thousand Items were found.
        shared(signer, profile.credentials if profile is not None else ())
    return access


def with_alternate(item: pystac.Item, name: str) -> pystac.Item:
    """The Item with the hrefs that its assets name under `alternate` (alternate-assets extension).

    Assets that have none of this name keep their own. The alternate's `storage:` fields come with
    its href. The Item given stays as it is.
    """
    if not any(_alternate(asset, name) for asset in item.assets.values()):
        return item
    clone = item.clone()
    base = item.get_self_href()
    for asset in clone.assets.values():
        alternate = _alternate(asset, name)
        if alternate is None:
            continue
        href = alternate["href"]
        asset.href = absolute(href, base) if base else href
        own = {key: value for key, value in asset.extra_fields.items() if key != "alternate"}
        said = {key: value for key, value in alternate.items() if key.startswith("storage:")}
        if said:
            own = {key: value for key, value in own.items() if not key.startswith("storage:")}
        asset.extra_fields = {**own, **said, "alternate": asset.extra_fields["alternate"]}
    return clone


def _alternate(asset: pystac.Asset, name: str) -> dict[str, Any] | None:
    entries = asset.extra_fields.get("alternate")
    entry = entries.get(name) if isinstance(entries, dict) else None
    if not isinstance(entry, dict) or not isinstance(entry.get("href"), str) or not entry["href"]:
        return None
    return entry


def _known(profile: Profile | None, item: pystac.Item) -> Profile | CollectionProfile | None:
    """What is known of the Item's collection, else of its catalog."""
    if profile is not None:
        return profile.collections.get(item.collection_id or "", profile)
    found = profile_of(item)
    return found[1] if found is not None else None


def _signer(
    kind: str, variables: tuple[str, ...], hosts: tuple[str, ...], environ: Mapping[str, str]
) -> Access:
    if kind == "planetary-computer":
        return PlanetaryComputer(
            token_url=environ.get(PC_URL_VARIABLE) or PC_TOKEN_URL,
            subscription_key=environ.get(PC_KEY_VARIABLE) or None,
        )
    if kind not in ("headers", "token"):
        return PlainAccess()
    if not hosts:
        # No profile says whom the credential is for: the user does, and it goes nowhere else.
        variables = (HEADERS_VARIABLE if kind == "headers" else TOKEN_VARIABLE,)
        hosts = tuple(_needed(HOSTS_VARIABLE, environ, "host names").replace(",", " ").split())
        parameter = environ.get(PARAMETER_VARIABLE)
        if kind == "token" and parameter:
            token = _needed(TOKEN_VARIABLE, environ, "a token").strip()
            return QueryToken(parameter=parameter, token=token, hosts=hosts)
    elif not variables:
        variables = (HEADERS_VARIABLE if kind == "headers" else TOKEN_VARIABLE,)
    if kind == "token":
        token = _needed(variables[0], environ, "a token").strip()
        return Headers(headers={"Authorization": f"Bearer {token}"}, hosts=hosts)
    lines = "\n".join(_needed(name, environ, "`Name: value` lines") for name in variables)
    return Headers(headers=_headers(lines, " and ".join(variables)), hosts=hosts)


def _needed(name: str, environ: Mapping[str, str], what: str) -> str:
    value = environ.get(name, "")
    if not value.strip():
        raise ConfigurationError(
            f"the signer needs the environment variable {name}",
            expected=what,
            hint=f"Set {name}, or choose another --signer",
        )
    return value


def _headers(lines: str, where: str) -> dict[str, str]:
    headers = {}
    for line in filter(None, map(str.strip, lines.splitlines())):
        name, colon, value = line.partition(":")
        if not colon:
            # The line itself may be the secret: it is not repeated.
            raise ConfigurationError(f"{where} holds a line that is no header: `Name: value`")
        headers[name.strip()] = value.strip()
    return headers


# The storage extension, versions 1 and 2: https://github.com/stac-extensions/storage


def _stores(
    item: pystac.Item, environ: Mapping[str, str]
) -> tuple[dict[str, Mapping[str, str]], frozenset[str]]:
    """GDAL options by href and by bucket, and the names among them that bill whoever reads."""
    stores: dict[str, Mapping[str, str]] = {}
    paying: set[str] = set()
    for asset in item.assets.values():
        names = _names(asset.href)
        if not names:
            continue
        options: dict[str, str] = {}
        for scheme in _schemes(item, asset):
            options.update(_store_options(scheme, environ))
            if scheme.get("requester_pays") is True:
                paying.update(names)
        for name in names if options else ():
            stores.setdefault(name, options)
    return stores, frozenset(paying)


def _schemes(item: pystac.Item, asset: pystac.Asset) -> list[dict[str, Any]]:
    """What the Item says of the place where an asset lies, in the words of version 2."""
    schemes = item.properties.get("storage:schemes")
    refs = asset.extra_fields.get("storage:refs")
    if isinstance(schemes, dict) and isinstance(refs, list):
        found = [schemes.get(ref) for ref in refs if isinstance(ref, str)]
        return [scheme for scheme in found if isinstance(scheme, dict)]
    fields = {**item.properties, **asset.extra_fields}
    if str(fields.get("storage:platform", "")).upper() != "AWS":
        return []
    return [
        {
            "type": "aws-s3",
            "region": fields.get("storage:region"),
            "requester_pays": fields.get("storage:requester_pays"),
        }
    ]


def _store_options(scheme: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, str]:
    options: dict[str, str] = {}
    kind, region = scheme.get("type"), scheme.get("region")
    if kind not in ("aws-s3", "custom-s3"):
        return options
    if isinstance(region, str) and _REGION.fullmatch(region):
        options["AWS_REGION"] = region
    if kind == "aws-s3" or environ.get("AWS_S3_ENDPOINT"):
        return options  # an endpoint that the user set holds
    try:
        parts = urlsplit(str(scheme.get("platform", "")).replace("{region}", str(region)))
    except ValueError:
        return options
    host = parts.netloc.removeprefix("{bucket}.")
    if parts.scheme not in ("http", "https") or not _ENDPOINT.fullmatch(host):
        return options
    return {
        **options,
        "AWS_S3_ENDPOINT": host,
        "AWS_HTTPS": "YES" if parts.scheme == "https" else "NO",
        "AWS_VIRTUAL_HOSTING": "TRUE" if host != parts.netloc else "FALSE",
        # The keys in the environment are for AWS, not for a host that a stranger's Item names.
        "AWS_NO_SIGN_REQUEST": "YES",
    }


def _names(href: str) -> tuple[str, ...]:
    """An S3 href as it is, and its bucket: what holds of one asset holds of its neighbours."""
    path = "s3://" + href.removeprefix("/vsis3/") if href.startswith("/vsis3/") else href
    scheme, _, rest = path.partition("://")
    if scheme.lower() != "s3":
        return ()
    return path, "s3://" + rest.partition("/")[0]
