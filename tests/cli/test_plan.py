"""`plan`: the dry run's facts, and a fleet's."""

from __future__ import annotations

import json


def test_command(cli, item):
    done = cli("plan", "--item", item, "--chip-size", 64, "--stride", 32, "--fleet", 2, "--rate", 8)
    assert done.code == 0, done.err
    assert "chips    4" in done.out
    assert "2 workers" in done.out
    assert "8 chips/s a worker (your assumption, given with --rate)" in done.out
    assert "measured" not in done.err


def test_command_in_json(cli, item):
    options = ("--chip-size", 64, "--stride", 32, "--json", "--fleet", 2, "--price", 1)
    done = cli("plan", "--item", item, *options)
    plan, fleet = map(json.loads, done.lines)
    assert plan["chips"] == fleet["fleet"]["chips"] == 4
    assert fleet["fleet"]["cost"] == fleet["fleet"]["worker_hours"]
    assert "NOT a measured rate" in fleet["fleet"]["rate_source"]
    assert "no rate of a GPU has been measured by this project" in done.err
    assert "--rate" in done.err


def test_rate_without_a_fleet(cli, item):
    done = cli("plan", "--item", item, "--rate", 8)
    assert done.code == 2
    assert "--fleet" in done.err
