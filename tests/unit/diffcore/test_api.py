"""``import diffcore``: what a script or a notebook uses, and that it is what the commands do."""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import diffcore
from diffbase.files import REPOSITORY
from diffbase.page import pictures
from diffbase.version import VERSION
from diffcore import sample
from diffcore.config import configure
from diffcore.config.tree import Config
from diffcore.memory import __main__ as memory
from diffcore.runs import export
from diffcore.runs.sampling import RECOMMENDED
from shards.packing.plan import Settings
from shards.read import ShardReader
from shards.schema import CARTOON_SET, Attribute
from shards.standin.names import NAMES
from tests.support import small_set, tiny_run

PAGE = (REPOSITORY / "docs" / "api.md").read_text()
GOLDEN = REPOSITORY / "tests" / "golden" / "before"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run.write(tmp_path_factory.mktemp("api") / "run", 5, 1000, best=5)


@pytest.fixture(scope="module")
def model(run: Path) -> diffcore.TrainedModel:
    return diffcore.load_model(run)


@pytest.fixture(scope="module")
def avatars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As large as the centre crop of a Cartoon Set wants them."""
    return small_set.pictures(tmp_path_factory.mktemp("source") / "avatars", 60, 400)


@pytest.fixture(scope="module")
def packed(avatars: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "shards"
    diffcore.pack(avatars, out, size=8, shard_size=20, val=0.1)
    return out


# --- names ------------------------------------------------------------------------------------------------


def python(code: str, *, cwd: Path = REPOSITORY) -> str:
    """What Python prints that gets ``code`` on its standard input, as ``python -``."""
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-"],
        input=code,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert finished.returncode == 0 and not finished.stderr, finished.stderr
    return finished.stdout


def test_importing_it_loads_nothing() -> None:
    heavy = "('torch', 'numpy', 'pydantic', 'PIL', 'yaml')"
    code = (
        "import sys, diffcore; dir(diffcore); hasattr(diffcore, 'nothing'); diffcore.__version__; "
        f"print([name for name in {heavy} if name in sys.modules]); "
        "diffcore.load_config, diffcore.pack, diffcore.open_shards, diffcore.save_grid, diffcore.InputError; "
        "print('torch' in sys.modules)"
    )
    assert python(code).split("\n") == ["[]", "False", ""]


def test_its_names() -> None:
    assert {*diffcore.__all__, "__version__"} <= set(dir(diffcore))
    for name in diffcore.__all__:
        value = getattr(diffcore, name)
        assert value is getattr(diffcore, name) and inspect.getdoc(value), name
        assert f"`{name}`" in PAGE, f"docs/api.md does not name {name}"
    with pytest.raises(AttributeError, match=r"^module 'diffcore' has no attribute 'load_modell'$"):
        diffcore.load_modell  # type: ignore[attr-defined] # noqa: B018
    with pytest.raises(ImportError):
        from diffcore import nothing  # type: ignore[attr-defined] # noqa: F401


def test_the_stub_says_where_each_name_is_from() -> None:
    tree = ast.parse((REPOSITORY / "diffcore" / "__init__.pyi").read_text())
    told = {
        alias.asname or alias.name: f"{node.module}:{alias.name}"
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert told == diffcore._HOMES  # type: ignore[attr-defined]
    [listed] = [node.value for node in tree.body if isinstance(node, ast.Assign)]
    assert ast.literal_eval(listed) == diffcore.__all__ == sorted(told)


@pytest.mark.parametrize("room", ["diffcore", "shards", "launch", "diffbase"])
def test_it_is_typed_for_others(room: str) -> None:
    assert (REPOSITORY / room / "py.typed").exists()


def test_the_version_is_that_of_the_code() -> None:
    assert diffcore.__version__ == VERSION


@pytest.fixture(scope="module")
def sources(run: Path) -> dict[str, Path]:
    exported = run.parent / "export"
    export.export(run, exported)
    return {"run": run, "checkpoint": run / "checkpoints" / "step-00001000", "export": exported}


@pytest.mark.parametrize("kind", ["run", "checkpoint", "export"])
def test_a_model_from_all_three_by_text_and_path(sources: dict[str, Path], kind: str) -> None:
    drawn = diffcore.load_model(sources["run"]).sample(2, seed=3)
    for path in (sources[kind], str(sources[kind])):
        model = diffcore.load_model(path)
        assert (model.step, model.size, model.schema) == (1000, 8, tuple(CARTOON_SET))
        assert isinstance(model.config, Config) and model.device.type == torch.get_default_device().type
        assert np.array_equal(model.sample(2, seed=3), drawn)


def test_which_weights(run: Path, model: diffcore.TrainedModel) -> None:
    drawn = [
        diffcore.load_model(run, checkpoint=5).sample(2),
        diffcore.load_model(run, weights="raw", device="cpu").sample(2),
        model.sample(2),
    ]
    assert not any(np.array_equal(a, b) for a, b in zip(drawn, drawn[1:] + drawn[:1], strict=True))
    assert diffcore.load_model(run, checkpoint="best").step == 5


SETTINGS: list[tuple[list[str], dict[str, object]]] = [
    ([], {}),
    (["--count", "11", "--seed", "7"], {"count": 11, "seed": 7}),
    (["--set", "hair_color=3", "--set", "glasses=11"], {"hair_color": 3, "labels": {"glasses": 11}}),
    (
        ["--guidance", "1.5", "--steps", "4", "--sampler", "dpm++", "--spacing", "rho"],
        {"guidance": 1.5, "steps": 4, "sampler": "dpm++", "spacing": "rho"},
    ),
    (["--guidance-interval", "0.2", "0.8", "--eta", "1"], {"guidance_interval": (0.2, 0.8), "eta": 1}),
    (["--no-clamp", "--guidance-rescale", "0.5"], {"clamp": False, "guidance_rescale": 0.5}),
]


@pytest.mark.parametrize("recommended", [False, True], ids=["", "recommended"])
@pytest.mark.parametrize(("flags", "given"), SETTINGS, ids=lambda value: " ".join(value))
def test_it_draws_what_the_command_draws(
    run: Path, tmp_path: Path, flags: list[str], given: dict[str, object], recommended: bool
) -> None:
    settings = run / RECOMMENDED
    if recommended:
        settings.write_text(json.dumps({"sampler": "ddim", "steps": 2, "guidance": 3.0}))
    try:
        sample.main(["--run", str(run), *flags, "--out", str(tmp_path / "command.png")])
        model = diffcore.load_model(run)
        drawn = model.sample(**given)  # type: ignore[arg-type]
    finally:
        settings.unlink(missing_ok=True)
    tiled = pictures.grid(drawn, min(pictures.COLUMNS, len(drawn)))
    diffcore.save_grid(drawn, tmp_path / "api.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "api.png")), tiled)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "command.png"))[-len(tiled) :], tiled)
    record = json.loads((tmp_path / "command.json").read_text())
    asked = {name: given[name] for name in ("count", "labels", "seed", "hair_color") if name in given}
    cells = [list(cell["attributes"].values()) for cell in record["cells"]]
    assert model.sample_labels(**asked).tolist() == cells  # type: ignore[arg-type]
    assert record["steps"] == given.get("steps", 2 if recommended else 3)


def test_a_variant_by_its_name(tmp_path: Path) -> None:
    schema = [Attribute("Hair colour", 3, ("grün", "dark blond", "2")), Attribute("lid", 2)]
    run = tiny_run.write(tmp_path / "run", 1, schema=schema)
    model = diffcore.load_model(run)
    assert model.sample_labels(2, hair_colour="Dark_Blond", lid=1).tolist() == [[1, 1]] * 2
    assert model.sample_labels(2, {"Hair colour": "unknown", "lid": "0"}).tolist() == [[-1, 0]] * 2
    flags = ["--set", "Hair colour=dark blond", "--set", "lid=unknown", "--count", "2"]
    sample.main(["--run", str(run), *flags, "--out", str(tmp_path / "grid.png")])
    record = json.loads((tmp_path / "grid.json").read_text())
    assert record["set"] == {"Hair colour": 1, "lid": -1}
    cell = record["cells"][1]
    assert cell["attributes"] == record["set"]
    assert cell["names"] == {"Hair colour": "dark blond", "lid": "unknown"}


def test_an_attribute_may_have_any_name(tmp_path: Path) -> None:
    schema = [Attribute("class", 2), Attribute("steps", 3)]
    model = diffcore.load_model(tiny_run.write(tmp_path / "run", 1, schema=schema))
    labels = {"class": 1, "steps": 2}
    assert model.sample(3, labels, steps=2).shape == (3, 8, 8, 3)
    assert model.sample_labels(3, labels).tolist() == [[1, 2]] * 3
    labels_BA = torch.tensor([[1, 2]] * 3)
    drawn = model.draw(labels_BA, model.config.sampling, seed=4)
    assert np.array_equal(drawn, model.sample(3, labels, seed=4))


def test_the_run_of_another_house(tmp_path: Path) -> None:
    model = diffcore.load_model(GOLDEN / "run")
    assert np.array_equal(model.sample(3), diffcore.load_model(str(GOLDEN / "export")).sample(3))


# --- mistakes ---------------------------------------------------------------------------------------------

MISTAKES: dict[str, Callable[[diffcore.TrainedModel, Path, Path], object]] = {
    "no run folder, checkpoint or export": lambda model, packed, tmp: diffcore.load_model(tmp),
    "newest, best or a step": lambda model, packed, tmp: diffcore.load_model(model.path, checkpoint="last"),
    "complete checkpoints: 5, 1000": lambda model, packed, tmp: diffcore.load_model(model.path, checkpoint=6),
    "one set of weights": lambda model, packed, tmp: diffcore.load_model(GOLDEN / "export", checkpoint=2),
    "weights 'mean': allowed are ema, raw": lambda model, packed, tmp: diffcore.load_model(
        model.path, weights="mean"
    ),
    "device gpu: cannot be used here": lambda model, packed, tmp: diffcore.load_model(
        model.path, device="gpu"
    ),
    "count 0": lambda model, packed, tmp: model.sample(0),
    "count 1.5": lambda model, packed, tmp: model.sample(1.5),  # type: ignore[arg-type]
    "batch 0": lambda model, packed, tmp: model.sample(1, batch=0),
    "seed -1: allowed are whole numbers": lambda model, packed, tmp: model.sample(1, seed=-1),
    "sampling.steps 51 is above": lambda model, packed, tmp: model.sample(1, steps=51),
    "'ddim', 'ddpm'": lambda model, packed, tmp: model.sample(1, sampler="none"),
    "hair_color must be a whole number, 0 to 9, not 10": lambda model, packed, tmp: model.sample(
        hair_color=10
    ),
    "0 to 9, not 'red'": lambda model, packed, tmp: model.sample(
        labels={"hair_color": "red"}  # type: ignore[dict-item]
    ),
    "unknown attribute 'hat'; allowed: eye_angle": lambda model, packed, tmp: model.sample(labels={"hat": 1}),
    "'guidence' is no attribute .* no setting .*guidance,": lambda model, packed, tmp: model.sample(
        guidence=1
    ),
    "glasses is given as a keyword and in labels": lambda model, packed, tmp: model.sample(
        1, {"glasses": 1}, glasses=1
    ),
    "ends in .png": lambda model, packed, tmp: diffcore.save_grid(model.sample(1), tmp / "a.jpg"),
    "does not exist": lambda model, packed, tmp: diffcore.save_grid(model.sample(1), tmp / "no" / "a.png"),
    r"not uint8 \[8, 8, 3\]": lambda model, packed, tmp: diffcore.save_grid(
        model.sample(1)[0], tmp / "a.png"
    ),
    "columns 0": lambda model, packed, tmp: diffcore.save_grid(model.sample(1), tmp / "a.png", columns=0),
    "no such file or folder": lambda model, packed, tmp: diffcore.pack(tmp / "no", tmp / "out"),
    "^shard_size 0: allowed: 1 to": lambda model, packed, tmp: diffcore.pack(tmp, tmp / "o", shard_size=0),
    "^jobs 0": lambda model, packed, tmp: diffcore.pack(tmp, tmp / "out", jobs=0),
    "^kind zoo: unknown": lambda model, packed, tmp: diffcore.pack(tmp, tmp / "out", kind="zoo"),
    "^on_bad ignore: unknown; allowed: stop, skip": lambda model, packed, tmp: diffcore.pack(
        tmp, tmp / "out", on_bad="ignore"
    ),
    "^bad_limit 3: only with on_bad skip": lambda model, packed, tmp: diffcore.pack(
        tmp, tmp / "out", bad_limit=3
    ),
    "index.json: not found": lambda model, packed, tmp: diffcore.open_shards(tmp),
    "no split 'test'; allowed: train, val": lambda model, packed, tmp: diffcore.open_shards(packed, "test"),
    "order is 'random'; allowed: full": lambda model, packed, tmp: diffcore.open_shards(
        packed, order="random"
    ),
    "batch is 0": lambda model, packed, tmp: diffcore.open_shards(packed, batch_size=0),
    "no such config file": lambda model, packed, tmp: diffcore.load_config(tmp / "no.yaml"),
    r"unknown key 'train.step' \(did": lambda model, packed, tmp: diffcore.load_config(
        model.path / "config.yaml", {"train.step": 1}
    ),
    "unknown key 'wrold'": lambda model, packed, tmp: diffcore.plan_memory(model.config, wrold=2),
    "rank 2 is not one of 2 ranks": lambda model, packed, tmp: diffcore.plan_memory(
        model.config, world=2, rank=2
    ),
    "rank 0 is not one of 0 ranks": lambda model, packed, tmp: diffcore.plan_memory(model.config, world=0),
    "batch.size 4 is not": lambda model, packed, tmp: diffcore.plan_memory(model.config, world=3),
    "device 'tpu': allowed": lambda model, packed, tmp: diffcore.plan_memory(
        model.config,
        device="tpu",  # type: ignore[arg-type]
    ),
    "no GPU of that name": lambda model, packed, tmp: diffcore.plan_memory(model.config, calibration="H9"),
}


@pytest.mark.parametrize("says", MISTAKES)
def test_a_mistake_is_one_line(
    says: str,
    model: diffcore.TrainedModel,
    packed: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(diffcore.InputError, match=says) as caught:
        MISTAKES[says](model, packed, tmp_path)
    assert "\n" not in str(caught.value) and "--" not in str(caught.value).replace(
        "shards.pack SOURCE --out", ""
    )
    assert capfd.readouterr() == ("", "")


# --- data -------------------------------------------------------------------------------------------------


def test_pack_has_the_command_s_defaults() -> None:
    given = inspect.signature(diffcore.pack).parameters
    assert {name: given[name].default for name in vars(Settings())} == vars(Settings())


def test_packing_twice(avatars: Path, packed: Path, capfd: pytest.CaptureFixture[str]) -> None:
    summary = diffcore.pack(str(avatars), str(packed), size=8, shard_size=20, val=0.1)
    assert summary.complete_before and summary.written == 0 and sum(summary.counts.values()) == 60
    with pytest.raises(diffcore.InputError, match=r"choose another out$"):
        diffcore.pack(avatars, packed, size=16, shard_size=20, val=0.1)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_workers_need_a_main_that_can_be_imported(avatars: Path, tmp_path: Path) -> None:
    code = f"import diffcore\ndiffcore.pack({str(avatars)!r}, {str(tmp_path / 'out')!r}, jobs=2)"
    (tmp_path / "careless.py").write_text(code)
    (tmp_path / "careful.py").write_text(f"if __name__ == '__main__':\n  {code.replace(chr(10), '; ')}")
    finished = [
        subprocess.run(
            [sys.executable, tmp_path / name], capture_output=True, text=True, timeout=120,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
        for name in ("careless.py", "careful.py")
    ]  # fmt: skip
    assert finished[0].returncode == 1 and "in a script call it under if __name__" in finished[0].stderr
    assert (finished[1].returncode, finished[1].stderr, finished[1].stdout) == (0, "", "")


def test_reading_is_the_reader_s_own_stream(packed: Path) -> None:
    with (
        diffcore.open_shards(str(packed), batch_size=7, seed=3) as reader,
        ShardReader(packed, seed=3) as own,
    ):
        assert isinstance(reader, ShardReader) and len(reader) == len(own) > 40
        assert reader.schema == tuple(CARTOON_SET) and reader.size == 8
        for step, batch in zip(range(5, 8), reader.batches(5), strict=False):
            assert batch.positions.tolist() == list(range(7 * step, 7 * step + 7))
            assert np.array_equal(batch.images, own.read(batch.positions).images)
        assert [len(batch.keys) for batch in reader.batches(1000, 1002)] == [7, 7]
        with pytest.raises(ValueError, match="without batch"):
            own.batches()


@pytest.mark.parametrize("tail", ["wrap", "drop"])
def test_an_epoch_has_every_sample_once(packed: Path, tail: str) -> None:
    with diffcore.open_shards(packed, batch_size=7, tail=tail) as reader:
        epochs = [[batch.keys for batch in reader.epoch(number)] for number in (0, 1)]
        rest = len(reader) % 7
        assert rest
    for batches in epochs:
        keys = [key for some in batches for key in some]
        assert len(keys) == len(set(keys)) == len(reader) - (rest if tail == "drop" else 0)
        assert len(batches[-1]) == (7 if tail == "drop" else rest)
    assert epochs[0] != epochs[1]


# --- configs and memory -----------------------------------------------------------------------------------


def test_overrides_in_every_form(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, base = run / "config.yaml", configure.load(run / "config.yaml")
    wanted = configure.replace(base, "train", {"steps": 7})
    assert diffcore.load_config(path) == base
    assert diffcore.load_config(str(path), {"train": {"steps": 7}}) == wanted
    assert diffcore.load_config(path, {"train.steps": 7}) == wanted
    assert diffcore.load_config(path, train={"steps": 7}) == wanted
    assert diffcore.load_config(path, {"train.steps": 6}, **{"train.steps": 7}) == wanted
    both = diffcore.load_config(path, {"train": {"log_every": 2}, "train.steps": 7})
    assert (both.train.log_every, both.train.steps) == (2, 7)
    monkeypatch.chdir(tmp_path)  # relative paths are the caller's, as on a command line
    for given in ("shards", Path("shards")):
        assert diffcore.load_config(path, {"data.path": given}).data.path == tmp_path / "shards"


@pytest.mark.slow
def test_the_plan_is_the_command_s(memory_config: Path, tmp_path: Path) -> None:
    memory.main(
        ["plan", "--config", str(memory_config), "--world", "2", "--zero", "2", "--out", str(tmp_path)]
    )
    [rank] = json.loads((tmp_path / "anatomy.json").read_text())["planned"]
    for config in (str(memory_config), memory_config, diffcore.load_config(memory_config)):
        plan = diffcore.plan_memory(config, world=2, **{"engine.zero": 2})
        assert plan.smi == sum(row["bytes"] for row in rank["closure"])
        assert {m.name: m.bytes for m in plan.moments} == {m["name"]: m["bytes"] for m in rank["moments"]}
        assert plan.peak.allocated == max(m["allocated"] for m in rank["moments"])
        assert plan.fits(24) and not plan.fits(1) and plan.notes == tuple(rank["notes"])


# --- docs/api.md ------------------------------------------------------------------------------------------

BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def home(avatars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with what the page's code finds in it."""
    schema = [Attribute(a.name, a.variants, NAMES[a.name]) for a in CARTOON_SET]
    tiny_run.write(tmp_path / "runs" / "demo", 500, 1000, schema=schema, best=500)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "avatars").symlink_to(avatars)
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_page_s_code_runs_as_in_a_notebook(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Cell after cell in one namespace without ``__file__``, while an event loop is running."""

    async def cells() -> dict[str, object]:
        names: dict[str, object] = {"__name__": "__main__"}
        for block in BLOCKS:
            exec(compile(block, "<cell>", "exec"), names)
        return names

    names = asyncio.run(cells())
    assert len(BLOCKS) >= 8 and (home / "grid.png").stat().st_size > 0
    allowed = "allowed: 0 to 6, or black, ivory, red, blue, gold, green, pink; nearest: blue"
    assert capfd.readouterr() == (f"glasses_color has no variant 'bleu'; {allowed}\n", "")
    raw, summary, again = names["raw"], names["summary"], names["again"]
    assert isinstance(raw, diffcore.TrainedModel) and raw.step == 1000
    assert isinstance(summary, diffcore.PackSummary) and summary.counts["val"] > 0
    assert isinstance(again, list) and [len(keys) for keys in again] == [24] * 3


@pytest.mark.slow
def test_the_first_lines_run_from_standard_input(home: Path) -> None:
    assert python(BLOCKS[0], cwd=home) == ""
    assert (home / "grid.png").stat().st_size > 0
