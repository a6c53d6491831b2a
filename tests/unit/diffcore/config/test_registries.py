"""What the config names is there: a name without its function would only fail when it is used."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from diffbase.explain import kinds_of
from diffcore.config import models as sections
from diffcore.config import samplers as entries
from diffcore.config.diffusion import Diffusion
from diffcore.config.section import Section
from diffcore.config.tree import Optimizer, Sampling
from diffcore.diffusion import samplers
from diffcore.diffusion.loss import WEIGHTS
from diffcore.diffusion.schedule import ALPHA_BARS
from diffcore.diffusion.spacing import SPACINGS
from diffcore.engine import optimizers
from diffcore.models import BUILDERS
from diffcore.models.tau import ENCODINGS


@pytest.mark.parametrize(
    ("section", "field", "functions"),
    [
        (Diffusion, "schedule", ALPHA_BARS),
        (Diffusion, "loss_weight", WEIGHTS),
        (Optimizer, "kind", optimizers.WHOLE),
        (Optimizer, "kind", optimizers.PARTITIONED),
    ],
)
def test_every_choice_has_its_function(section: type[Section], field: str, functions: dict[str, Any]) -> None:
    assert set(get_args(section.model_fields[field].annotation)) == functions.keys()


def test_every_spacing_has_its_function() -> None:
    assert set(get_args(Sampling.model_fields["spacing"].annotation)) == {"auto", *SPACINGS}


def test_every_sampler_has_its_function() -> None:
    assert entries.SAMPLERS.keys() == samplers.SAMPLERS.keys()


def test_every_label_encoding_has_its_function() -> None:
    assert set(get_args(sections.LabelEncoding)) == ENCODINGS.keys()


def test_every_network_has_its_builder() -> None:
    union = get_args(get_args(sections.Model)[0])
    assert {kind for section in union for kind in kinds_of(section)} == BUILDERS.keys()
