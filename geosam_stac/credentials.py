"""Credentials of a STAC API, from an environment that is handed in. Imports nothing heavy."""

from __future__ import annotations

import json
from collections.abc import Mapping

from geosam_stac.errors import ConfigurationError

# Never on the command line, where every user of the machine can read them.
TOKEN_VARIABLE = "GEOSAM_STAC_API_TOKEN"
HEADERS_VARIABLE = "GEOSAM_STAC_API_HEADERS"


def api_headers(environ: Mapping[str, str]) -> dict[str, str]:
    """Headers for the API's own host, from the environment.

    `GEOSAM_STAC_API_TOKEN` is a bearer token; `GEOSAM_STAC_API_HEADERS` is a JSON object of names
    and values, or `Name: value` lines. ConfigurationError, without the values, when it is neither.
    """
    headers: dict[str, str] = {}
    text = environ.get(HEADERS_VARIABLE, "").strip()
    if text:
        if text.startswith("{"):
            try:
                document = json.loads(text)
            except ValueError:
                raise _bad_headers() from None  # the cause would show them
            headers = {str(name): str(value) for name, value in document.items()}
        else:
            pairs = [line.partition(":") for line in text.splitlines() if line.strip()]
            if not all(colon and name.strip() for name, colon, _ in pairs):
                raise _bad_headers()
            headers = {name.strip(): value.strip() for name, _, value in pairs}
        if any(sign in part for pair in headers.items() for part in pair for sign in "\r\n"):
            raise _bad_headers()
    token = environ.get(TOKEN_VARIABLE, "").strip()
    if any(not sign.isprintable() for sign in token):
        raise ConfigurationError(f"{TOKEN_VARIABLE} holds more than a token")
    if token:
        headers["Authorization"] = f"Bearer {token}"
    return headers


def _bad_headers() -> ConfigurationError:
    return ConfigurationError(
        f"{HEADERS_VARIABLE} holds no headers",
        expected='{"Name": "value"}, or lines of Name: value',
    )
