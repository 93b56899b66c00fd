from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geosam_stac.errors import DataError
from geosam_stac.hrefs import (
    absolute,
    find_secret,
    is_local,
    to_local_path,
    unsigned,
    without_signatures,
)

SIGNED = {
    "azure": (
        "https://a.blob.core.windows.net/c/x.tif?st=2024-01-01T00%3A00%3A00Z&se=2024-01-02&sp=rl"
        "&sv=2021-06-08&sr=c&skoid=1&sktid=2&skt=3&ske=4&sks=b&skv=5&sig=S3CRET%3D",
        "https://a.blob.core.windows.net/c/x.tif",
    ),
    "aws v4": (
        "https://b.s3.amazonaws.com/x.tif?X-Amz-Algorithm=AWS4&X-Amz-Credential=AKIA%2F1"
        "&X-Amz-Date=1&X-Amz-Expires=1&X-Amz-SignedHeaders=host&X-Amz-Security-Token=S3CRET"
        "&X-Amz-Signature=S3CRET",
        "https://b.s3.amazonaws.com/x.tif",
    ),
    "aws v2": (
        "https://b.s3.amazonaws.com/x.tif?AWSAccessKeyId=AKIA&Signature=S3CRET&Expires=17",
        "https://b.s3.amazonaws.com/x.tif",
    ),
    "google": (
        "https://storage.googleapis.com/b/x?X-Goog-Algorithm=G&X-Goog-Signature=S3CRET&v=1",
        "https://storage.googleapis.com/b/x?v=1",
    ),
    "google v2": ("https://h/x?GoogleAccessId=a&Expires=1&Signature=S3CRET", "https://h/x"),
    "cloudfront": (
        "https://d.cloudfront.net/x?Policy=p&Signature=S3CRET&Key-Pair-Id=K",
        "https://d.cloudfront.net/x",
    ),
    "token": ("https://h/x?bands=1&access_token=S3CRET&scale=2", "https://h/x?bands=1&scale=2"),
    "subscription": ("https://h/x?subscription-key=S3CRET", "https://h/x"),
    "api key": ("https://h/x?a=1&api_key=S3CRET#frag", "https://h/x?a=1#frag"),
    "userinfo": ("https://me:S3CRET@h:8080/x", "https://h:8080/x"),
    "user only": ("https://S3CRET@h/x", "https://h/x"),
    "s3 userinfo": ("s3://key:S3CRET@bucket/x", "s3://bucket/x"),
    "fragment": ("https://h/x#access_token=S3CRET", "https://h/x"),
    "semicolons": ("https://h/x?a=1;sig=S3CRET;b=2", "https://h/x?a=1&b=2"),
    "nested": (
        "https://t/cog?url=https%3A%2F%2Fh%2Fx%3Fsig%3DS3CRET&scale=1",
        "https://t/cog?url=https%3A%2F%2Fh%2Fx&scale=1",
    ),
    "vsicurl": ("/vsicurl/https://h/x?sig=S3CRET&a=2", "/vsicurl/https://h/x?a=2"),
    "encoded name": ("https://h/x?%73ig=S3CRET&a=1", "https://h/x?a=1"),
}


@pytest.mark.parametrize(("href", "expected"), SIGNED.values(), ids=SIGNED.keys())
def test_signatures_are_stripped_and_would_be_found(href, expected):
    assert unsigned(href) == expected
    assert find_secret(expected) is None
    if "S3CRET@h/x" not in href or ":" in href.split("@")[0].removeprefix("https:"):
        found = find_secret(json.dumps({"href": href}))
        assert found is not None
        assert "S3CRET" not in found


@pytest.mark.parametrize(
    "href",
    [
        "https://h/x.tif?bands=1,2&st=1&sv=2&expires=never",
        "https://h/collections/c/items/i",
        "https://h/x?a=1;b=2",
        "s3://bucket/a key with spaces",
        "abfs://container@account.dfs.core.windows.net/x",
        "/data/odd?sig=not-a-url.tif",
        "C:\\data\\x.tif",
        "./x.tif",
        "https://h/x#page=2",
    ],
)
def test_harmless_hrefs_stay_as_they_are(href):
    assert unsigned(href) == href


_NAMES = st.sampled_from(["sig", "X-Amz-Signature", "a", "b", "token", "s%69g", "se", "", "url"])
_VALUES = st.text("abc=%&;?#:/@ 0123", max_size=12)


@given(st.lists(st.tuples(_NAMES, _VALUES), max_size=5), st.sampled_from("&;"))
def test_nothing_is_found_in_what_was_unsigned(parameters, separator):
    query = separator.join(f"{name}={value}" for name, value in parameters)
    assert find_secret(unsigned(f"https://h/x?{query}")) is None


def test_find_secret_in_documents():
    assert find_secret('{"a": "no ?question=1 here", "datetime": "10:30"}') is None
    assert find_secret("x\\u0026sig=abc") == "sig"
    assert find_secret("https://h/x?a=1&amp;sig=abc") == "sig"
    assert find_secret("AccountName=a;AccountKey=abc") == "AccountKey"
    assert find_secret("?sig=") is None


@pytest.mark.parametrize(
    ("href", "base", "expected"),
    [
        ("./a.tif", "/x/y/i.json", "/x/y/a.tif"),
        ("../a.tif", "/x/y/i.json", "/x/a.tif"),
        ("/a.tif", "/x/y/i.json", "/a.tif"),
        ("../a.tif", "s3://b/x/y/i.json", "s3://b/x/a.tif"),
        ("../../../a.tif", "s3://b/i.json", "s3://b/a.tif"),
        ("./a.tif?v=1", "https://h/x/i.json?sig=1", "https://h/x/a.tif?v=1"),
        ("/a.tif", "https://h:80/x/i.json", "https://h:80/a.tif"),
        ("//other/a.tif", "https://h/x", "https://other/a.tif"),
        ("a b.tif", "file:///x/y%20z/i.json", "file:///x/y%20z/a b.tif"),
        ("s3://b/a.tif", "https://h/i.json", "s3://b/a.tif"),
        ("/vsicurl/https://h/a", "https://h/i.json", "/vsicurl/https://h/a"),
        ("a.tif", "https://h", "https://h/a.tif"),
    ],
)
def test_absolute(href, base, expected):
    assert absolute(href, base) == expected


def test_local_paths():
    assert is_local("/a") and is_local("a") and is_local("file:///a") and is_local("C:\\a")
    assert not is_local("s3://a") and not is_local("https://a")
    assert to_local_path("file:///a%20b/c") == Path("/a b/c")
    assert to_local_path("file://localhost/a") == Path("/a")
    assert to_local_path("/a%20b") == Path("/a%20b")
    with pytest.raises(DataError, match="another host"):
        to_local_path("file://server/a")
    with pytest.raises(DataError) as caught:
        to_local_path("https://h/x?sig=S3CRET")
    assert "S3CRET" not in str(caught.value)


@pytest.mark.parametrize("href", [pair[0] for pair in SIGNED.values()], ids=SIGNED.keys())
def test_a_message_is_written_without_the_signatures_of_its_urls(href):
    text = f"GET '{href}' failed,\n  (url={href}) \"{href}\" and {href} too"
    assert "S3CRET" not in without_signatures(text)
    assert without_signatures(text).startswith("GET '")
    assert without_signatures(text).endswith(" too")
    if "?" in href:
        path = "/x?" + href.partition("?")[2]
        assert without_signatures(f"url: {path} (Caused by") == "url: /x?... (Caused by"


def test_what_holds_no_secret_is_written_as_it_is():
    text = "Max retries exceeded with url: /search?bbox=1,2&limit=3 at https://h:80/x?a=1 (why?)\n"
    assert without_signatures(text) == text
