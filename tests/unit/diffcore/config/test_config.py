"""The config tree: every YAML loads, every mistake is one line: field, value and what is allowed."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from diffbase.cli import InputError
from diffbase.explain import validated
from diffbase.files import REPOSITORY
from diffcore.config import configure
from diffcore.config.section import Section
from diffcore.config.tree import Batch, Config

CONFIGS = sorted(p for p in (REPOSITORY / "configs").rglob("*.yaml"))
DEMO = REPOSITORY / "configs" / "demo.yaml"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_every_yaml_loads_and_says_its_command(path: Path) -> None:
    loaded = configure.load(path)
    assert loaded.engine.json_path.exists()
    text = path.read_text()
    assert f"--config configs/{path.relative_to(REPOSITORY / 'configs')}" in text
    assert all((REPOSITORY / page).exists() for page in re.findall(r"docs/[\w-]+\.md", text))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_the_resolved_config_loads_back_equal(path: Path, tmp_path: Path) -> None:
    loaded = configure.load(path)
    (tmp_path / "config.yaml").write_text(loaded.to_yaml())
    assert configure.load(tmp_path / "config.yaml") == loaded


def test_overrides_are_dotted_and_win() -> None:
    flags = ["--config", str(DEMO), "--optimizer.lr", "3e-5", "--model.heads=2", "--engine.zero", "3"]
    parsed = configure.parse([*flags, "--model.channels", "16,32", "--model.attention_levels", "1"])
    assert parsed.optimizer.lr == 3e-5
    assert (parsed.model.heads, parsed.model.channels, parsed.engine.zero) == (2, (16, 32), 3)
    assert parsed.diffusion == configure.load(DEMO).diffusion


def test_the_launchers_local_rank_is_accepted() -> None:
    assert configure.parse(["--local_rank=1", "--config", str(DEMO)]) == configure.load(DEMO)


def test_paths_in_a_yaml_are_relative_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = configure.load(DEMO)
    assert loaded.data.path == REPOSITORY / "data" / "demo"
    assert configure.load(DEMO, {"run": "here"}).run == Path("here")


def test_help_lists_fields_with_their_words(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        configure.parse(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert exit_info.value.code == 0
    assert "--optimizer.lr" in text and "Peak learning rate." in text and "--config FILE" in text


def test_paths_on_the_command_line_are_relative_to_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    parsed = configure.parse(["--config", str(DEMO), "--run", "runs/x", "--data.path", "y"])
    assert (parsed.run, parsed.data.path) == (tmp_path / "runs" / "x", tmp_path / "y")
    parsed.run.mkdir(parents=True)
    (parsed.run / "config.yaml").write_text(parsed.to_yaml())
    assert configure.load(parsed.run / "config.yaml") == parsed


def test_a_yaml_extends_another(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    base, child, grandchild = (tmp_path / name for name in ("below/base.yaml", "child.yaml", "more.yaml"))
    base.write_text(DEMO.read_text())
    child.write_text("extends: below/base.yaml\nrun: here\nmodel: {heads: 1}\n")
    grandchild.write_text("extends: child.yaml\nseed: 7\n")
    loaded, below = configure.load(grandchild), configure.load(base)
    assert loaded.data.path == below.data.path == tmp_path / "data" / "demo"  # as base.yaml says it
    assert (loaded.run, loaded.seed, loaded.model.heads) == (tmp_path / "here", 7, 1)
    assert loaded.model.channels == below.model.channels and loaded.optimizer == below.optimizer


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("extends: gone.yaml", r"gone\.yaml: no such config file \(.*c\.yaml extends it\)"),
        ("extends: c.yaml", r"c\.yaml: extends: c\.yaml extends this file in turn"),
        ("extends: [a, b]", r"extends: expected the path of one YAML"),
        ("extends: .", "no such config file"),
    ],
)
def test_a_wrong_extends_is_one_line(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        configure.load(path)


def test_files_that_extend_each_other_by_a_relative_path_or_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that is not beside the file is looked for from here."""
    (tmp_path / "cfg").mkdir()
    (tmp_path / "cfg" / "x.yaml").write_text("extends: cfg/x.yaml")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.yaml").symlink_to("a.yaml")
    (tmp_path / "a.yaml").write_text("extends: link.yaml")
    for name in ("cfg/x.yaml", "a.yaml", "link.yaml"):
        with pytest.raises(InputError, match="extends this file in turn"):
            configure.load(Path(name))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("true", "on"), ("false", "off"), ("on", "on"), ("off", "off"), ("'on'", "on"), ("auto", "auto")],
)
def test_compile_is_a_switch_as_it_was_and_as_yaml_reads_it(text: str, wanted: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"extends: {DEMO}\nengine: {{compile: {text}}}\n")
    loaded = configure.load(path)
    assert loaded.engine.compile == wanted
    assert configure.parse(["--config", str(DEMO), "--engine.compile", text.strip("'")]) == loaded
    path.write_text(loaded.to_yaml())
    assert configure.load(path) == loaded


BAD = {
    "unknown key": ({"optimizer": {"lrr": 1}}, ["unknown key 'optimizer.lrr'", "did you mean 'lr'", "betas"]),
    "unknown section": ({"optimiser": {}}, ["unknown key 'optimiser'", "did you mean 'optimizer'"]),
    "unknown model key": ({"model": {"width": 3}}, ["unknown key 'model.width'", "channels"]),
    "out of range": ({"optimizer": {"lr": -1}}, ["optimizer.lr", "greater than 0", "-1"]),
    "not a choice": ({"engine": {"zero": 5}}, ["engine.zero", "less than or equal to 3", "5"]),
    "offload": ({"engine": {"offload": "optimizer", "zero": 0}}, ["offload optimizer needs zero 1, 2 or 3"]),
    "weights": ({"engine": {"offload": "parameters", "zero": 2}}, ["offload parameters needs zero 3"]),
    "compile": ({"engine": {"compile": True, "zero": 3}}, ["engine: compile needs zero 0, 1 or 2"]),
    "compile how": ({"engine": {"compile": "fast"}}, ["engine.compile", "'off', 'on' or 'auto'", "fast"]),
    "format": (
        {"engine": {"channels_last": True, "zero": 3}},
        ["channels_last needs zero 0, 1 or 2"],
    ),
    "snapshot": (
        {"train": {"memory_snapshot": [9, 3]}},
        ["train.memory_snapshot", "[9, 3] is not"],
    ),
    "profile": ({"train": {"profile": [9, 3]}}, ["train.profile", "[9, 3] is not the first and the last of"]),
    "profile of all": ({"train": {"profile": [1, 101]}}, ["train.profile", "1 to 100 steps"]),
    "heads": ({"model": {"heads": 3}}, ["heads: 3 does not divide"]),
    "attention level": ({"model": {"attention_levels": [7]}}, ["attention_levels: 7", "0 to"]),
    "channels": ({"model": {"channels": [30, 64]}}, ["multiples of 8", "30"]),
    "sampling": ({"sampling": {"steps": 5000}}, ["5000", "1000 timesteps"]),
    "betas": ({"optimizer": {"betas": [2, 0.9]}}, ["optimizer.betas", "less than 1"]),
    "infinite": ({"optimizer": {"lr": float("inf")}}, ["optimizer.lr", "finite"]),
    "guidance": ({"diffusion": {"label_dropout": 0}}, ["guidance 2.0", "label_dropout above 0"]),
    "type": ({"seed": "abc"}, ["seed", "integer", "abc"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_one_clear_line(case: str) -> None:
    overrides, words = BAD[case]
    with pytest.raises(InputError) as error:
        configure.load(DEMO, overrides)
    line = str(error.value)
    assert "\n" not in line and line.startswith(f"the overrides over {DEMO}: ")
    for word in words:
        assert word in line


def test_a_mistake_of_the_file_is_the_files(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"extends: {DEMO}\noptimizer: {{lr: -1}}\n")
    for flags in ([], ["--seed", "3"]):
        with pytest.raises(InputError, match=r"mine\.yaml: optimizer\.lr") as error:
            configure.parse(["--config", str(path), *flags])
        assert " over " not in str(error.value)
    with pytest.raises(InputError, match=r"^the command line over .*demo\.yaml: optimizer\.lr"):
        configure.parse(["--config", str(DEMO), "--optimizer.lr", "-1"])
    part = tmp_path / "part.yaml"
    part.write_text(f"data: {{path: {tmp_path}}}\nmodel: {{kind: avatar}}\nbatch: {{size: 8}}\n")
    with pytest.raises(InputError, match=r"part\.yaml: optimizer\.lr"):
        configure.parse(["--config", str(part), "--run", "r", "--train.steps", "3", "--optimizer.lr", "-1"])


@pytest.mark.parametrize("key", ["run", "data", "model", "batch", "train", "data.path", "train.steps"])
def test_a_missing_key_is_named(key: str, tmp_path: Path) -> None:
    tree = yaml.safe_load(DEMO.with_name("demo-adamw.yaml").read_text())  # whose length is in steps
    *above, last = key.split(".")
    branch = tree
    for part in above:
        branch = branch[part]
    del branch[last]
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(InputError, match=f"key '{key}' is missing"):
        configure.load(path)


@pytest.mark.parametrize("text", ["", "- a", "a: [", "\xff\xfe"])
def test_a_file_that_is_no_config(text: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"c\.yaml"):
        configure.load(path)


def test_unknown_flag_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"'--optimizer\.lrr'; did you mean --optimizer\.lr"):
        configure.parse(["--config", str(DEMO), "--optimizer.lrr", "1"])


@given(micro=st.integers(1, 64), accumulation=st.integers(1, 8), world=st.integers(1, 64))
def test_batch_is_micro_times_accumulation_times_world(micro: int, accumulation: int, world: int) -> None:
    size = micro * accumulation * world
    assert Batch(size=size, micro=micro).split(world) == (micro, accumulation)
    assert Batch(size=size).split(world) == (micro * accumulation, 1)


@given(size=st.integers(1, 500), micro=st.none() | st.integers(1, 64), world=st.integers(1, 64))
def test_batch_split_is_exact_or_refused(size: int, micro: int | None, world: int) -> None:
    try:
        got, accumulation = Batch(size=size, micro=micro).split(world)
    except InputError as error:
        assert str(size) in str(error) and f"world {world}" in str(error)
        assert size % ((micro or 1) * world)
        sizes = [int(n) for n in re.search(r"a batch\.size of ([\d or]+)", str(error))[1].split(" or ")]
        micros = re.search(r"a batch\.micro of ([\d or]+)", str(error))
        for other in sizes:  # and none between it and what was given
            assert Batch(size=other, micro=micro).split(world)
        between = set(range(min(sizes) + 1 if sizes[0] < size else 1, sizes[-1])) - {size}
        assert all(n % ((micro or 1) * world) for n in between)
        for other in map(int, micros[1].split(" or ")) if micros else []:
            assert Batch(size=size, micro=other).split(world)
        assert bool(micros) == (micro is not None and size % world == 0)
    else:
        assert got * accumulation * world == size


@pytest.mark.parametrize(
    ("size", "micro", "world", "told"),
    [
        (10, None, 3, "with world 3: the nearest that would do: a batch.size of 9 or 12"),
        (128, None, 3, "a batch.size of 126 or 129"),
        (10, 3, 3, "with micro 3 and world 3: the nearest that would do: a batch.size of 9 or 18"),
        (2, None, 3, "a batch.size of 3"),
        (36, 5, 3, "a batch.size of 30 or 45, or a batch.micro of 4 or 6"),
    ],
)
def test_a_batch_that_ranks_cannot_share_is_told_what_they_could(
    size: int, micro: int | None, world: int, told: str
) -> None:
    with pytest.raises(InputError) as error:
        Batch(size=size, micro=micro).split(world)
    assert str(error.value).endswith(told)


def changed(**sections: dict[str, object]) -> dict[str, object]:
    before, after = configure.load(DEMO).identity(), configure.load(DEMO, sections).identity()
    return {key: after.get(key) for key in before | after if before.get(key) != after.get(key)}


def test_identity_holds_what_makes_the_experiment() -> None:
    assert changed(optimizer={"lr": 0.5}) == {"optimizer.lr": 0.5}
    assert changed(model={"heads": 1}) == {"model.heads": 1}
    assert changed(diffusion={"target": "eps"}) == {"diffusion.target": "eps"}
    assert changed(engine={"gradient_clipping": 0}) == {"engine.gradient_clipping": 0.0}
    assert changed(batch={"size": 7}) == {"batch.size": 7}


def test_identity_leaves_out_placement() -> None:
    placement = {
        "engine": {"zero": 3, "precision": "bf16"},
        "batch": {"micro": 2},
        "train": {"steps": 9, "log_every": 1, "checkpoint_every": 3},
        "sampling": {"every": 5},
        "data": {"path": "/elsewhere"},
    }
    assert changed(**placement) == {}


def test_config_is_frozen() -> None:
    loaded: Config = configure.load(DEMO)
    with pytest.raises(ValueError):
        loaded.seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model.channels", "[8,16"], "command line: Parsing error encountered for model.channels"),
        (["--engine", "{"], 'error parsing value for field "engine"'),
        (["--train.stages", "[{side: 32, until: 9}]"], """--train.stages '[{"side": 32, "until": 9}]'"""),
        (["--engine", "[" * 3000], "recursion"),
        (["--seed", "9" * 5000], "argument --seed: has 5000 bytes"),
        (["--train.steps", "9" * 400], "train: steps is a number of more than 63 bits"),
        (["--batch.size", "99999999"], "batch.size: Input should be less than or equal to 16777216"),
        (["--optimizer.lr", "1e999"], "optimizer.lr: Input should be a finite number"),
        (["--run", "~nosuchuser/x"], "run: '~nosuchuser/x': there is no such user"),
        (["--run", "a\nb"], r"argument --run: has the character \n"),
        (["--run", "http:///x"], "run: a path is wanted, not a URL"),
        (["--run", ""], "run is empty; give a path"),
        (["--data", '{"path": 5}'], "data.path: expected a folder or a URL, got 5"),
        (["--config", "x" * 300], "argument --config: has a name of 300 bytes"),
        (["--guards.hang_seconds", "1e300"], "guards.hang_seconds: Input should be less than or equal"),
    ],
)
def test_a_wrong_flag_is_one_line(flags: list[str], words: str) -> None:
    with pytest.raises(InputError) as error:
        configure.parse(["--config", str(DEMO), *flags])
    assert words in str(error.value) and len(str(error.value)) < 900


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("run: ~nosuchuser/x", "x.yaml: run: '~nosuchuser/x': there is no such user"),
        ('extends: "a\\0b"', r"extends has the character \x00"),
        ("extends: ~nosuchuser/x.yaml", "extends: '~nosuchuser/x.yaml': there is no such user"),
        ("seed: 2001-13-45", "seed: Input should be a valid integer"),
        ("data: {path: 5}", "data.path: expected a folder or a URL, got 5"),
        ("run: 5", "run: expected a path, got 5"),
        ("data: 5", "data: expected a mapping, got 5"),
        ('data: {path: "s3://u:p@h/x\\ny"}', r"data: path has the character \n"),
        ("5: 3", "5: Keys should be strings"),
        ("? " + "x" * 900 + "\n: 1", "unknown key"),
    ],
)
def test_a_wrong_yaml_is_one_line(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(f"extends: {DEMO}\n{text}" if "extends" not in text else text)
    with pytest.raises(InputError) as error:
        configure.load(tmp_path / "x.yaml")
    assert words in str(error.value) and len(str(error.value)) < 900


def sections(kind: type[Section]) -> set[type[Section]]:
    below = {one for subclass in kind.__subclasses__() for one in sections(subclass)}
    return below | set(kind.__subclasses__())


class Example(Section):
    text: str = ""
    path: Path = Path()
    several: tuple[str, ...] = ()
    named: dict[str, str | int] = Field(default_factory=dict)
    whole: int = 0


def test_every_section_looks_at_its_values() -> None:
    """What a new field forgets is refused all the same: the base class does it."""
    importlib.import_module("launch.ask.spec")
    found = sections(Section)
    assert {"Config", "Cluster", "JobSpec", "Container"} <= {kind.__name__ for kind in found}
    for kind in found:
        validator = kind.__pydantic_decorators__.model_validators["_holds_lines"]
        assert validator.func is Section.__pydantic_decorators__.model_validators["_holds_lines"].func


@given(before=st.text(), mark=st.sampled_from("\n\0\x1b\r\x7f\x85\u2028\u202e"), after=st.text())
def test_no_text_of_a_section_holds_what_acts(before: str, mark: str, after: str) -> None:
    text = before + mark + after
    trees: list[Any] = [
        {"text": text},
        {"path": text},
        {"several": ["x", text]},
        {"named": {text: 1}},
        {"named": {"x": text}},
    ]
    for tree in trees:
        with pytest.raises(InputError) as error:
            validated(Example, tree, "x")
        assert str(error.value).isprintable()


@given(number=st.integers())
def test_a_whole_number_of_a_section_has_63_bits(number: int) -> None:
    if number.bit_length() <= 63:
        assert validated(Example, {"whole": number}, "x").whole == number
    else:
        with pytest.raises(InputError, match="whole is a number of more than 63 bits"):
            validated(Example, {"whole": number}, "x")
