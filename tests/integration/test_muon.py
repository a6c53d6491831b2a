"""Muon under real DeepSpeed with two processes, beside a plain loop over whole matrices."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffcore.config import configure
from diffcore.engine.orthogonal import newton_schulz
from tests.integration.conftest import Train, train_all
from tests.support import numerics
from tests.support.numerics import assert_near, assert_same, plain_loop, saved

CELLS = numerics.cells(ranks=2)


@pytest.fixture(scope="module")
def trained(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step and on to ten of every stage and precision, all in one pair of processes."""
    folder = tmp_path_factory.mktemp("muon")
    steps = (1, numerics.STEPS)
    paths = [str(numerics.write(folder, packed, cell, n, kind="muon")) for cell in CELLS for n in steps]
    train_all(paths, ranks=2)
    return folder


@pytest.mark.numeric
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_two_ranks_learn_what_a_plain_loop_learns(cell: numerics.Cell, trained: Path) -> None:
    found = numerics.compare(trained, cell, 2, numerics.STEPS)
    assert not numerics.faults(found), found


@pytest.mark.numeric
@pytest.mark.parametrize(
    ("before", "after"), [((2, 1), (1, 3)), ((1, 0), (2, 2)), ((2, 3), (1, 1)), ((2, 2), (2, 0))]
)
def test_a_run_goes_on_at_another_world_size_and_stage(
    before: tuple[int, int], after: tuple[int, int], train: Train, small: Path
) -> None:
    small.write_text(numerics.of_kind("muon").replace("PACKED", str(configure.load(small).data.path)))
    train("--train.steps", "2", "--engine.zero", str(before[1]), ranks=before[0])
    resumed = train("--engine.zero", str(after[1]), ranks=after[0])
    assert "from step 2" in resumed.out
    # A gradient's rounding lies where its singular values are 0, and orthogonalization lifts them by A^5.
    rtol = 4 * 16 * 2.0**-24 * newton_schulz.A**5
    assert_near(saved(small.parent / "run"), plain_loop(small, 4), rtol)


@pytest.mark.numeric
@pytest.mark.parametrize("zero", [1, 3])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(zero: int, train: Train, small: Path) -> None:
    small.write_text(numerics.of_kind("muon").replace("PACKED", str(configure.load(small).data.path)))
    run_folder, alike = small.parent / "run", ("--engine.zero", str(zero))
    train("--train.steps", "2", *alike, ranks=2)
    assert "from step 2" in train(*alike, ranks=2).out
    two_sittings = saved(run_folder)
    run_folder.rename(small.parent / "first")
    train(*alike, ranks=2)
    one_sitting = saved(run_folder)
    assert any(name.endswith(".momentum") for name in one_sitting["optimizer"])
    assert_same(two_sittings, one_sitting)
