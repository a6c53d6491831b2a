"""Memory on whole programs: the plan beside real DeepSpeed, the report in a browser, the commands."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffbase import exits
from diffbase.files import REPOSITORY
from diffcore.config import configure
from diffcore.config.tree import Config
from diffcore.memory import __main__ as memory
from diffcore.memory import advise, reading, report, seed_table
from diffcore.memory.planning.plan import Data, plan
from diffcore.memory.planning.states import WORDS
from shards.schema import CARTOON_SET
from tests.conftest import CHROMIUM
from tests.integration.conftest import run
from tests.support.browser import Browser, browser

DATA = Data(tuple(CARTOON_SET), 16)


@pytest.fixture(scope="module")
def config(memory_config: Path) -> Config:
    return configure.load(memory_config)


@pytest.fixture(scope="module")
def measured(memory_config: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """ZeRO stage -> folder of what ``measure`` wrote."""
    out = tmp_path_factory.mktemp("measured")
    for zero in (0, 2):
        command = [sys.executable, "-m", "diffcore.memory", "measure", "--config", str(memory_config)]
        finished = run([*command, "--zero", str(zero), "--out", str(out / str(zero))], REPOSITORY)
        assert finished.code == 0, finished.err[-2000:]
    return {zero: out / str(zero) for zero in (0, 2)}


@pytest.mark.timeout(900)
def test_the_plan_is_what_deepspeed_allocates(tmp_path: Path) -> None:
    """States equal to the byte, activations and peaks within 1 %, in 39 cells of five small networks.

    Every two settings that can meet do so in one of the cells: the network, ZeRO 0 to 3, fp32 and bf16
    (autocast's under ZeRO-0), checkpointing none, selective and full, micro batches 1, 4 and 16, one or two
    of them a step, the optimizer offloaded or not, and 1 and 2 gloo processes, and the first and last of 8
    and 64 ranks over torch's fake process group. Seven more have Muon.
    """
    out = tmp_path / "truth.json"
    program = str(REPOSITORY / "benchmarks" / "memory_truth.py")
    command = [sys.executable, program, "--cells", "ci", "--json", str(out)]
    finished = run(command, REPOSITORY, timeout=700)
    assert out.exists(), finished.err[-3000:]
    if finished.code:
        # What gloo's thread frees late the profiler takes for alive: those cells once more, with time for it.
        finished = run([*command, "--again", "0.001", "--settle", "0.03"], REPOSITORY, timeout=180)
    truth = json.loads(out.read_text())
    assert len(truth["rows"]) == 39
    assert truth["unequal"] == 0, finished.out
    assert max(truth["worst"].values()) <= 0.01, finished.out


def test_fit_finds_the_largest_micro_batch(config: Config) -> None:
    planner = advise.Planner(config, DATA)
    room = planner.plan(planner.with_micro(config, 300, 1), 1).smi
    most = planner.largest(config, 1, room)
    assert most >= 300
    assert planner.plan(planner.with_micro(config, most, 1), 1).smi <= room
    assert planner.plan(planner.with_micro(config, most + 1, 1), 1).smi > room
    steps = advise.remedies(planner, planner.with_micro(config, 2 * most, 1), 1, room)
    assert steps and all(step.saved > 0 for step in steps)


def test_out_of_memory_is_explained(config: Config) -> None:
    wanted = configure.replace(config, "batch", {"micro": 4000, "size": 4000})
    line, _ = advise.explain_oom(wanted, 1, 123 << 20, 3 << 30, DATA)
    assert line.startswith("out of memory with micro batch 4000 in 3,072 MiB: 123 MiB more were asked for.")
    assert "Would fit" in line and "batch.micro" in line and "\n" not in line
    broken, _ = advise.explain_oom(wanted, 3, None, 1 << 30, DATA)  # 4000 does not divide by 3
    assert "No plan of it" in broken


def test_configs_of_the_repository_are_planned() -> None:
    """The full-size avatar model."""
    config = configure.load(REPOSITORY / "configs" / "avatar-adamw.yaml")
    planned = plan(config, 8, data=Data(tuple(CARTOON_SET), 64))
    assert planned.parameters == 76_902_915
    after = planned.moments[-1].bytes
    assert after["masters"] == 4 * -(-planned.parameters // 16) * 2
    assert after["parameters"] == 2 * -(-planned.parameters // 16) * 16


LIMITED = """
import resource, runpy, sys
import torch, deepspeed, deepspeed.runtime.engine
import diffcore.memory.oom, diffcore.training.run
with open("/proc/self/statm") as file:
    mapped = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped + int(sys.argv.pop(1)),) * 2)
from diffcore.train import script
script()
"""


def test_out_of_memory_is_one_line_and_its_advice_fits(packed: Path, tmp_path: Path) -> None:
    """A real run in too small an address space: what was asked, what would fit, the report of that moment."""
    path = tmp_path / "large.yaml"
    path.write_text(
        f"run: run\ndata: {{path: {packed}}}\nbatch: {{size: 512}}\ntrain: {{steps: 1}}\n"
        "engine: {zero: 0, threads: 1}\nsampling: {count: 2, steps: 2}\nmemory: {trace: false}\n"
        "model: {kind: avatar, channels: [32, 64], attention_levels: [1], heads: 2, tau_tokens: 2}\n"
    )
    # glibc as frugal as it can be: no 64 MiB of addresses for every thread, freed tensors given back at once.
    command = [
        "env",
        "MALLOC_ARENA_MAX=1",
        "MALLOC_MMAP_THRESHOLD_=262144",
        sys.executable,
        "-c",
        LIMITED,
        str(560 << 20),
    ]
    command += ["--config", str(path)]
    failed = run(command, REPOSITORY)
    assert failed.code == exits.FATAL, failed.err[-2000:]
    assert failed.err.count("error: ") == 1 and "Traceback" not in failed.err
    line = failed.err.splitlines()[-1]
    found = re.fullmatch(
        r"error: rank 0: out of memory with micro batch 512 in ([\d,]+) MiB: [\d,]+ MiB more were asked "
        r"for\. Would fit: (?:.+; or )?batch\.micro (\d+) \(accumulation makes up for it\)\. "
        r"Report: (\S+) \(train, after step 0\)",
        line,
    )
    assert found, line
    assert 30 < int(found[1].replace(",", "")) < 560
    anatomy = report.load(Path(found[3]).parent)
    (moment,) = anatomy["measured"][0]["moments"]
    assert moment["bytes"]["parameters"] > 0 and moment["bytes"]["activations"] > 30 << 20
    assert max(m["allocated"] for m in anatomy["planned"][0]["moments"]) > 500 << 20
    assert "out of memory" in Path(found[3]).read_text() and anatomy["advice"][0] in line

    fits = run([*command, "--batch.micro", found[2]], REPOSITORY)
    assert fits.code == exits.DONE, fits.err[-2000:]


def test_the_avatar_models_table_is_the_commands() -> None:
    """docs/seed-memory.md is what ``python -m diffcore.memory seed-table`` writes today."""
    text = seed_table.text()
    assert text == (REPOSITORY / "docs" / "seed-memory.md").read_text()
    for figure in ("291.69", "583.38", "1,750.13", "2,333.51", "18,319", "22,616", "3,130"):
        assert figure in text


@pytest.fixture(scope="module")
def looking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if not CHROMIUM:
        pytest.skip("no Chromium to look at the report with (make system-test)")
    with browser(CHROMIUM, tmp_path_factory.mktemp("browser")) as found:
        yield found


INK = "getComputedStyle(document.body).color"
PAPER = "getComputedStyle(document.body).backgroundColor"
WIDER = """[...document.querySelectorAll("main *")]
  .filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".wide, details:not([open])"))
  .map(e => e.tagName + "." + e.className)"""
CUT_OFF = """[...document.querySelectorAll(".card table")]
  .filter(t => t.scrollWidth > t.parentElement.clientWidth + 1).map(t => t.textContent)"""
SMALL = """[...document.querySelectorAll("main *")].filter(e => parseFloat(getComputedStyle(e).fontSize) < 11)
  .map(e => e.textContent)"""
ENDS = """[...document.querySelectorAll(".rows .end .track")]
  .map(t => t.firstChild.getBoundingClientRect().width / t.getBoundingClientRect().width)"""
LABELS = "[...document.querySelectorAll('[role=img], [role=list]')].map(e => e.ariaLabel)"


def test_the_report_is_seen_in_a_browser(measured: dict[int, Path], looking: Browser) -> None:
    """Measured here, opened there: the page shows the figures of anatomy.json, drawn in the right lengths."""
    anatomy = report.load(measured[2])
    looking.open(measured[2] / "report.html")
    seen = looking.value("document.body.innerText")
    assert reading.verdict(anatomy) in seen and "Planned against measured" in seen and " UTC · CPU" in seen
    for which in ("planned", "measured"):
        for moment in anatomy[which][0]["moments"]:
            assert f"{moment['allocated'] / 2**20:,.1f}" in seen
    rank = anatomy["measured"][0]
    for row in rank["closure"]:
        assert WORDS.get(row["name"], row["name"]).split(":")[0] in seen
    assert "bf16" not in seen  # on a CPU
    widths = looking.value(ENDS)
    spans = [0, *itertools.accumulate(row["bytes"] for row in rank["closure"])]
    assert widths[0] == pytest.approx(rank["total"]["bytes"] / (max(spans) - min(spans)), abs=0.01)
    tiles = looking.value(
        "[...document.querySelectorAll('.map .tile')].map(t => [t.title, t.offsetWidth * t.offsetHeight])"
    )
    assert anatomy["measured"][0]["layers"][0]["name"] in " ".join(title for title, _ in tiles)
    assert looking.value("document.querySelectorAll('.timeline polygon').length") >= 4
    described = looking.value(LABELS)
    assert len(described) >= 6 and all(described)
    assert looking.complaints() == []


@pytest.mark.parametrize("width", [1200, 400])
@pytest.mark.parametrize("dark", [False, True])
def test_the_report_is_readable_wide_and_narrow_light_and_dark(
    measured: dict[int, Path], looking: Browser, width: int, dark: bool, tmp_path: Path
) -> None:
    looking.open(measured[2] / "report.html", width, dark=dark)
    assert looking.value("document.documentElement.scrollWidth") <= width
    assert looking.value(WIDER) == looking.value(CUT_OFF) == looking.value(SMALL) == []
    ink, paper = (sum(map(int, re.findall(r"\d+", looking.value(of))[:3])) for of in (INK, PAPER))
    assert (ink > 600 and paper < 100) if dark else (ink < 150 and paper > 700)
    assert looking.shot(tmp_path / "page.png").stat().st_size > 20_000
    assert looking.complaints() == []


def test_the_report_is_printed_light(measured: dict[int, Path], looking: Browser, tmp_path: Path) -> None:
    """On paper it is black on white whatever the screen's scheme, and nothing lies beside the sheet."""
    looking.open(measured[2] / "report.html", 760, dark=True, printed=True)
    assert looking.value(INK) == "rgb(0, 0, 0)" and looking.value(PAPER) == "rgb(255, 255, 255)"
    assert looking.value(WIDER) == []
    assert looking.value("getComputedStyle(document.querySelector('.track i')).printColorAdjust") == "exact"
    pages = looking.pdf(tmp_path / "page.pdf").read_bytes()
    assert pages.startswith(b"%PDF") and len(pages) > 50_000  # an empty page has 2,000
    assert 1 <= len(re.findall(rb"/Type\s*/Page\b", pages)) <= 8


READOUT = "[...document.querySelectorAll('.readout')[0].children].map(e => e.innerText.split('\\n'))"


def test_what_lives_at_an_instant_is_shown_by_mouse_and_by_keys(
    measured: dict[int, Path], looking: Browser, tmp_path: Path
) -> None:
    looking.open(measured[2] / "report.html")
    first = looking.value(READOUT)  # the peak, before anything is touched
    anatomy = report.load(measured[2])
    peak = max(moment["allocated"] for moment in anatomy["measured"][0]["moments"])
    assert first[0][1] == f"{peak / 2**20:,.1f} MiB" and ["largest here"] in first
    box = looking.value(
        "(() => { const p = document.querySelector('.plot'); p.scrollIntoView();"
        " const b = p.getBoundingClientRect(); return [b.left, b.top, b.width, b.height] })()"
    )
    looking.point(box[0] + box[2] - 0.5, box[1] + box[3] / 2)
    last = looking.value(READOUT)
    after = anatomy["measured"][0]["moments"][-1]
    assert last[0] == ["step", f"{after['allocated'] / 2**20:,.1f} MiB"] and last != first
    assert ["parameters", reading.size_words(after["bytes"]["parameters"])] in last
    assert looking.value("document.querySelector('.now').getBoundingClientRect().left") > box[0] + box[2] - 10
    looking.value("document.querySelector('.plot').focus()")
    looking.press("Home")
    assert looking.value(READOUT)[0][0] == "forward 1"  # of two micro batches
    looking.press("ArrowRight")
    looking.press("End")
    assert looking.value(READOUT) == last
    assert looking.complaints() == []


def test_without_its_script_the_browser_shows_the_same(
    measured: dict[int, Path], looking: Browser, tmp_path: Path
) -> None:
    """And a script that is not the kit's does not run: the page's policy names its own by its digest."""
    page = (measured[2] / "report.html").read_text()
    bare = tmp_path / "bare.html"
    other = "<script>document.title = 'ran'</script>"
    bare.write_text(re.sub("<script>.*?</script>", other, page, flags=re.DOTALL))
    looking.open(bare)
    assert looking.value("document.title") != "ran"
    assert len(looking.complaints()) == 1 and "Content Security Policy" in looking.complaints()[0]
    titles = looking.value("[...document.querySelectorAll('.timeline .spot title')].map(t => t.textContent)")
    assert len(titles) > 50 and all("parameters" in title for title in titles)


def test_a_comparison_is_seen_in_a_browser(
    measured: dict[int, Path], looking: Browser, tmp_path: Path
) -> None:
    out = tmp_path / "compared.html"
    memory.main(["compare", str(measured[0]), str(measured[2]), "--out", str(out)])
    for width in (1200, 400):
        looking.open(out, width)
        assert looking.value("document.documentElement.scrollWidth") <= width and looking.value(WIDER) == []
    assert "zero\t0\t2" in looking.value("document.body.innerText")
    assert looking.complaints() == []


def test_two_measurements_are_compared(measured: dict[int, Path]) -> None:
    """compare reads two measurements; both sides of a measurement agree with each other."""
    for folder in measured.values():
        anatomy = report.load(folder)
        for planned, found in zip(anatomy["planned"], anatomy["measured"], strict=True):
            (kept,) = (m["bytes"]["activations"] for m in found["moments"] if m["name"] == "after forward")
            assert sum(layer["bytes"] for layer in found["layers"]) == kept  # of one micro batch of two
            for before, after in zip(planned["moments"], found["moments"], strict=True):
                assert after["allocated"] == pytest.approx(before["allocated"], rel=0.01)
    command = [sys.executable, "-m", "diffcore.memory", "compare", *map(str, measured.values())]
    finished = run(command, REPOSITORY)
    assert finished.code == 0 and "zero: 0 -> 2" in finished.out and "fp32 masters" in finished.out


def test_a_plan_needs_no_gpu_and_says_so_with_its_exit_code(memory_config: Path) -> None:
    command = [sys.executable, "-m", "diffcore.memory", "plan", "--config", str(memory_config), "--check"]
    fits = subprocess.run([*command, "--gpu-memory", "80GB"], capture_output=True, text=True, cwd=REPOSITORY)
    assert fits.returncode == 0 and fits.stdout.startswith("fits: ")
    large = [*command, "--gpu-memory", "2GB", "--micro-batch", "2000"]
    refused = subprocess.run(large, capture_output=True, text=True, cwd=REPOSITORY)
    note, error = refused.stderr.splitlines()
    assert refused.returncode == 2 and error.startswith("error: does not fit: ")
    assert note == "note: a batch.size of 2000 for --micro-batch 2000, not 8"
    assert "batch.micro" in error
