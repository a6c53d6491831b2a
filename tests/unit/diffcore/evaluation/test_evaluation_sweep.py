"""What a sweep recommends, and who obeys it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from diffbase.cli import InputError
from diffbase.files import REPOSITORY
from diffcore.config import configure
from diffcore.config.samplers import SAMPLERS
from diffcore.evaluation import flags
from diffcore.evaluation.judging.intervals import Mean
from diffcore.evaluation.studies import cells
from diffcore.evaluation.studies import guidance_sweep as sweep
from diffcore.runs.sampling import RECOMMENDED, changed_sampling, recommended, sampling_of

CONFIG = configure.load(REPOSITORY / "configs" / "demo.yaml")


def asked(run: Path, **given: Any) -> argparse.Namespace:
    return argparse.Namespace(run=run, **given)


def test_sampling_takes_the_recommendation_unless_told_otherwise(tmp_path: Path) -> None:
    assert sampling_of(CONFIG, asked(tmp_path)) == CONFIG.sampling
    (tmp_path / RECOMMENDED).write_text(json.dumps({"sampler": "dpm++", "steps": 12, "guidance": 3.0}))
    by_default = sampling_of(CONFIG, asked(tmp_path))
    assert (by_default.sampler, by_default.steps, by_default.guidance) == ("dpm++", 12, 3.0)
    assert sampling_of(CONFIG, asked(tmp_path, guidance=1.0, steps=None)).guidance == 1.0
    # Another sampler takes the scale, but not the steps of the recommended one.
    other = sampling_of(CONFIG, asked(tmp_path, sampler="ddim"))
    assert (other.sampler, other.steps, other.guidance) == ("ddim", CONFIG.sampling.steps, 3.0)


def test_settings_of_the_runs_sampler_alone_do_not_bind_another(tmp_path: Path) -> None:
    config = configure.replace(CONFIG, "sampling", {"sampler": "ddim", "eta": 0.5, "spacing": "rho"})
    for name, entry in SAMPLERS.items():
        found = changed_sampling(config, {"sampler": name, "guidance": 3.0})
        assert found.eta == (0.5 if entry.takes_eta else 0)
        assert found.spacing == ("rho" if entry.takes_steps else "auto")
        assert sampling_of(config, asked(tmp_path, sampler=name, guidance=3.0)) == found
    for given in ({"eta": 0.5}, {"spacing": "time"}):
        with pytest.raises(InputError, match=f"{next(iter(given))} .* for sampler"):
            sampling_of(config, asked(tmp_path, sampler="ddpm", **given))


@pytest.mark.parametrize("text", ["", "[]", '{"sampler": "ddim"}'])
def test_a_broken_recommendation_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / RECOMMENDED).write_text(text)
    with pytest.raises(InputError, match="not a recommendation"):
        recommended(tmp_path)


class FakeTable:
    """Cells differ by their fidelity, give or take two points."""

    def difference(self, cell: Any, other: Any) -> Mean:
        mean = cell.scores.mean.mean - other.scores.mean.mean
        return Mean(mean, mean - 0.02, mean + 0.02)


def cell(fidelity: float, frechet: float, steps: int = 20) -> Any:
    return SimpleNamespace(
        scores=SimpleNamespace(mean=Mean(fidelity, fidelity, fidelity)),
        frechet=frechet,
        sampling=SimpleNamespace(steps=steps),
    )


def test_the_nearest_to_real_images_among_the_faithful_is_chosen() -> None:
    table = cast(Any, FakeTable())
    cells = [cell(0.60, 1.0), cell(0.89, 5.0), cell(0.90, 9.0)]
    assert sweep.choose(table, cells) is cells[1]
    steps = [cell(0.80, 1.0, 5), cell(0.885, 1.0, 10), cell(0.89, 1.0, 20), cell(0.90, 1.0, 50)]
    assert sweep.fewest(table, steps) is steps[1]


@pytest.mark.parametrize("text", ["1;2", "-1", "", "nan"])
def test_bad_scales_are_told(text: str) -> None:
    with pytest.raises(InputError, match=f"--scales {text}"):
        flags.numbers("--scales", text)


def test_kept_images_that_are_damaged_are_drawn_again(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    assert not cells.kept(path, 2).size
    np.save(path, images)
    assert np.array_equal(cells.kept(path, 2), images)
    whole = path.read_bytes()
    huge = whole.replace(b"(2, 4, 4, 3), }" + b" " * 12, b"(2000000000000, 4, 4, 3), }")
    damaged = [b"", whole[:-1], whole[:50], b"x" * 200, huge, whole.replace(b"|u1", b"|i1")]
    for number, data in enumerate(damaged, 1):
        assert data != whole
        path.write_bytes(data)
        assert not cells.kept(path, 2).size and not path.exists()
        assert len(list(tmp_path.iterdir())) == number
    np.save(path, images)
    assert not cells.kept(path, 3).size
