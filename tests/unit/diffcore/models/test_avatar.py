"""The avatar UNet and Tau: sizes, what the condition can and cannot do, and where it starts."""

from __future__ import annotations

import pytest
import torch

from diffbase.cli import InputError
from diffbase.files import REPOSITORY
from diffcore import models
from diffcore.config import configure
from diffcore.config.models import AvatarModel
from diffcore.models.tau import LabelEncoder, Tau
from shards.schema import CARTOON_SET, one_hot_width

SMALL = {"channels": (16, 32), "attention_levels": (0, 1), "heads": 2, "tau_tokens": 3}


def small(**changes: object) -> torch.nn.Module:
    torch.manual_seed(0)
    network = models.build(AvatarModel(**(SMALL | changes)), CARTOON_SET, 16)
    for parameter in network.parameters():  # zeroed branches would hide what they do
        torch.nn.init.normal_(parameter, std=0.1)
    return network


def inputs(count: int = 4) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    labels_BA = torch.stack([torch.randint(0, a.variants, (count,)) for a in CARTOON_SET], dim=1)
    return torch.randn(count, 3, 16, 16), torch.arange(count) * 7, labels_BA, torch.ones(count).bool()


def test_the_real_thing_has_the_size_it_says() -> None:
    c = configure.load(REPOSITORY / "configs" / "avatar.yaml")
    with torch.device("meta"):
        network = models.build(c.model, CARTOON_SET, 64)
    count = sum(p.numel() for p in network.parameters())
    assert abs(count / 76_464_439 - 1) < 0.01
    assert f"{count:,} parameters" in (REPOSITORY / "configs" / "avatar.yaml").read_text()
    assert c.model.channels == (128, 256, 512, 1024)


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("attributes", ["one_hot", "integer", "none"])
def test_shapes_and_a_whole_backward(patch: int, attributes: str) -> None:
    network = small(patch=patch, attributes=attributes)
    out = network(*inputs())
    assert out.shape == (4, 3, 16, 16)
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.parametrize("attributes", ["one_hot", "integer"])
def test_every_attribute_reaches_the_output(attributes: str) -> None:
    network = small(attributes=attributes).requires_grad_(False)
    x, t_B, labels_BA, keep_B = inputs()
    out = network(x, t_B, labels_BA, keep_B)
    for column, attribute in enumerate(CARTOON_SET):
        other = labels_BA.clone()
        other[:, column] = (other[:, column] + 1) % attribute.variants
        difference = out - network(x, t_B, other, keep_B)
        assert difference.flatten(1).abs().amax(1).min() > 1e-6, attribute.name


@pytest.mark.parametrize("attributes", ["one_hot", "integer"])
def test_a_dropped_condition_does_not_reach_the_output(attributes: str) -> None:
    network = small(attributes=attributes)
    x, t_B, labels_BA, keep_B = inputs()
    keep_B[1] = False
    out, other = network(x, t_B, labels_BA, keep_B), network(x, t_B, labels_BA * 0, keep_B)
    torch.testing.assert_close(out[1], other[1])
    assert (out[0] - other[0]).abs().max() > 1e-4


@pytest.mark.parametrize("width", [8, 24, 136, 200])
def test_any_allowed_width_builds(width: int) -> None:
    small(channels=(width, width), heads=1)


def test_samples_of_a_batch_do_not_meet() -> None:
    network, all_of = small(), inputs()
    together = network(*all_of)
    for i in range(4):
        torch.testing.assert_close(network(*(a[i : i + 1] for a in all_of))[0], together[i])


def test_a_new_network_predicts_zero() -> None:
    network = models.build(AvatarModel(**SMALL), CARTOON_SET, 16)
    assert network(*inputs()).abs().max() == 0


def test_one_hot_is_torchs() -> None:
    labels_BA = inputs()[2]
    encoder = LabelEncoder(CARTOON_SET, "one_hot")
    columns = [torch.nn.functional.one_hot(labels_BA[:, i], a.variants) for i, a in enumerate(CARTOON_SET)]
    expected = torch.cat(columns, dim=1).float()
    torch.testing.assert_close(encoder(labels_BA, torch.ones(4).bool(), torch.float32), expected)
    assert expected.shape[1] == encoder.width == one_hot_width(CARTOON_SET) == 217


def test_keys_and_values_start_at_unit_variance() -> None:
    torch.manual_seed(0)
    tau = Tau(LabelEncoder(CARTOON_SET, "one_hot"), 64, heads=4, tokens=6, projections=2)
    keys, values = tau(tau_input := torch.zeros(1, 217).index_fill_(1, torch.arange(18), 1.0))
    assert keys.shape == values.shape == (1, 4, 12, 16) and tau_input.sum() == 18
    assert 0.9 < keys.std() < 1.1 and 0.9 < values.std() < 1.1


def test_an_image_that_the_ladder_does_not_divide() -> None:
    with pytest.raises(InputError, match=r"18 pixels.*multiples of 4"):
        models.build(AvatarModel(**SMALL, patch=2), CARTOON_SET, 18)
