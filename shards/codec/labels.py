"""A sample's labels as they stand in a shard: JSON, and the number of the class for class data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from shards.codec.decode import BadSample
from shards.schema import LABELS_CAP, UNKNOWN, Attribute


def encode_labels(labels: Mapping[str, int]) -> tuple[bytes, bytes | None]:
    """The ``.json`` member, and the ``.cls`` member where the only label is ``class``.

    An unknown label is null there. An unknown class has a ``.cls`` of -1, which means the same to Hugging
    Face's datasets: they refuse tars whose samples have different members.
    """
    told = {name: None if variant == UNKNOWN else variant for name, variant in labels.items()}
    cls = b"%d" % labels["class"] if labels.keys() == {"class"} else None
    return json.dumps(told, sort_keys=True).encode(), cls


def decode_labels(data: bytes, schema: Sequence[Attribute]) -> tuple[int, ...]:
    """The variants in a ``.json`` member, in the schema's order; BadSample unless each fits the schema.

    null stands for UNKNOWN; whether a folder has such labels its index says.
    """
    if len(data) > LABELS_CAP:
        raise BadSample(f"its labels have {len(data)} bytes; at most {LABELS_CAP} are allowed")
    try:
        given = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadSample("its labels are not JSON") from error
    if not isinstance(given, dict) or len(given) != len(schema):
        raise BadSample("its labels are not the schema's")
    for attribute in schema:
        if attribute.name not in given:
            raise BadSample(f"{attribute.name} is missing")
        if (value := given[attribute.name]) is None:
            continue
        # type(), not isinstance(): true and false are ints in Python.
        if type(value) is not int or not 0 <= value < attribute.variants:
            told = f"a {type(value).__name__}" if isinstance(value, dict | list) else f"{value!r:.40}"
            raise BadSample(f"{attribute.name} is {told}; allowed: 0 to {attribute.variants - 1}")
    variants = (given[attribute.name] for attribute in schema)
    return tuple(UNKNOWN if variant is None else variant for variant in variants)
