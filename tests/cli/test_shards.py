"""`encode --shard` and `finalize` in this process; as processes: scale/test_shard_runs.py."""

from __future__ import annotations

from geosam_stac.errors import ConfigurationError


def test_what_ends_every_shard_is_not_waited_for(cli, fake, fake_model):
    def refuse(_: int) -> None:
        raise ConfigurationError("the device is not there")

    options = fake[1:]
    fake_model.before = refuse
    assert cli("encode", *options, "--shard", "0/1").code == 78
    done = cli("finalize", *options, "--shards", 1, "--wait", 100_000, "--attempt", "job-1")
    assert done.code == 75
    assert "shard 0 has ended the run: the device is not there" in done.err
    assert "shards that have not reported: 0" in done.err
    fake_model.before = lambda chips: None
    assert cli("encode", *options, "--shard", "0/1").code == 0
    done = cli("finalize", *options, "--shards", 1, "--wait", 100_000, "--attempt", "job-1")
    assert done.code == 0, done.err
    assert len(done.lines) == 1


def test_a_machine_without_the_device_ends_the_wait(cli, item, fake_model, tmp_path):
    """Its report is written although no Session opens: 78 ends a Job, and the others with it."""
    options = [
        *("--item", item, "--model", "sam2.1-hiera-tiny", "--checkpoint", "untrained"),
        *("--stride", 32, "--out", tmp_path / "out", "--device"),
    ]
    done = cli("encode", *options, "cuda:99", "--shard", "0/1")
    assert done.code == 78 and "'cuda:99' is not there" in done.err
    done = cli("finalize", *options, "cuda:99", "--shards", 1, "--wait", 100_000)
    assert done.code == 75
    assert "shard 0 has ended the run: device 'cuda:99' is not there" in done.err
    # On a machine that has the device the shard takes that back.
    assert cli("encode", *options, "cpu", "--shard", "0/1").code == 0
    done = cli("finalize", *options, "cuda:99", "--shards", 1, "--wait", 100_000)
    assert done.code == 0, done.err


def test_fp16_is_finalized_on_a_machine_without_a_gpu(cli, item, fake_model, tmp_path):
    options = [
        *("--item", item, "--model", "sam2.1-hiera-tiny", "--checkpoint", "untrained"),
        *("--stride", 32, "--out", tmp_path / "out", "--device", "cuda", "--precision", "fp16"),
    ]
    done = cli("finalize", *options, "--shards", 1)
    assert done.code == 75  # not 78: the shard is missing, and that is all
    assert "shards that have not reported: 0" in done.err
