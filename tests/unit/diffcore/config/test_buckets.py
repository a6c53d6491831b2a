"""Bucket sizes that follow the network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffbase.files import REPOSITORY
from diffcore.config import buckets, configure
from diffcore.config.deepspeed_json import settings

NUMELS = st.lists(st.integers(1, 10**8), min_size=1, max_size=50)


@given(NUMELS)
def test_a_bucket_is_no_larger_than_the_network_and_an_eighth_of_a_large_one(numels: list[int]) -> None:
    size, total = buckets.bucket(numels), sum(numels)
    assert 1 <= size <= min(total, buckets.MOST)
    if buckets.PARTS * buckets.LEAST < total <= buckets.PARTS * buckets.MOST:
        assert size == -(-total // buckets.PARTS)


@given(st.lists(st.integers(1, 200_000), min_size=1, max_size=200))
def test_what_stays_whole_is_a_sixteenth_at_most_and_no_more_would_be(numels: list[int]) -> None:
    def whole(size: int) -> int:
        return sum(numel for numel in numels if numel <= size)

    size = buckets.persistent(numels)
    assert 0 <= size <= buckets.PERSISTENT
    assert buckets.WHOLE * whole(size) <= sum(numels)
    larger = [numel for numel in numels if size < numel <= buckets.PERSISTENT]
    if larger:
        assert buckets.WHOLE * whole(min(larger)) > sum(numels)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_number_in_the_json_stands(stage: int, tmp_path: Path) -> None:
    demo = REPOSITORY / "configs" / "demo.yaml"
    shipped = configure.load(demo, {"engine": {"zero": stage}})
    auto = settings(shipped, 1, [1000, 3000])["zero_optimization"]
    assert auto["reduce_bucket_size"] == 4000
    tree = json.loads(shipped.engine.json_path.read_text())
    tree["zero_optimization"]["reduce_bucket_size"] = 77
    (tmp_path / "zero.json").write_text(json.dumps(tree))
    given_one = configure.changed(shipped, {"engine": {"deepspeed": tmp_path / "zero.json"}})
    assert settings(given_one, 1, [1000, 3000])["zero_optimization"] == auto | {"reduce_bucket_size": 77}
    left = settings(given_one, 1)["zero_optimization"]  # no network is at hand
    assert left["reduce_bucket_size"] == 77 and "auto" not in left.values()
