"""Power-function averages against their integrals, and those made after a run against those kept directly."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate

from diffbase.cli import InputError
from diffcore.config import configure
from diffcore.engine.ema import exponent_of, power_decay
from diffcore.runs.averages import snapshots
from diffcore.runs.averages.combine import average, combination, inner
from tests.support import tiny_run

pytestmark = pytest.mark.numeric
widths = st.floats(0.01, 0.28)


def profile(exponent: float, steps: int, at: np.ndarray) -> np.ndarray:
    return np.where((at > 0) & (at <= steps), (exponent + 1) * (at / steps) ** exponent / steps, 0.0)


def weights(exponent: float, steps: int, length: int) -> np.ndarray:
    """Of each of ``length`` steps in the average after ``steps``, by the update's own recursion."""
    found = np.zeros(length)
    for step in range(1, steps + 1):
        decay = power_decay(exponent, step)
        found *= decay
        found[step - 1] += 1 - decay
    return found


@given(widths)
def test_the_exponent_gives_the_width(sigma_rel: float) -> None:
    """sigma_rel is the standard deviation of the profile over t = 1."""
    g = exponent_of(sigma_rel)
    mean, square = (integrate.quad(lambda s, n=n: s**n * (g + 1) * s**g, 0, 1)[0] for n in (1, 2))
    assert (square - mean**2) ** 0.5 == pytest.approx(sigma_rel, rel=1e-4)
    assert sigma_rel == pytest.approx((g + 1) ** 0.5 / (g + 2) / (g + 3) ** 0.5)


def test_known_exponents() -> None:
    """Those of the paper's two averages, and the plain mean."""
    assert exponent_of(0.05) == pytest.approx(16.97, abs=0.01)
    assert exponent_of(0.10) == pytest.approx(6.94, abs=0.01)
    assert exponent_of(12**-0.5) == pytest.approx(0, abs=1e-6)


@given(widths, st.integers(1, 60))
def test_the_update_weighs_steps_by_the_profiles_integral(sigma_rel: float, steps: int) -> None:
    g, k = exponent_of(sigma_rel), np.arange(1, steps + 1)
    wanted = (k / steps) ** (g + 1) - ((k - 1) / steps) ** (g + 1)
    np.testing.assert_allclose(weights(g, steps, steps), wanted, rtol=1e-9, atol=1e-14)


@given(widths, widths, st.integers(1, 50), st.integers(1, 50))
def test_the_inner_product_is_its_integral(a: float, b: float, t: int, u: int) -> None:
    g, h = exponent_of(a), exponent_of(b)
    # Over what both see; s = min(t, u) x, so that the integrand is smooth on 0 .. 1.
    end = min(t, u)
    wanted, _ = integrate.quad(
        lambda x: end * profile(g, t, np.array(end * x)) * profile(h, u, np.array(end * x)), 0, 1, limit=500
    )
    assert inner((g, t), (h, u)) == pytest.approx(wanted, rel=1e-4, abs=1e-12)
    assert inner((g, t), (h, u)) == pytest.approx(inner((h, u), (g, t)))


@given(st.sampled_from([0.05, 0.1]), st.integers(1, 8))
def test_a_profile_that_was_kept_comes_back(sigma_rel: float, which: int) -> None:
    kept = [(exponent_of(s), 125 * i) for i in range(1, 9) for s in (0.05, 0.1)]
    wanted = (exponent_of(sigma_rel), 125 * which)
    factors, distance = combination(kept, wanted)
    assert factors.sum() == pytest.approx(1) and distance < 1e-5
    np.testing.assert_allclose(factors, [float(one == wanted) for one in kept], atol=1e-4)


@pytest.mark.parametrize("sigma_rel", [0.03, 0.04, 0.07, 0.12, 0.15, 0.2])
def test_others_are_as_near_as_it_says(sigma_rel: float) -> None:
    """Weights of single steps, by the recursion, against those of the average that is kept directly."""
    length, kept = 1024, [(exponent_of(s), 32 * i) for i in range(1, 33) for s in (0.05, 0.1)]
    wanted = (exponent_of(sigma_rel), length)
    factors, distance = combination(kept, wanted)
    made = sum(f * weights(g, t, length) for f, (g, t) in zip(factors, kept, strict=True))
    direct = weights(*wanted, length)
    # Means over a step's bin are no further apart than the profiles themselves.
    assert np.linalg.norm(made - direct) <= distance * inner(wanted, wanted) ** 0.5 * 1.001 + 1e-6
    assert distance < 0.05
    assert made.sum() == pytest.approx(1)
    assert np.abs(factors).sum() < 20  # rounding of the snapshots grows by no more


def test_one_snapshot_of_one_width_says_that_it_is_far() -> None:
    factors, distance = combination([(exponent_of(0.05), 100)], (exponent_of(0.2), 100))
    assert factors == pytest.approx([1.0]) and distance > 0.5


def test_a_damaged_snapshot_is_one_line_and_what_a_kill_left_is_removed(tmp_path: Path) -> None:
    run = tiny_run.write(tmp_path / "run", 4)
    config = configure.load(run / "config.yaml", {"ema": {"posthoc": [0.1]}})
    snapshots.folder_of(run).mkdir()
    for name in ("step-00000004.safetensors", ".step-00000004.safetensors.0a.tmp", "notes"):
        (snapshots.folder_of(run) / name).write_bytes(b"x" * 20)
    with pytest.raises(InputError, match=r"step-00000004\.safetensors: not a whole snapshot"):
        average(run, config, 0.1, 4)
    snapshots.clear_after(run, 4)
    there = {path.name for path in snapshots.folder_of(run).iterdir()}
    assert there == {"step-00000004.safetensors", "notes"}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), InputError("its group is none")])
def test_a_run_does_not_end_for_want_of_a_snapshot(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise error

    monkeypatch.setattr(snapshots, "make_folder", refuse)
    alone: Any = SimpleNamespace(world=SimpleNamespace(main=True))
    none: Any = SimpleNamespace(config=SimpleNamespace(posthoc=()), powers=())
    said = snapshots.write(tmp_path, 4, alone, none)
    assert said is not None and said.startswith(("No space", "its group"))
