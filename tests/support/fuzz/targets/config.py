"""A run's YAML: read, filled in, written out and read again, divided among ranks."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from diffbase.cli import InputError
from diffbase.files import REPOSITORY
from diffcore.config import configure
from tests.support.fuzz.target import Target

WORDS = [
    b"extends: x.yaml\n",
    b"extends: demo\n",
    b"kind: ddpm",
    b"&a [*a]",
    b"&a {x: *a}",
    b"<<: *a",
    b"!!int abc",
]
WORDS += [b'"a\\0b"', b'"a\\nb"', b"2001-13-45", b"s3://u:p@h/x?k=1", b"0x" + b"f" * 400, b"1:59:59", b".inf"]

WORDS += [b"!!int abc", b"!!bool abc", b"!!timestamp abc"]


def target() -> Target:
    def feed(data: bytes, folder: Path) -> object:
        (folder / "x.yaml").write_bytes(data)
        config = configure.load(folder / "x.yaml")
        (folder / "again.yaml").write_text(config.to_yaml())
        assert configure.load(folder / "again.yaml") == config
        assert config.to_yaml().isascii() and config.identity()
        with suppress(InputError):
            micro, accumulation = config.batch.split(2)
            assert 2 * micro * accumulation == config.batch.size
        return config

    names = ("demo", "avatar", "ddpm-cifar10", "diffusers-32")
    return Target([(REPOSITORY / "configs" / f"{name}.yaml").read_bytes() for name in names], feed, WORDS)
