"""Weights as one small file with a card: what is lost and refused, and that what takes a run takes it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

import diffcore
from diffbase import cli
from diffbase.cli import InputError
from diffcore import export as export_command
from diffcore import sample
from diffcore.config import configure
from diffcore.evaluation import flags, sweep
from diffcore.runs.export import compact, export
from diffcore.runs.pretrained import card, files, quantize
from diffcore.runs.sampling import RECOMMENDED
from shards.schema import CARTOON_SET
from tests.support import tiny_run

SHAPES = st.lists(st.integers(0, 4), max_size=4)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tiny_run.write(tmp_path_factory.mktemp("private") / "run", 5, 7)
    (run / "quality.json").write_text(json.dumps({"run": str(run), "fidelity": {"mean": 0.5}}))
    (run / RECOMMENDED).write_text(json.dumps({"sampler": "dpm++", "steps": 2, "guidance": 1.5}))
    return run


@pytest.fixture(scope="module")
def folder(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ships, in the place of the package's folder: ``small`` of int8 and ``fine`` of bf16."""
    folder = tmp_path_factory.mktemp("ships")
    for name, dtype in {"small": "int8", "fine": "bf16"}.items():
        words = ["--licence", "Apache-2.0", "--about", "none", "--quiet"]
        export_command.main(
            [str(run), "--compact", dtype, "--out", str(folder / f"{name}.safetensors"), *words]
        )
    return folder


@pytest.fixture(autouse=True)
def shipped(folder: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "FOLDER", folder)
        yield


def tensor_of(shape: list[int], seed: int, spread: float) -> torch.Tensor:
    made = torch.Generator().manual_seed(seed)
    return (
        torch.randn(shape, generator=made)
        * torch.randn(shape[:1] + [1] * (len(shape) - 1), generator=made)
        * (spread)
    )


@given(SHAPES, st.integers(0, 2**32), st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 1e20]))
def test_what_is_lost_is_bounded(shape: list[int], seed: int, spread: float) -> None:
    weight = tensor_of(shape, seed, spread)
    exact = len(shape) < 2 or not weight.numel()
    for dtype in ("int8", "bf16"):
        back = quantize.restored(quantize.compacted({"w": weight}, dtype))["w"]  # type: ignore[arg-type]
        assert back.shape == weight.shape and back.dtype == torch.float32
        if exact:
            assert torch.equal(back, weight)
            continue
        # Half a step of the channel's grid, and rounding of w / s and q * s in fp32; of bf16 half of 2**-7.
        peak = weight.abs().flatten(1).amax(dim=1).view(-1, *[1] * (len(shape) - 1)).double()
        half = peak / 254 * (1 + 1e-5) + 1e-44 if dtype == "int8" else weight.double().abs() * 2**-8 + 1e-44
        assert ((back.double() - weight.double()).abs() <= half).all()


@given(st.integers(0, 2**32))
def test_a_second_time_nothing_is_lost(seed: int) -> None:
    weights = {"a": tensor_of([3, 2, 3, 3], seed, 1.0), "b": tensor_of([4], seed, 1.0)}
    once = quantize.restored(quantize.compacted(weights, "bf16"))
    again = quantize.restored(quantize.compacted(once, "bf16"))
    assert all(torch.equal(once[name], again[name]) for name in weights)
    ints, same = (
        quantize.compacted(w, "int8")
        for w in (weights, quantize.restored(quantize.compacted(weights, "int8")))
    )
    assert torch.equal(ints["a"], same["a"]) and ints["a"].abs().flatten(1).amax(dim=1).tolist() == [127] * 3


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(InputError, match="w is not finite"):
        quantize.compacted({"w": torch.tensor([[1.0, bad]])}, "int8")


@pytest.mark.parametrize(
    "tensors",
    [
        {"w": torch.zeros(2, 2, dtype=torch.int8)},
        {"w": torch.zeros(2, 2, dtype=torch.int8), "scale/w": torch.ones(3)},
        {"w": torch.zeros((), dtype=torch.int8), "scale/w": torch.ones(1)},
        {"scale/w": torch.ones(2)},
        {"w": torch.ones(2, 2), "scale/w": torch.ones(2)},
        {"w": torch.ones(2, dtype=torch.int64)},
    ],
)
def test_other_files_are_no_weights_of_ours(tensors: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError):
        quantize.restored(tensors)


def check_shipped(name: str) -> None:
    """What every network that ships must be."""
    file = files.FOLDER / f"{name}.safetensors"
    told = card.read(file)
    assert file.stat().st_size == told.bytes <= files.MOST
    assert told.licence not in ("", "not stated") and told.about and told.figures
    model = diffcore.load_model(f"pretrained:{name}", device="cpu")
    means = model.sample(16, seed=0).mean(axis=(0, 1, 2))
    assert model.step == told.step and np.abs(means - told.drawn).max() < 0.5, "draws what its card says"
    assert sum(p.numel() for p in model.network.parameters()) == told.parameters


def test_what_ships_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in files.names():
        check_shipped(name)
    monkeypatch.undo()
    monkeypatch.setattr(files, "FOLDER", Path(files.__file__).parent)
    for name in files.names():
        check_shipped(name)


def test_both_kinds_draw_nearly_what_the_run_draws(run: Path, folder: Path) -> None:
    """Far nearer than another checkpoint, to which the same noise is given."""
    exact = diffcore.load_model(run).sample(16, seed=0).astype(int)
    others = diffcore.load_model(run, checkpoint=5).sample(16, seed=0).astype(int)
    other = np.abs(others - exact)
    for name in ("small", "fine"):
        told = card.read(folder / f"{name}.safetensors")
        for place in (f"pretrained:{name}", folder / f"{name}.safetensors"):
            model = diffcore.load_model(place)
            assert (model.step, model.size, model.schema) == (7, 8, tuple(CARTOON_SET))
            assert model.config.sampling.steps == 2  # what the run's own folder recommends
            off = np.abs(model.sample(16, seed=0).astype(int) - exact)
            assert max(off.mean(), told.error["mean"]) < other.mean() / 4
        assert np.abs(others.mean(axis=(0, 1, 2)) - told.drawn).max() > 5  # a shipped one is within 0.5
    assert files.names() == ["fine", "small"]


def test_the_file_is_small_and_the_card_says_where_it_comes_from(run: Path, folder: Path) -> None:
    sizes = {}
    for name in ("small", "fine"):
        file = folder / f"{name}.safetensors"
        tree = json.loads((folder / f"{name}.json").read_text())
        sizes[name] = file.stat().st_size
        assert tree["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        assert (tree["licence"], tree["about"], tree["step"], tree["samples"]) == (
            "Apache-2.0",
            "none",
            7,
            28,
        )
        assert tree["figures"] == {"quality": {"fidelity": {"mean": 0.5}}} and tree["recipe"]["seed"] == 0
        assert set(tree["error"]) == {"images", "mean", "max"} and tree["data"]["fingerprint"] == "0" * 64
        assert str(run.parent) not in (folder / f"{name}.json").read_text()
    whole = sum(p.numel() for p in diffcore.load_model(run).network.parameters())
    assert sizes["small"] < sizes["fine"] < 4 * whole


def test_the_same_checkpoint_gives_the_same_bytes(run: Path, folder: Path, tmp_path: Path) -> None:
    words = {"licence": "Apache-2.0", "about": "none"}
    compact(run, tmp_path / "small.safetensors", "int8", **words)
    for name in ("small.safetensors", "small.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_the_command_draws_from_them(folder: Path, tmp_path: Path) -> None:
    flags = ["--set", "hair_color=3", "--samples", "2", "--seed", "3", "--out"]
    for i, words in enumerate((["--pretrained"], ["--pretrained", "small"], ["pretrained:small"])):
        sample.main([*words, *flags, str(tmp_path / f"{i}.png")])
        assert (tmp_path / f"{i}.png").read_bytes() == (tmp_path / "0.png").read_bytes()
    record = json.loads((tmp_path / "0.json").read_text())
    assert record["run"] == "pretrained:small" and record["sampler"] == "dpm++"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--pretrained", "no/such"], r"pretrained:no/such: no such network ships .*; allowed: fine, small"),
        (["--pretrained", ".."], "no such network"),
        (["--pretrained", "small", "--run", "x"], "give one of both"),
        (["--pretrained", "--weights", "raw"], "holds averaged weights only; allowed: ema, not raw"),
        (["--pretrained", "--compare"], "averaged weights only"),
        (["--pretrained", "--checkpoint", "7"], "is one set of weights"),
        ([], "the run is missing"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(words: list[str], line: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=line):
        sample.main([*words, "--out", str(tmp_path / "a.png")])


def test_a_card_is_not_replaced_by_a_grids(folder: Path) -> None:
    with pytest.raises(InputError, match="could replace"):
        sample.main([str(folder / "small.safetensors"), "--out", str(folder / "small.png")])


def test_nothing_ships_yet_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(files, "FOLDER", tmp_path)
    with pytest.raises(SystemExit) as left:
        cli.run(lambda: sample.main(["--pretrained", "--out", str(tmp_path / "a.png")]))
    err = capsys.readouterr().err
    assert left.value.code == 2 and err.startswith(
        "error: pretrained:small: no such network ships with diffcore"
    )
    assert err.endswith("allowed: none\n") and err.count("\n") == 1


def damaged(folder: Path, out: Path, kind: str) -> str:
    file = out / "small.safetensors"
    data, tree = (folder / "small.safetensors").read_bytes(), json.loads((folder / "small.json").read_text())
    if kind == "a bit":
        data = data[:-1] + bytes([data[-1] ^ 1])
    elif kind == "the end":
        data = data[:-1]
    elif kind == "no safetensors":
        data = b"x" * 100
        tree |= {"bytes": 100, "sha256": hashlib.sha256(data).hexdigest()}
    elif kind == "another network":
        data = safetensors.torch.save({"w": torch.ones(2)})
        tree |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    elif kind == "recipe":
        tree["recipe"]["train"]["steps"] = -1
    elif kind == "card":
        tree["step"] = "many"
    file.write_bytes(data)
    if kind != "no card":
        (out / "small.json").write_text("{" if kind == "no JSON" else json.dumps(tree))
    return str(file)


DAMAGE = {
    "a bit": "its card, small.json, says other bytes",
    "the end": "says other bytes",
    "no safetensors": "no weights of ours",
    "another network": "these weights are another network's than its config's",
    "recipe": "small.json: recipe: train.steps",
    "card": "small.json: step",
    "no card": "no such file: the card of small.safetensors",
    "no JSON": "not a JSON file",
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_one_line(kind: str, folder: Path, tmp_path: Path) -> None:
    file = damaged(folder, tmp_path, kind)
    with pytest.raises(InputError, match=DAMAGE[kind]):
        diffcore.load_model(file)


def test_an_export_of_them_gives_the_same_network(folder: Path, tmp_path: Path) -> None:
    export(Path("pretrained:small"), tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "README.md", "config.yaml", "data.json", "model.safetensors",
    ]  # fmt: skip
    text = (tmp_path / "out" / "README.md").read_text()
    assert "model.raw" not in text and "small.safetensors" in text
    network = export_command.load_network(tmp_path / "out").state_dict()
    same = export_command.load_network(Path("pretrained:small")).state_dict()
    assert network.keys() == same.keys() and all(torch.equal(network[name], same[name]) for name in network)


def test_what_is_there_is_not_replaced(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    with pytest.raises(InputError, match=r"ends in \.safetensors"):
        compact(run, tmp_path / "a", "int8")
    for name in ("a.json", "a.safetensors"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(InputError, match=f"{name} exists already"):
            compact(run, out, "int8")
        (tmp_path / name).unlink()


def test_a_config_may_name_them(tmp_path: Path) -> None:
    text = tiny_run.CONFIG.format(run="runs/a") + "init_from: pretrained:small\n"
    (tmp_path / "a.yaml").write_text(text)
    config = configure.load(tmp_path / "a.yaml")
    assert str(config.init_from) == "pretrained:small"
    assert (
        str(configure.changed(config, configure.nested({"init_from": "pretrained:b"})).init_from)
        == "pretrained:b"
    )
    (tmp_path / "b.yaml").write_text(config.to_yaml())
    assert configure.load(tmp_path / "b.yaml") == config
    near = configure.changed(config, configure.nested({"init_from": "near"})).init_from
    assert near == Path.cwd() / "near"


def test_results_need_a_folder(tmp_path: Path) -> None:
    parser = cli.Parser()
    flags.add_out(parser)
    parser.add_argument("run", type=Path)
    for words in (["pretrained:small"], [str(files.FOLDER / "small.safetensors")]):
        with pytest.raises(InputError, match="give one with --out"):
            flags.given_out(parser.parse_args(words))
        assert flags.given_out(parser.parse_args([*words, "--out", str(tmp_path)])) == tmp_path
        with pytest.raises(InputError, match="give a run folder"):
            sweep.main(words)
    assert flags.given_out(parser.parse_args([str(tmp_path)])) == tmp_path
