"""`encode`: exit codes and messages, precedence, output streams, several Items."""

from __future__ import annotations

import json
import re
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from geosam_stac.local_backend import LocalBackend
from tests import rasters
from tests.cli.conftest import make_item

pytestmark = pytest.mark.usefixtures("fake_model")


def document(fake_out: Path, name: str = "run.json"):
    (path,) = fake_out.glob(f"*/{name}")
    return json.loads(path.read_text())


def replaced(argv: list[str], **options: object) -> list[str]:
    """The command line with some options' values replaced."""
    argv = list(argv)
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if flag in argv:
            argv[argv.index(flag) + 1] = str(value)
        else:
            argv += [flag, str(value)]
    return argv


def assert_error(done, code: int, *texts: str) -> None:
    """One paragraph on stderr, nothing on stdout, no traceback."""
    assert done.code == code, done.err
    assert done.out == ""
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.err
    assert errors[0].endswith((".", "?")), errors[0]
    assert "Traceback" not in done.err
    for text in texts:
        assert text in errors[0]


class TestResults:
    def test_stdout_is_the_href_alone(self, cli, fake, tmp_path):
        done = cli(*fake)
        assert done.code == 0
        (href,) = done.lines
        assert Path(href).is_file()
        assert href.startswith(str(tmp_path / "out"))
        assert "RANDOM weights" in done.err
        assert "4 chips encoded in " in done.err
        stages = [line.split()[0] for line in done.err.splitlines() if " at work " in line]
        assert stages == ["read", "encode", "write"]
        assert done.err.count("sets the pace") == 1
        assert "\x1b" not in done.err  # no colours where there is no terminal

    def test_json(self, cli, fake):
        done = cli(*fake, "--json")
        (line,) = done.lines
        found = json.loads(line)
        assert found["chips_encoded"] == 4
        assert Path(found["item"]).stem == found["id"]
        assert set(found["seconds"]) == {"read", "encode", "write", "total"}
        assert found["bytes_read"] == 3 * 96 * 96

    def test_quiet_leaves_warnings(self, cli, fake):
        done = cli(*fake, "-q")
        assert len(done.lines) == 1
        assert [line for line in done.err.splitlines() if not line.startswith("warning: ")] == []

    def test_progress_in_lines(self, cli, fake, fake_model, monkeypatch):
        monkeypatch.setattr("geosam_stac.cli.console.LINE_EVERY_S", 0.1)
        fake_model.before = lambda chips: time.sleep(0.12)
        lines = [line for line in cli(*fake).err.splitlines() if line.startswith("chips: ")]
        assert lines[-1] == "chips: 4 of 4"
        assert 3 <= len(lines) <= 4
        monkeypatch.setattr("geosam_stac.cli.console.LINE_EVERY_S", 60.0)
        lines = cli(*fake, "--overwrite").err.splitlines()
        assert [line for line in lines if line.startswith("chips: ")] == ["chips: 4 of 4"]

    def test_nothing_left_to_do(self, cli, fake):
        first, second = cli(*fake), cli(*fake)
        assert second.code == 0
        assert second.out == first.out
        assert "is there already: nothing to do" in second.err
        assert "chips encoded" not in second.err

    def test_two_items(self, cli, fake, tmp_path):
        done = cli(*fake, "--item", make_item(tmp_path, "second"))
        assert done.code == 0
        assert len(done.lines) == 2
        assert not (tmp_path / "out" / "failed.ndjson").exists()

    def test_from_standard_input(self, cli, fake, item, monkeypatch):
        import io

        monkeypatch.setattr("sys.stdin", io.StringIO(item.read_text()))
        assert cli(*replaced(fake, item="-")).code == 0


class TestDryRun:
    def test_text(self, cli, fake, fake_model, tmp_path):
        done = cli(*fake, "--dry-run")
        assert done.code == 0
        assert done.lines[:6] == [
            "scene    scene",
            "bands    red, green, blue",
            "grid     96 x 96 px of 10 m in EPSG:32614",
            "chips    4 (2 rows x 2 columns) of 64 px at stride 32",
            "read     0.0 MB of pixels, decoded",
            "write    0.0 MB in 8 objects",
        ]
        assert re.fullmatch(
            r"encoder  sam2\.1-hiera-tiny on cpu in (fp32|bf16), about [\d,.e-]+ (s|min|h)",
            done.lines[6],
        )
        assert fake_model.loaded == []
        assert not (tmp_path / "out").exists()

    def test_json_needs_no_out(self, cli, fake):
        at = fake.index("--out")
        done = cli(*fake[:at], *fake[at + 2 :], "--dry-run", "--json")
        found = json.loads(done.out)
        assert (found["chips"], found["objects"]) == (4, 8)
        assert found["estimated_seconds"] > 0

    def test_too_many_chips(self, cli, fake):
        for extra in ([], ["--dry-run"]):
            done = cli(*replaced(fake, max_chips=3), *extra)
            assert_error(done, 2, "the plan has 4 chips: 2 x 2", "expected at most 3", "--bbox")


class TestErrors:
    """Every row: the exit code of SPEC-cli, one paragraph, and nothing left behind."""

    @pytest.fixture(autouse=True)
    def _leaves_nothing(self, tmp_path, item):
        before = sorted(tmp_path.rglob("*"))
        yield
        left = [path for path in sorted(tmp_path.rglob("*")) if path not in before]
        assert [path for path in left if path.name.startswith("out") or path.suffix == ".tmp"] == []

    @pytest.mark.parametrize(
        ("options", "code", "texts"),
        [
            ({"bands": "infrared"}, 65, ("no band 'infrared'", "red", "green", "blue")),
            ({"bands": "rad"}, 65, ("Did you mean 'red'?",)),
            ({"bands": "red,green,blue,red"}, 2, ("takes 1 to 3 bands", "There are: ")),
            ({"value_range": "3000,0"}, 2, ("MIN < MAX", "3000,0")),
            ({"value_range": "5,5"}, 2, ("MIN < MAX",)),
            ({"value_range": "a,b"}, 2, ("--value-range",)),
            ({"stride": 0}, 2, ("--stride must be at least 1", "0")),
            ({"stride": "x"}, 2, ("--stride", "'x'")),
            ({"stride": 65}, 2, ("--stride",)),
            ({"chip_size": 65}, 2, ("--chip-size",)),
            ({"bbox": "-99,48,-98,49"}, 65, ("outside the Item", "-99,48,-98,49", "46.9")),
            ({"bbox": "1,2,3"}, 2, ("--bbox takes four numbers",)),
            ({"crs": "EPSG:0"}, 2, ("--crs",)),
            ({"resolution": -1}, 2, ("--resolution",)),
            ({"resampling": "cubik"}, 2, ("Did you mean cubic",)),
            ({"geometry": "missing.geojson"}, 2, ("no such file", "missing.geojson")),
            ({"item": "missing.json"}, 65, ("no such file", "missing.json")),
            ({"model": "sam2.1-hiera-teeny"}, 78, ("unknown model", "sam2.1-hiera-tiny")),
            ({"device": "cuda:99"}, 78, ("cuda:99", "cpu")),
            ({"device": "tpu"}, 78, ("tpu",)),
            ({"precision": "fp16"}, 78, ("fp16",)),
            ({"checkpoint": "missing.pt"}, 78, ("no such checkpoint file", "missing.pt")),
            ({"checkpoint": "untrained:x"}, 2, ("seed",)),
            ({"config": "missing.toml"}, 2, ("--config", "missing.toml")),
            ({"out": "ftp://host/x"}, 78, ("ftp",)),
            ({"out": "s3://"}, 78, ("bucket",)),
        ],
    )
    def test_options(self, cli, fake, options, code, texts):
        assert_error(cli(*replaced(fake, **options)), code, *texts)

    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ('{"type": "FeatureCollection", "features": []}', "FeatureCollection"),
            ('{"type": "Catalog"}', "Catalog"),
            ("<html></html>", "HTML"),
            ("[1, 2]", "[1, 2]"),
            ("", "not JSON"),
        ],
    )
    def test_not_an_item(self, cli, fake, tmp_path, text, found):
        path = tmp_path / "bad.json"
        path.write_text(text)
        assert_error(cli(*replaced(fake, item=path)), 65, "not a STAC Item", found, "bad.json")

    def test_a_raster_that_is_not_there(self, cli, fake, tmp_path):
        (tmp_path / "scene.tif").unlink()
        assert_error(cli(*fake), 65, "item scene", "scene.tif", "No such file")

    def test_a_raster_that_is_none(self, cli, fake, tmp_path):
        (tmp_path / "scene.tif").write_text("not a raster")
        assert_error(cli(*fake), 65, "item scene", "scene.tif")

    @pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
    def test_a_raster_that_is_not_georeferenced(self, cli, fake, tmp_path):
        from affine import Affine

        rasters.write_tif(
            tmp_path / "scene.tif",
            np.ones((3, 96, 96), "uint8"),
            transform=Affine.identity(),
            crs=None,
        )
        assert_error(cli(*fake), 65, "not georeferenced", "gdalwarp")

    def test_an_output_that_is_a_file(self, cli, fake, tmp_path):
        (tmp_path / "taken").write_text("mine")
        assert_error(cli(*replaced(fake, out=tmp_path / "taken")), 74, "file stands where a folder")
        assert (tmp_path / "taken").read_text() == "mine"
        done = cli(*replaced(fake, out=tmp_path / "taken" / "below"))
        assert_error(done, 74, "file stands where a folder")

    def test_no_out_and_no_item(self, cli, fake):
        at = fake.index("--out")
        assert_error(cli(*fake[:at], *fake[at + 2 :]), 2, "--out is missing")
        assert_error(cli("encode", "--out", "x"), 2, "--item is missing")

    def test_unknown_option_and_command(self, cli, fake):
        assert_error(
            cli(*fake, "--strid", "3"), 2, "--strid", "Did you mean --ids or --shard or --stride?"
        )
        assert_error(cli("encoode"), 2, "encoode")
        assert_error(cli(*fake, "extra"), 2, "extra")

    def test_verbose_adds_the_traceback(self, cli, fake):
        done = cli(*replaced(fake, bands="infrared"), "-v")
        assert done.code == 65
        assert "error: no band 'infrared'" in done.err
        assert "Traceback" in done.err

    def test_a_defect_is_exit_1_and_asks_for_a_report(self, cli, fake, fake_model):
        def before(chips):
            raise AssertionError("a bug")

        fake_model.before = before
        done = cli(*fake, "--json")
        assert (done.code, done.out) == (1, "")
        assert "a defect of geosam-stac: AssertionError: a bug" in done.err
        assert "Traceback" not in done.err
        assert "Traceback" in cli(*fake, "-v").err
        import shutil

        shutil.rmtree(fake[fake.index("--out") + 1], ignore_errors=True)

    def test_text_of_strangers_cannot_drive_the_terminal(self, cli, fake, tmp_path):
        content = json.loads((tmp_path / "scene.json").read_text())
        content["id"] = "a\x1b[2Jb\nc"
        (tmp_path / "scene.json").write_text(json.dumps(content))
        done = cli(*replaced(fake, bands="infrared"))
        assert_error(done, 65)
        assert "\x1b" not in done.err
        assert "a\\x1b[2Jb c" in done.err


class TestCheckpoints:
    """With the real models: a wrong file is told before anything is built or written."""

    @pytest.fixture(autouse=True)
    def _real(self, fake_model, monkeypatch):
        from geosam_stac.encoders import load_encoder

        monkeypatch.setattr("geosam_stac.session.load_encoder", load_encoder)

    def test_of_another_family(self, cli, fake, tmp_path):
        state = {f"image_encoder.blocks.{i}.norm1.weight": torch.zeros(1) for i in range(12)}
        state["image_encoder.patch_embed.proj.weight"] = torch.zeros(768, 3, 1, 1)
        path = tmp_path / "sam.pth"
        torch.save(state, path)
        assert_error(
            cli(*replaced(fake, checkpoint=path)), 78, "of another model", "sam-vit-base", "sam.pth"
        )
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("kept", [0, 10, 0.5])
    def test_cut_short(self, cli, fake, tmp_path, kept):
        path = tmp_path / "weights.pt"
        torch.save({"model": {"a": torch.zeros(1000)}}, path)
        assert zipfile.is_zipfile(path)
        data = path.read_bytes()
        path.write_bytes(data[: kept if isinstance(kept, int) else int(len(data) * kept)])
        assert_error(cli(*replaced(fake, checkpoint=path)), 78, "cut short", "weights.pt")
        assert not (tmp_path / "out").exists()


class TestPrecedence:
    """Command line, then environment, then --config, then default; run.json tells."""

    @pytest.fixture
    def bare(self, fake):
        at = fake.index("--stride")
        return fake[:at] + fake[at + 2 :]

    @pytest.fixture
    def config(self, tmp_path):
        path = tmp_path / "options.toml"
        path.write_text('stride = 16\nvalue-range = "0,200"\nbatch_size = 2\nbands = ["red"]\n')
        return path

    def test_all_four(self, cli, bare, config, monkeypatch, tmp_path):
        monkeypatch.setenv("GEOSAM_STAC_STRIDE", "48")
        monkeypatch.setenv("GEOSAM_STAC_FEATURE_DTYPE", "float32")
        done = cli(*bare, "--config", config, "--stride", "64", "--bands", "green,blue")
        assert done.code == 0, done.err
        run = document(tmp_path / "out")
        wanted = {"stride": 64, "value_range": "0,200", "batch_size": 2, "feature_dtype": "float32"}
        assert {name: run["config"][name] for name in wanted} == wanted
        assert run["config"]["bands"] == ["green", "blue"]
        assert run["config"]["resampling"] == "bilinear"
        assert run["config_sources"] == {
            "stride": "command line",
            "bands": "command line",
            "model": "command line",
            "checkpoint": "command line",
            "device": "command line",
            "out": "command line",
            "feature_dtype": "environment",
            "value_range": "config file",
            "batch_size": "config file",
        }

    def test_environment_over_config_over_default(self, cli, bare, config, monkeypatch, tmp_path):
        monkeypatch.setenv("GEOSAM_STAC_CONFIG", str(config))
        cli(*bare)
        assert document(tmp_path / "out")["config"]["stride"] == 16
        monkeypatch.setenv("GEOSAM_STAC_STRIDE", "48")
        cli(*replaced(bare, out=tmp_path / "out2"))
        assert document(tmp_path / "out2")["config"]["stride"] == 48
        assert document(tmp_path / "out2")["config_sources"]["stride"] == "environment"

    def test_the_run_s_own_options(self, cli, item, tmp_path, monkeypatch):
        path = tmp_path / "all.toml"
        path.write_text(
            f'item = ["{item}"]\nmodel = "sam2.1_t"\ncheckpoint = "untrained"\nstride = 32\n'
            f'out = "{tmp_path / "out"}"\njson = true\noverwrite = true\n'
        )
        done = cli("encode", "--config", path)
        assert done.code == 0, done.err
        assert json.loads(done.out)["chips_encoded"] == 4
        monkeypatch.setenv("GEOSAM_STAC_DRY_RUN", "1")
        assert json.loads(cli("encode", "--config", path).out)["chips"] == 4

    @pytest.mark.parametrize(
        ("text", "texts"),
        [
            ("strid = 3", ("unknown key 'strid'", "Did you mean 'stride'?")),
            ("config = 'x'", ("unknown key 'config'",)),
            ("stride = 3.5", ("--stride", "3.5")),
            ("stride = 'x'", ("--stride",)),
            ("stride = {a = 1}", ("'stride'", "wrong kind")),
            ("stride = ", ("not TOML",)),
            ("resampling = 'cubik'", ("cubic",)),
        ],
    )
    def test_bad_config(self, cli, bare, tmp_path, text, texts):
        path = tmp_path / "bad.toml"
        path.write_text(text)
        assert_error(cli(*bare, "--config", path), 2, *texts)

    def test_a_bad_environment_variable(self, cli, bare, monkeypatch):
        monkeypatch.setenv("GEOSAM_STAC_STRIDE", "wide")
        assert_error(cli(*bare), 2, "--stride", "'wide'")


class TestSeveralItems:
    def test_one_of_three_is_bad(self, cli, fake, tmp_path):
        second, third = make_item(tmp_path, "second"), make_item(tmp_path, "third")
        (tmp_path / "second.tif").unlink()
        done = cli(*fake, "--item", second, "--item", third)
        assert done.code == 3
        assert [Path(line).name.partition("_")[0] for line in done.lines] == ["scene", "third"]
        (line,) = (tmp_path / "out" / "failed.ndjson").read_text().splitlines()
        failed = json.loads(line)
        assert failed["id"] == "second"
        assert failed["assets"]["image"]["href"] == str(tmp_path / "second.tif")
        assert failed["geosam:failed"]["exit_code"] == 65
        assert "second.tif" in failed["geosam:failed"]["error"]
        assert [link["href"] for link in failed["links"]] == [str(second)]
        errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 2
        assert errors[1].startswith("error: 1 of 3 scenes failed: see ")

    def test_all_are_bad(self, cli, fake, tmp_path):
        second = make_item(tmp_path, "second")
        for name in ("scene", "second"):
            (tmp_path / f"{name}.tif").unlink()
        done = cli(*fake, "--item", second)
        assert (done.code, done.out) == (65, "")
        errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
        assert ["scene.tif" in errors[0], "second.tif" in errors[1]] == [True, True]
        assert len(errors) == 2
        assert "all 2 scenes failed: see " in done.err
        lines = (tmp_path / "out" / "failed.ndjson").read_text().splitlines()
        assert [json.loads(line)["id"] for line in lines] == ["scene", "second"]

    def test_what_fails_every_item_ends_the_run(self, cli, fake, tmp_path, monkeypatch):
        from geosam_stac.errors import StorageError

        def put(self, key, data, **how):
            raise StorageError("writing failed: the disk is full")

        monkeypatch.setattr(LocalBackend, "_write", put)
        done = cli(*fake, "--item", make_item(tmp_path, "second"))
        assert_error(done, 74, "disk is full", "item scene")

    def test_a_dry_run_of_a_bad_one_writes_nothing(self, cli, fake, tmp_path):
        done = cli(*fake, "--item", tmp_path / "missing.json", "--dry-run")
        assert done.code == 3
        assert done.lines[0] == "scene    scene"
        assert not (tmp_path / "out").exists()
