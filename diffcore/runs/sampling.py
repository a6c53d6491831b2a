"""What to draw and with which settings, as a command line and a run say it. Imports no torch."""

from __future__ import annotations

import argparse
import difflib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from diffbase.cli import InputError, given_run
from diffbase.explain import validated
from diffbase.formats import json_file
from diffcore.config import configure
from diffcore.config.samplers import NAMES, SAMPLERS
from diffcore.config.tree import PRETRAINED, Config, Sampling
from diffcore.runs.run_folder import run_of
from shards.schema import UNKNOWN, Attribute

RECOMMENDED = "sampling.json"
"""In the run folder: the settings to sample with by default."""
SHIPPED = "small"
"""The weights that ``--pretrained`` means by itself."""
SHOWN = 24
"""Names that an error or a model card lists."""


class Recommendation(BaseModel):
    """That file; whether a value is allowed, the config says."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    sampler: str = Field(max_length=100)
    steps: int
    guidance: float


def parse_wanted(settings: Sequence[str], schema: Sequence[Attribute]) -> dict[str, int]:
    """``name=value`` strings -> {name: value}. InputError with what is allowed."""
    wanted: dict[str, int] = {}
    names = [a.name for a in schema]
    for setting in settings:
        cuts = [at for at, sign in enumerate(setting) if sign == "="]  # a name may have one in it
        # The longest that is known: else `a=b` would have no setting where there is an `a`.
        known = (at for at in reversed(cuts) if places_of(setting[:at], names))
        cut = next(known, cuts[0] if cuts else len(setting))
        try:
            wanted |= check_labels({setting[:cut]: setting[cut + 1 :]}, schema)
        except InputError as error:
            raise InputError(f"--set {setting}: {error}") from None
    return wanted


def check_labels(labels: Mapping[str, Any], schema: Sequence[Attribute]) -> dict[str, int]:
    """``labels`` by attribute, as the schema calls it and as plain numbers; see ``variant_of``.

    Names of attributes are taken as those of variants are. InputError, with what is allowed, for an unknown
    attribute, one that may be several, one that is given twice, or a variant that it does not have.
    """
    names, wanted = [a.name for a in schema], dict[str, int]()
    for given, value in labels.items():
        place = place_of(given, names)
        if place is None:
            raise InputError(f"unknown attribute {given!r}; allowed: {_allowed(str(given), names)}")
        if names[place] in wanted:
            raise InputError(f"attribute {names[place]!r} is given twice")
        wanted[names[place]] = variant_of(schema[place], value)
    return wanted


def variant_of(attribute: Attribute, value: Any) -> int:
    """A variant by its name or number, as a number.

    A name counts before a number (classes may be called 2 and 10), a number before names that are only alike
    (``-2`` and 2 are not). Letters' case, and a space, ``-`` or ``_`` within a name, need not match.
    ``unknown``, unless a variant is called so, is UNKNOWN. InputError, with what is allowed, for anything
    else, and where several names are alike.
    """
    name, most = attribute.name, attribute.variants - 1
    if isinstance(value, str):
        number = int(value) if value.isascii() and value.isdigit() and len(value) < 20 else None
    else:
        number = int(value) if isinstance(value, Integral) else None
    if number is not None and 0 <= number <= most and value not in attribute.names:
        return number
    if isinstance(value, str):
        if (named := place_of(value, attribute.names, f"{name}: variant")) is not None:
            return named
        if value == "unknown":
            return UNKNOWN
    if attribute.names:
        raise InputError(
            f"{name} has no variant {value!r}; allowed: 0 to {most}, or "
            f"{_allowed(str(value), attribute.names)}"
        )
    raise InputError(f"{name} must be a whole number, 0 to {most}, not {value!r}")


def place_of(given: Any, names: Sequence[str], what: str = "attribute") -> int | None:
    """Where a name stands among ``names``, if anywhere; InputError where that may be one of several."""
    places = places_of(given, names)
    if len(places) > 1:
        alike = some_of([names[place] for place in places])
        raise InputError(f"{what} {given!r} may be any of {alike}; allowed: one of them, to the letter")
    return places[0] if places else None


def places_of(given: Any, names: Sequence[str]) -> list[int]:
    """Where a name stands among ``names``: the very same, else those that are alike."""
    if not isinstance(given, str):
        return []
    if given in names:
        return [names.index(given)]
    plain = _plain(given)
    return [place for place, name in enumerate(names) if plain and _plain(name) == plain]


def _plain(name: str) -> str:
    """What two names have in common that are alike: one accented letter has several spellings too.

    A ``-`` that joins no two words is a sign: ``A-`` and ``A`` differ, and ``10 to -5`` and ``10 to 5``.
    """
    joined = re.sub(r"(?<=[^\W_])(?:[\s_]+|-)(?=[^\W_])", " ", unicodedata.normalize("NFKC", name))
    return joined.strip().casefold()


def _allowed(given: str, names: Sequence[str]) -> str:
    """What may be given, and what is nearest to what was."""
    plain = {_plain(name): name for name in names}
    near = difflib.get_close_matches(_plain(given)[:100], list(plain), 1, cutoff=0.4)
    return (some_of(names) or "none") + (f"; nearest: {plain[near[0]]}" if near else "")


def some_of(names: Sequence[str]) -> str:
    """The first ``SHOWN`` names, and how many there are if there are more."""
    return ", ".join(names[:SHOWN]) + f", ... ({len(names)} in all)" * (len(names) > SHOWN)


def spoken(schema: Sequence[Attribute], labels: Sequence[int]) -> str:
    """An image's labels for people: ``hair_color blond, eye_lid open``."""
    return ", ".join(f"{a.name} {a.said(v)}" for a, v in zip(schema, labels, strict=True))


def told(schema: Sequence[Attribute], labels: Sequence[int]) -> dict[str, dict[str, Any]]:
    """An image's labels for a JSON: ``attributes`` by number, and ``names`` of those that have any."""
    pairs = list(zip(schema, labels, strict=True))
    names = {a.name: a.said(v) for a, v in pairs if a.names or v == UNKNOWN}
    return {"attributes": {a.name: v for a, v in pairs}, **({"names": names} if names else {})}


def add_settings(parser: argparse.ArgumentParser) -> None:
    """A flag for each of the sampler's settings: what ``sampling_of`` reads."""
    add = parser.add_argument
    add("--guidance", type=float, help="guidance scale; 0 unconditional, 1 plain conditional")
    add("--guidance-rescale", type=float, help="share of the contrast given back, 0 to 1")
    interval = "range of t / (T - 1) in which guidance acts"
    add("--guidance-interval", type=float, nargs=2, metavar=("LOW", "HIGH"), help=interval)
    add("--clamp", action=argparse.BooleanOptionalAction, help="keep x_0 in images' range")
    add("--steps", type=int, help="steps of the sampler")
    add("--sampler", help=NAMES)
    add("--spacing", help="levels of the steps: auto, time, logsnr, rho")
    add("--eta", type=float, help="fresh noise of ddim, 0 to 1")


def add_pretrained(parser: argparse.ArgumentParser) -> None:
    """``--pretrained [NAME]``, in the place of a run; ``drawn_from`` obeys it."""
    ships = f"weights that ship with the toolkit, instead of a run (default NAME: {SHIPPED})"
    parser.add_argument("--pretrained", nargs="?", const=SHIPPED, metavar="NAME", help=ships)


def drawn_from(arguments: argparse.Namespace) -> Path:
    """The run of ``cli.add_run``, or what ``--pretrained`` names. InputError unless it is one of both."""
    if arguments.pretrained is None:
        return given_run(arguments)
    if arguments.run or arguments.run_flag:
        raise InputError("--pretrained is given in the place of a run: give one of both")
    return Path(PRETRAINED + arguments.pretrained)


def sampling_of(config: Config, arguments: argparse.Namespace) -> Sampling:
    """``sampling_with`` the command line's settings."""
    return sampling_with(config, arguments.run, vars(arguments))


def sampling_with(config: Config, run: Path, given: Mapping[str, Any]) -> Sampling:
    """The run's sampling settings, what a sweep recommended over them, and over both what is ``given``.

    What is None, and what is no field of Sampling, is not given. InputError for a value that is not allowed.
    """
    wanted = {name: given[name] for name in Sampling.model_fields if given.get(name) is not None}
    return changed_sampling(config, {**recommended(run, wanted), **wanted})


def changed_sampling(config: Config, changes: Mapping[str, Any]) -> Sampling:
    """The run's sampling settings with these ``changes``; InputError for a value that is not allowed.

    Where they choose another sampler, a setting that it does not have is not the run's but the usual one.
    """
    chosen = SAMPLERS.get(str(changes.get("sampler")))
    usual: dict[str, Any] = {}
    if chosen is not None and changes["sampler"] != config.sampling.sampler:
        usual |= {} if chosen.takes_eta else {"eta": 0.0}
        usual |= {} if chosen.takes_steps else {"spacing": "auto"}
    return configure.replace(config, "sampling", {**usual, **changes}).sampling


def recommended_sampling(config: Config, run: Path) -> Sampling:
    """The run's sampling settings, and over them what a sweep recommended."""
    return sampling_with(config, run, {})


def recommended(run: Path, given: Mapping[str, object] | None = None) -> dict[str, Any]:
    """Sampler, steps and guidance that ``diffcore.evaluation.sweep`` wrote into the run; empty without.

    Steps are those of its sampler, so they go where another one is ``given``.
    """
    path = run_of(run) / RECOMMENDED
    if not path.exists():
        return {}
    try:
        tree = json_file.read(path, most=1 << 20)
    except InputError as error:
        raise InputError(f"not a recommendation: {error}") from None
    known = validated(Recommendation, tree, f"{path}: not a recommendation").model_dump()
    if given and given.get("sampler", known["sampler"]) != known["sampler"]:
        del known["steps"], known["sampler"]
    return known


def check_grid(out: Path, run: Path) -> None:
    """InputError where a grid cannot be ``out``, or its JSON could replace one of the run's, or a card."""
    from diffbase.page.pictures import check_png

    check_png(out)
    inside = out.resolve().parent == run.resolve()
    if inside or (run.is_file() and out.with_suffix(".json").resolve() == run.with_suffix(".json").resolve()):
        raise InputError(f"--out {out}: its JSON could replace one of the run's; use another folder")


def check_seed(seed: int) -> None:
    """InputError for a seed that the random streams do not take."""
    if not isinstance(seed, Integral) or not 0 <= seed < 2**63:
        raise InputError(f"seed {seed}: allowed are whole numbers, 0 to 2**63 - 1")
