"""`config show`, and what is said of the environment's and the config file's options."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import geosam_stac
from geosam_stac.cli.environment import PLAIN_VARIABLES, SECRET_VARIABLES

ROOT = Path(geosam_stac.__file__).parent


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "options.toml"
    path.write_text('stride = 16\nvalue-range = "0,200"\nbatch_size = 2\n')
    return path


def shown(done):
    """Option -> (value, source, place)."""
    assert done.code == 0, done.err
    lines = [json.loads(line) for line in done.lines]
    return {line["option"]: (line["value"], line["source"], line["place"]) for line in lines}


class TestShow:
    def test_each_source(self, cli, config, monkeypatch):
        monkeypatch.setenv("GEOSAM_STAC_STRIDE", "48")
        monkeypatch.setenv("GEOSAM_STAC_LIMIT", "3")
        found = shown(cli("config", "show", "--json", "--config", config, "--bands", "red"))
        assert found["bands"] == (["red"], "command line", None)
        assert found["stride"] == (48, "environment", "GEOSAM_STAC_STRIDE in the environment")
        assert found["limit"] == (3, "environment", "GEOSAM_STAC_LIMIT in the environment")
        assert found["value-range"] == (
            "0,200",
            "config file",
            f"the key 'value-range' in {config}",
        )
        assert found["batch-size"] == (2, "config file", f"the key 'batch_size' in {config}")
        assert found["resampling"] == ("bilinear", "default", None)
        assert found["config"] == (str(config), "command line", None)

    def test_as_text(self, cli):
        done = cli("config", "show", "--stride", "64", "--scaled")
        words = {line.split()[0]: line.split()[1:] for line in done.lines}
        assert words["stride"] == ["64", "command", "line"]
        assert words["scaled"] == ["yes", "command", "line"]
        assert words["preset"] == ["-", "default"]
        assert done.err == ""

    def test_secrets_are_masked(self, cli, monkeypatch, tmp_path):
        path = tmp_path / "secret.toml"
        path.write_text(
            'checkpoint = "https://host.example/w.pt?X-Amz-Signature=HUSH&v=1"\n'
            'search = "https://user:HUSH@host.example/stac"\nfilter = "a = \'/x?sig=HUSH\'"\n'
        )
        for name in SECRET_VARIABLES:
            monkeypatch.setenv(name, "HUSH")
        monkeypatch.setenv("GEOSAM_STAC_CACHE", "/somewhere")
        done = cli("config", "show", "--json", "--config", path)
        assert "HUSH" not in done.out + done.err
        found = shown(done)
        assert found["checkpoint"][0] == "https://host.example/w.pt?v=1"
        assert found["search"][0] == "https://host.example/stac"
        assert found["filter"][0] == "(set, not shown)"
        assert found["GEOSAM_STAC_API_TOKEN"][:2] == ("(set, not shown)", "environment")
        assert found["GEOSAM_STAC_CACHE"][:2] == ("/somewhere", "environment")

    def test_a_bad_value_is_told(self, cli):
        done = cli("config", "show", "--stride", "0")
        assert (done.code, done.out) == (2, "")
        assert "--stride must be at least 1 px" in done.err


class TestTypos:
    def test_the_near_option_is_named(self, cli, monkeypatch):
        monkeypatch.setenv("GEOSAM_STAC_STRIED", "5")
        done = cli("catalogs", "list")
        assert done.code == 0
        assert done.err.splitlines() == [
            "warning: GEOSAM_STAC_STRIED in the environment is no option and has no effect: did "
            "you mean GEOSAM_STAC_STRIDE?"
        ]

    def test_what_is_like_none_is_told_too(self, cli, monkeypatch):
        monkeypatch.setenv("GEOSAM_STAC_XYZZY", "5")
        assert cli("catalogs", "list").err.splitlines() == [
            "warning: GEOSAM_STAC_XYZZY in the environment is no option and has no effect"
        ]

    @pytest.mark.parametrize(
        "name",
        [
            *PLAIN_VARIABLES,
            *SECRET_VARIABLES,
            "GEOSAM_STAC_STRIDE",  # of other commands
            "GEOSAM_STAC_SHARD",
            "GEOSAM_STAC_CONFIG",
            "GEOSAM_STAC_SERVICE_HOST",  # Kubernetes' own, of a Service called geosam-stac
            "GEOSAM_STAC_SERVICE_PORT_HTTP",
            "GEOSAM_STAC_PORT",
            "GEOSAM_STAC_PORT_80_TCP_ADDR",
            "GEOSAM_OTHER",
        ],
    )
    def test_known_names_are_no_typos(self, cli, monkeypatch, name):
        monkeypatch.setenv(name, "5")
        assert cli("catalogs", "list").err == ""

    def test_every_variable_that_the_code_reads_is_known(self):
        """Names in the code are options' (`GEOSAM_STAC_` and their own name), or listed."""
        import typer

        from geosam_stac.cli import app
        from geosam_stac.cli.environment import variables

        text = "".join(path.read_text("utf-8") for path in ROOT.rglob("*.py"))
        named = set(re.findall(r"GEOSAM_STAC_[A-Z_]*[A-Z]", text))
        options = variables(typer.main.get_command(app()))
        assert named - options == {*PLAIN_VARIABLES, *SECRET_VARIABLES}


class TestBadValues:
    """Where the value came from is told, unless it was typed."""

    def test_of_the_environment(self, cli, monkeypatch):
        monkeypatch.setenv("GEOSAM_STAC_STRIDE", "wide")
        done = cli("encode", "--item", "x.json", "--dry-run")
        assert done.code == 2
        assert done.err == (
            "error: --stride is no number (from GEOSAM_STAC_STRIDE in the environment); expected "
            "a whole number; got 'wide'.\n"
        )

    def test_that_the_parser_refuses(self, cli, monkeypatch):
        monkeypatch.setenv("GEOSAM_STAC_LIMIT", "many")
        done = cli("encode", "--catalog", "earth-search", "--dry-run")
        assert done.code == 2
        assert "(from GEOSAM_STAC_LIMIT in the environment)" in done.err

    def test_of_the_config_file(self, cli, tmp_path):
        path = tmp_path / "o.toml"
        path.write_text('chip_size = -3\nresampling = "cubic"\n')
        done = cli("encode", "--item", "x.json", "--dry-run", "--config", path)
        assert done.code == 2
        assert f"(from the key 'chip_size' in {path})" in done.err
        assert "resampling" not in done.err

    def test_of_both_that_contradict_each_other(self, cli, tmp_path, monkeypatch):
        path = tmp_path / "o.toml"
        path.write_text('index = "NDVI"\n')
        monkeypatch.setenv("GEOSAM_STAC_BANDS", "red")
        done = cli("encode", "--item", "x.json", "--dry-run", "--config", path)
        assert done.code == 2
        assert (
            "(--bands from GEOSAM_STAC_BANDS in the environment, "
            f"--index from the key 'index' in {path})" in done.err
        )

    def test_of_the_inputs(self, cli, monkeypatch):
        monkeypatch.setenv("GEOSAM_STAC_DATETIME", "2024-03")
        done = cli("encode", "--item", "x.json", "--dry-run")
        assert done.code == 2
        assert "--datetime belongs to a search (from GEOSAM_STAC_DATETIME" in done.err

    def test_what_was_typed_needs_no_place(self, cli):
        done = cli("encode", "--item", "x.json", "--dry-run", "--stride", "wide")
        assert done.code == 2
        assert "from" not in done.err
