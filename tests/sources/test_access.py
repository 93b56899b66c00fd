"""Which signer and GDAL options an Item gets: the user's word, the profile, the Item's own."""

from __future__ import annotations

import json
from pathlib import Path

import pystac
import pytest

from geosam_stac.errors import ConfigurationError, UsageError
from geosam_stac.sources import parse_item
from geosam_stac.sources.access import accesses, with_alternate
from geosam_stac.sources.profiles import load_profile
from tests import rasters

SECRET = "TOPSECRET"
KEYS = {"GEOSAM_STAC_HEADERS": f"X-Key: {SECRET}", "GEOSAM_STAC_HEADER_HOSTS": "example.org"}


def item_of(
    href: str,
    *,
    collection: str | None = None,
    schemes: dict | None = None,
    properties: dict | None = None,
    link: str | None = None,
    **fields,
) -> pystac.Item:
    document = rasters.document({"a": rasters.asset(href, **fields)}, collection=collection)
    document["properties"] |= properties or {}
    if schemes is not None:
        document["properties"]["storage:schemes"] = schemes
        document["assets"]["a"].setdefault("storage:refs", list(schemes))
    if link:
        document["links"] = [{"rel": "self", "href": link}]
    return parse_item(document, href=link)


def options(item: pystac.Item, href: str | None = None, **given) -> dict[str, str]:
    given = {"profile": None, "signer": None, "environ": {}} | given
    access = accesses(**given)(item)
    return dict(access.options(href or item.assets["a"].href))


def test_nothing_said_is_nothing_done():
    item = item_of("https://example.org/a.tif")
    access = accesses(profile=None, signer=None, environ=KEYS)(item)
    assert access.sign("https://example.org/a.tif?b=1") == "https://example.org/a.tif?b=1"
    assert access.options("https://example.org/a.tif") == {}
    assert access.renew("https://example.org/a.tif") is False


def test_an_unknown_signer_names_the_near_one():
    with pytest.raises(UsageError, match="Did you mean 'planetary-computer'"):
        accesses(profile=None, signer="planetary-komputer", environ={})


def test_headers_of_the_environment_go_to_the_hosts_of_the_environment():
    environ = {
        "GEOSAM_STAC_HEADERS": f"X-Key: {SECRET}\nX-Other: a:b\n",
        "GEOSAM_STAC_HEADER_HOSTS": "example.org, example.net",
    }
    item = item_of("https://example.org/a.tif")
    given = {"signer": "headers", "environ": environ}
    expected = {"GDAL_HTTP_HEADERS": f"X-Key: {SECRET}\r\nX-Other: a:b"}
    assert options(item, **given) == expected
    assert options(item, "https://a.example.net/b.tif", **given) == expected
    assert options(item, "https://example.com/b.tif", **given) == {}
    assert SECRET not in repr(accesses(profile=None, **given)(item))


@pytest.mark.parametrize("name", list(KEYS))
def test_a_missing_variable_is_named(name):
    environ = {key: value for key, value in KEYS.items() if key != name}
    with pytest.raises(ConfigurationError, match=name):
        accesses(profile=None, signer="headers", environ=environ)


def test_a_line_that_is_no_header_is_not_repeated():
    with pytest.raises(ConfigurationError, match="GEOSAM_STAC_HEADERS") as caught:
        accesses(profile=None, signer="headers", environ=KEYS | {"GEOSAM_STAC_HEADERS": SECRET})
    assert SECRET not in str(caught.value)


def test_a_token_is_a_bearer_token_or_a_query_parameter():
    environ = {"GEOSAM_STAC_TOKEN": f"{SECRET}\n", "GEOSAM_STAC_HEADER_HOSTS": "example.org"}
    item = item_of("https://example.org/a.tif")
    assert options(item, signer="token", environ=environ) == {
        "GDAL_HTTP_HEADERS": f"Authorization: Bearer {SECRET}"
    }
    environ["GEOSAM_STAC_TOKEN_PARAMETER"] = "api_key"
    access = accesses(profile=None, signer="token", environ=environ)(item)
    assert access.sign("https://example.org/a.tif") == f"https://example.org/a.tif?api_key={SECRET}"


def test_a_profiles_token_goes_to_its_token_hosts():
    profile = load_profile("nasa-cmr")
    href = "https://data.lpdaac.earthdatacloud.nasa.gov/a.tif"
    item = item_of(href, collection="HLSS30_2.0")
    given = {"profile": profile, "environ": {"EARTHDATA_TOKEN": SECRET}}
    assert options(item, **given)["GDAL_HTTP_HEADERS"] == f"Authorization: Bearer {SECRET}"
    assert "GDAL_HTTP_HEADERS" not in options(item, "https://evil.net/a.tif", **given)
    assert options(item, **given)["GDAL_HTTP_MAX_RETRY"] == "10"
    with pytest.raises(ConfigurationError, match="EARTHDATA_TOKEN"):
        accesses(profile=profile, signer=None, environ={})(item)
    # Nobody named the catalog: what the Item says of itself sends no credential.
    own = item_of(href, collection="HLSS30_2.0", link="https://cmr.earthdata.nasa.gov/stac/x")
    assert "GDAL_HTTP_HEADERS" not in options(own, environ={"EARTHDATA_TOKEN": SECRET})


def test_the_users_signer_overrides_the_profiles():
    profile = load_profile("usgs-landsat")
    item = item_of("s3://usgs-landsat/a.tif", collection="landsat-c2l2-sr")
    assert options(item, profile=profile)["AWS_REQUEST_PAYER"] == "requester"
    assert "AWS_REQUEST_PAYER" not in options(item, profile=profile, signer="none")
    unsigned = options(item, profile=profile, anonymous=True)
    assert unsigned["AWS_NO_SIGN_REQUEST"] == "YES"
    assert "AWS_REQUEST_PAYER" not in unsigned


def test_a_collection_has_its_own_signer():
    profile = load_profile("earth-search")
    free = item_of("https://example.org/a.tif", collection="sentinel-2-l2a")
    paid = item_of("s3://naip-analytic/a.tif", collection="naip")
    assert "AWS_REQUEST_PAYER" not in options(free, profile=profile)
    assert options(paid, profile=profile)["AWS_REQUEST_PAYER"] == "requester"
    assert options(paid, profile=profile)["AWS_REGION"] == "us-west-2"
    unknown = item_of("https://example.org/a.tif", collection="unheard-of")
    assert "AWS_REQUEST_PAYER" not in options(unknown, profile=profile)


def test_anonymous():
    item = item_of("s3://bucket/a.tif")
    for given in ({"signer": "anonymous"}, {"anonymous": True}):
        assert options(item, **given) == {"AWS_NO_SIGN_REQUEST": "YES"}
    with pytest.raises(UsageError, match="contradict"):
        accesses(profile=None, signer="requester-pays", environ={}, anonymous=True)


def test_a_planetary_computer_item_is_signed_by_itself_and_shares_its_tokens():
    item = item_of(
        "https://acct.blob.core.windows.net/cont/a.tif",
        collection="sentinel-2-l2a",
        link="https://planetarycomputer.microsoft.com/api/stac/v1/x",
    )
    access = accesses(profile=None, signer=None, environ={})
    one, other = access(item), access(item)
    assert one.renew(item.assets["a"].href) is True
    assert one.signer is other.signer
    assert one.renew("https://example.org/a.tif") is False


# The storage extension


def test_a_bucket_that_bills_the_reader_is_not_read_unasked():
    scheme = {"type": "aws-s3", "region": "us-west-2", "requester_pays": True}
    item = item_of("s3://bucket/a.tif", schemes={"aws": scheme})
    access = accesses(profile=None, signer=None, environ={})(item)
    for href in ("s3://bucket/a.tif", "s3://bucket/b.tif", "/vsis3/bucket/b.tif"):
        with pytest.raises(ConfigurationError, match="--signer requester-pays"):
            access.sign(href)
    assert access.sign("s3://other/a.tif") == "s3://other/a.tif"
    assert "AWS_REQUEST_PAYER" not in access.options("s3://bucket/a.tif")
    said = {"signer": "requester-pays"}
    assert options(item, **said) == {"AWS_REGION": "us-west-2", "AWS_REQUEST_PAYER": "requester"}
    paying = accesses(profile=None, environ={}, **said)(item)
    assert paying.sign("s3://bucket/a.tif") == "s3://bucket/a.tif"
    by_hand = accesses(profile=None, signer=None, environ={"AWS_REQUEST_PAYER": "requester"})(item)
    assert by_hand.sign("s3://bucket/a.tif") == "s3://bucket/a.tif"


def test_version_1_of_the_extension():
    item = item_of(
        "s3://bucket/a.tif",
        properties={"storage:platform": "AWS", "storage:region": "eu-central-1"},
        **{"storage:requester_pays": True},
    )
    assert options(item) == {"AWS_REGION": "eu-central-1"}
    with pytest.raises(ConfigurationError, match="requester-pays"):
        accesses(profile=None, signer=None, environ={})(item).sign("s3://bucket/a.tif")


@pytest.mark.parametrize(
    ("platform", "expected"),
    [
        ("https://s3.example.org", ("s3.example.org", "YES", "FALSE")),
        ("http://localhost:9000", ("localhost:9000", "NO", "FALSE")),
        ("https://{bucket}.s3.{region}.example.org", ("s3.eu.example.org", "YES", "TRUE")),
    ],
)
def test_an_endpoint_of_the_items_own(platform, expected):
    scheme = {"type": "custom-s3", "platform": platform, "bucket": "bucket", "region": "eu"}
    item = item_of("s3://bucket/a.tif", schemes={"own": scheme})
    endpoint, https, virtual = expected
    assert options(item) == {
        "AWS_REGION": "eu",
        "AWS_S3_ENDPOINT": endpoint,
        "AWS_HTTPS": https,
        "AWS_VIRTUAL_HOSTING": virtual,
        "AWS_NO_SIGN_REQUEST": "YES",
    }
    assert options(item, "s3://other/a.tif") == {}
    # The user's own endpoint holds, with the user's own keys.
    assert options(item, environ={"AWS_S3_ENDPOINT": "mine:9000"}) == {"AWS_REGION": "eu"}


@pytest.mark.parametrize(
    "scheme",
    [
        {"type": "custom-s3", "platform": "ftp://example.org"},
        {"type": "custom-s3", "platform": "https://[bad"},
        {"type": "custom-s3", "platform": "https://a b/"},
        {"type": "custom-s3", "platform": "https://user:word@example.org"},
        {"type": "custom-s3"},
        {"type": "ms-azure", "region": "westeurope"},
        {"type": "aws-s3", "region": "eu\r\nHost: b"},
        {"type": "aws-s3", "region": 7, "requester_pays": "yes"},
        {},
    ],
)
def test_schemes_that_say_nothing_of_use(scheme):
    item = item_of("s3://bucket/a.tif", schemes={"odd": scheme})
    assert options(item) == {}
    assert accesses(profile=None, signer=None, environ={})(item).sign("s3://bucket/a.tif")


def test_the_profile_knows_its_store_better_than_an_item():
    scheme = {"type": "custom-s3", "platform": "https://evil.net", "bucket": "eodata"}
    item = item_of("s3://eodata/a.tif", collection="sentinel-2-l2a", schemes={"own": scheme})
    given = options(item, profile=load_profile("copernicus-data-space"))
    assert given["AWS_S3_ENDPOINT"] == "eodata.dataspace.copernicus.eu"
    assert "AWS_NO_SIGN_REQUEST" not in given


# Alternates


def test_alternate_hrefs_replace_an_assets_own():
    alternate = {"s3": {"href": "s3://bucket/a.tif", "storage:requester_pays": True}}
    item = item_of("https://example.org/a.tif", alternate=alternate, **{"storage:platform": "AWS"})
    item.add_asset("b", pystac.Asset("https://example.org/b.tif"))
    other = with_alternate(item, "s3")
    assert other.assets["a"].href == "s3://bucket/a.tif"
    assert other.assets["a"].extra_fields["storage:requester_pays"] is True
    assert "storage:platform" not in other.assets["a"].extra_fields
    assert other.assets["b"].href == "https://example.org/b.tif"
    assert item.assets["a"].href == "https://example.org/a.tif"
    assert with_alternate(item, "gs") is item


@pytest.mark.parametrize("alternate", [None, [], {"s3": None}, {"s3": {}}, {"s3": {"href": 1}}])
def test_alternates_that_are_none(alternate):
    item = item_of("https://example.org/a.tif", alternate=alternate)
    assert with_alternate(item, "s3") is item


def test_a_relative_alternate_is_beside_the_item():
    item = item_of(
        "a.tif", link="https://example.org/x/item.json", alternate={"near": {"href": "../b.tif"}}
    )
    assert with_alternate(item, "near").assets["a"].href == "https://example.org/b.tif"


@pytest.mark.shared
def test_a_landsat_item_of_usgs():
    folder = Path(__file__).parents[3] / "shared" / "data" / "items"
    paths = sorted(folder.glob("landsat-*.json"))
    if not paths:
        pytest.skip("needs ../shared/data/items")
    item = parse_item(json.loads(paths[0].read_text()), href=None)
    profile = load_profile("usgs-landsat")
    moved = with_alternate(item, str(profile.alternate))
    href = moved.assets["red"].href
    assert href.startswith("s3://usgs-landsat/")
    with pytest.raises(ConfigurationError, match="--signer requester-pays"):
        accesses(profile=None, signer=None, environ={})(moved).sign(href)
    assert accesses(profile=profile, signer=None, environ={})(moved).sign(href) == href
