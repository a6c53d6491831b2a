"""Settings that do nothing are refused where somebody gives them, and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from diffbase.cli import InputError
from diffbase.files import REPOSITORY
from diffcore.config import configure
from diffcore.config.idle import IDLE
from diffcore.config.tree import Config

DEMO = REPOSITORY / "configs" / "demo-adamw.yaml"  # its schedule is cosine

CASES = {
    "diffusion.beta_start": 1e-3,
    "diffusion.beta_end": 0.05,
    "diffusion.sigma_data": 0.3,
    "diffusion.sigmoid_bias": 1.0,
    "diffusion.timestep_mean": -1.2,
    "diffusion.timestep_std": 1.2,
    "optimizer.momentum": 0.9,
    "optimizer.ns_steps": 7,
    "ema.snapshot_every": 7,
    "lr_schedule.step_factor": 0.3,
    "lr_schedule.plateau_factor": 0.3,
    "guards.rollback_factor": 0.3,
    "guards.max_rollbacks": 7,
    "sampling.steps": 7,
    "sampling.guidance_rescale": 0.5,
    "sampling.guidance_interval": [0.2, 0.8],
    "data.replace_limit": 7,
    "monitor.project": "mine",
    "init_weights": "raw",
    "model.head_channels": 8,
    "model.label_gain": 30.0,
    "model.label_maps": 16,
    "train.profile": [10**6, 10**6 + 1],
    "train.memory_snapshot": [10**6, 10**6 + 1],
}
BESIDE: dict[str, dict[str, Any]] = {
    "diffusion.beta_start": {"diffusion.schedule": "linear"},
    "diffusion.beta_end": {"diffusion.schedule": "sigmoid"},
    "diffusion.sigma_data": {"diffusion.target": "edm"},
    "diffusion.sigmoid_bias": {"diffusion.loss_weight": "sigmoid"},
    "diffusion.timestep_mean": {"diffusion.timestep_density": "log_normal"},
    "diffusion.timestep_std": {"diffusion.timestep_density": "log_normal"},
    "optimizer.momentum": {"optimizer.kind": "muon"},
    "optimizer.ns_steps": {"optimizer.kind": "muon"},
    "ema.snapshot_every": {"ema.posthoc": [0.1]},
    "lr_schedule.step_factor": {"lr_schedule.kind": "step", "lr_schedule.step_samples": 100},
    "lr_schedule.plateau_factor": {"lr_schedule.plateau_patience": 2},
    "guards.rollback_factor": {"guards.explosion": 5},
    "guards.max_rollbacks": {"guards.explosion": 5},
    "sampling.steps": {"sampling.sampler": "heun"},
    "sampling.guidance_rescale": {"sampling.guidance": 2},
    "sampling.guidance_interval": {"sampling.guidance": 0},
    "data.replace_limit": {"data.on_error": "replace"},
    "monitor.project": {"monitor.loggers": ["wandb"]},
    "init_weights": {"init_from": "there"},
    "model.head_channels": {"model.head": "refine"},
    "model.label_gain": {"model.attributes": "integer"},
    "model.label_maps": {"model.attributes": "integer"},
    "train.profile": {"train.steps": 10**7},
    "train.memory_snapshot": {"train.steps": 10**7},
}
UNLABELLED = {"model.attributes": "none", "diffusion.label_dropout": 0, "sampling.guidance": 1}
OFF: dict[str, dict[str, Any]] = {
    "model.label_gain": UNLABELLED,
    "model.label_maps": UNLABELLED,
    "sampling.steps": {"sampling.sampler": "ddpm"},
    "sampling.guidance_rescale": {"sampling.guidance": 1},
    "sampling.guidance_interval": {"sampling.guidance": 1},
}
"""Of the rest the default, and the demo's, is the one beside which they do nothing."""


def flags(values: dict[str, Any]) -> list[str]:
    return [f"--{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in values.items()]


def parsed(tmp_path: Path, values: dict[str, Any], config: Path = DEMO) -> Config:
    return configure.parse(["--config", str(config), "--run", str(tmp_path / "run"), *flags(values)])


def written(path: Path, values: dict[str, Any], **top: Any) -> Path:
    path.write_text(yaml.safe_dump({**top, **configure.nested(values)}))
    return path


def test_every_kind_is_tried() -> None:
    assert {field for idle in IDLE for field in idle.fields} == set(CASES) == set(BESIDE)


@pytest.mark.parametrize("field", CASES)
def test_what_would_do_nothing_is_refused(field: str, tmp_path: Path) -> None:
    off = OFF.get(field, {})
    with pytest.raises(InputError, match=f"{field} .* would do nothing with .*: it is for"):
        parsed(tmp_path, {field: CASES[field], **off})
    own = written(tmp_path / "own.yaml", {field: CASES[field], **off}, extends=str(DEMO))
    with pytest.raises(InputError, match=f"{field} .* would do nothing"):
        parsed(tmp_path, {}, own)
    parsed(tmp_path, {field: CASES[field], **BESIDE[field]})
    parsed(tmp_path, BESIDE[field], own)


@pytest.mark.parametrize("field", CASES)
def test_a_default_is_no_mistake(field: str, tmp_path: Path) -> None:
    usual = configure.load(DEMO).usual(field)
    if usual is not None:
        parsed(tmp_path, {field: usual, **OFF.get(field, {})})


@pytest.mark.parametrize("field", CASES)
def test_runs_that_have_it_are_loaded_and_resumed(field: str, tmp_path: Path) -> None:
    values = {field: CASES[field], **OFF.get(field, {})}
    loaded = configure.load(DEMO, configure.nested({**values, "run": str(tmp_path / "run")}))
    job = tmp_path / "job.yaml"  # what a job's ranks are given: every field
    job.write_text(loaded.to_yaml())
    assert configure.parse(["--config", str(job)]) == loaded
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(loaded.to_yaml())
    assert parsed(tmp_path, values) == loaded  # the command that began it


def test_a_flag_may_choose_against_a_file(tmp_path: Path) -> None:
    base = written(
        tmp_path / "base.yaml",
        {"diffusion.schedule": "linear", "diffusion.beta_end": 0.008},
        extends=str(DEMO),
    )
    assert parsed(tmp_path, {"diffusion.schedule": "cosine"}, base).diffusion.beta_end == 0.008
    over = written(tmp_path / "over.yaml", {"diffusion.schedule": "cosine"}, extends=str(base))
    parsed(tmp_path, {}, over)
    with pytest.raises(InputError, match=r"beta_end 0.01 would do nothing with diffusion.schedule cosine"):
        parsed(tmp_path, {"diffusion.beta_end": 0.01}, over)


def test_a_sampler_that_takes_all_timesteps_may_have_few(tmp_path: Path) -> None:
    values = {"diffusion.timesteps": 10, "sampling.sampler": "ddpm"}  # the default steps are more
    assert parsed(tmp_path, values).sampling.steps == configure.load(DEMO).sampling.steps


@pytest.mark.parametrize("schedule", ["flow", "edm"])
def test_betas_are_of_two_schedules(schedule: str, tmp_path: Path) -> None:
    values = {"diffusion.schedule": schedule, "diffusion.beta_end": 0.05}
    with pytest.raises(InputError, match=f"would do nothing with diffusion.schedule {schedule}"):
        parsed(tmp_path, values)


def test_a_run_by_minutes_may_have_any_steps_profiled(tmp_path: Path) -> None:
    values = {"train.minutes": 5, "train.profile": [3, 5]}
    assert parsed(tmp_path, values).train.profile == (3, 5)


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs").rglob("*.yaml")), ids=lambda p: p.name)
def test_no_config_of_ours_has_one(path: Path, tmp_path: Path) -> None:
    parsed(tmp_path, {}, path)
