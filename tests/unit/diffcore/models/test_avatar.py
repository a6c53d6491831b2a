"""The avatar UNet and Tau: sizes, what the condition can and cannot do, and where it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from diffbase.cli import InputError
from diffbase.files import REPOSITORY
from diffcore import models
from diffcore.config import configure
from diffcore.config.models import AvatarModel
from diffcore.models.avatar import CrossAttention
from diffcore.models.heads import FineHead
from diffcore.models.label_maps import SIDE, LabelMaps
from diffcore.models.tau import AttributeTau, LabelEncoder, Tau
from shards.schema import CARTOON_SET, UNKNOWN, one_hot_offsets, one_hot_width

SMALL: dict[str, Any] = {"channels": (16, 32), "attention_levels": (0, 1), "heads": 2, "tau_tokens": 3}


def small(**changes: Any) -> torch.nn.Module:
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
    c = configure.load(REPOSITORY / "configs" / "avatar-adamw.yaml")
    with torch.device("meta"):
        network = models.build(c.model, CARTOON_SET, 64)
    count = sum(p.numel() for p in network.parameters())
    assert abs(count / 76_464_439 - 1) < 0.01
    assert f"{count:,} parameters" in (REPOSITORY / "configs" / "avatar-adamw.yaml").read_text()
    assert c.model.channels == (128, 256, 512, 1024)


OPTIONS: dict[str, dict[str, Any]] = {
    "resize_conv": {"head": "resize_conv", "head_channels": 6},
    "refine": {"head": "refine", "head_channels": 6},
    "tau": {"tau": "attribute", "tau_tokens": 2},
    "self-attention": {"self_attention_levels": (1,)},
    "blocks": {"blocks": (2, 1)},
    "maps": {"label_maps": 3},
    "gain": {"label_gain": 8.0},
}
"""One at a time."""


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("attributes", ["one_hot", "integer", "none"])
@pytest.mark.parametrize("option", [{}, *OPTIONS.values()], ids=["plain", *OPTIONS])
def test_shapes_and_a_whole_backward(patch: int, attributes: str, option: dict[str, Any]) -> None:
    network = small(patch=patch, attributes=attributes, **option)
    out = network(*inputs())
    assert out.shape == (4, 3, 16, 16)
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


# By label maps alone too: no level has attention then.
CONDITIONS: dict[str, dict[str, Any]] = {
    "mixed": {"tau": "mixed"},
    "attribute": {"tau": "attribute"},
    "maps": {"label_maps": 3, "attention_levels": ()},
}


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("attributes", ["one_hot", "integer"])
def test_every_attribute_reaches_the_output(attributes: str, condition: str) -> None:
    network = small(attributes=attributes, **CONDITIONS[condition]).requires_grad_(False)
    x, t_B, labels_BA, keep_B = inputs()
    out = network(x, t_B, labels_BA, keep_B)
    for column, attribute in enumerate(CARTOON_SET):
        other = labels_BA.clone()
        other[:, column] = (other[:, column] + 1) % attribute.variants
        difference = out - network(x, t_B, other, keep_B)
        assert difference.flatten(1).abs().amax(1).min() > 1e-6, attribute.name


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("attributes", ["one_hot", "integer"])
def test_a_dropped_condition_does_not_reach_the_output(attributes: str, condition: str) -> None:
    network = small(attributes=attributes, **CONDITIONS[condition])
    x, t_B, labels_BA, keep_B = inputs()
    keep_B[1] = False
    out, other = network(x, t_B, labels_BA, keep_B), network(x, t_B, labels_BA * 0, keep_B)
    torch.testing.assert_close(out[1], other[1])
    assert (out[0] - other[0]).abs().max() > 1e-4


@pytest.mark.parametrize("width", [8, 24, 136, 200])
def test_any_allowed_width_builds(width: int) -> None:
    small(channels=(width, width), heads=1)


@pytest.mark.parametrize("option", [{}, *OPTIONS.values()], ids=["plain", *OPTIONS])
def test_samples_of_a_batch_do_not_meet(option: dict[str, Any]) -> None:
    network, all_of = small(**option), inputs()
    together = network(*all_of)
    for i in range(4):
        torch.testing.assert_close(network(*(a[i : i + 1] for a in all_of))[0], together[i])


@pytest.mark.parametrize("option", [{}, *OPTIONS.values()], ids=["plain", *OPTIONS])
def test_a_new_network_predicts_zero(option: dict[str, Any]) -> None:
    network = models.build(AvatarModel(**(SMALL | option)), CARTOON_SET, 16)
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


@pytest.mark.parametrize("tau", ["mixed", "attribute"])
def test_a_gain_changes_how_fast_labels_learn_and_nothing_else(tau: str) -> None:
    """With tables an eighth as large a network of gain 8 is the same; Adam moves labels 8 times as far."""
    moved, outputs = {}, {}
    for gain in (1.0, 8.0):
        network, given = small(tau=tau, label_maps=3), inputs()
        for module in network.modules():
            if isinstance(module, Tau | AttributeTau | LabelMaps):
                module.gain = gain
        tables = [
            p for name, p in network.named_parameters() if ".tau." in name or name == "maps.table.weight"
        ]
        with torch.no_grad():
            torch._foreach_div_(tables, gain)
        outputs[gain] = network(*given)
        outputs[gain].square().mean().backward()
        before = [p.detach() * gain for p in tables]
        torch.optim.Adam(tables, lr=1e-3, eps=0.0).step()
        moved[gain] = [p.detach() * gain - b for p, b in zip(tables, before, strict=True)]
    torch.testing.assert_close(outputs[1.0], outputs[8.0])
    for slow, fast in zip(moved[1.0], moved[8.0], strict=True):
        assert slow.nan_to_num().abs().sum() > 0  # rows of no label here have no gradient: 0 / 0
        torch.testing.assert_close(fast, 8 * slow, equal_nan=True, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("tau", ["mixed", "attribute"])
def test_labels_start_the_same_with_any_gain(tau: str) -> None:
    spreads: dict[float, list[float]] = {}
    for gain in (1.0, 30.0):
        torch.manual_seed(0)
        config = AvatarModel(**SMALL, tau=tau, label_maps=3, label_gain=gain)
        encoder = LabelEncoder(CARTOON_SET, "one_hot")
        attention, maps = CrossAttention(16, encoder, config), LabelMaps(encoder, 3, gain, [])
        encoded = encoder.rows(inputs()[2], inputs()[3], torch.float32)
        drawn = maps(encoded)
        assert 0.8 < drawn.std() < 1.2
        pairs = attention.tau(encoded if tau == "attribute" else torch.eye(217))
        spreads[gain] = [float(t.std()) for t in (drawn.detach(), *(p.detach() for p in pairs))]
    assert spreads[1.0] == pytest.approx(spreads[30.0], rel=1e-3)


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16, 32])
def test_label_maps_are_resized_as_torch_resizes_images(size: int) -> None:
    torch.manual_seed(0)
    maps = LabelMaps(LabelEncoder(CARTOON_SET, "one_hot"), 3, 1.0, [5])
    torch.nn.init.zeros_(maps.places[0].bias)
    torch.nn.init.eye_(maps.places[0].weight[:, :, 0, 0])
    maps_BCSS = torch.randn(2, 3, SIDE, SIDE)
    found = maps.add(0, torch.zeros(2, 5, size, size), maps_BCSS)[:, :3]
    if size < SIDE:
        wanted = torch.nn.functional.adaptive_avg_pool2d(maps_BCSS, size)
    else:
        wanted = torch.nn.functional.interpolate(maps_BCSS, size=size, mode="bilinear")
    torch.testing.assert_close(found, wanted)


def test_an_image_that_the_ladder_does_not_divide() -> None:
    with pytest.raises(InputError, match=r"18 pixels.*multiples of 4"):
        models.build(AvatarModel(**SMALL, patch=2), CARTOON_SET, 18)


def test_a_network_without_options_has_the_parameters_of_older_checkpoints() -> None:
    found = set(small(patch=2).state_dict())
    assert {"head.2.weight", "stem.1.weight", "up.0.0.attention.tau.projections.0.weight"} < found
    assert not [
        name
        for name in found
        if "self_attention" in name or "tau.table" in name or "head.last" in name or "maps" in name
    ]


@pytest.mark.parametrize("encoding", ["one_hot", "integer"])
def test_rows_are_the_encoded_vector(encoding: str) -> None:
    _, _, labels_BA, keep_B = inputs()
    labels_BA[1, ::3], keep_B[2] = UNKNOWN, False
    encoder = LabelEncoder(CARTOON_SET, encoding)
    rows_BA, entries_BA = encoder.rows(labels_BA, keep_B, torch.float32)
    dense = torch.zeros(4, encoder.width).scatter_(1, rows_BA, entries_BA)
    assert torch.equal(dense, encoder(labels_BA, keep_B, torch.float32))
    assert (entries_BA[2] == 0).all() and (entries_BA[1, ::3] == 0).all() and (entries_BA[0] != 0).all()


@pytest.mark.parametrize("encoding", ["one_hot", "integer"])
def test_attribute_tau_is_a_linear_layer_of_blocks(encoding: str) -> None:
    """Mixed Tau whose weights are zero off each attribute's block, one token group per attribute."""
    _, _, labels_BA, keep_B = inputs()
    labels_BA[1, ::3], keep_B[2] = UNKNOWN, False
    encoder = LabelEncoder(CARTOON_SET, encoding)
    torch.manual_seed(0)
    blocks, dense = AttributeTau(encoder, 16, 2, 3), Tau(encoder, 16, 2, 3 * len(CARTOON_SET), 1)
    ends = [*one_hot_offsets(CARTOON_SET)[1:], 217] if encoding == "one_hot" else range(1, 19)
    weight, begin = torch.zeros(2, len(CARTOON_SET), 3, 16, encoder.width), 0
    for attribute, end in enumerate(ends):
        rows = blocks.table.weight[begin:end].view(end - begin, 2, 3, 16)
        weight[:, attribute, :, :, begin:end] = rows.permute(1, 2, 3, 0)
        begin = end
    linear = dense.projections[0]
    linear.weight.data = weight.flatten(0, 3)
    linear.bias.data = blocks.bias.view(len(CARTOON_SET), 2, -1).transpose(0, 1).flatten()
    found = blocks(encoder.rows(labels_BA, keep_B, torch.float32))
    wanted = dense(encoder(labels_BA, keep_B, torch.float32))
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.shape == (4, 2, 54, 8)
        torch.testing.assert_close(ours, theirs)
    if encoding == "one_hot":
        keys, values = found
        assert 0.9 < keys[0].std() < 1.1 and 0.9 < values[0].std() < 1.1
        assert keys[2].std() < 0.1  # a dropped condition: biases alone


def test_self_attention_is_torchs_multihead_attention() -> None:
    from diffcore.models.avatar import SelfAttention

    torch.manual_seed(0)
    ours, theirs = SelfAttention(32, heads=4), torch.nn.MultiheadAttention(32, 4, batch_first=True)
    torch.nn.init.normal_(ours.out.weight, std=0.1)
    theirs.in_proj_weight.data = ours.query_key_value.weight.data
    theirs.in_proj_bias.data = ours.query_key_value.bias.data
    theirs.out_proj.load_state_dict(ours.out.state_dict())
    x_BCHW = torch.randn(2, 32, 4, 4)
    x_BLC = ours.norm(x_BCHW).flatten(2).transpose(1, 2)
    expected = x_BCHW + theirs(x_BLC, x_BLC, x_BLC)[0].transpose(1, 2).unflatten(2, (4, 4))
    torch.testing.assert_close(ours(x_BCHW), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["resize_conv", "refine"])
def test_a_fine_head_treats_the_pixels_of_a_patch_alike(kind: str) -> None:
    """Where features are the same at all places, so is what is made of the noisy image: moved by a pixel it
    is the same, moved. PixelShuffle alone moves by whole patches."""
    torch.manual_seed(0)
    head = FineHead(kind, 16, 8, 12, patch=2)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    if kind == "refine":  # one feature for each pixel: alike where their weights are
        conv = head.spread[0]
        assert isinstance(conv, torch.nn.Conv2d)
        conv.weight.data = conv.weight.view(8, 4, 16, 1, 1)[:, :1].expand(-1, 4, -1, -1, -1).flatten(0, 1)
        conv.bias.data = conv.bias.view(8, 4)[:, :1].expand(-1, 4).flatten()
    x_B3HW, time_BE = torch.randn(1, 3, 24, 24), torch.randn(1, 12)
    features_BChw = torch.randn(1, 16, 1, 1).expand(-1, -1, 12, 12)
    out, moved = (head(features_BChw, x, time_BE) for x in (x_B3HW, x_B3HW.roll((1, 1), (2, 3))))
    inside = slice(6, -6)  # away from the borders' padding
    torch.testing.assert_close(out.roll((1, 1), (2, 3))[..., inside, inside], moved[..., inside, inside])


def test_a_fine_head_can_say_the_noise_without_the_ladder() -> None:
    """Its share of the noisy image alone: a function of the time, for each colour."""
    head = FineHead("refine", 16, 8, 12, patch=2)
    torch.nn.init.normal_(head.share.weight)
    x_B3HW, time_BE = torch.randn(2, 3, 8, 8), torch.randn(2, 12)
    out = head(torch.randn(2, 16, 4, 4), x_B3HW, time_BE)
    torch.testing.assert_close(out, head.share(time_BE)[:, :, None, None] * x_B3HW)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"self_attention_levels": (2,)}, r"self_attention_levels: 2 is not a level; allowed: 0 to 1"),
        ({"self_attention_levels": (0,), "attention_levels": (), "heads": 3}, r"heads: 3 does not divide"),
        ({"blocks": (1, 2, 3)}, r"blocks: 3 levels, but channels has 2"),
        ({"blocks": (1, 0)}, "greater than or equal to 1"),
        ({"tau": "attribute", "tau_projections": 2}, "tau_projections belongs to tau mixed"),
        ({"head": "unshuffle"}, "pixel_shuffle"),
    ],
)
def test_options_that_do_not_fit(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        AvatarModel(**(SMALL | changes))


@pytest.mark.parametrize("given", ["2", "[1, 2, 3]"])
def test_blocks_from_a_flag_and_back_from_a_yaml(given: str, tmp_path: Path) -> None:
    flags = ["--config", str(REPOSITORY / "configs" / "demo.yaml"), "--model.blocks", given]
    c = configure.parse([*flags, "--model.head", "refine", "--model.self_attention_levels", "[2]"])
    (tmp_path / "again.yaml").write_text(c.to_yaml())
    assert configure.load(tmp_path / "again.yaml") == c
    assert isinstance(c.model, AvatarModel)
    assert c.model.blocks == {"2": 2, "[1, 2, 3]": (1, 2, 3)}[given]
    assert c.model.blocks_of_levels == {"2": (2, 2, 2), "[1, 2, 3]": (1, 2, 3)}[given]
    assert (c.model.head, c.model.self_attention_levels) == ("refine", (2,))


def test_blocks_of_each_level() -> None:
    network = small(channels=(16, 16, 16), blocks=(1, 3, 2))
    assert [len(blocks) for blocks in network.down] == [1, 3]
    assert [len(blocks) for blocks in network.up] == [3, 1]
    assert len(network.bottom) == 2
    same, plain = small(blocks=(1, 2)).state_dict(), small(blocks=1).state_dict()
    assert same.keys() == plain.keys()
    network(*inputs())
