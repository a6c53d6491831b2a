"""Settings that would do nothing beside others: who gives one for a new run is told so.

Not part of the tree's own checks: a run that was recorded with such a setting is loaded and resumed as
before. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_jsonable_python

from diffbase.cli import InputError
from diffbase.system_error import is_there
from diffcore.config.samplers import SAMPLERS
from diffcore.config.tree import Config


@dataclass(frozen=True)
class Idle:
    """Fields that act only beside certain values of another one."""

    fields: tuple[str, ...]
    beside: str
    """The field that decides."""
    acts: Callable[[Config], bool]
    wants: str
    """What they are for."""


def _reaches(field: str) -> Callable[[Config], bool]:
    def acts(config: Config) -> bool:
        span = getattr(config.train, field)
        # With train.minutes there are no steps yet.
        return span is None or not config.train.steps or span[0] <= config.train.steps

    return acts


IDLE = (
    Idle(
        ("diffusion.beta_start", "diffusion.beta_end"), "diffusion.schedule",
        lambda c: c.diffusion.schedule in ("linear", "sigmoid"), "the schedules linear and sigmoid",
    ),
    Idle(
        ("diffusion.sigma_data",), "diffusion.target",
        lambda c: c.diffusion.target == "edm", "target edm",
    ),
    Idle(
        ("diffusion.sigmoid_bias",), "diffusion.loss_weight",
        lambda c: c.diffusion.loss_weight == "sigmoid", "loss_weight sigmoid",
    ),
    Idle(
        ("diffusion.timestep_mean", "diffusion.timestep_std"), "diffusion.timestep_density",
        lambda c: c.diffusion.timestep_density == "log_normal", "timestep_density log_normal",
    ),
    Idle(
        ("optimizer.momentum", "optimizer.ns_steps"), "optimizer.kind",
        lambda c: c.optimizer.kind == "muon", "kind muon",
    ),
    Idle(
        ("ema.snapshot_every",), "ema.posthoc",
        lambda c: bool(c.ema.posthoc), "runs with ema.posthoc",
    ),
    Idle(
        ("lr_schedule.step_factor",), "lr_schedule.kind",
        lambda c: c.lr_schedule.kind == "step", "kind step",
    ),
    Idle(
        ("lr_schedule.plateau_factor",), "lr_schedule.plateau_patience",
        lambda c: c.lr_schedule.plateau_patience > 0, "a plateau_patience above 0",
    ),
    Idle(
        ("guards.rollback_factor", "guards.max_rollbacks"), "guards.explosion",
        lambda c: c.guards.explosion is not None, "runs with guards.explosion",
    ),
    Idle(
        ("sampling.steps",), "sampling.sampler",
        lambda c: SAMPLERS[c.sampling.sampler].takes_steps, "samplers that do not take all timesteps",
    ),
    Idle(
        ("sampling.guidance_rescale",), "sampling.guidance",
        lambda c: c.sampling.guidance not in (0, 1), "a guidance other than 0 and 1",
    ),
    Idle(
        ("sampling.guidance_interval",), "sampling.guidance",
        lambda c: c.sampling.guidance != 1, "a guidance other than 1, which it has outside",
    ),
    Idle(
        ("data.replace_limit",), "data.on_error",
        lambda c: c.data.on_error == "replace", "on_error replace",
    ),
    Idle(
        ("monitor.project",), "monitor.loggers",
        lambda c: {"wandb", "mlflow"} & set(c.monitor.loggers) != set(), "the loggers wandb and mlflow",
    ),
    Idle(("init_weights",), "init_from", lambda c: c.init_from is not None, "runs with init_from"),
    Idle(
        ("model.head_channels",), "model.head",
        lambda c: getattr(c.model, "head", None) != "pixel_shuffle", "the heads resize_conv and refine",
    ),
    Idle(
        ("model.label_gain", "model.label_maps"), "model.attributes",
        lambda c: getattr(c.model, "attributes", None) != "none", "networks that read labels",
    ),
    Idle(("train.profile",), "train.steps", _reaches("profile"), "steps of the run"),
    Idle(("train.memory_snapshot",), "train.steps", _reaches("memory_snapshot"), "steps of the run"),
)  # fmt: skip


def check(config: Config, layers: Sequence[Mapping[str, Any]]) -> None:
    """InputError for a field of a new run that has another value than its default, which does nothing.

    ``layers``: what was given, nested, each over the one before. A field counts where nothing above it has
    chosen against it: of a file that is extended, or under a flag, it may stay. So does a recorded config,
    which says every field.
    """
    if is_there(config.run / "config.yaml"):
        return
    for idle in IDLE:
        if idle.acts(config):
            continue
        chosen = max((i for i, layer in enumerate(layers) if _has(layer, idle.beside)), default=-1)
        for field in idle.fields:
            given = max((i for i, layer in enumerate(layers) if _has(layer, field)), default=-1)
            value = _of(config, field)
            if given < max(chosen, 0) or set(Config.model_fields) <= set(layers[given]):
                continue
            if value != config.usual(field):
                raise InputError(
                    f"{field} {value} would do nothing with {idle.beside} {_of(config, idle.beside)}: "
                    f"it is for {idle.wants}"
                )


def _has(tree: Any, field: str) -> bool:
    for name in field.split("."):
        if not isinstance(tree, Mapping) or name not in tree:
            return False
        tree = tree[name]
    return True


def _of(config: Config, field: str) -> Any:
    found: Any = config
    for name in field.split("."):
        found = getattr(found, name)
    return to_jsonable_python(found)
