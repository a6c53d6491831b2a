"""CIFAR-10's archive."""

from __future__ import annotations

from shards.sources.cifar import Cifar10Archive
from tests.support.fuzz import examples, hostile
from tests.support.fuzz.reading import archive
from tests.support.fuzz.target import Target


def target() -> Target:
    return Target([examples.cifar()], archive(Cifar10Archive, "x.tar"), hostile.RECORDS, hostile.tar)
