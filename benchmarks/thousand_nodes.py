"""What a job of 8 to 1,000 nodes makes of its time: a simulated clock, the launcher's real decisions.

    python benchmarks/thousand_nodes.py [--days 54] [--runs 20] [--write docs/scale.md]

Failures come as they came to Llama 3; what follows them is decided by launch/supervise/decide, which
tests/support/job_on_nodes.py asks as a job's leader does. Told are goodput over nodes and checkpoint
intervals beside Young's and Daly's best one, how many runs reach their last step under these rules and under
the former ones, what each assumption is worth, and what checkpoints and starts ask of the file system. Prints
one JSON object; ``--write`` puts the tables between the marks of that file. One core, a minute or two.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from diffbase.exits import FATAL, PREEMPTED, may_retry
from diffcore.config.tree import Batch
from diffcore.runs.saver import ranks_a_file
from diffcore.runs.stored.record import KINDS
from launch.ask.fewer_nodes import fitting
from launch.ask.spec import usual_restarts
from launch.follow.interval import young
from launch.supervise.decide.decision import Decision, after_attempt
from launch.supervise.decide.verdict import Verdict
from tests.support.job_on_nodes import HOUR, Costs, Job, Kind, Outcome, Rules, daly, simulate

BEGIN, END = "<!-- thousand_nodes: begin -->", "<!-- thousand_nodes: end -->"
GPUS = 8

# Grattafiori and others, The Llama 3 Herd of Models, arXiv 2407.21783, table 5: the 419 unexpected
# interruptions of 54 days on 16,384 GPUs. What our supervisors would see of each is our reading.
LLAMA_3 = [
    Kind("faulty GPU", 148, "crash"),
    Kind("GPU's HBM3", 72, "crash"),
    Kind("software bug", 54, "crash", machine=False),
    Kind("network switch or cable", 35, "hang"),
    Kind("host maintenance", 32, "lost"),
    Kind("GPU's SRAM", 19, "crash"),
    Kind("GPU's system processor", 17, "crash"),
    Kind("network card", 7, "hang"),
    Kind("NCCL watchdog", 7, "hang"),
    Kind("silent data corruption", 6, "crash"),
    Kind("GPU's thermal interface, sensors", 6, "crash"),
    Kind("SSD", 3, "crash"),
    Kind("power supply", 3, "lost"),
    Kind("chassis", 2, "lost"),
    Kind("IO expansion board", 2, "lost"),
    Kind("dependency", 2, "crash", machine=False),
    Kind("CPU", 2, "lost"),
    Kind("memory", 2, "lost"),
]
LLAMA_3_HOURS = 54 * 24 * (16_384 / GPUS) / 419
"""Mean time between failures of one node, hours."""
RSC_1_HOURS = 24 * 1000 / 6.50
"""The same in a research cluster: 6.50 failures in 1,000 node-days (Kokolis and others, arXiv 2410.21680)."""

NODES = (8, 64, 256, 512, 1000)
MINUTES = (2, 5, 10, 20, 30, 60)
USUAL = 10
"""Minutes between two checkpoints in the tables that do not vary them."""
USUAL_COSTS = Costs()
PARTS = ("again", "notice", "start", "life", "stall", "short")


def before(
    verdict: Verdict, events: Sequence[Mapping[str, Any]], *, restarts: int, whole: bool, **asked: Any
) -> Decision:
    """The former rules: every failure counts for ever, any two in a row without progress end it."""
    failed = [e for e in events if e["event"] == "ended" and may_retry(e["code"]) and e["code"] != PREEMPTED]
    if [e["progress"] for e in failed[-2:]] == [False, False]:
        return Decision(False, FATAL, "no progress", {})
    if len(failed) > restarts:
        return Decision(False, FATAL, "restarts", {})
    return Decision(whole, verdict.code, verdict.why, {})


def job(nodes: int, days: float, minutes: float = USUAL, costs: Costs = USUAL_COSTS, **other: Any) -> Job:
    """A job under Llama 3's rate, with as many idle nodes as a cluster keeps for repairs."""
    usual: dict[str, Any] = {
        "node_hours": LLAMA_3_HOURS,
        "kinds": LLAMA_3,
        "restarts": usual_restarts(nodes),
        "spares": max(2, nodes // 50),
        "broken": 0.5,
    }
    return Job(nodes, round(days * 24 * HOUR / costs.step), round(minutes * 60 / costs.step), costs=costs,
               **usual | other)  # fmt: skip


def fewer(available: int) -> int | None:
    """A job of 500 to 1,000 nodes whose batch has 8 images a GPU of 1,000."""
    return fitting([Batch(size=8 * GPUS * 1000)], GPUS, 500, 1000, available)


def runs(wanted: Job, count: int, rules: Rules = after_attempt) -> list[Outcome]:
    """The same job with ``count`` seeds."""
    return [simulate(wanted, seed, rules) for seed in range(count)]


def goodput(outcomes: Sequence[Outcome]) -> float:
    """Median share of the time that trained, per cent."""
    return round(100 * statistics.median(o.goodput for o in outcomes), 2)


def days_of(outcomes: Sequence[Outcome]) -> float:
    """Median time from the begin to the end, in days."""
    return round(statistics.median(o.total for o in outcomes) / 24 / HOUR, 1)


def intervals(days: float, count: int) -> list[dict[str, Any]]:
    """Goodput of each number of nodes at each interval, and the best interval by the formulas."""
    rows = []
    for nodes in NODES:
        at = {minutes: goodput(runs(job(nodes, days, minutes), count)) for minutes in MINUTES}
        mean, stall = LLAMA_3_HOURS * HOUR / nodes, USUAL_COSTS.stall
        rows.append(
            {
                "nodes": nodes,
                "hours_between_failures": round(mean / HOUR, 2),
                "goodput": at,
                "best_minutes": max(at, key=lambda minutes: at[minutes]),
                "young_minutes": round(young(stall, mean) / 60, 1),
                "daly_minutes": round(daly(stall, mean) / 60, 1),
            }
        )
    return rows


def ends(days: float, count: int) -> list[dict[str, Any]]:
    """How many runs reach their last step, under these rules and the former ones."""
    rows = []
    for nodes in NODES:
        new = runs(job(nodes, days), count)
        old = runs(job(nodes, days, restarts=20), count, before)
        mended = runs(job(nodes, days, restarts=20, broken=0.0), count, before)
        rows.append(
            {
                "nodes": nodes,
                "runs": count,
                "done": sum(o.done for o in new),
                "done_before": sum(o.done for o in old),
                "days_before": days_of(old),
                "done_before_if_none_stays_broken": sum(o.done for o in mended),
                "days_before_if_none_stays_broken": days_of(mended),
                "failures": statistics.median(sum(o.failures.values()) for o in new),
                "left_out": statistics.median(o.left_out for o in new),
                "lives": statistics.median(o.lives for o in new),
            }
        )
    return rows


def worth(days: float, count: int) -> list[dict[str, Any]]:
    """Goodput at 1,000 nodes with one assumption changed."""
    usual = USUAL_COSTS
    changes: dict[str, Job] = {
        "as assumed": job(1000, days),
        "RSC-1's rate of failures (1.7 times)": job(1000, days, node_hours=RSC_1_HOURS),
        "a start takes 300 s": job(1000, days, costs=replace(usual, start=300.0)),
        "a new life takes half an hour": job(1000, days, costs=replace(usual, life=1800.0)),
        "a checkpoint stalls training for 30 s": job(1000, days, costs=replace(usual, stall=30.0)),
        "a checkpoint takes 10 minutes to write": job(1000, days, costs=replace(usual, write=590.0)),
        "guards.hang_seconds: 300": job(1000, days, costs=replace(usual, hang=300.0)),
        "10 nodes fail 50 times as often": job(1000, days, flaky=10),
        "5 nodes are idle beside the job's": job(1000, days, spares=5),
        "none is: the job waits for repairs": job(1000, days, spares=0, broken=0.0),
        "none is: --nodes 500-1000": job(1000, days, spares=0, broken=0.0, fitting=fewer),
        "every hardware fault stays until repaired": job(1000, days, broken=1.0),
        "no hardware fault stays": job(1000, days, broken=0.0),
    }
    rows = []
    for what, changed in changes.items():
        outcomes = runs(changed, count)
        row = {
            "what": what,
            "goodput": goodput(outcomes),
            "done": sum(o.done for o in outcomes),
            "runs": count,
        }
        shares = {k: statistics.mean(o.seconds[k] / o.total for o in outcomes) for k in PARTS}
        rows.append(row | {kind: round(100 * share, 2) for kind, share in shares.items()})
    return rows


def loops() -> list[dict[str, Any]]:
    """A program that crashes at the same step each time, no node being at fault: when it is ended."""
    rows = []
    for nodes in (8, 1000):
        outcome = simulate(job(nodes, 1, node_hours=float("inf"), kinds=(), bug=5000), seed=0)
        rows.append({"nodes": nodes, "attempts": outcome.attempts, "why": outcome.why})
    return rows


def traffic(millions: float, days: float) -> list[dict[str, Any]]:
    """Files and openings of checkpoints: a rank opens the part that it needs, COMPLETE and state.json."""
    rows = []
    for nodes in NODES:
        world, size = nodes * GPUS, round(4 * len(KINDS) * millions * 1e6)
        files = -(-world // ranks_a_file(size, world))
        outcome = simulate(job(nodes, days), seed=0)
        opens = 3 * world
        rows.append(
            {
                "nodes": nodes,
                "files_of_a_checkpoint": files,
                "made_an_hour": round((files + 2) * outcome.saves / (outcome.total / HOUR)),
                "opened_at_a_start": opens,
                "opened_a_second_at_a_start": round(opens / USUAL_COSTS.load),
                "opened_a_second_on_average": round(opens * outcome.attempts / outcome.total, 2),
                "messages_of_supervisors_a_start": 3 * nodes,
            }
        )
    return rows


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """In Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def page(found: Mapping[str, Any]) -> str:
    """The tables of docs/scale.md."""
    goodputs = table(
        ["nodes", "hours between failures", *(f"{m} min" for m in MINUTES), "best", "Young", "Daly"],
        [
            [r["nodes"], r["hours_between_failures"], *(f"{v:.1f}" for v in r["goodput"].values()),
             f"{r['best_minutes']} min", f"{r['young_minutes']} min", f"{r['daly_minutes']} min"]
            for r in found["intervals"]
        ],
    )  # fmt: skip
    reached = table(
        ["nodes", "failures", "nodes left out", "lives of the job", "runs that end well",
         "under the former rules", "after", "and if no node stays broken", "after"],
        [
            [r["nodes"], f"{r['failures']:g}", f"{r['left_out']:g}", f"{r['lives']:g}",
             f"{r['done']} of {r['runs']}", f"{r['done_before']} of {r['runs']}", f"{r['days_before']} days",
             f"{r['done_before_if_none_stays_broken']} of {r['runs']}",
             f"{r['days_before_if_none_stays_broken']} days"]
            for r in found["ends"]
        ],
    )  # fmt: skip
    assumed = table(
        [
            "1,000 nodes, 10 min",
            "goodput",
            "steps again",
            "noticing",
            "starts",
            "new lives",
            "stalls",
            "fewer nodes",
            "end well",
        ],
        [
            [r["what"], *(f"{r[k]:.1f}" for k in ("goodput", *PARTS)), f"{r['done']} of {r['runs']}"]
            for r in found["worth"]
        ],
    )
    asked = table(
        ["nodes", "files of a checkpoint", "made an hour", "opened at a start", "a second, then",
         "a second, on average"],
        [
            [r["nodes"], r["files_of_a_checkpoint"], r["made_an_hour"], r["opened_at_a_start"],
             r["opened_a_second_at_a_start"], r["opened_a_second_on_average"]]
            for r in found["traffic"]
        ],
    )  # fmt: skip
    return "\n\n".join([goodputs, reached, assumed, asked])


def main() -> None:
    """Simulate, print, and write the tables if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--days", type=float, default=54.0, help="days of training, were there no failures")
    parser.add_argument("--runs", type=int, default=20, help="seeds of each")
    parser.add_argument(
        "--millions", type=float, default=1000.0, help="parameters, for the checkpoint's files"
    )
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables between the marks there")
    flags = parser.parse_args()
    if flags.write and not {BEGIN, END} <= set(flags.write.read_text().splitlines()):
        parser.error(f"--write {flags.write}: it has to have the lines {BEGIN} and {END}")
    found = {
        "days": flags.days,
        "runs": flags.runs,
        "costs": vars(USUAL_COSTS),
        "intervals": intervals(flags.days, flags.runs),
        "ends": ends(flags.days, flags.runs),
        "worth": worth(flags.days, flags.runs),
        "loops": loops(),
        "traffic": traffic(flags.millions, flags.days),
    }
    print(json.dumps(found, indent=1))
    if flags.write:
        text = flags.write.read_text()
        head, tail = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
        flags.write.write_text(f"{head}\n\n{page(found)}\n\n{tail}")


if __name__ == "__main__":
    main()
