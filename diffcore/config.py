"""The typed config tree: one YAML a run, dotted overrides on the command line.

    deepspeed diffcore/train.py --config configs/demo.yaml --optimizer.lr 1e-4 --engine.zero 2

pydantic holds the tree and its checks, pydantic-settings turns it into ``--help`` and dotted flags, so a
field is written once, with its doc string. Nothing here imports torch. Relative paths in a YAML are
relative to that YAML; on the command line, to the working directory.
"""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from shards.cli import InputError, Parser

REPOSITORY = Path(__file__).resolve().parents[1]


class Section(BaseModel):
    """A part of the config: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class Data(Section):
    path: Path | str
    """Folder of packed shards, the --out of shards.pack; or its URL (https://, s3://, ...)."""
    order: Literal["full", "block", "shards"] = "full"
    """full permutation of the split; block: runs of samples, for a network disk; shards: for a small cache"""
    tail: Literal["wrap", "drop"] = "wrap"
    """Last batch of an epoch: wrap goes on into the next epoch inside it, drop leaves out what fills none."""
    on_error: Literal["raise", "replace"] = "raise"
    """A corrupt sample ends the run, or the next good one of the packed order takes its place."""
    replace_limit: int = Field(default=100, ge=0)
    """Corrupt samples that one process may replace; one more ends the run."""
    threads: int = Field(default=2, ge=1, le=256)
    """Threads that read and decode a micro batch."""
    prefetch: int = Field(default=4, ge=1)
    """Micro batches read ahead of the step that needs them."""
    cache: Path | None = None
    """Node-local folder for the shards of a URL; none: $SLURM_TMPDIR, else the user's cache folder."""
    cache_bytes: int = Field(default=64 << 30, ge=1)
    """Most that the cache may hold, for all runs of a node that share it."""

    @model_validator(mode="before")
    @classmethod
    def _local_paths(cls, given: Any) -> Any:
        # Of a union with str pydantic would keep every path as text.
        if isinstance(given, dict) and isinstance(path := given.get("path"), str) and "://" not in path:
            return {**given, "path": Path(path)}
        return given


class AvatarModel(Section):
    """The UNet with Tau and cross-attention (models/avatar.py)."""

    kind: Literal["avatar"] = "avatar"
    channels: tuple[int, ...] = (128, 256, 512, 1024)
    """Width of each level; the resolution halves from one to the next."""
    patch: int = Field(default=1, ge=1)
    """Edge of the squares of pixels that become channels before the ladder; 1: none."""
    blocks: int = Field(default=1, ge=1)
    """Residual blocks a level on the way down (the way up has as many)."""
    attention_levels: tuple[int, ...] = (1, 2, 3)
    """Levels whose blocks are followed by cross-attention to the attributes; 0 is the full resolution."""
    heads: int = Field(default=4, ge=1)
    """Attention heads."""
    attributes: Literal["one_hot", "integer", "none"] = "one_hot"
    """How Tau reads the labels; none: no condition at all."""
    tau_tokens: int = Field(default=6, ge=1)
    """Key/value tokens that one projection of Tau gives an attention block."""
    tau_projections: int = Field(default=1, ge=1)
    """Linear projections of Tau for each attention block (1 or 2 in the experiments)."""

    @property
    def conditional(self) -> bool:
        return self.attributes != "none"

    @property
    def divisor(self) -> int:
        """What the image's size must be a multiple of."""
        return int(self.patch * 2 ** (len(self.channels) - 1))

    @model_validator(mode="after")
    def _check(self) -> Self:
        levels = range(len(self.channels))
        if len(self.channels) < 2 or any(c < 8 or c % 8 for c in self.channels):
            raise ValueError(f"channels must be two or more multiples of 8, got {list(self.channels)}")
        for level in self.attention_levels:
            if level not in levels:
                raise ValueError(f"attention_levels: {level} is not a level; allowed: 0 to {levels[-1]}")
            if self.channels[level] % self.heads:
                raise ValueError(
                    f"heads: {self.heads} does not divide channels[{level}], {self.channels[level]}"
                )
        return self


class DdpmModel(Section):
    """The class-conditional DDPM UNet (models/ddpm.py)."""

    kind: Literal["ddpm"]
    width: int = Field(default=64, ge=8, multiple_of=8)
    """Channels at full resolution; the ladder is 1, 2, 4, 4 times that, and 8 at the bottom."""
    heads: int = Field(default=4, ge=1)
    """Heads of the self-attention."""
    embedding: int = Field(default=256, ge=2, multiple_of=2)
    """Width of the time and label embedding."""
    labels: Literal["embedding", "none"] = "embedding"
    """embedding: every label has one, added to the time's; none: no condition."""

    @property
    def conditional(self) -> bool:
        return self.labels != "none"

    @property
    def divisor(self) -> int:
        """What the image's size must be a multiple of."""
        return 8

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads: {self.heads} does not divide width, {self.width}")
        return self


class DiffusersModel(Section):
    """diffusers' UNet2DConditionModel behind Tau (models/diffusers_unet.py)."""

    kind: Literal["diffusers"]
    block_out_channels: tuple[int, ...] = (128, 256, 512)
    """Width of each level; all have cross-attention."""
    layers_per_block: int = Field(default=2, ge=1)
    """Residual blocks a level on the way down."""
    cross_attention_dim: int = Field(default=1280, ge=8)
    """Width of Tau's tokens."""
    tau_tokens: int = Field(default=256, ge=1)
    """Number of Tau's tokens."""
    attention_head_dim: int = Field(default=32, ge=1)
    """diffusers' name; in this class it is the number of attention heads."""
    only_cross_attention: bool = True
    """No self-attention before the cross-attention: both of a block's attentions read the tokens."""
    attributes: Literal["one_hot", "integer"] = "one_hot"
    """How Tau reads the labels."""

    @property
    def conditional(self) -> bool:
        return True

    @property
    def divisor(self) -> int:
        """What the image's size must be a multiple of."""
        return int(2 ** (len(self.block_out_channels) - 1))

    @model_validator(mode="after")
    def _check(self) -> Self:
        for width in self.block_out_channels:
            if width % 32 or width % self.attention_head_dim:
                raise ValueError(
                    f"block_out_channels: {width} is not a multiple of 32 and of attention_head_dim "
                    f"{self.attention_head_dim}"
                )
        return self


class Diffusion(Section):
    schedule: Literal["linear", "cosine", "sigmoid"] = "linear"
    """Noise schedule: linear betas (Ho et al. 2020), cosine (Nichol & Dhariwal 2021) or sigmoid betas."""
    timesteps: int = Field(default=1000, ge=2)
    """T, the number of noise levels."""
    beta_start: float = Field(default=1e-4, gt=0, lt=1)
    """First beta of the linear schedule."""
    beta_end: float = Field(default=0.02, gt=0, lt=1)
    """Last beta of the linear schedule."""
    zero_terminal_snr: bool = False
    """Rescale the schedule so that its last level is pure noise (Lin et al. 2024); not for target eps."""
    input_scale: float = Field(default=1.0, gt=0)
    """Factor b on the images: moves logSNR by 2 log b with the schedule fixed (Chen 2023)."""
    target: Literal["eps", "v", "x0"] = "eps"
    """What the network predicts: the noise, v (Salimans & Ho 2022) or the image."""
    loss_weight: Literal["uniform", "min_snr"] = "uniform"
    """Weight of the levels in the loss: all alike, or min-SNR-5 (Hang et al. 2023)."""
    label_dropout: float = Field(default=0.1, ge=0, le=1)
    """Share of the samples whose labels are dropped, for classifier-free guidance (Ho & Salimans 2022)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.beta_start > self.beta_end:
            raise ValueError(f"beta_start {self.beta_start} is above beta_end {self.beta_end}")
        if self.zero_terminal_snr and self.target == "eps":
            raise ValueError("zero_terminal_snr needs target v or x0: pure noise says nothing of the image")
        return self


Decay = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class Optimizer(Section):
    kind: Literal["adam", "adamw"] = "adamw"
    """Adam, or AdamW (decoupled weight decay)."""
    lr: float = Field(default=1e-4, gt=0)
    """Peak learning rate."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Adam's moment decays."""
    eps: float = Field(default=1e-8, gt=0)
    """Adam's epsilon."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay."""


class LrSchedule(Section):
    kind: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up: constant, or a cosine to zero at the last step."""
    warmup_samples: int = Field(default=0, ge=0)
    """Samples over which the rate rises linearly from zero."""


class Batch(Section):
    size: int = Field(ge=1)
    """Global batch: samples an optimizer step, over all ranks."""
    micro: int | None = Field(default=None, ge=1)
    """Samples a forward pass on one rank; empty: size / world, without accumulation."""

    def split(self, world: int) -> tuple[int, int]:
        """(micro, accumulation) for ``world`` ranks: the only place where the three are related.

        size = micro x accumulation x world; InputError with the three numbers if that has no solution.
        """
        micro = self.micro or self.size // world
        accumulation = self.size // (micro * world) if micro else 0
        if accumulation * micro * world != self.size or not accumulation:
            raise InputError(
                f"batch.size {self.size} is not micro x accumulation x world with micro {micro or 1} and "
                f"world {world}: give a batch.size that is a multiple of {(micro or 1) * world}"
            )
        return micro, accumulation


class Engine(Section):
    zero: int = Field(default=1, ge=0, le=3)
    """ZeRO stage (Rajbhandari et al. 2020)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Compute precision; bf16 keeps fp32 master weights."""
    gradient_clipping: float = Field(default=1.0, ge=0)
    """Bound on the gradient's norm; 0: none."""
    deepspeed: Path | None = None
    """JSON with what is DeepSpeed's own; empty: configs/deepspeed/zero{stage}.json."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads a rank; empty: cores / ranks on this node."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.precision == "bf16" and self.zero == 0:
            # DeepSpeed steps there without fp32 masters that could be saved or averaged.
            raise ValueError("precision bf16 needs zero 1, 2 or 3; one process with zero 1 is plain bf16")
        return self

    @property
    def json_path(self) -> Path:
        return self.deepspeed or REPOSITORY / "configs" / "deepspeed" / f"zero{self.zero}.json"


class Ema(Section):
    decay: float = Field(default=0.9999, ge=0, lt=1)
    """Decay of the weights' exponential moving average a step."""
    warmup: bool = True
    """Lower the decay early: min(decay, (1 + step) / (10 + step))."""


class Train(Section):
    steps: int = Field(ge=1)
    """Optimizer steps of the whole run."""
    log_every: int = Field(default=20, ge=1)
    """Steps between two lines of the log and points of TensorBoard."""
    checkpoint_every: int = Field(default=1000, ge=1)
    """Steps between two checkpoints; the last step is always saved."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Newest checkpoints that are kept."""
    deterministic: bool = False
    """Deterministic kernels only: the same command gives the same bits."""


class Sampling(Section):
    every: int = Field(default=1000, ge=1)
    """Training steps between two sample grids."""
    count: int = Field(default=16, ge=1, le=1024)
    """Images in a grid."""
    sampler: Literal["ddim", "ddpm", "dpm++", "heun"] = "ddim"
    """Sampler (diffusion/samplers.py); dpm++ is DPM-Solver++ 2M."""
    steps: int = Field(default=20, ge=1)
    """Steps of the sampler (heun evaluates the network twice in each; ddpm takes all timesteps)."""
    eta: float = Field(default=0.0, ge=0, le=1)
    """Fresh noise of ddim: 0 none, 1 as much as ddpm."""
    guidance: float = Field(default=2.0, ge=0)
    """Guidance scale as in diffusers: 0 is unconditional, 1 plain conditional."""
    guidance_rescale: float = Field(default=0.0, ge=0, le=1)
    """Share by which guided predictions get the conditional one's contrast back (Lin et al. 2024)."""
    guidance_interval: tuple[Share, Share] = (0.0, 1.0)
    """Range of t / (T - 1) in which guidance acts (Kynkaanniemi et al. 2024)."""
    clamp: bool = True
    """Keep every step's x_0 in the images' range."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.eta and self.sampler != "ddim":
            raise ValueError(f"eta {self.eta} is for sampler ddim, not {self.sampler}")
        if self.guidance_interval[0] > self.guidance_interval[1]:
            raise ValueError(f"guidance_interval {list(self.guidance_interval)} ends before it begins")
        return self


Model = Annotated[AvatarModel | DdpmModel | DiffusersModel, Field(discriminator="kind")]


class Config(Section):
    """One run. Fields marked identity must match when a run folder is resumed; the others may change."""

    run: Path
    """Run folder: config, metrics, checkpoints, samples and reports. The same command resumes it."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the weights, the data order and every sample's noise, timestep and label drop."""
    data: Data
    model: Model
    diffusion: Diffusion = Diffusion()
    optimizer: Optimizer = Optimizer()
    lr_schedule: LrSchedule = LrSchedule()
    batch: Batch
    engine: Engine = Engine()
    ema: Ema = Ema()
    train: Train
    sampling: Sampling = Sampling()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.model.conditional and self.diffusion.label_dropout:
            raise ValueError("diffusion.label_dropout must be 0 for a model without labels")
        if not self.diffusion.label_dropout and self.sampling.guidance not in (0, 1):
            raise ValueError(
                f"sampling.guidance {self.sampling.guidance} needs a network that was trained without labels "
                f"too: diffusion.label_dropout above 0, or guidance 1 (conditional) or 0"
            )
        if self.sampling.steps > self.diffusion.timesteps:
            raise ValueError(
                f"sampling.steps {self.sampling.steps} is above the {self.diffusion.timesteps} timesteps"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """What makes this the same experiment, as flat dotted keys.

        World size, micro batch, ZeRO stage, precision, paths, lengths and logging are placement and left
        out; the data is told apart by its index's hash, which the checkpoint holds, not by its path.
        """
        tree = self.model_dump(
            mode="json",
            include={"data": {"order", "tail", "on_error"}}
            | dict.fromkeys(("seed", "model", "diffusion", "optimizer", "lr_schedule", "batch", "ema"), True),
        )
        del tree["batch"]["micro"]
        tree["engine"] = {"gradient_clipping": self.engine.gradient_clipping}
        return dict(flatten(tree))

    def to_yaml(self) -> str:
        """The resolved config, every field written out; loads back to an equal Config."""
        return str(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mapping -> (dotted key, leaf) pairs."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@dataclass(frozen=True)
class _Flags:
    config: Path | None
    overrides: dict[str, Any]


def load(path: Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Config from a YAML file and nested overrides. InputError with field, value and what is allowed."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such config file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a YAML file: {error}") from error
    if not isinstance(tree, dict):
        raise InputError(f"{path}: expected a mapping of config sections, got {type(tree).__name__}")
    _anchor_paths(tree, Config, path.parent)
    tree = _merged(tree, overrides or {})
    try:
        return Config.model_validate(tree)
    except pydantic.ValidationError as error:
        raise InputError(f"{path}: {_explain(error)}") from error


def replace(config: Config, section: str, values: Mapping[str, Any]) -> Config:
    """``config`` with some fields of one section changed, checked as a whole. InputError as in load."""
    tree = _merged(config.model_dump(), {section: dict(values)})
    try:
        return Config.model_validate(tree)
    except pydantic.ValidationError as error:
        raise InputError(_explain(error)) from error


def parse(argv: Sequence[str] | None = None, prog: str | None = None) -> Config:
    """``--config FILE`` plus dotted overrides -> Config. ``--help`` lists every field."""
    flags = _parse_flags(argv, prog)
    if flags.config is None:
        raise InputError("--config FILE is missing; examples are in configs/")
    _anchor_paths(flags.overrides, Config, Path.cwd())
    return load(flags.config, flags.overrides)


def _parse_flags(argv: Sequence[str] | None, prog: str | None) -> _Flags:
    from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict

    class Flags(Config, BaseSettings):  # Config's fields as flags; validation happens after the merge
        model_config = SettingsConfigDict(extra="forbid", use_attribute_docstrings=True)

    parser = Parser(prog=prog, description="YAML config plus dotted overrides.", allow_abbrev=False)
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML with the run's config (configs/)")
    # The deepspeed launcher appends it; the rank itself is read from the environment.
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    source: Any = CliSettingsSource(
        Flags, root_parser=parser, cli_parse_args=False, cli_avoid_json=True, cli_enforce_required=False
    )
    known, unknown = parser.parse_known_args(argv)
    if unknown:
        flag = unknown[0].split("=")[0]
        names = [option for action in parser._actions for option in action.option_strings]
        near = difflib.get_close_matches(flag, names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "--help lists all"
        raise InputError(f"unknown argument {unknown[0]!r}; {hint}")
    overrides = source(parsed_args=known)()
    return _Flags(known.config, {k: v for k, v in overrides.items() if k in Config.model_fields})


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        result[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result


def _anchor_paths(tree: dict[str, Any], section: type[BaseModel], folder: Path) -> None:
    """Make relative paths absolute, in place: a YAML's from its folder, the command line's from here."""
    for name, field in section.model_fields.items():
        value, kinds = tree.get(name), (field.annotation, *get_args(field.annotation))
        if isinstance(value, str) and Path in kinds and "://" not in value:
            tree[name] = os.path.normpath(folder.resolve() / Path(value).expanduser())
        elif isinstance(value, dict):
            for kind in _sections(field.annotation):
                _anchor_paths(value, kind, folder)


def _explain(error: pydantic.ValidationError) -> str:
    """The first problem as one line: dotted field, what is wrong, what is allowed."""
    first, count = error.errors()[0], error.error_count()
    parent, names = _locate(first["loc"])
    field = ".".join(names)
    if first["type"].startswith("union_tag"):
        kinds = [kind for section in _sections(get_args(Model)[0]) for kind in _kinds(section)]
        text = f"{field}.kind must be one of {', '.join(kinds)}"
    elif first["type"] == "extra_forbidden" and parent is not None:
        allowed = list(parent.model_fields)
        near = difflib.get_close_matches(str(first["loc"][-1]), allowed, n=1)
        text = f"unknown key {field!r}"
        text += f" (did you mean {near[0]!r}?)" if near else ""
        text += f"; allowed here: {', '.join(allowed)}"
    elif first["type"] == "missing" and parent is not None:
        meaning = parent.model_fields[str(first["loc"][-1])].description
        text = f"key {field!r} is missing: {meaning or 'a section'}"
    else:
        text = f"{field}: " if field else ""
        text += first["msg"].removeprefix("Value error, ")
        if not isinstance(first["input"], dict | BaseModel):
            text += f", got {first['input']!r}"
    return text + (f" (and {count - 1} more)" if count > 1 else "")


def _locate(path: Sequence[int | str]) -> tuple[type[BaseModel] | None, list[str]]:
    """The section that holds the last part of an error's path, and the path as the user writes it.

    pydantic puts the chosen member of a union into the path (model.avatar.heads); a YAML does not.
    """
    section: type[BaseModel] | None = Config
    choices: list[type[BaseModel]] = []
    names: list[str] = []
    for i, part in enumerate(path):
        if len(choices) > 1 and (chosen := [c for c in choices if part in _kinds(c)]):
            section, choices = chosen[0], chosen
            continue
        names.append(str(part))
        if i == len(path) - 1:
            break
        field = section.model_fields.get(str(part)) if section else None
        choices = list(_sections(field.annotation)) if field else []
        section = choices[0] if choices else None
    return section, names


def _kinds(section: type[BaseModel]) -> tuple[Any, ...]:
    kind = section.model_fields.get("kind")
    return get_args(kind.annotation) if kind else ()


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield kind
