"""Session: batches that halve, memory strategies, one load of the model."""

from __future__ import annotations

import os

import numpy as np
import pystac
import pytest
from odc.geo.geobox import GeoBox

from geosam_stac.config import EncodeConfig
from geosam_stac.errors import (
    ConfigurationError,
    DataError,
    DeviceOutOfMemoryError,
    TemporaryError,
    UsageError,
)
from geosam_stac.events import BatchHalved, Notice
from geosam_stac.grid import chip_refs, make_grid
from geosam_stac.session import Session
from geosam_stac.sources.profiles import load_profile
from geosam_stac.types import Chip
from tests import rasters
from tests.fakes import INPUT_PX, fake_session

pytestmark = pytest.mark.usefixtures("fake_model")


def chips(count: int) -> list[Chip]:
    """Chips that differ: chip i is filled with the value i."""
    geobox = GeoBox((INPUT_PX, INPUT_PX * count), rasters.NORTH_UP, rasters.UTM14)
    grid = make_grid(geobox, chip_px=INPUT_PX, stride_px=INPUT_PX)
    return [
        Chip(
            ref=ref,
            pixels=np.full((3, INPUT_PX, INPUT_PX), index, dtype=np.uint8),
            content_px=(INPUT_PX, INPUT_PX),
            valid_fraction=1.0,
        )
        for index, ref in enumerate(chip_refs(grid))
    ]


def encode(session, count: int) -> list[float]:
    """Encode so many chips; the value of each, in the order in which features came."""
    encoded = list(session.encode_batch(chips(count)))
    assert [features.ref.chip_id for features in encoded] == [f"chip_{i:06d}" for i in range(count)]
    return [float(features.tensors["image_embed"][0, 0, 0]) for features in encoded]


@pytest.fixture
def fits(fake_model):
    """The device has room for so many chips."""

    def set_limit(limit: int) -> None:
        def before(count: int) -> None:
            if count > limit:
                raise DeviceOutOfMemoryError("cpu is out of memory", got="8 GiB wanted")

        fake_model.before = before

    return set_limit


def test_batches_halve_until_they_fit_and_stay_so(tmp_path, fake_model, fits):
    fits(2)
    events = []
    session = fake_session(tmp_path, events, batch_size=8)
    assert encode(session, 10) == list(range(10))
    assert fake_model.encoder.batches == [2, 2, 2, 2, 2]
    assert session.batch_size == 2
    assert [e.batch_size for e in events if isinstance(e, BatchHalved)] == [4, 2]
    # What failed is freed before the smaller batch is tried.
    assert fake_model.encoder.freed == 2

    assert encode(session, 3) == [0, 1, 2]
    assert fake_model.encoder.batches[5:] == [2, 1]
    assert len([e for e in events if isinstance(e, BatchHalved)]) == 2


def test_an_odd_batch_halves_downwards(tmp_path, fake_model, fits):
    fits(1)
    session = fake_session(tmp_path, batch_size=3)
    assert encode(session, 4) == [0, 1, 2, 3]
    assert fake_model.encoder.batches == [1, 1, 1, 1]


def test_a_chip_that_did_not_fit_among_padding_is_tried_alone(tmp_path, fake_model):
    """A compiled encoder pads a scene's last batch; once that has failed, it does no longer."""
    sizes = []

    def before(count: int) -> None:
        sizes.append(count)
        if len(sizes) == 2:
            raise DeviceOutOfMemoryError("cuda:0 is out of memory")

    fake_model.before = before
    session = fake_session(tmp_path, batch_size=4)
    assert encode(session, 5) == list(range(5))
    assert sizes == [4, 1, 1]
    assert session.batch_size == 2


def test_out_of_memory_at_batch_1_is_temporary_and_names_the_chip(tmp_path, fits):
    fits(0)
    session = fake_session(tmp_path, batch_size=4)
    with pytest.raises(TemporaryError) as raised:
        encode(session, 3)
    assert not isinstance(raised.value, DeviceOutOfMemoryError)
    assert raised.value.exit_code == 75
    assert raised.value.retryable
    assert raised.value.chip == "chip_000000"
    assert "8 GiB wanted" in str(raised.value)
    assert session.batch_size == 1


def test_other_failures_name_their_chips(tmp_path, fake_model):
    def before(count: int) -> None:
        raise ConfigurationError("features are not finite")

    fake_model.before = before
    with pytest.raises(ConfigurationError, match="chip_000000, chip_000001") as raised:
        encode(fake_session(tmp_path, batch_size=2), 3)
    assert raised.value.exit_code == 78


def test_balanced_frees_memory_every_16_chips(tmp_path, fake_model):
    session = fake_session(tmp_path, batch_size=4)
    encode(session, 15)
    assert fake_model.encoder.freed == 0
    encode(session, 1)
    assert fake_model.encoder.freed == 1
    encode(session, 32)
    assert fake_model.encoder.freed == 3


def test_what_the_heap_keeps_goes_back_as_often_but_not_beside_a_gpu(
    tmp_path, fake_model, monkeypatch
):
    given = []
    monkeypatch.setattr("geosam_stac.session.give_back_freed", lambda: given.append(1))
    session = fake_session(tmp_path, batch_size=4)
    encode(session, 15)
    assert not given
    encode(session, 33)
    assert len(given) == 2
    session.device = "cuda:0"
    encode(session, 16)
    assert len(given) == 2


def test_low_memory_encodes_one_chip_at_a_time_and_frees_after_each(tmp_path, fake_model):
    session = fake_session(tmp_path, memory_strategy="low")
    assert encode(session, 3) == [0, 1, 2]
    assert fake_model.encoder.batches == [1, 1, 1]
    assert fake_model.encoder.freed == 3


def test_closing_frees_memory_and_lets_the_model_go(tmp_path, fake_model):
    with fake_session(tmp_path) as session:
        encode(session, 1)
    assert fake_model.encoder.freed == 1
    session.close()
    assert fake_model.encoder.freed == 1


def test_a_lost_device_does_not_hide_the_first_error(tmp_path, fake_model, monkeypatch):
    def lost() -> None:
        raise TemporaryError("cuda:0 failed or was lost")

    with pytest.raises(DataError, match="first"), fake_session(tmp_path) as session:
        encode(session, 1)
        monkeypatch.setattr(fake_model.encoder, "free_cached_memory", lost)
        raise DataError("the first")


@pytest.mark.parametrize(("device", "batch"), [("cpu", 1), ("cuda:0", 8), ("mps", 2)])
def test_auto_batch_size(tmp_path, monkeypatch, device, batch):
    monkeypatch.setattr("geosam_stac.encoders.devices.resolve_device", lambda name: device)
    monkeypatch.setattr("geosam_stac.encoders.devices.resolve_precision", lambda name, on: "fp32")
    assert fake_session(tmp_path).batch_size == batch
    assert fake_session(tmp_path, batch_size=5).batch_size == 5
    assert fake_session(tmp_path, memory_strategy="low").batch_size == 1


def test_random_weights_are_said_once_and_loudly(tmp_path, fake_model):
    events = []
    session = fake_session(tmp_path, events, checkpoint="untrained:7")
    encode(session, 1)
    encode(session, 1)
    (notice,) = [e for e in events if isinstance(e, Notice)]
    assert notice.level == "warning"
    assert "RANDOM weights (untrained:7)" in notice.message
    assert len(fake_model.loaded) == 1


def test_unknown_model_and_device(tmp_path):
    with pytest.raises(ConfigurationError, match="sam2\\.1-hiera-tiny"):
        fake_session(tmp_path, model="sam2.1-hiera-teeny")
    with pytest.raises(ConfigurationError, match="cuda:99"):
        fake_session(tmp_path, device="cuda:99")
    with pytest.raises(ConfigurationError, match="fp16 is not for the CPU"):
        fake_session(tmp_path, precision="fp16")


def test_who_only_plans_takes_the_precision_of_those_who_encode(tmp_path):
    """A finalizer, or Dask's client, has no GPU, and its run was asked for with fp16."""
    config = fake_session(tmp_path).config
    for precision, expected in (("fp16", "fp16"), ("bf16", "bf16"), ("fp32", "fp32")):
        asked = config.replace({"precision": precision})
        session = Session(asked, cache_dir=tmp_path / "cache", encodes=False)
        assert session.precision == expected
    asked = config.replace({"precision": "auto"})
    assert Session(asked, cache_dir=tmp_path / "cache", encodes=False).precision in ("fp32", "bf16")


def test_sources_of_a_scene(tmp_path):
    rasters.write_tif(tmp_path / "a.tif", rasters.values((1, 80, 80)))
    path = rasters.write_item(tmp_path / "item.json", {"data": rasters.asset("a.tif")})
    session = fake_session(tmp_path)
    scene = session.scene(str(path))
    assert scene.geobox.shape == (80, 80)
    assert session.scene(path).bands == scene.bands  # a Path
    assert session.scene(path.as_uri()).bands == scene.bands
    assert session.scene(pystac.Item.from_file(str(path))).bands == scene.bands
    assert session.scene(scene) is scene
    document = rasters.document({"data": rasters.asset(tmp_path / "a.tif")})
    assert session.scene(document).geobox == scene.geobox
    with pytest.raises(DataError, match="no such file"):
        session.scene(tmp_path / "missing.json")
    with pytest.raises(UsageError):
        fake_session(tmp_path, stride=0)


# Presets


def earth_search_item():
    return pystac.Item.from_dict(
        {
            "type": "Feature",
            "stac_version": "1.0.0",
            "id": "S2A_T20HNJ_20240311T140636_L2A",
            "collection": "sentinel-2-c1-l2a",
            "geometry": None,
            "properties": {"datetime": "2024-03-11T14:11:54Z"},
            "links": [
                {
                    "rel": "self",
                    "href": "https://earth-search.aws.element84.com/v1/collections/"
                    "sentinel-2-c1-l2a/items/S2A_T20HNJ_20240311T140636_L2A",
                }
            ],
            "assets": {
                key: {"href": f"https://example.org/{key}.tif", "type": "image/tiff"}
                for key in ("red", "green", "blue", "nir", "scl")
            },
        }
    )


def in_force(tmp_path, **options):
    session = Session(EncodeConfig(device="cpu", **options), cache_dir=tmp_path)
    return session.in_force(earth_search_item())


def test_a_preset_says_bands_range_and_mask(tmp_path):
    config = in_force(tmp_path, preset="true-color")
    assert config.bands == ("red", "green", "blue")
    assert config.value_range == "1000,4000"
    assert config.mask == "scl:3,8,9,10"
    assert config.preset is None


def test_what_the_user_says_goes_before_the_preset(tmp_path):
    config = in_force(tmp_path, preset="true-color", value_range="0,1", bands=("nir",))
    assert (config.bands, config.value_range) == (("nir",), "0,1")
    expression = in_force(tmp_path, preset="true-color", expression="nir / red")
    assert expression.bands is None


def test_a_preset_and_its_options_written_out_are_one_digest(tmp_path):
    def digest(config):
        return config.digest(
            model="m", weights_sha256="0", precision="fp32", chip_px=64, stride_px=32
        )

    written = EncodeConfig(bands=("red", "green", "blue"), value_range="1000,4000").replace(
        {"mask": "scl:3,8,9,10"}
    )
    assert digest(in_force(tmp_path, preset="default")) == digest(written)


def test_presets_that_are_not_there(tmp_path):
    with pytest.raises(ConfigurationError, match=r"no preset 'tru-color'.*true-color"):
        in_force(tmp_path, preset="tru-color")
    session = Session(EncodeConfig(device="cpu", preset="true-color"), cache_dir=tmp_path)
    stranger = earth_search_item()
    stranger.collection_id = "something-else"
    with pytest.raises(ConfigurationError, match="no catalog profile knows this Item"):
        session.in_force(stranger)


def test_the_profile_that_the_user_named_says_which_hrefs_are_read(tmp_path):
    item = rasters.document(
        {"red": rasters.asset(tmp_path / "https.tif")}, collection="landsat-c2l2-sr"
    )
    tif = rasters.write_tif(tmp_path / "s3.tif", rasters.values((1, 9, 9)))
    item["assets"]["red"]["alternate"] = {"s3": {"href": str(tif)}}
    session = Session(
        EncodeConfig(device="cpu", bands=("red",)),
        cache_dir=tmp_path,
        profile=load_profile("usgs-landsat"),
    )
    assert session.scene(item).bands[0].href == str(tif)
    with pytest.raises(DataError, match=r"https\.tif"):
        Session(EncodeConfig(device="cpu", bands=("red",)), cache_dir=tmp_path).scene(item)


class Ahead:
    """Records when batches start and when they are waited for, as on a device that works alone."""

    def __init__(self, session: Session, fails: frozenset[int] = frozenset()) -> None:
        self.events: list[str] = []
        encoder = session.encoder
        started = encoder.submit
        count = 0

        def submit(pixels, content_px):
            nonlocal count
            number, count = count, count + 1
            self.events.append(f"start {number}")
            pending = started(pixels, content_px)

            def wait():
                self.events.append(f"wait {number}")
                if number in fails:
                    raise DeviceOutOfMemoryError("cuda:0 is out of memory")
                return pending()

            return wait

        encoder.submit = submit
        session.device = "cuda:0"


def values(session, sizes: list[int]) -> list[float]:
    """Encode batches of such sizes, chips numbered through."""
    todo = iter(chips(sum(sizes)))
    batches = [[next(todo) for _ in range(size)] for size in sizes]
    return [
        float(features.tensors["image_embed"][0, 0, 0])
        for features in session.encode_batches(batches)
    ]


def test_a_gpu_starts_a_batch_before_the_one_before_is_waited_for(tmp_path, fake_model):
    session = fake_session(tmp_path, batch_size=2)
    ahead = Ahead(session)
    assert values(session, [2, 2, 1]) == [0, 1, 2, 3, 4]
    assert ahead.events == ["start 0", "start 1", "wait 0", "start 2", "wait 1", "wait 2"]


def test_a_cpu_gives_each_batch_at_once(tmp_path, fake_model):
    session = fake_session(tmp_path, batch_size=2)
    ahead = Ahead(session)
    session.device = "cpu"
    assert values(session, [2, 2]) == [0, 1, 2, 3]
    assert ahead.events == ["start 0", "wait 0", "start 1", "wait 1"]


def test_a_batch_that_does_not_fit_beside_another_waits_for_it(tmp_path, fake_model):
    """It is not halved: alone it fits."""
    session = fake_session(tmp_path, batch_size=2)
    Ahead(session)
    calls = 0

    def before(count: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise DeviceOutOfMemoryError("cuda:0 is out of memory")

    fake_model.before = before
    assert values(session, [2, 2]) == [0, 1, 2, 3]
    assert session.batch_size == 2


def test_memory_that_runs_out_while_it_is_waited_for_halves_too(tmp_path, fake_model):
    session = fake_session(tmp_path, batch_size=4)
    Ahead(session, fails=frozenset({1}))
    assert values(session, [4, 4]) == list(range(8))
    assert session.batch_size == 2
    assert fake_model.encoder.batches == [4, 4, 2, 2]


def test_two_batches_that_were_started_together_are_halved_once(tmp_path, fake_model):
    events = []
    session = fake_session(tmp_path, events, batch_size=4)
    Ahead(session, fails=frozenset({0, 1}))
    assert values(session, [4, 4]) == list(range(8))
    assert session.batch_size == 2
    assert len([event for event in events if isinstance(event, BatchHalved)]) == 1


def test_batches_are_sized_by_the_device_where_nobody_says(tmp_path, fake_model, monkeypatch):
    monkeypatch.setattr("geosam_stac.encoders.devices.resolve_device", lambda name: "cuda:0")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    session = fake_session(tmp_path, precision="fp32")
    assert session.encoder.compile == "on"  # by default on a GPU
    assert os.environ.pop("TORCHINDUCTOR_CACHE_DIR") == str(tmp_path / "cache" / "compiled")
    assert session.batch_size == 4
    for options in ({"batch_size": 3}, {"memory_strategy": "low"}):
        session = fake_session(tmp_path, precision="fp32", compile=False, **options)
        assert session.encoder.compile == "off"
        assert session.batch_size == options.get("batch_size", 1)
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ


def test_weights_that_are_read_only_have_no_compiled_kernels_beside_them(
    tmp_path, fake_model, monkeypatch
):
    """Baked in an image or mounted from a volume: torch would fail to import its compiler there."""
    monkeypatch.setattr("geosam_stac.encoders.devices.resolve_device", lambda name: "cuda:0")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    # No folder can be made below a file, by root neither.
    (tmp_path / "cache").write_bytes(b"")
    session = fake_session(tmp_path, precision="fp32", checkpoint="untrained")
    assert session.encoder.compile == "on"
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
