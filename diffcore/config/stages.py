"""Stages of a run: its first steps on smaller images, the rest on the packed ones (Karras et al. 2018).

Which stage a step is in follows from the config and the step's number alone, as all that is random does.
Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field

from diffbase.cli import InputError
from diffcore.config.models import Model
from diffcore.config.section import Section

ALLOWED = "allowed: the number of its last step, or a share of train.steps above 0 and below 1"


def _end(given: Any) -> Any:
    # Of a union pydantic would say what each of its members lacks.
    if isinstance(given, float) and given.is_integer():
        given = int(given)
    is_step = isinstance(given, int) and not isinstance(given, bool) and given >= 1
    if not is_step and not (isinstance(given, float) and 0 < given < 1):
        raise ValueError(f"neither a step nor a share; {ALLOWED}")
    return given


class Stage(Section):
    """Steps on smaller images: each of their pixels is the mean of a square of the packed image's."""

    side: int = Field(ge=1, le=1 << 16)
    """Edge of its images in pixels; it divides that of the packed ones."""
    until: Annotated[int | float, BeforeValidator(_end)]
    """Its last step, or a share of train.steps (0.5); the next stage, or the packed images, come then."""
    shift: bool = True
    """Raise logSNR by 2 log(packed edge / side): a timestep hides as much of the picture as it will at the
    full size, where the mean of a square has less noise than a pixel (Hoogeboom et al. 2023)."""


def _rising(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    if len({type(stage.until) for stage in stages}) > 1:
        raise ValueError("until: all of them steps, or all shares")
    for before, after in pairwise(stages):
        if not (before.side < after.side and before.until < after.until):
            raise ValueError("side and until must rise from stage to stage")
    return stages


Stages = Annotated[tuple[Stage, ...], AfterValidator(_rising)]
"""The stages before the packed images, in order."""


class Span(NamedTuple):
    """The steps ``first`` .. ``end`` - 1 (0 is a run's first), and their stage; None: the packed images."""

    first: int
    end: int
    stage: Stage | None

    def side(self, size: int) -> int:
        """Edge of its images in pixels, of packed ones of ``size``."""
        return self.stage.side if self.stage else size


def spans(stages: Sequence[Stage], steps: int) -> list[Span]:
    """What a run of ``steps`` steps consists of, in order: at least one span, none of them empty.

    Of a run whose steps are not known (0): the packed images, which take most.
    """
    if not steps:
        return [Span(0, 0, None)]
    found, first = [], 0
    for stage in (*stages, None):
        until = stage.until if stage else steps
        end = min(round(until * steps) if isinstance(until, float) else until, steps)
        if end > first:
            found.append(Span(first, end, stage))
            first = end
    return found


def check(stages: Sequence[Stage], model: Model, size: int) -> None:
    """InputError for a stage whose images cannot be made of packed ones of ``size`` pixels, or do not go
    through the network."""
    allowed = [side for side in range(model.divisor, size, model.divisor) if size % side == 0]
    for number, stage in enumerate(stages):
        if stage.side not in allowed:
            raise InputError(
                f"train.stages.{number}.side: {stage.side}; allowed with images of {size} pixels and this "
                f"model.{model.kind} network: {', '.join(map(str, allowed)) or 'none'}"
            )
