"""The cut: deterministic, complete, balanced."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geosam_stac.errors import UsageError
from geosam_stac.scale.shards import Shard, Unit, balance, cut, split

CHIPS = st.lists(st.integers(0, 3_000), min_size=1, max_size=60)


@given(CHIPS, st.integers(1, 40))
def test_every_chip_is_in_one_unit(chips, count):
    shards = cut(chips, count)
    assert len(shards) == count
    units = [unit for shard in shards for unit in shard]
    assert len(set(units)) == len(units)
    for scene, expected in enumerate(chips):
        parts = sorted(unit for unit in units if unit.scene == scene)
        assert [unit.part for unit in parts] == list(range(parts[0].parts))
        assert sum(unit.chips for unit in parts) == expected


@given(CHIPS, st.integers(1, 40))
def test_shards_are_balanced(chips, count):
    shards = cut(chips, count)
    largest = max(sum(unit.chips for unit in shard) for shard in shards)
    # Graham: at most 4/3 of the best, which is no less than the mean; a unit counts 1 at least.
    work = sum(max(1, unit.chips) for shard in shards for unit in shard)
    biggest = max(unit.chips for shard in shards for unit in shard)
    assert largest <= work / count + biggest


@given(CHIPS, st.integers(1, 12))
def test_the_cut_is_the_same_for_everyone(chips, count):
    assert cut(chips, count) == cut(list(chips), count)


def test_one_large_scene_is_split_over_all():
    shards = cut([441], 5)
    assert [len(units) for units in shards] == [1] * 5
    assert balance(shards) == (88, 89)
    assert shards[0][0].parts == 5


def test_small_scenes_stay_whole():
    shards = cut([9] * 40, 8)
    assert all(unit.parts == 1 for units in shards for unit in units)
    assert balance(shards) == (45, 45)


def test_more_shards_than_work():
    shards = cut([1, 1], 5)
    assert sum(len(units) for units in shards) == 2
    assert sorted(len(units) for units in shards) == [0, 0, 0, 1, 1]


def test_split_for_a_queue():
    assert split([10, 3], at_most=4) == [
        Unit(scene=0, part=0, parts=3, chips=3),
        Unit(scene=0, part=1, parts=3, chips=3),
        Unit(scene=0, part=2, parts=3, chips=4),
        Unit(scene=1, chips=3),
    ]


@pytest.mark.parametrize(
    ("text", "environ", "expected"),
    [
        ("3/8", {}, (3, 8)),
        ("8", {"JOB_COMPLETION_INDEX": "3"}, (3, 8)),
        ("3/8", {"JOB_COMPLETION_INDEX": "3"}, (3, 8)),
        (" 0/1 ", {}, (0, 1)),
    ],
)
def test_parse(text, environ, expected):
    shard = Shard.parse(text, environ)
    assert (shard.index, shard.count) == expected


@pytest.mark.parametrize(
    ("text", "environ", "said"),
    [
        ("8", {}, "which shard this is"),
        ("8/8", {}, "none of the shards"),
        ("-1/8", {}, "not understood"),
        ("a/b", {}, "not understood"),
        ("0/0", {}, "none of the shards"),
        ("1/8", {"JOB_COMPLETION_INDEX": "2"}, "contradict"),
        ("8", {"JOB_COMPLETION_INDEX": "x"}, "no index"),
        ("8", {"JOB_COMPLETION_INDEX": "9"}, "none of the shards"),
    ],
)
def test_parse_refuses(text, environ, said):
    with pytest.raises(UsageError, match=said):
        Shard.parse(text, environ)
