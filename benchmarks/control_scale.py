"""What a job's supervisors cost as ranks are added, beside those of another commit: both sides in one go.

    python benchmarks/control_scale.py --before REVISION [--shapes 1x64 8x8] [--seconds 10]
    python benchmarks/control_scale.py --before REVISION --nodes 8 64 250 1000

``--shapes`` NODESxRANKS: real supervisors on this machine over a stand-in for training, which beats as
training does; strace counts the calls that name a file (%file), a second, of all supervisors and stand-ins,
once all run. ``--nodes``: rank 0's supervisor and so many others of 8 ranks each, in three processes: seconds
from the first hello to the plan that all know, and from one rank's end to all being told; processor seconds
of all together; bytes that the leader sent. The other side, if it meets in files, is called one rank after
the other, the slow calls on a sample of ranks and multiplied. Prints JSON; ratios are before / now. Needs
strace (Debian: strace).
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
RANKS = 8
"""Of a node, with ``--nodes``."""
SAMPLE = 20
STAND_IN = """
import json, os, pathlib, sys, time
run, rank = pathlib.Path(sys.argv[2]).parents[2], int(os.environ["RANK"])
(run / f"on-{rank}").touch()
while True:
    if rank == 0:
        beat = {"time": time.time(), "step": 1, "steps": 9, "attempt": 0, "section": "train"}
        (run / "beat.tmp").write_text(json.dumps(beat))
        (run / "beat.tmp").rename(run / "heartbeat.json")
    time.sleep(1)
"""
TASK = "import sys; from launch.supervise.task import Task; sys.exit(Task(*sys.argv[1:])())"


# --- calls that name a file ---


def prepared(folder: Path, nodes: int, ranks: int) -> Any:
    """A job's folder whose training is the stand-in."""
    from launch.ask.profile import Cluster
    from launch.ask.spec import JobSpec
    from launch.job import folder as jobs

    place = jobs.create(folder / "run")
    (place.code / "diffcore").mkdir(parents=True)
    (place.code / "diffcore" / "train.py").write_text(STAND_IN)
    cluster = Cluster.model_validate(
        {"name": "bench", "preflight": {"mode": "off"}, "network": {"interface": "lo"}}
    )
    tree = {
        "cluster": cluster.model_dump(), "job": "bench", "nodes": nodes, "nodes_min": nodes,
        "tasks_per_node": ranks, "gpus_per_node": 0, "cpus_per_task": 1, "minutes": 60,
    }  # fmt: skip
    jobs.write_spec(place, JobSpec.model_validate(tree))
    place.live.mkdir()
    return place


def supervisors(place: Any, nodes: int, ranks: int) -> list[subprocess.Popen[bytes]]:
    """As many as this side has, started as srun would."""
    from launch.supervise.environment import layout

    tasks = 1 if "ranks" in inspect.signature(layout).parameters else ranks  # of a node
    found = []
    words = (place.run.parent / "words").open("ab")
    for task in range(nodes * tasks):
        env = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")} | {
            "SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "7", "SLURM_PROCID": str(task),
            "SLURM_LOCALID": str(task % tasks), "SLURM_NODEID": str(task // tasks),
            "SLURM_NTASKS": str(nodes * tasks), "SLURM_TASKS_PER_NODE": f"{tasks}(x{nodes})",
            "SLURM_JOB_NODELIST": f"n[1-{nodes}]",
        }  # fmt: skip
        command = [sys.executable, "-c", TASK, str(place.folder), str(place.code)]
        found.append(subprocess.Popen(command, env=env, cwd=place.run, stdout=words, stderr=words))
    return found


def children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:  # one that has ended meanwhile has none
        return []


def count_calls(nodes: int, ranks: int, seconds: float) -> dict[str, float]:
    """Calls that name a file, a second, of a whole job that trains."""
    with tempfile.TemporaryDirectory() as name:
        place = prepared(Path(name), nodes, ranks)
        began = time.monotonic()
        processes = supervisors(place, nodes, ranks)
        try:
            while len(list(place.run.glob("on-*"))) < nodes * ranks:
                left = [code for process in processes if (code := process.poll()) is not None]
                if left or time.monotonic() - began > 200:
                    words = (Path(name) / "words").read_text()[-1000:]
                    raise SystemExit(f"not all ranks came; supervisors ended with {left}: {words}")
                time.sleep(0.2)
            started = time.monotonic() - began
            time.sleep(2)  # what a start does is over
            own = [process.pid for process in processes]
            pids = own + [child for pid in own for child in children(pid)]
            before = sum(cpu_seconds(pid) for pid in own)
            rate = file_calls(pids, Path(name) / "summary", seconds)
            used = sum(cpu_seconds(pid) for pid in own) - before
        finally:
            for process in processes:
                process.kill()
                process.wait()
        return {
            "supervisors": len(processes), "start_s": round(started, 1),
            "calls_per_s": round(rate, 2),
            "calls_per_s_and_rank": round(rate / (nodes * ranks), 4),
            "cpu_of_supervisors": round(used / seconds, 3),
        }  # fmt: skip


def file_calls(pids: list[int], summary: Path, seconds: float) -> float:
    """Calls that name a file, of these processes, a second."""
    command = ["strace", "-c", "-f", "-e", "trace=%file", "-o", str(summary), *(f"-p{pid}" for pid in pids)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        assert tracer.stderr is not None
        attached = 0
        while attached < len(pids):
            line = tracer.stderr.readline()
            attached += "attached" in line
            if not line:
                raise SystemExit("strace does not attach to these processes")
        began = time.monotonic()
        time.sleep(seconds)
        tracer.send_signal(signal.SIGINT)
        taken = time.monotonic() - began
        tracer.stderr.read()
        tracer.wait(120)
    return calls(summary) / taken


def calls(summary: Path) -> int:
    """All calls of a summary of strace's."""
    rows = [
        line.split() for line in summary.read_text().splitlines()
    ]  # %, s, usecs/call, calls, (errors,) name
    return sum(int(row[3]) for row in rows if len(row) in (5, 6) and row[-1] != "total" and row[3].isdigit())


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# --- one leader and many nodes ---


def with_connections(nodes: int, folder: Path) -> dict[str, float]:
    from launch.supervise.environment import ports
    from launch.supervise.meeting import Exit, Plan
    from launch.supervise.wire.codec import HEADER, Codec
    from launch.supervise.wire.hub import Hub

    sent = 0
    real = Codec.send

    def counted(self: Any, message: bytes) -> None:
        nonlocal sent
        sent += len(message) + HEADER
        real(self, message)

    live = folder / "run" / "job" / "001" / "live"
    leader = Hub(live, "7.0", nodes, RANKS, 60.0)
    leader.open()
    parts = [range(1 + part, nodes, 2) for part in range(2)]
    pipes = [multiprocessing.Pipe() for _ in parts]
    others = [
        multiprocessing.Process(target=many_nodes, args=(live, part, pipe[1]), daemon=True)
        for part, pipe in zip(parts, pipes, strict=True)
    ]
    for process in others:
        process.start()
    for here, _ in pipes:
        here.recv()

    def until(done: Callable[[], bool]) -> None:
        while not done():
            leader.wait(0.01)

    def all_say() -> bool:
        return all(here.poll() for here, _ in pipes)

    leader.listen(lambda: "127.0.0.1", ports("7", 0, os.getpid()))
    began, cpu = time.perf_counter(), time.process_time()
    for here, _ in pipes:
        here.send("go")
    leader.say_hello(0, "n0", [])
    until(lambda: len(leader.hellos()) == nodes)
    Codec.send = counted  # type: ignore[method-assign]
    leader.publish(0, Plan(0, "n0", 29500))
    until(all_say)
    planned, used = time.perf_counter() - began, time.process_time() - cpu
    used += sum(here.recv() for here, _ in pipes)
    told: list[float] = []
    cpu = time.process_time()
    for rank in range(5):
        time.sleep(0.3)
        began = time.perf_counter()
        leader.report(0, Exit(rank, 75, 1.0, "n0"))
        until(all_say)
        told.append(time.perf_counter() - began)
        for here, _ in pipes:
            here.recv()
    Codec.send = real  # type: ignore[method-assign]
    for process in others:
        process.kill()
        process.join()
    return {"start_to_plan_s": planned, "cpu_s": used, "exit_to_all_told_s": statistics.median(told),
            "bytes_from_leader_per_node": sent / max(1, nodes - 1)}  # fmt: skip


def many_nodes(live: Path, numbers: range, pipe: Any) -> None:
    """Supervisors of many nodes in one process: says when all know the plan, and of each rank's end."""
    import resource

    from launch.supervise.wire.line import Line

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    lines = [Line(live, "7.0", 60.0, 0.5) for _ in numbers]
    for number, line in zip(numbers, lines, strict=True):
        line.say_hello(number, f"n{number}", [])
    pipe.send("ready")
    pipe.recv()
    cpu = time.process_time()

    def until(done: Callable[[Any], bool]) -> None:
        left = lines
        while left:
            for line in left:
                line.wait(0)
            left = [line for line in left if not done(line)]
            time.sleep(0.002)  # each of them would sleep until something comes

    until(lambda line: bool(line.plan(0)) and not line.on_its_own)
    pipe.send(time.process_time() - cpu)
    for count in range(1, 6):
        until(lambda line, count=count: line.ended(0).count >= count)
        pipe.send("told")


def with_files(nodes: int, folder: Path) -> dict[str, float]:
    """The same events in files, one rank's calls after the other's: the processor seconds of all of them."""
    from launch.supervise.meeting import Exit, Meeting, Plan

    meeting = Meeting(folder / "run" / "job" / "001" / "live", "7.0")
    meeting.open()
    world = nodes * RANKS
    spent = time.process_time()
    for rank in range(world):
        meeting.say_hello(rank, "n", [])
    assert len(meeting.hellos()) == world
    meeting.publish(0, Plan(0, "n0", 29500))
    start = time.process_time() - spent
    start += world * one_call(lambda: meeting.plan(0))
    meeting.report(0, Exit(0, 75, 1.0, "n0"))
    return {"cpu_s": start, "told_cpu_s": world * one_call(lambda: meeting.exits(0, {}))}


def one_call(call: Callable[[], Any]) -> float:
    began = time.process_time()
    for _ in range(SAMPLE):
        assert call()
    return (time.process_time() - began) / SAMPLE


def meet(nodes: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        try:
            import launch.supervise.wire  # noqa: F401
        except ImportError:
            return with_files(nodes, Path(folder))
        return with_connections(nodes, Path(folder))


# --- both sides ---


@contextlib.contextmanager
def checkout(revision: str) -> Iterator[Path]:
    """That commit's tree, for as long as this runs."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "before"
        git = ["git", "-C", str(HERE), "worktree"]
        subprocess.run([*git, "add", "-q", "--detach", str(tree), revision], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def side(tree: Path, *arguments: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--before", "-", "--side", *arguments]
    env = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True, timeout=580)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", required=True, help="a revision of this repository")
    parser.add_argument("--shapes", nargs="*", default=[])
    parser.add_argument("--nodes", type=int, nargs="*", default=[])
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--side", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        what, *values = given.side
        result = (
            meet(int(values[0])) if what == "nodes" else count_calls(*map(int, values[:2]), float(values[2]))
        )
        print(json.dumps(result))
        return
    found: dict[str, Any] = {}
    with checkout(given.before) as before:
        for shape in given.shapes:
            nodes, ranks = shape.split("x")
            sides = {
                name: side(tree, "calls", nodes, ranks, str(given.seconds))
                for name, tree in (("before", before), ("now", HERE))
            }
            keys = ("calls_per_s", "cpu_of_supervisors", "start_s")
            ratio = {key: round(sides["before"][key] / max(sides["now"][key], 1e-3), 1) for key in keys}
            found[shape] = sides | {"ratio": ratio}
        for count in given.nodes:
            sides = {
                name: {k: float(f"{v:.3g}") for k, v in side(tree, "nodes", str(count)).items()}
                for name, tree in (("before", before), ("now", HERE))
            }
            found[f"{count} nodes"] = sides | {
                "ratio": {"cpu_s": round(sides["before"]["cpu_s"] / sides["now"]["cpu_s"], 1)}
            }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
