"""Cards by name: every way to write one finds it, and no other; slices; what is unknown is one line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffbase.cli import InputError
from diffbase.machine import cards
from diffbase.machine.cards import CARDS

SLICED = [(name, profile) for name, card in CARDS.items() for profile in card.profiles]


@given(
    name=st.sampled_from(sorted(CARDS)),
    between=st.sampled_from(["", " ", "-", "_", "  "]),
    before=st.sampled_from(["", "NVIDIA ", "nvidia-", "NVIDIA GeForce ", "Tesla "]),
    upper=st.booleans(),
)
def test_a_card_is_found_however_its_name_is_written(
    name: str, between: str, before: str, upper: bool
) -> None:
    written = before + between.join(name.split())
    assert cards.find(written.upper() if upper else written.lower()) is CARDS[name]
    for way in CARDS[name].nvml:
        assert cards.find(way) is CARDS[name]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a100-40gb", "A100 40GB"), ("A100 80G", "A100 80GB"), ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
        ("NVIDIA A100 80GB PCIe", "A100 80GB PCIe"), ("NVIDIA H100 80GB HBM3", "H100"), ("h100 80gb", "H100"),
        ("Tesla T4", "T4"), ("NVIDIA A10G", "A10G"), ("Tesla V100-SXM2-32GB", "V100 32GB"),
        ("A6000", "RTX A6000"),
        ("4090", "RTX 4090"), ("NVIDIA GeForce RTX 3060", "RTX 3060 12GB"), ("rtx 5090 32gb", "RTX 5090"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"), ("A100 1g.5gb", "A100 40GB 1g.5gb"),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", "A100 80GB 1g.10gb"), ("H100 3g.40gb", "H100 3g.40gb"),
        ("H100 MIG 1g.10gb+me", "H100 1g.10gb"),
    ],
)  # fmt: skip
def test_names_as_people_and_nvml_write_them(text: str, name: str) -> None:
    assert cards.named(text).name == name


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("A100", "it may be A100 40GB or A100 40GB PCIe or A100 80GB"),
        ("V100", "it may be V100 16GB or V100 16GB PCIe or V100 32GB"),
        ("RTX 4091", "did you mean RTX 4090"),
        ("H100 3g.41gb", "no MIG profile of one card; there are: H100: 1g.10gb, .*3g.40gb"),
        ("RTX 4090 1g.5gb", "RTX 4090: none"),
        ("A100 1g.10gb", "no MIG profile of one card"),
        ("a toaster", "none has a name like it"),
        ("", "no card that is known"),
    ],
)
def test_what_names_no_card_is_one_line(text: str, says: str) -> None:
    assert cards.find(text) is None
    with pytest.raises(InputError, match=says) as error:
        cards.named(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "profile"), SLICED)
def test_a_slice_is_a_part_of_its_card(name: str, profile: str) -> None:
    whole, part = CARDS[name], cards.named(f"{name} {profile}")
    assert part.name == f"{name} {profile}" and cards.find(part.name) == part
    assert 0.8 * part.gb * 1e9 < part.usable < min(part.gb * 2**30, whole.usable + 1)
    assert part.half <= whole.half and part.bandwidth <= whole.bandwidth and part.link <= whole.link
    assert part.half / whole.half == pytest.approx(int(profile[0]) / (4 if name in cards._OF_FOUR else 7))


def test_slices_of_a_card_fit_it_together() -> None:
    for name, card in CARDS.items():
        for profile in card.profiles:
            part = cards.named(f"{name} {profile}")
            together = min(int(card.half / part.half + 1e-9), int(card.gb // part.gb))
            assert together * part.usable <= card.usable


def test_a_card_has_less_than_it_is_sold_with() -> None:
    for card in CARDS.values():
        assert 0.85 * card.gb * 1e9 < card.usable < card.gb * 2**30
        assert card.fp32 <= card.tf32 <= card.half and card.bus <= card.link <= card.bandwidth
    alone = cards.of_size(24)
    assert alone.usable == cards.capacity(24) and alone.like in CARDS and not alone.known
    assert alone.half == min(card.half for card in CARDS.values() if card.gb == 24)
