"""Labels as JSON: whole numbers of the schema, nothing else."""

from __future__ import annotations

import json

import pytest

from shards.codec.decode import BadSample
from shards.codec.labels import decode_labels, encode_labels
from shards.schema import CARTOON_SET
from tests.support.tiny_set import labels_of

GOOD = labels_of("cs1")


def test_there_and_back() -> None:
    data, cls = encode_labels(GOOD)
    assert cls is None and json.loads(data) == GOOD
    assert decode_labels(data, CARTOON_SET) == tuple(GOOD.values())
    assert encode_labels({"class": 12}) == (b'{"class": 12}', b"12")
    assert decode_labels(encode_labels({})[0], ()) == ()


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (json.dumps({**GOOD, "eye_lid": 9}), "eye_lid is 9; allowed: 0 to 1"),
        (json.dumps({**GOOD, "hair": -1}), "hair is -1; allowed: 0 to 110"),
        (json.dumps({**GOOD, "eye_lid": True}), "eye_lid is True"),
        (json.dumps({**GOOD, "eye_lid": 1.0}), "eye_lid is 1.0"),
        (json.dumps({**GOOD, "ear": 0}), "not the schema's"),
        (json.dumps({"ear": 0, **{k: v for k, v in GOOD.items() if k != "hair"}}), "hair is missing"),
        (json.dumps([*GOOD.values()]), "not the schema's"),
        (json.dumps(GOOD)[:-1], "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("\xff", "not JSON"),
    ],
)
def test_bad(bad: str, told: str) -> None:
    with pytest.raises(BadSample, match=told):
        decode_labels(bad.encode("latin-1"), CARTOON_SET)
