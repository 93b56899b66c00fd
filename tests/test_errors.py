from __future__ import annotations

import pickle

import pytest

from geosam_stac import errors
from geosam_stac.errors import (
    ConfigurationError,
    DataError,
    ForbiddenError,
    Interrupted,
    TemporaryError,
    WrongContentError,
)
from geosam_stac.raster_errors import read_error, unsigned_text


def test_one_paragraph_in_order():
    error = DataError(
        "no band 'x'", item="i", href="h", chip="c", expected="1", got="2", hint="Look."
    )
    assert str(error) == "no band 'x' (item i, href h, chip c); expected 1; got 2. Look."
    assert str(DataError("gone")) == "gone."
    assert str(DataError("gone", hint="Did you mean 'a'?")) == "gone. Did you mean 'a'?"


@pytest.mark.parametrize(
    ("kind", "code", "retryable"),
    [
        ("GeosamStacError", 1, False),
        ("UsageError", 2, False),
        ("DataError", 65, False),
        ("StorageError", 74, False),
        ("TemporaryError", 75, True),
        ("DeviceOutOfMemoryError", 75, True),
        ("ConfigurationError", 78, False),
    ],
)
def test_exit_codes(kind, code, retryable):
    error = getattr(errors, kind)("x")
    assert (error.exit_code, error.retryable) == (code, retryable)


def test_interrupted_exits_with_its_signal():
    assert Interrupted().exit_code == 130
    assert Interrupted("terminated", signum=15).exit_code == 143


def test_errors_cross_processes_whole():
    error = DataError("m", item="i", href="h", hint="n").at(chip="c", item="other")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is DataError
    assert str(again) == str(error) == "m (item i, href h, chip c). n."
    assert pickle.loads(pickle.dumps(Interrupted("t", signum=15))).exit_code == 143


REMOTE = "https://example.com/20240403_T401404.tif"


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("HTTP response code: 404", DataError, "is not there"),
        ("HTTP response code: 410", DataError, "is not there"),
        ("HTTP response code: 403", ForbiddenError, "may not be read"),
        ("HTTP response code: 401", ForbiddenError, "credentials or a signature"),
        ("HTTP response code: 400", DataError, "refuses"),
        ("HTTP response code: 408", TemporaryError, "Try again"),
        ("HTTP response code: 429", TemporaryError, "Try again"),
        ("HTTP response code: 500", TemporaryError, "Try again"),
        ("HTTP response code: 503", TemporaryError, "Try again"),
        # Digits of a file's name are no code.
        (f"/vsicurl/{REMOTE}: timeout at 403, 404, 401", TemporaryError, "Try again"),
        ("CURL error: Could not resolve host: x", TemporaryError, "Try again"),
        ("'x' not recognized as being in a supported file format.", WrongContentError, "no raster"),
        ("Range downloading not supported by this server!", WrongContentError, "no raster"),
        ("416: Range downloading not supported by this server: x", DataError, "refuses"),
        ("`x' does not exist in the file system, and is not", WrongContentError, "is not there"),
        ("The specified key does not exist.", DataError, "is not there"),
        (
            "AWS_SECRET_ACCESS_KEY and AWS_NO_SIGN_REQUEST configuration options not defined, and "
            "~/.aws/credentials not filled",
            ConfigurationError,
            "AWS_NO_SIGN_REQUEST=YES",
        ),
    ],
)
def test_read_errors(text, kind, words):
    error = read_error(OSError(text), item="i", href=REMOTE)
    assert type(error) is kind
    assert words in str(error)
    assert REMOTE in str(error)


def test_a_damaged_local_file_is_not_temporary():
    error = read_error(OSError("Read failed."), item="i", href="/data/a.tif")
    assert type(error) is DataError
    assert "damaged" in str(error)


def test_causes_are_told_and_signatures_are_not():
    cause = RuntimeError("/vsicurl/https://h/a.tif?sig=abc: HTTP response code: 403")
    error = OSError("Read failed. See previous exception for details.")
    error.__cause__ = cause
    ours = read_error(error, item=None, href="https://h/a.tif")
    assert isinstance(ours, DataError)
    assert "Read failed. /vsicurl/https://h/a.tif" in str(ours)
    assert "abc" not in str(ours)
    assert unsigned_text("at https://u:p@h/a?token=1, b") == "at https://h/a b"
