"""docs/speedrun.md and its picture, from the records of benchmarks/speedrun.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diffbase.page import svg
from diffcore.evaluation.studies.findings_page import table
from diffcore.runs.figures import flops_words

KEY = ("recipe", "settings", "seeds", "fidelity", "over", "flops", "machine", "data", "judge")
"""What makes a record the one that it is; with a recipe's runs collected again all of it is the same."""
Record = Mapping[str, Any]

HEAD = """# Speedrun

How well a recipe draws what it is asked for, over what its training cost: mean fidelity (the share of
attributes that are as asked, read by a judge that was trained on real images) over training FLOPs, which no
machine bends; images and CPU seconds beside them ([what is counted](training.md#what-a-run-costs)). A row is
the mean over its seeds with the 95 % interval of that mean (Student's t). Only rows of one table, on the same
data with the same judge, compare; those that were trained in turns also say, seed by seed, what they gain
over the recipe to beat. Made, and added to, by

```
python benchmarks/speedrun.py RECIPE-TO-BEAT.yaml RECIPE.yaml...
```

which goes on where it was interrupted and changes no record that is here. Every record with all of its
settings, seeds and curve: [{records}]({records}).
"""


def label(records: Sequence[Record], number: int) -> str:
    """A record's name: its recipe's, with a number where there was one of that name before."""
    name = str(records[number]["recipe"])
    before = sum(str(record["recipe"]) == name for record in records[:number])
    return f"{name} ({before + 1})" if before else name


def picture(records: Sequence[Record]) -> str:
    """Fidelity over training FLOPs, a curve for each record."""
    largest = max((float(point["flops"]) for record in records for point in record["curve"]), default=0.0)
    power, prefix = next(((p, x) for p, x in ((18, "E"), (15, "P"), (12, "T")) if largest >= 10**p), (9, "G"))
    series = {
        label(records, i): [
            (float(at["flops"]) / 10**power, float(at["fidelity"]), f"{at['images']:,.0f} images")
            for at in record["curve"]
        ]
        for i, record in enumerate(records)
    }
    return svg.lines(series, f"training {prefix}FLOP", "mean fidelity", width=860, height=420)


def page(records: Sequence[Record], drawing: str) -> str:
    """The Markdown; ``drawing`` is the picture's name, whose records have the same one."""
    parts = [HEAD.format(records=drawing.replace(".svg", ".json"))]
    parts.append(f"![Mean fidelity over training FLOPs]({drawing})\n")
    groups: dict[tuple[str, ...], list[int]] = {}
    for i, record in enumerate(records):
        groups.setdefault((record["data"], record["judge"], *record["over"]), []).append(i)
    for numbers in groups.values():
        one, over = records[numbers[0]], records[numbers[0]]["over"]
        where = f"Data {one['data'][:12]}, judge {one['judge'][:12]}."
        parts.append(f"## {len(over)} attributes\n\n{', '.join(over)}. {where}\n")
        ranked = sorted(numbers, key=lambda i: -float(records[i]["fidelity"]["mean"]))
        rows = [row(records[i], label(records, i)) for i in ranked]
        headings = ("recipe", f"fidelity, {len(over)} attributes", "gain, seed by seed", "seeds", "images",
                    "training FLOPs", "CPU seconds", "machine", "date, code")  # fmt: skip
        parts.append(table(rows, *headings) + "\n")
    return "\n".join(parts)


def row(record: Record, name: str) -> tuple[str, ...]:
    """A line of the table."""
    against = record.get("against")
    cells = (
        name,
        f"**{interval(record['fidelity'])}**",
        f"{interval(against['gain'], signed=True)} over {against['recipe']}" if against else "",
        str(record["seeds"]),
        f"{record['images']:,.0f}",
        flops_words(float(record["flops"])),
        f"{record['cpu_seconds']:,.0f}",
        f"{record['machine']}, {record['ranks']} ranks",
        f"{record['date']}, {str(record['code'])[:10]}",
    )
    return tuple(cell.replace("|", "\\|") for cell in cells)


def interval(estimate: Record, signed: bool = False) -> str:
    """Mean and bounds in percent, or in points."""
    sign = "+" if signed else ""
    mean = f"{100 * estimate['mean']:{sign}.1f} {'points' if signed else '%'}"
    if estimate["low"] is None or estimate["high"] is None:
        return f"{mean} (one seed)"
    return f"{mean} ({100 * estimate['low']:{sign}.1f} to {100 * estimate['high']:{sign}.1f})"
