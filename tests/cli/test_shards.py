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
