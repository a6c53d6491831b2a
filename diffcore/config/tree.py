"""The typed config tree: one YAML per run, dotted overrides on the command line.

    deepspeed diffcore/train.py --config configs/demo.yaml --optimizer.lr 1e-4 --engine.zero 2

pydantic holds the tree and its checks; ``configure.py`` fills it from the YAML and the command line. A field
is written once, with its docstring. Nothing here imports torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BeforeValidator, Field, field_validator, model_validator

from diffbase.cli import InputError
from diffbase.shipped import shipped
from diffcore.config.diffusion import Diffusion
from diffcore.config.models import Model
from diffcore.config.offload import OFFLOADS, OffloadName
from diffcore.config.often import Often
from diffcore.config.precision import Arithmetic, Precision, arithmetic
from diffcore.config.samplers import SAMPLERS, SamplerName
from diffcore.config.section import Identity, Section
from diffcore.config.stages import Span, Stages, spans


def _folder_or_url(given: Any) -> Any:
    # Of a union with str pydantic would keep every path as text.
    if not isinstance(given, str | Path):
        raise ValueError("expected a folder or a URL")
    return given if "://" in str(given) else Path(given)


PRETRAINED = "pretrained:"
"""In the place of a path, before the name of weights that ship here (diffcore/runs/pretrained)."""
Access = Literal["private", "group"]
OrderName = Literal["auto", "full", "block", "shards", "streams"]


class Data(Section):
    """Where the training images are, and how they are read."""

    path: Annotated[Path | str, BeforeValidator(_folder_or_url)]
    """Folder of packed shards, the --out of shards.pack; or its URL (https://, s3://, ...)."""
    order: Identity[OrderName] = "auto"
    """full permutation of the split; block: runs of samples, for a network disk; shards: for a small cache;
    streams: each node reads a part of its own; auto: full for up to 4 GiB, else streams if enough"""
    tail: Identity[Literal["wrap", "drop"]] = "wrap"
    """Last batch of an epoch: wrap goes on into the next epoch inside it, drop leaves out what fills none."""
    on_error: Identity[Literal["raise", "replace"]] = "raise"
    """A corrupt sample ends the run, or the next good one of the packed order takes its place."""
    flip: Identity[bool] = False
    """Mirror half of the training images, others each epoch; labels of left and right stay as they are."""
    replace_limit: int = Field(default=100, ge=0)
    """Corrupt samples that one process may replace; one more ends the run."""
    judge: Path | None = None
    """Folder of the judge of these shards (evaluation.train_judge); None: beside them, if there is one."""
    threads: int = Field(default=2, ge=1, le=256)
    """Threads that read and decode a micro batch."""
    prefetch: int = Field(default=4, ge=1, le=1024)
    """Micro batches read ahead of the step that needs them."""
    cache: Path | None = None
    """Node-local folder for the shards of a URL; None: $SLURM_TMPDIR, else the user's cache folder."""
    cache_bytes: int = Field(default=64 << 30, ge=1)
    """Most that the cache may hold, for all runs of a node that share it."""


Decay = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Width = Annotated[float, Field(ge=0.005, le=0.28)]
StepNumber = Annotated[int, Field(ge=1)]
MOST_PROFILED = 100
"""Steps in one profile or snapshot: each takes some hundred kilobytes, and more where launches are many."""


class Optimizer(Section):
    """Adam, AdamW or Muon."""

    kind: Literal["adam", "adamw", "muon"] = "adamw"
    """Adam, AdamW (decoupled weight decay), or Muon on the hidden layers' weights and AdamW on the rest."""
    lr: float = Field(default=1e-4, gt=0)
    """Peak learning rate."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Adam's moment decays."""
    eps: float = Field(default=1e-8, gt=0)
    """Adam's epsilon."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay."""
    momentum: Decay = 0.95
    """Muon's momentum (Nesterov's)."""
    ns_steps: int = Field(default=5, ge=1, le=20)
    """Muon's Newton-Schulz iterations; more of them come no nearer to orthogonal."""


class LrSchedule(Section):
    """The learning rate over the run, as a factor on optimizer.lr."""

    kind: Literal["constant", "cosine", "step", "onecycle"] = "constant"
    """After the warm-up: constant, a cosine to zero at the end, steps down; onecycle: no warm-up."""
    warmup_samples: int = Field(default=0, ge=0)
    """Samples over which the rate rises linearly from zero."""
    step_samples: int | None = Field(default=None, ge=1)
    """Samples between two steps down of kind step."""
    step_factor: float = Field(default=0.1, gt=0, le=1)
    """Factor of each step down of kind step."""
    plateau_patience: int = Field(default=0, ge=0)
    """Validations in a row without a lower loss after which the rate is cut; 0: never."""
    plateau_factor: float = Field(default=0.5, gt=0, lt=1)
    """Factor of a cut on a plateau."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.kind == "step") != (self.step_samples is not None):
            raise ValueError("step_samples belongs to kind step, which needs it")
        if self.kind == "onecycle" and self.warmup_samples:
            raise ValueError("kind onecycle warms up by itself: warmup_samples must be 0")
        return self


class Batch(Section):
    """Samples per optimizer step and per forward pass."""

    size: Identity[int] = Field(ge=1, le=1 << 24)
    """Global batch: samples per optimizer step, over all ranks."""
    micro: int | None = Field(default=None, ge=1, le=1 << 24)
    """Samples per forward pass on one rank; None: size / world, without accumulation."""

    def split(self, world: int) -> tuple[int, int]:
        """(micro, accumulation) for ``world`` ranks: the only place where the three are related.

        size = micro x accumulation x world; InputError with what would do if that has no solution.
        """
        unit = (self.micro or 1) * world  # every multiple of it has a solution
        if self.size % unit == 0:
            micro = self.micro or self.size // world
            return micro, self.size // (micro * world)
        below = self.size // unit * unit
        ways = [f"a batch.size of {f'{below} or ' if below else ''}{below + unit}"]
        if self.micro and self.size % world == 0:
            part = self.size // world
            less = next(n for n in range(min(self.micro, part), 0, -1) if part % n == 0)
            more = next((part // n for n in range((part - 1) // self.micro, 0, -1) if part % n == 0), None)
            ways.append(f"a batch.micro of {less}{f' or {more}' if more else ''}")
        given = f"micro {self.micro} and " if self.micro else ""
        raise InputError(
            f"batch.size {self.size} is not micro x accumulation x world with {given}world {world}: "
            f"the nearest that would do: {', or '.join(ways)}"
        )


def _switch(given: Any) -> Any:
    # YAML reads on and off as booleans, and so the setting was one once.
    return {"true": "on", "false": "off"}.get(str(given).lower(), given)


CompileName = Annotated[Literal["off", "on", "auto"], BeforeValidator(_switch)]


class Engine(Section):
    """DeepSpeed: ZeRO stage, precision, offloading, activation checkpointing."""

    zero: int = Field(default=1, ge=0, le=3)
    """ZeRO stage (Rajbhandari et al. 2020)."""
    precision: Precision = "fp32"
    """Compute precision; bf16 and fp16 keep fp32 master weights, fp16 has a dynamic loss scale."""
    offload: OffloadName = "none"
    """optimizer: master weights and Adam's moments live, and the step runs, on the CPU (zero 1 to 3);
    parameters: the weights wait there too until a module needs them (zero 3)."""
    gradient_clipping: Identity[float] = Field(default=1.0, ge=0)
    """Bound on the gradient's norm; 0: none."""
    checkpointing: Literal["none", "selective", "full"] = "none"
    """Activation checkpointing: selective runs only cheap operations again in backward, full whole blocks."""
    compile: CompileName = "off"
    """torch.compile the network: slow to start, faster steps on a GPU; needs a C++ compiler, and on a GPU
    Triton; auto: on where there is a GPU and all that it needs, on every rank."""
    channels_last: bool = False
    """Images and convolutions' weights in the memory format channels_last within the network; parameters and
    checkpoints stay as they are."""
    deepspeed: Path | None = None
    """JSON with what is DeepSpeed's own; None: configs/deepspeed/zero{stage}.json."""
    threads: int | None = Field(default=None, ge=1, le=1024)
    """CPU threads per rank; None: its part of the cores that it, and other ranks of the node, may run on."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.compile == "on" and self.zero == 3:
            # Its hooks around every module break the graph into pieces that are compiled again and again.
            raise ValueError("compile needs zero 0, 1 or 2")
        if self.channels_last and self.zero == 3:
            # A weight's copy would outlive the gathered weight, until backward.
            raise ValueError("channels_last needs zero 0, 1 or 2")
        if self.zero not in (stages := OFFLOADS[self.offload].stages):
            allowed = ", ".join(map(str, stages[:-1])) + " or " * (len(stages) > 1) + str(stages[-1])
            raise ValueError(f"offload {self.offload} needs zero {allowed}")
        return self

    @property
    def arithmetic(self) -> Arithmetic:
        """How this stage computes in this precision."""
        return arithmetic(self.zero, self.precision)

    @property
    def json_path(self) -> Path:
        """The JSON with DeepSpeed's own settings: ``deepspeed``, or the stage's in configs/deepspeed."""
        return self.deepspeed or shipped("configs", "deepspeed", f"zero{self.zero}.json")


class Ema(Section):
    """The exponential moving average of the weights."""

    decay: float = Field(default=0.9999, ge=0, lt=1)
    """Decay per step of the weights' exponential moving average."""
    warmup: bool = True
    """Lower the decay early: min(decay, (1 + k) / (10 + k)) in the k-th step after start_step."""
    start_step: int = Field(default=0, ge=0)
    """First step that averages; until then the average is a copy of the weights."""
    posthoc: tuple[Width, ...] = ()
    """Widths, such as [0.05, 0.1], of power-function averages kept beside (Karras et al. 2024): of their
    snapshots diffcore.export --sigma_rel makes an average of any width after the run."""
    snapshot_every: int = Field(default=500, ge=1)
    """Steps between two of these snapshots, beside the last step's: RUN/averages, 2 bytes a parameter and
    width."""

    @field_validator("posthoc")
    @classmethod
    def _each_once(cls, widths: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(widths)) < len(widths):
            raise ValueError(f"{list(widths)}: each width once")
        return widths


class Train(Section):
    """Length of the run, and how often it logs and saves."""

    steps: int = Field(default=0, ge=0)
    """Optimizer steps of the whole run; without them train.minutes, which fixes them when the run begins."""
    minutes: float | None = Field(default=None, gt=0, le=1e7)
    """Instead of steps: as many as the machine makes in that time, without validation, drawing and saving;
    measured once, before the first step, and kept in the run folder."""
    stages: Identity[Stages] = ()
    """First steps on smaller images: [{side: 32, until: 0.5}] is half of the steps at 32 x 32."""
    log_every: int = Field(default=20, ge=1)
    """Steps between two lines of the log and points of TensorBoard."""
    checkpoint_every: Often = 1000
    """Steps between two checkpoints, or the time: 90s, 10m, 1.5h (launch.jobs goodput says which is best).
    The last step is always saved."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Newest checkpoints that are kept, beside the best and the marked ones."""
    best: Literal["validation/loss", "validation/loss_ema", "quality/fidelity"] = "validation/loss_ema"
    """Metric that makes a checkpoint the best one: lowest loss, or highest fidelity, which needs a judge."""
    deterministic: bool = False
    """Deterministic kernels only: the same command gives the same bits."""
    profile: tuple[StepNumber, StepNumber] | None = None
    """First and last of the steps that torch's profiler follows on rank 0, as a Perfetto file: profile/."""
    memory_snapshot: tuple[StepNumber, StepNumber] | None = None
    """First and last of the steps whose CUDA memory torch's allocator records on rank 0, as a file for
    pytorch.org/memory_viz: profile/. Where a step in between runs out of memory, up to there."""

    @field_validator("profile", "memory_snapshot")
    @classmethod
    def _is_span(cls, span: tuple[int, int] | None) -> tuple[int, int] | None:
        if span is not None and not 0 <= span[1] - span[0] < MOST_PROFILED:
            raise ValueError(f"{list(span)} is not the first and the last of 1 to {MOST_PROFILED} steps")
        return span

    @property
    def spans(self) -> list[Span]:
        """The run's stages in order, the packed images last, without those of no step."""
        return spans(self.stages, self.steps)

    def side(self, step: int, size: int) -> int:
        """Edge in pixels of the images of step ``step`` (0 is the first), of packed ones of ``size``."""
        return next((span.side(size) for span in self.spans if step < span.end), size)

    @model_validator(mode="after")
    def _has_a_length(self) -> Self:
        if self.steps and self.minutes is not None:
            raise ValueError(f"steps {self.steps} and minutes {self.minutes:g}: give one of them")
        if not self.steps and self.minutes is None:
            raise ValueError(
                "key 'train.steps' is missing, or 0: optimizer steps of the whole run; or give train.minutes"
            )
        if not self.steps and any(isinstance(stage.until, int) for stage in self.stages):
            raise ValueError("stages: until must be shares of the steps (0.5) where train.minutes says these")
        return self


class Sampling(Section):
    """How images are drawn."""

    every: int = Field(default=1000, ge=1)
    """Training steps between two sample grids."""
    count: int = Field(default=16, ge=1, le=1024)
    """Images in a grid."""
    sampler: SamplerName = "ddim"
    """Sampler (diffusion/samplers.py); dpm++ is DPM-Solver++ 2M, dpm++sde the same with fresh noise."""
    steps: int = Field(default=20, ge=1)
    """Steps of the sampler (heun evaluates the network twice in each; ddpm takes all timesteps)."""
    spacing: Literal["auto", "time", "logsnr", "rho"] = "auto"
    """Levels of the steps: even in t, in logSNR, or as Karras et al. 2022 space them (rho 7); auto: as the
    sampler does, logsnr for dpm++sde and unipc, else time."""
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
        if self.eta and not SAMPLERS[self.sampler].takes_eta:
            takes = ", ".join(name for name, entry in SAMPLERS.items() if entry.takes_eta)
            raise ValueError(f"eta {self.eta} is for sampler {takes}, not {self.sampler}")
        if self.spacing != "auto" and not SAMPLERS[self.sampler].takes_steps:
            raise ValueError(f"spacing {self.spacing} is not for sampler {self.sampler}: it takes all levels")
        if self.guidance_interval[0] > self.guidance_interval[1]:
            raise ValueError(f"guidance_interval {list(self.guidance_interval)} ends before it begins")
        return self


class Memory(Section):
    """The report of where the memory is."""

    trace: bool = True
    """Follow one step of the run and report where the memory is: anatomy.json, memory.txt, report.html."""


class Monitor(Section):
    """Where figures and sample grids go beside metrics.jsonl and the run folder's pictures."""

    loggers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
    """TensorBoard's files in the run folder; W&B and MLflow, each one run over all restarts: WANDB_* and
    MLFLOW_* in the environment say where."""
    project: str = Field(default="diffcore", min_length=1, max_length=128)
    """W&B's project and MLflow's experiment."""

    @field_validator("loggers")
    @classmethod
    def _once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError(f"{', '.join(names)}: each once")
        return names


class Validation(Section):
    """What is measured on held-out and on drawn images while training."""

    samples: int = Field(default=256, ge=0)
    """Held-out images whose loss is measured, with the same noise in every run; 0: none."""
    every: int | None = Field(default=None, ge=1)
    """Training steps between two validations, beside those with every checkpoint; where checkpoints come by
    time, the only ones, and each has its checkpoint."""
    drawn: int = Field(default=256, ge=0)
    """Images drawn for the judge at a validation, where one was trained (evaluation.train_judge); 0: none."""


class Guards(Section):
    """Limits beyond which a run leaves steps out, rolls back or ends."""

    max_skips: int = Field(default=50, ge=1)
    """Steps in a row left out because a gradient is not finite, before the run ends."""
    explosion: Identity[float | None] = Field(default=None, gt=1)
    """A logged loss above this many times the recent median rolls back to a checkpoint; None: never."""
    rollback_factor: Identity[float] = Field(default=0.5, gt=0, le=1)
    """Factor on the learning rate after a rollback."""
    max_rollbacks: int = Field(default=1, ge=0)
    """Rollbacks of a run; one explosion more ends it."""
    hang_seconds: float = Field(default=1800, ge=0, le=1e7)
    """A rank that long without a sign of life writes every thread's stack and ends the run; 0: never."""
    start_seconds: float = Field(default=1800, ge=0, le=1e7)
    """The same until training begins: for the other ranks to come, and for a checkpoint to be loaded."""


class Config(Section):
    """One run. What is declared Identity must match when a run folder is resumed; the rest may change.

    Not Identity are world size, micro batch, ZeRO stage, precision, paths, lengths and logging: where and how
    long the experiment runs. The data is recognized by its index's hash in the checkpoint, not by its path.
    """

    run: Path
    """Run folder: config, metrics, checkpoints, samples and reports. The same command resumes it."""
    seed: Identity[int] = Field(default=0, ge=0, lt=2**63)
    """Seed of the weights, the data order and every sample's noise, timestep and label drop."""
    data: Data
    model: Identity[Model]
    diffusion: Identity[Diffusion] = Diffusion()
    optimizer: Identity[Optimizer] = Optimizer()
    lr_schedule: Identity[LrSchedule] = LrSchedule()
    batch: Batch
    engine: Engine = Engine()
    ema: Identity[Ema] = Ema()
    train: Train
    validation: Validation = Validation()
    guards: Guards = Guards()
    sampling: Sampling = Sampling()
    memory: Memory = Memory()
    monitor: Monitor = Monitor()
    init_from: Path | None = None
    """Run folder, checkpoint, export or pretrained:NAME whose weights a new run starts from; a resume does
    not look at it."""
    init_weights: Literal["ema", "raw"] = "ema"
    """Which of them."""
    trust: Literal["owner", "group"] = "owner"
    """Who may be able to write into the run folder and those above it: nobody but their owner, who is this
    user or root; or their groups' members and the owners of those above too, as in a project's folder."""
    run_access: Access | None = None
    """Who may read the run folder: private: its owner; group: the folder's group too, but for code, settings
    with credentials, and secrets; None: as it was chosen before, private for a new one."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.model.conditional and self.diffusion.label_dropout:
            raise ValueError("diffusion.label_dropout must be 0 for a model without labels")
        if not self.diffusion.label_dropout and self.sampling.guidance not in (0, 1):
            raise ValueError(
                f"sampling.guidance {self.sampling.guidance} needs a network that was trained without labels "
                f"too: diffusion.label_dropout above 0, or guidance 1 (conditional) or 0"
            )
        if (
            isinstance(self.train.checkpoint_every, str)
            and self.lr_schedule.plateau_patience
            and not self.validation.every
        ):
            raise ValueError(
                f"lr_schedule.plateau_patience counts validations, and train.checkpoint_every "
                f"{self.train.checkpoint_every} has them come by the clock: set validation.every (steps)"
            )
        if isinstance(self.train.checkpoint_every, str) and self.guards.explosion is not None:
            raise ValueError(
                f"guards.explosion judges logged losses, whose windows begin where a resume does: give "
                f"train.checkpoint_every in steps, not as {self.train.checkpoint_every}"
            )
        takes_steps = SAMPLERS[self.sampling.sampler].takes_steps
        if takes_steps and self.sampling.steps > self.diffusion.timesteps:
            raise ValueError(
                f"sampling.steps {self.sampling.steps} is above the {self.diffusion.timesteps} timesteps"
            )
        return self

    def to_yaml(self) -> str:
        """The resolved config, every field written out; loads back to an equal Config."""
        return str(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))
