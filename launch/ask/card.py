"""The card of a profile's GPUs, or of this machine's. Imports no torch."""

from __future__ import annotations

from diffbase.cli import InputError
from diffbase.machine import cards, nvml
from diffbase.machine.cards import Card
from launch.ask.profile import Cluster


def card_of(cluster: Cluster) -> Card | None:
    """What ``gpus`` of the profile says: its card, else its type with its memory ("a100" of 40 GB), else a
    card of its memory; None where it says none of them. Of cluster local the first GPU here.
    """
    gpus = cluster.gpus
    if cluster.is_local:
        return _here()
    if gpus.card is not None:
        return cards.named(gpus.card)
    if gpus.memory_gb is None:
        return None
    known = cards.find(f"{gpus.type} {gpus.memory_gb:g}GB") if gpus.type else None
    return known or cards.of_size(gpus.memory_gb)


def needed(cluster: Cluster) -> Card:
    """The same. InputError where it is not known."""
    card = card_of(cluster)
    if card is None and cluster.is_local:
        raise InputError("--auto chooses for GPUs, and there is none here that NVML shows")
    if card is None:
        raise InputError(f"--auto: the profile of {cluster.name} says neither gpus.card nor gpus.memory_gb")
    return card


def _here() -> Card | None:
    try:
        found = nvml.survey()
    except nvml.DriverError:
        return None
    if found is None or not found.gpus:
        return None
    gpu = found.gpus[0]
    return cards.find(gpu.name) or cards.of_size(gpu.memory // 10**9)
