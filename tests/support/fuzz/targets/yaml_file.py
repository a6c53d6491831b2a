"""YAML as ``diffbase.formats.yaml_file`` reads it, whatever it means."""

from __future__ import annotations

from pathlib import Path

from diffbase.formats import yaml_file
from tests.support.fuzz.target import Target

EXAMPLE = b"run: runs/x\nseed: 3\ndata: {path: data/x, on_error: raise}\nmodel:\n  channels: [8, 16]\n"
WORDS = [
    b"!!int abc",
    b"!!bool abc",
    b"!!timestamp abc",
    b"!!python/object/apply:os.system [id]",
    b"2001-13-45",
    b"&a [*a,*a]",
    b"&a ",
    b"*a ",
    b"<<: *a",
    b"? ",
    b"- " * 2000,
    b"{a: " * 500,
]


def target() -> Target:
    def feed(data: bytes, folder: Path) -> object:
        (folder / "x.yaml").write_bytes(data)
        return yaml_file.read(folder / "x.yaml", "no such file")

    bomb = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]\n".encode() for n in range(8)
    )
    return Target([EXAMPLE, bomb], feed, WORDS)
