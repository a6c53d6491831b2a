"""``submit --auto``: what is chosen beside a scheduler that is made up, what stays, and what is promised."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from diffbase import ledger
from diffbase.cli import InputError
from diffbase.files import REPOSITORY
from diffbase.machine import cards, nvml
from diffbase.tables import show as show_blocks
from diffcore.config import configure
from diffcore.config.tree import Config
from diffcore.memory import promise
from diffcore.runs import figures, run_folder
from launch import submit
from launch.ask import profile
from launch.ask.card import card_of
from launch.ask.spec import JobSpec
from launch.auto import choose
from launch.follow import show
from launch.follow.run import Run
from launch.scheduler import client
from launch.scheduler.query import Known

GOLDEN = REPOSITORY / "tests" / "golden" / "auto.txt"
CONFIG = str(REPOSITORY / "configs" / "demo-adamw.yaml")
SBATCH = """#!/bin/sh
for word; do script=$word; done
if [ "$1" = --test-only ]; then
    case $(sed -n 's/^#SBATCH --nodes=//p' "$script") in
    1) at=2098-01-01T10:00:00 ;;
    2) at=2098-01-01T10:10:00 ;;
    4) at=2098-01-02T10:00:00 ;;
    *) echo "sbatch: error: Requested node configuration is not available" >&2; exit 1 ;;
    esac
    echo "sbatch: Job 9 to start at $at using 8 processors on nodes n1 in partition gpu" >&2
    exit
fi
cp "$script" "$(dirname "$0")/submitted.sh"
echo Submitted batch job 12
"""


def a_row(nodes: int, rate: float) -> dict[str, Any]:
    """Of fit's answer."""
    return {
        "zero": 2, "precision": "fp32", "checkpointing": "selective", "offload": "none", "nodes": nodes,
        "gpus_per_node": 4, "micro_batch": 3, "accumulation": 2 // nodes or 1, "batch": 24,
        "bucket_elements": 262144,
        "planned_bytes": 3 << 30, "peak_bytes": 2 << 30, "images_per_second": rate, "timed": "modelled",
    }  # fmt: skip


def an_answer(rates: dict[int, float]) -> dict[str, Any]:
    rows = [a_row(nodes, rate) for nodes, rate in rates.items()]
    card = {"name": "A100 40GB", "usable_bytes": 40_338 << 20}
    return {"card": card, "by_nodes": rows, "times": "at 18% of the card's peak, assumed"}


@pytest.fixture(autouse=True)
def a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setattr(submit, "check", lambda *arguments, **flags: None)  # there are no shards here
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sbatch").write_text(SBATCH)
    (tmp_path / "bin" / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """Images a second by nodes, as fit is to answer; the steps are an hour at 100."""
    rates = {1: 100.0, 2: 190.0, 4: 350.0, 8: 600.0}

    def fit(config: Config, spec: JobSpec, held: Sequence[str]) -> dict[str, Any]:
        return an_answer({n: rate for n, rate in rates.items() if spec.nodes_min <= n <= spec.nodes})

    monkeypatch.setattr(choose, "fit", fit)
    return rates


def command(tmp_path: Path, *more: str, nodes: str = "1-8") -> list[str]:
    size = ["--cluster", "plain-gpu", "--nodes", nodes, "--gpus-per-node", "4"]
    length = [] if "--train.minutes" in more or "--train.steps" in more else ["--train.steps", "15000"]
    return ["--config", CONFIG, "--run", str(tmp_path / "run"), "--auto", *size, *length, *more]


@pytest.mark.usefixtures("answered")
def test_what_it_chose_and_why_is_said_before_it_submits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submit.main(command(tmp_path))
    text = capsys.readouterr().out.replace(str(tmp_path), "/runs")
    if os.environ.get("WRITE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()
    script = (tmp_path / "bin" / "submitted.sh").read_text()
    assert "#SBATCH --nodes=2\n" in script  # an hour at one node, half of that and half an hour's wait at two
    place = tmp_path / "run" / "job" / "001"
    told = yaml.safe_load((place / "config.yaml").read_text())
    assert (told["engine"]["zero"], told["engine"]["checkpointing"], told["batch"]["micro"]) == (
        2,
        "selective",
        3,
    )
    spec = json.loads((place / "job.json").read_text())
    assert (spec["nodes"], spec["nodes_min"]) == (2, 2)
    assert stat.S_IMODE((tmp_path / "run" / "promise.json").stat().st_mode) == 0o600
    run_folder.check(configure.load(place / "config.yaml"), {})  # a run may begin there


def test_the_first_that_is_done_is_chosen(
    tmp_path: Path, answered: dict[int, float], capsys: pytest.CaptureFixture[str]
) -> None:
    def chosen(*more: str, nodes: str = "1-8") -> dict[str, Any]:
        submit.main(command(tmp_path, "--dry-run", "--json", *more, nodes=nodes))
        tree: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert f"#SBATCH --nodes={tree['nodes']}\n" in tree["dry_run"]
        assert not (tmp_path / "run").exists()
        return dict(tree["auto"])

    short = chosen("--train.steps", "100")
    assert (short["nodes"], short["world"]) == (1, 4) and short["start"] == client.start_in(
        "to start at 2098-01-01T10:00:00"
    )
    assert [size["refused"] for size in short["sizes"]][:3] == [None] * 3
    assert "configuration is not available" in short["sizes"][3]["refused"]
    assert chosen("--train.steps", "1500000")["nodes"] == 4  # two days longer than it waits
    assert chosen("--train.minutes", "30")["nodes"] == 1  # the first to start
    answered.clear()
    answered[8] = 600.0
    with pytest.raises(InputError, match="sbatch: Requested node configuration is not available"):
        submit.main(command(tmp_path, nodes="8"))
    answered |= {1: 100.0, 2: 190.0}
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/sh\nexit 1\n")  # no queue answers: the fastest by itself
    told = chosen(nodes="1-2")
    assert told["nodes"] == 2 and [size["start"] for size in told["sizes"]] == [None, None]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--sweep", "x.yaml"], "--auto chooses for one run: without --sweep|x.yaml"),
        (["--gpus-per-node", "0"], "--auto chooses for GPUs: give --gpus-per-node"),
        (["--cluster", "box"], "the profile of box says neither gpus.card nor gpus.memory_gb"),
        (["--cluster", "local", "--nodes", "1"], "there is none here that NVML shows"),
    ],
)
def test_where_nothing_can_be_chosen_it_is_one_line(flags: list[str], says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says) as error:
        submit.main([*command(tmp_path), *flags])
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_what_the_command_line_gives_stays() -> None:
    given = ["--engine.zero", "1", "--batch.micro=4", "--model.heads", "2", "--engine.precision", "bf16"]
    assert choose.held_by(Path(CONFIG), given) == ["engine.zero", "batch.micro"]
    assert choose.held_by(Path(CONFIG), []) == []


@pytest.mark.slow
def test_the_plan_chooses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the real plan: what was given stays, the rest is the fastest that fits the profile's card."""
    own = tmp_path / "mine.yaml"
    own.write_text("gpus: {card: A100 40GB 1g.5gb}\nmax_minutes: 60\n")
    given = ["--cluster", str(own), "--batch.size", "4096", "--engine.zero", "1", "--dry-run", "--json"]
    submit.main([*command(tmp_path, *given, nodes="1-2")])
    told = json.loads(capsys.readouterr().out)["auto"]
    assert (told["card"], told["zero"]) == ("A100 40GB 1g.5gb", 1)
    assert told["planned_bytes"] <= told["usable_bytes"] == 4864 << 20
    assert told["micro_batch"] * told["accumulation"] * told["world"] == 4096
    assert [size["nodes"] for size in told["sizes"]] == [1, 2]
    own.write_text("gpus: {memory_gb: 1}\nmax_minutes: 60\n")
    with pytest.raises(InputError, match="--auto: nothing fits 4 x 1GB with what is held"):
        submit.main([*command(tmp_path, *given, nodes="1")])


def test_the_card_of_a_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def of(text: str) -> cards.Card | None:
        (tmp_path / "p.yaml").write_text(f"gpus: {{{text}}}\n")
        return card_of(profile.choose(str(tmp_path / "p.yaml")))

    assert of("card: a100-80gb") is cards.CARDS["A100 80GB"]
    assert of("type: a100, memory_gb: 40") is cards.CARDS["A100 40GB"]
    assert of("memory_gb: 24") == cards.of_size(24) == of("type: ours, memory_gb: 24")
    assert of("type: a100") is None
    for text, says in (
        ("card: A100", "it may be A100 40GB"),
        ("card: L4, memory_gb: 24", "leave memory_gb out"),
    ):
        with pytest.raises(InputError, match=says):
            of(text)
    found = nvml.Survey("580", (13, 0), 1, (nvml.Gpu("NVIDIA L40S", 46 * 10**9, False),))
    monkeypatch.setattr(nvml, "survey", lambda: found)
    assert card_of(profile.choose("local")) is cards.CARDS["L40S"]


@pytest.mark.parametrize(
    ("said", "known"),
    [
        ("sbatch: Job 3 to start at 2026-11-27T10:00:00 using 4 processors on nodes n1", True),
        ("sbatch: Job 3 to start at N/A using 4 processors", False),
        ("allocation failure", False),
    ],
)
def test_a_forecast_is_read(said: str, known: bool) -> None:
    assert (client.start_in(said) is not None) == known


# --- afterwards ---


def delivered(run: Path, told: dict[str, Any], device: str) -> None:
    """What a training leaves: its start, its log, its report."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.time", lambda: told["submitted"] + 600)
        ledger.record(run, "start", steps=9, world=8, pid=1, host="n")
    lines = [
        {"step": n, "train/loss": 1.0, "train/images_per_second": 95.0 + n, "train/samples": 8 * n}
        for n in (1, 2, 3)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    moment = {"name": "step peak", "bytes": {}, "host": 0, "allocated": 1 << 30, "reserved": 1 << 30}
    rank = {
        "rank": 0, "device": device, "parameters": 9, "micro_batch": 3, "moments": [moment], "layers": [],
        "timeline": [], "closure": [], "notes": [], "total": {"bytes": 3 << 30, "source": "NVML"},
    }  # fmt: skip
    about = {
        "model": "avatar", "parameters": 9, "world": 8, "zero": 2, "precision": "fp32",
        "checkpointing": "none", "offload": "none", "micro_batch": 3, "accumulation": 1,
    }  # fmt: skip
    tree = {"schema": "diffcore.anatomy/1", "unit": "bytes", "run": about, "planned": [], "measured": [rank]}
    (run / "anatomy.json").write_text(json.dumps(tree | {"advice": []}))


def test_the_promise_stands_beside_what_was_delivered(
    tmp_path: Path, answered: dict[int, float], capsys: pytest.CaptureFixture[str]
) -> None:
    submit.main(command(tmp_path, nodes="2"))
    capsys.readouterr()
    run = tmp_path / "run"
    beside = promise.beside(run)
    assert beside is not None and promise.rows(beside)["delivered"] == "nothing yet"
    told = json.loads((run / "promise.json").read_text())
    told |= {"submitted": 1.7e9, "start": 1.7e9 + 300, "images_per_second": 100.0}
    promise.write(run, told)
    delivered(run, told, "NVIDIA A100-SXM4-40GB")
    rows = figures.numbers(figures.figures(run))
    assert rows["promised"].startswith(
        "3,072 MiB of each A100 40GB, tensors 2,048 MiB; 100 images/s on 8 ranks (modelled), start 2023-11-1"
    )
    assert rows["delivered"].startswith(
        "3,072 MiB (+0.0%); tensors 1,024 MiB (-50.0%); 97 images/s (-3.0%); start "
    )
    assert rows["delivered"].endswith("(5 min later)")
    blocks, tree, _ = show.see_status([run], ask=lambda runs: Known())
    assert tree["promise"] == json.loads(json.dumps(promise.beside(run))) and blocks
    assert Run.read(run).job == "12"
    show_blocks(blocks)
    said = capsys.readouterr().out
    assert rows["promised"] in said and rows["delivered"] in said
    delivered(run, told, "cpu")
    assert promise.rows(promise.beside(run) or {})["delivered"].endswith("on the CPU")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema": "x"}, "schema"),
        ({"planned_bytes": -1}, "planned_bytes"),
        ({"images_per_second": 0}, "images_per_s"),
    ],
)
def test_a_promise_that_is_none_is_one_line(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    assert promise.beside(tmp_path) is None
    told = {
        "schema": promise.SCHEMA, "card": "T4", "nodes": 1, "world": 1, "zero": 0, "checkpointing": "none",
        "micro_batch": 1, "accumulation": 1, "planned_bytes": 1, "peak_bytes": 1, "images_per_second": 1.0,
        "timed": "modelled", "submitted": 0.0,
    }  # fmt: skip
    promise.write(tmp_path, told)
    assert promise.beside(tmp_path) is not None
    promise.write(tmp_path, told | change)
    with pytest.raises(InputError, match=rf"promise\.json: {says}") as error:
        promise.beside(tmp_path)
    assert "\n" not in str(error.value)


def test_how_long_in_words() -> None:
    assert [promise.clock(n) for n in (40, 1500, 11_400, 186_000)] == [
        "40 s",
        "25 min",
        "3:10 h",
        "2 d 03:40",
    ]
