"""GPU cards by name: what each has of memory, arithmetic and bandwidth, and MIG slices of them. No torch.

Rates are from NVIDIA's data sheets and architecture white papers: dense, products in half precision summed
in fp32. What CUDA says a card has is less than it is sold with: known where somebody's cudaMemGetInfo said
it, else modelled from the GB.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace
from functools import cache

from diffbase.cli import InputError

MIB = 2**20
TOTAL = {24: 22_510, 40: 40_338, 48: 45_490, 80: 81_000, 94: 95_230, 141: 143_156}
"""MiB that CUDA says a card has, of those sold with so many GB the one with least: A10 and A10G, A100, RTX
6000 Ada, H100, H100 NVL, H200."""
OTHERS = 930
"""MiB per GB of every other size: a T4's 14.56 GiB of 16 GB, the least that is known."""
SLICE = 0.91
"""Of its share of a card's memory what a MIG slice has: the H200's 1g.18gb has 16.0 GiB of 139.8 / 8, the
least that is known (an A100's 1g.5gb has 0.96 of its eighth)."""
SLICES = {
    ("A100 40GB", "1g.5gb"): 4_864, ("A100 40GB", "1g.10gb"): 9_984, ("A100 40GB", "2g.10gb"): 9_984,
    ("A100 40GB", "3g.20gb"): 20_090, ("A100 40GB", "4g.20gb"): 20_090, ("A100 80GB", "1g.10gb"): 9_728,
    ("A100 80GB", "1g.20gb"): 19_968, ("H100", "1g.10gb"): 9_984, ("H200", "1g.18gb"): 16_384,
}  # fmt: skip
"""MiB of slices that are known, from what nvidia-smi mig -lgip printed on such a card."""


@dataclass(frozen=True)
class Card:
    """A card, or a MIG slice of one."""

    name: str
    gb: float
    """Memory as it is sold."""
    half: float
    """TFLOP/s in bf16, or in fp16 where there is no bf16."""
    tf32: float
    """TFLOP/s of fp32 with TF32's products, which torch's convolutions have; where there is none: fp32's."""
    fp32: float
    """TFLOP/s of plain fp32."""
    bandwidth: float
    """Of its memory, GB/s."""
    link: float
    """GB/s in one direction to the GPUs of the same node, by NVLink or PCIe."""
    bus: float
    """GB/s in one direction to the host."""
    mib: int
    """MiB that CUDA says it has."""
    known: bool = False
    """Whether somebody's CUDA said so; else ``mib`` is modelled."""
    bf16: bool = True
    """Whether it has bf16 in hardware."""
    nvml: tuple[str, ...] = ()
    """Its names in NVML and nvidia-smi."""
    profiles: tuple[str, ...] = ()
    """MIG profiles that it can be divided into."""
    like: str = ""
    """The card whose rates it has, where only its memory is given."""

    @property
    def usable(self) -> int:
        """Bytes that a process may use, its CUDA context among them."""
        return self.mib * MIB


def capacity(gigabytes: float) -> int:
    """Bytes that a process may use of a card sold as ``gigabytes`` GB, its CUDA context among them."""
    return TOTAL.get(int(gigabytes), int(gigabytes * OTHERS)) * MIB


# name: GB; half, TF32, fp32 TFLOP/s; memory, link, bus GB/s; known MiB, NVML's names. PCIe 3, 4 and 5 at 16
# lanes are 16, 32 and 64 GB/s a direction, NVLink half of what the data sheet has for both.
_ROWS: dict[str, tuple[float, float, float, float, float, float, float, int | None, tuple[str, ...]]] = {
    # Volta, Pascal and Turing: fp16 alone, and no TF32.
    "P100": (16, 18.7, 9.3, 9.3, 732, 16, 16, None, ("Tesla P100-PCIE-16GB",)),
    "P100 SXM2": (16, 21.2, 10.6, 10.6, 732, 80, 16, None, ("Tesla P100-SXM2-16GB",)),
    "V100 16GB": (16, 125, 15.7, 15.7, 900, 150, 16, 16_120, ("V100-SXM2-16GB",)),
    "V100 16GB PCIe": (16, 112, 14, 14, 900, 16, 16, 16_120, ("V100-PCIE-16GB",)),
    "V100 32GB": (32, 125, 15.7, 15.7, 900, 150, 16, None, ("V100-SXM2-32GB",)),
    "V100 32GB PCIe": (32, 112, 14, 14, 900, 16, 16, None, ("V100-PCIE-32GB",)),
    "T4": (16, 65, 8.1, 8.1, 320, 16, 16, 14_909, ("Tesla T4",)),
    "RTX 2080 Ti": (11, 53.8, 13.4, 13.4, 616, 16, 16, None, ()),
    # Data centres.
    "A10": (24, 125, 62.5, 31.2, 600, 32, 32, 22_510, ()),
    "A10G": (24, 70, 35, 35, 600, 32, 32, 22_510, ()),
    "A30": (24, 165, 82, 10.3, 933, 32, 32, None, ()),
    "A40": (48, 149.7, 74.8, 37.4, 696, 32, 32, None, ()),
    "L4": (24, 121, 60, 30.3, 300, 32, 32, 22_510, ()),
    "L40": (48, 181, 90.5, 90.5, 864, 32, 32, None, ()),
    "L40S": (48, 362, 183, 91.6, 864, 32, 32, 45_590, ()),
    "A100 40GB": (40, 312, 156, 19.5, 1555, 300, 32, 40_338, ("NVIDIA A100-SXM4-40GB",)),
    "A100 40GB PCIe": (40, 312, 156, 19.5, 1555, 32, 32, 40_338, ("NVIDIA A100-PCIE-40GB",)),
    "A100 80GB": (80, 312, 156, 19.5, 2039, 300, 32, 81_000, ("NVIDIA A100-SXM4-80GB",)),
    "A100 80GB PCIe": (80, 312, 156, 19.5, 1935, 32, 32, 81_000, ("NVIDIA A100 80GB PCIe",)),
    "H100": (80, 989, 494, 67, 3350, 450, 64, 81_000, ("NVIDIA H100 80GB HBM3", "NVIDIA H100 SXM5")),
    "H100 PCIe": (80, 756, 378, 51, 2000, 64, 64, 81_000, ()),
    "H100 NVL": (94, 835, 417, 60, 3900, 64, 64, 95_230, ()),
    "H20": (96, 148, 74, 44, 4000, 450, 64, None, ("NVIDIA H20",)),
    "H200": (141, 989, 494, 67, 4800, 450, 64, 143_156, ("NVIDIA H200 SXM",)),
    "H200 NVL": (141, 835, 417, 60, 4800, 64, 64, None, ()),
    "GH200": (96, 989, 494, 67, 4000, 450, 450, None, ("NVIDIA GH200 480GB",)),
    "B100": (180, 1750, 875, 60, 8000, 900, 64, None, ()),
    "B200": (180, 2250, 1100, 80, 8000, 900, 64, None, ()),
    # Workstations.
    "RTX A4000": (16, 76.7, 38.3, 19.2, 448, 32, 32, None, ()),
    "RTX A4500": (20, 94.6, 47.3, 23.7, 640, 32, 32, None, ()),
    "RTX A5000": (24, 111.1, 55.6, 27.8, 768, 32, 32, None, ()),
    "RTX A5500": (24, 136.4, 68.2, 34.1, 768, 32, 32, None, ()),
    "RTX A6000": (48, 154.8, 77.4, 38.7, 768, 32, 32, None, ("A6000",)),
    "RTX 4000 Ada": (20, 106.9, 53.4, 26.7, 360, 32, 32, None, ("NVIDIA RTX 4000 Ada Generation",)),
    "RTX 4500 Ada": (24, 158.5, 79.2, 39.6, 432, 32, 32, None, ("NVIDIA RTX 4500 Ada Generation",)),
    "RTX 5000 Ada": (32, 261.1, 130.6, 65.3, 576, 32, 32, None, ("NVIDIA RTX 5000 Ada Generation",)),
    "RTX 6000 Ada": (48, 364.2, 182.1, 91.1, 960, 32, 32, 45_490, ("NVIDIA RTX 6000 Ada Generation",)),
    "RTX PRO 6000": (96, 503.8, 251.9, 126, 1792, 64, 64, None, (
        "NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "NVIDIA RTX PRO 6000 Blackwell Server Edition",
        "RTX PRO 6000 Blackwell")),
    # GeForce: half the rate of the same chip in a workstation, where sums are in fp32.
    "RTX 3060 12GB": (12, 25.5, 12.7, 12.7, 360, 32, 32, None, ("NVIDIA GeForce RTX 3060",)),
    "RTX 3060 Ti": (8, 32.4, 16.2, 16.2, 448, 32, 32, None, ()),
    "RTX 3070": (8, 40.6, 20.3, 20.3, 448, 32, 32, None, ()),
    "RTX 3080 10GB": (10, 59.5, 29.8, 29.8, 760, 32, 32, None, ("NVIDIA GeForce RTX 3080",)),
    "RTX 3080 12GB": (12, 61.3, 30.6, 30.6, 912, 32, 32, None, ()),
    "RTX 3080 Ti": (12, 68.2, 34.1, 34.1, 912, 32, 32, None, ()),
    "RTX 3090": (24, 71, 35.6, 35.6, 936, 32, 32, 24_240, ()),
    "RTX 3090 Ti": (24, 80, 40, 40, 1008, 32, 32, None, ()),
    "RTX 4060": (8, 30.2, 15.1, 15.1, 272, 16, 16, None, ()),
    "RTX 4060 Ti 16GB": (16, 44.1, 22.1, 22.1, 288, 16, 16, None, ()),
    "RTX 4070": (12, 58.3, 29.1, 29.1, 504, 32, 32, None, ()),
    "RTX 4070 Super": (12, 71, 35.5, 35.5, 504, 32, 32, None, ()),
    "RTX 4070 Ti": (12, 80.2, 40.1, 40.1, 504, 32, 32, None, ()),
    "RTX 4070 Ti Super": (16, 88.2, 44.1, 44.1, 672, 32, 32, None, ()),
    "RTX 4080": (16, 97.5, 48.7, 48.7, 717, 32, 32, None, ()),
    "RTX 4080 Super": (16, 104.4, 52.2, 52.2, 736, 32, 32, None, ()),
    "RTX 4090": (24, 165.2, 82.6, 82.6, 1008, 32, 32, 24_200, ()),
    "RTX 5060 Ti 16GB": (16, 47.4, 23.7, 23.7, 448, 32, 32, None, ()),
    "RTX 5070": (12, 61.7, 30.9, 30.9, 672, 64, 64, None, ()),
    "RTX 5070 Ti": (16, 87.9, 43.9, 43.9, 896, 64, 64, None, ()),
    "RTX 5080": (16, 112.6, 56.3, 56.3, 960, 64, 64, None, ()),
    "RTX 5090": (32, 209.5, 104.8, 104.8, 1792, 64, 64, 32_105, ()),
}  # fmt: skip
_WITHOUT_BF16 = (
    "P100", "P100 SXM2", "V100 16GB", "V100 16GB PCIe", "V100 32GB", "V100 32GB PCIe", "T4", "RTX 2080 Ti",
)  # fmt: skip
# A profile is its share of the SMs and its GB; NVIDIA's MIG user guide lists them.
_PROFILES = {
    "A30": "1g.6gb 2g.12gb 4g.24gb",
    "A100 40GB": "1g.5gb 1g.10gb 2g.10gb 3g.20gb 4g.20gb 7g.40gb",
    "A100 40GB PCIe": "1g.5gb 1g.10gb 2g.10gb 3g.20gb 4g.20gb 7g.40gb",
    "A100 80GB": "1g.10gb 1g.20gb 2g.20gb 3g.40gb 4g.40gb 7g.80gb",
    "A100 80GB PCIe": "1g.10gb 1g.20gb 2g.20gb 3g.40gb 4g.40gb 7g.80gb",
    "H100": "1g.10gb 1g.20gb 2g.20gb 3g.40gb 4g.40gb 7g.80gb",
    "H100 PCIe": "1g.10gb 1g.20gb 2g.20gb 3g.40gb 4g.40gb 7g.80gb",
    "H100 NVL": "1g.12gb 1g.24gb 2g.24gb 3g.47gb 4g.47gb 7g.94gb",
    "GH200": "1g.12gb 1g.24gb 2g.24gb 3g.48gb 4g.48gb 7g.96gb",
    "H200": "1g.18gb 1g.35gb 2g.35gb 3g.71gb 4g.71gb 7g.141gb",
    "H200 NVL": "1g.18gb 1g.35gb 2g.35gb 3g.71gb 4g.71gb 7g.141gb",
    "B200": "1g.23gb 1g.45gb 2g.45gb 3g.90gb 4g.90gb 7g.180gb",
    "RTX PRO 6000": "1g.24gb 2g.48gb 4g.96gb",
}
_OF_FOUR = ("A30", "RTX PRO 6000")
CARDS: dict[str, Card] = {
    name: Card(
        name, *row[:7], row[7] or capacity(row[0]) // MIB, known=row[7] is not None,
        bf16=name not in _WITHOUT_BF16, nvml=row[8], profiles=tuple(_PROFILES.get(name, "").split()),
    )
    for name, row in _ROWS.items()
}  # fmt: skip
"""By the name that is shown; all sizes of a card that is sold in several."""
_LEFT_OUT = {"NVIDIA", "GEFORCE", "TESLA", "QUADRO", "MIG", "GENERATION"}
_PROFILE = re.compile(r"(?<![A-Za-z0-9])(\d+g\.\d+gb)(?:\+\w+)?\s*$", re.IGNORECASE)


def find(text: str) -> Card | None:
    """The card that ``text`` names, as people or NVML write it; a MIG slice with its profile behind it.

    None where it names none, or more than one ("A100" is sold with 40 and 80 GB).
    """
    if sliced := _PROFILE.search(text):
        profile = sliced[1].lower()
        owners = _meant(text[: sliced.start()])
        # "A100 1g.5gb": of the A100s the one that has it. The PCIe card's slice is the same.
        having = [card for card in owners if profile in card.profiles]
        first = {card.gb: card for card in reversed(having)}
        return _slice(next(iter(first.values())), profile) if len(first) == 1 else None
    return _names().get(_plain(text))


def named(text: str) -> Card:
    """As ``find``. InputError in one line, with names that are near, where it names none."""
    if (card := find(text)) is not None:
        return card
    owners = _meant(_PROFILE.sub("", text)) if _PROFILE.search(text) else []
    if owners:
        fitting = "; ".join(f"{card.name}: {', '.join(card.profiles) or 'none'}" for card in owners[:3])
        raise InputError(f"{text!r:.60} is no MIG profile of one card; there are: {fitting}")
    raise InputError(f"{text!r:.60} is no card that is known here; {near(text)}")


def near(text: str) -> str:
    """What might have been meant by the name of a card."""
    if several := [card.name for card in _meant(text)]:
        return f"it may be {' or '.join(several)}"
    by_name = {_plain(name): name for name in CARDS}
    close = difflib.get_close_matches(_plain(text), by_name, n=3, cutoff=0.5)
    return (
        f"did you mean {' or '.join(by_name[one] for one in close)}" if close else "none has a name like it"
    )


def of_size(gigabytes: float) -> Card:
    """A card of which only the memory is known: it has the rates of the slowest of the nearest size, and
    bf16, as most cards since 2020."""
    like = min(CARDS.values(), key=lambda card: (abs(card.gb - gigabytes), card.half, card.name))
    return replace(
        like, name=f"{gigabytes:g}GB", gb=gigabytes, mib=capacity(gigabytes) // MIB, known=False, nvml=(),
        profiles=(), like=like.name, bf16=True,
    )  # fmt: skip


def _slice(card: Card, profile: str) -> Card:
    """Its part of the SMs, and of memory and memory's bandwidth; peers are reached by way of the host."""
    sms, size = profile.removesuffix("gb").split("g.")
    parts, eighths = (4, 4) if card.name in _OF_FOUR else (7, 8)
    rate, share = int(sms) / parts, min(1.0, max(1, round(float(size) / card.gb * eighths)) / eighths)
    known = card.mib if share == 1 and card.known else SLICES.get((card.name.removesuffix(" PCIe"), profile))
    return replace(
        card, name=f"{card.name} {profile}", gb=float(size),
        half=card.half * rate, tf32=card.tf32 * rate, fp32=card.fp32 * rate,
        bandwidth=card.bandwidth * share, link=card.bus, mib=known or int(card.mib * share * SLICE),
        known=known is not None, nvml=(), profiles=(),
    )  # fmt: skip


def _plain(text: str) -> str:
    """A name without maker, family, spaces and signs: ``NVIDIA GeForce RTX 4090`` is ``RTX4090``."""
    words = re.split(r"[^A-Z0-9]+", text.upper())
    return "".join(word for word in words if word not in _LEFT_OUT)


@cache
def _names() -> dict[str, Card]:
    """Every way to write a card, plain; those that would mean two cards are left out."""
    found: dict[str, set[str]] = {}
    for card in CARDS.values():
        size = f"{card.gb:g}GB"
        ways = {card.name, *card.nvml}
        if size not in card.name:
            ways.add(f"{card.name} {size}")
        for way in set(ways):
            if re.match(r"RTX \d", way):
                ways.add(way.removeprefix("RTX "))
            if way.startswith("RTX A"):
                ways.add(way.removeprefix("RTX "))
        for way in {_plain(way) for way in ways}:
            for form in (way, re.sub(r"(\d)GB(?=[A-Z]|$)", r"\1G", way), re.sub(r"(\d)GB$", r"\1", way)):
                found.setdefault(form, set()).add(card.name)
    return {way: CARDS[next(iter(names))] for way, names in found.items() if len(names) == 1}


def _meant(text: str) -> list[Card]:
    """The card of that name; else those whose name begins so and goes on with a size: "A100", "V100"."""
    plain = _plain(text)
    if not plain:
        return []
    if (card := _names().get(plain)) is not None:
        return [card]
    sized = re.compile(rf"(RTX)?{re.escape(plain)}\d+GB")
    return [card for card in CARDS.values() if sized.match(_plain(card.name))]
