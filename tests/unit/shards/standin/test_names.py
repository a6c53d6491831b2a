"""The stand-in's variants have names, and a pack of it keeps them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from diffbase.cli import InputError
from shards.packing.packer import pack
from shards.packing.plan import Settings
from shards.schema import CARTOON_SET
from shards.sources.variant_names import named
from shards.standin.artwork.facial_hair import NAMES as FACIAL_HAIR
from shards.standin.artwork.hair_styles import BALD_HAIR
from shards.standin.colors import _RULES
from shards.standin.names import NAMES
from shards.standin.visible import NO_GLASSES
from shards.table import Index


def test_every_variant_has_a_name_of_its_own() -> None:
    schema = named(json.dumps({"names": NAMES}).encode(), "x")
    assert schema == CARTOON_SET and list(NAMES) == [a.name for a in schema]
    for attribute in schema:
        assert attribute.names == NAMES[attribute.name]
        assert all(name.isascii() and " " not in name and name == name.lower() for name in attribute.names)


def test_names_are_of_the_variants_that_the_artwork_knows() -> None:
    assert NAMES["glasses"][NO_GLASSES] == "none"
    assert NAMES["facial_hair"][:-1] == tuple(
        name.replace(" ", "_").replace("-", "_") for name in FACIAL_HAIR
    )
    assert {v for v, name in enumerate(NAMES["hair"]) if "_" not in name.removesuffix("_shine")} == BALD_HAIR
    assert all(len(NAMES[name]) == len(palette) for name, (_, palette) in _RULES.items())


def test_a_pack_keeps_them(make_source, tmp_path: Path) -> None:
    source = make_source(tmp_path / "set", range(3))
    (source / "render.json").write_text(json.dumps({"names": {"eye_lid": ["open", "heavy"]}}))
    pack(source, tmp_path / "out", Settings(size=4, crop=4, val=0))
    names = {a.name: a.names for a in Index.load(tmp_path / "out").schema}
    assert names.pop("eye_lid") == ("open", "heavy") and set(names.values()) == {()}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[]", "x: "),
        ('{"names": 3}', "x: names: "),
        ('{"names": {"eye_lid": ["a"]}}', "eye_lid: 2 different names wanted"),
        ('{"names": {"eye_lid": ["a", "a"]}}', "eye_lid: 2 different names wanted"),
        ('{"names": {"eye_lid": ["a", "\\n"]}}', "cannot be printed"),
        ("{" * 9, "not a JSON"),
    ],
)
def test_other_files_are_one_line(text: str, told: str) -> None:
    with pytest.raises(InputError, match=told) as error:
        named(text.encode(), "x")
    assert "\n" not in str(error.value)


def test_an_archive_brings_them_as_its_first_file(make_source, tmp_path: Path) -> None:
    source = make_source(tmp_path / "set", range(3))
    with tarfile.open(tmp_path / "set.tgz", "w:gz") as archive:
        text = json.dumps({"names": NAMES}).encode()
        member = tarfile.TarInfo("set/render.json")
        member.size = len(text)
        archive.addfile(member, io.BytesIO(text))
        for path in sorted(source.iterdir()):
            archive.add(path, f"set/{path.name}")
    pack(tmp_path / "set.tgz", tmp_path / "out", Settings(size=4, crop=4, val=0))
    assert {a.name: a.names for a in Index.load(tmp_path / "out").schema} == NAMES
