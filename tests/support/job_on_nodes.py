"""A job on many nodes: its clock is simulated, its decisions are the real ones (launch/supervise/decide).

Nothing runs: the time until a node, a link or a program fails is drawn, and what the attempt had trained by
then is arithmetic. The ends of its processes go through ``judge``, the ledger's lines through ``progressed``
and ``after_attempt``, as they do in the leader of a real job. One ``Exit`` stands for the ranks of a node.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from diffbase.exits import FATAL, RETRYABLE
from launch.supervise.decide import budget
from launch.supervise.decide.decision import Decision, after_attempt
from launch.supervise.decide.verdict import Verdict, judge
from launch.supervise.meeting import Exit

HOUR, DAY = 3600.0, 86400.0
FLAKY = 50


@dataclass(frozen=True)
class Kind:
    """Failures of one cause: their weight, and what the supervisors see of one.

    crash: a process ends at once. hang: all ranks wait, one as the other, until their watchdogs' limit. lost:
    a node is silent, and the ranks of the others lose a peer.
    ``machine``: the node is the cause, and may be broken until somebody has mended it.
    """

    name: str
    weight: float
    seen: Literal["crash", "hang", "lost"]
    machine: bool = True


@dataclass(frozen=True)
class Costs:
    """Seconds of everything that is not training."""

    step: float = 1.0
    start: float = 90.0
    """Processes, imports, rendezvous and the first step of an attempt."""
    load: float = 30.0
    stall: float = 2.0
    """What training waits for a checkpoint."""
    write: float = 60.0
    """From the end of the stall to COMPLETE, beside training."""
    crash: float = 3.0
    """Until a crashed attempt has ended everywhere."""
    hang: float = 1800.0
    """guards.hang_seconds."""
    lost: float = 60.0
    """Until the peers of a lost node have failed, and its silence has been waited for."""
    life: float = 120.0
    """A new life of the job: requeued, other nodes found, supervisors started, preflight."""


@dataclass(frozen=True)
class Job:
    """What is simulated. ``steps``: of training; ``every``: steps between two checkpoints."""

    nodes: int
    steps: int
    every: int
    node_hours: float
    """Mean time between failures of one node, hours; inf: none fails."""
    kinds: Sequence[Kind]
    costs: Costs = Costs()
    restarts: int = 20
    spares: int = 0
    """Nodes that are idle at the begin, beside those of the job."""
    repair: float = 24.0
    """Hours until a node that was lost or left out is idle again."""
    broken: float = 0.0
    """Share of the machine's crashes after which the node fails at each start until it is repaired."""
    flaky: int = 0
    """Nodes that fail FLAKY times as often as the others, until they have been repaired."""
    bug: int | None = None
    """Step at which rank 0's node crashes, whichever it is, each time."""
    fitting: Callable[[int], int | None] = lambda available: None
    """fewer_nodes.fitting: the number of nodes to go on with, of those there are; None: wait."""


@dataclass
class Outcome:
    """What became of it. ``seconds`` add up to the time from the job's begin to its end."""

    seconds: dict[str, float]
    done: bool = False
    why: str = "done"
    steps: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    attempts: int = 0
    lives: int = 0
    saves: int = 0
    left_out: int = 0

    @property
    def total(self) -> float:
        """Seconds from the begin to the end."""
        return sum(self.seconds.values())

    @property
    def goodput(self) -> float:
        """Share of the time that trained steps which were kept."""
        return self.seconds["train"] / self.total if self.total else 0.0


Rules = Callable[..., Decision]
"""``after_attempt``, or what it is to be compared with."""
KINDS = ("train", "stall", "again", "notice", "start", "life", "short")


class Simulation:
    """One job, from its first life to its end."""

    def __init__(self, job: Job, seed: int, rules: Rules = after_attempt) -> None:
        self.job, self.costs, self.rules = job, job.costs, rules
        self._random = random.Random(seed)
        self.nodes = [f"n{k}" for k in range(job.nodes)]
        self.spares = [f"s{k}" for k in range(job.spares)]
        self._away: list[tuple[float, str]] = []
        self._broken: set[str] = set()
        self._flaky = set(self.nodes[: job.flaky])
        self.kept = 0
        self.events: list[dict[str, Any]] = [{"event": "submitted", "time": 0.0}]
        self.outcome = Outcome(dict.fromkeys(KINDS, 0.0))
        self._ours: dict[int, Exit] = {}
        for k, name in enumerate(self.nodes):
            self._place(k, name)

    def run(self) -> Outcome:
        """Simulate until the last step, or until the run is given up."""
        self._begin_life()
        while (why := self._attempt()) is None:
            pass
        self.outcome.why, self.outcome.done, self.outcome.steps = why, why == "done", self.kept
        return self.outcome

    # --- time ---

    def _spend(self, kind: str, seconds: float) -> None:
        self.outcome.seconds[kind] += seconds

    @property
    def _now(self) -> float:
        return self.outcome.total

    def _begin_life(self) -> None:
        """Wait until there are enough nodes, or go on with fewer, or with more again (takeover.py)."""
        self.outcome.lives += 1
        self._spend("life", self.costs.life)
        free = [k for k, name in enumerate(self.nodes) if not name]  # places of nodes that are away
        while True:
            self._idle()
            there = len(self.nodes) - len(free) + len(self.spares)
            wanted = self.job.nodes
            if there < wanted and there:
                wanted = self.job.fitting(there) or wanted
            if there >= wanted:
                break
            self._spend("life", max(self._away[0][0] - self._now, 0.0) + 1e-6)
        if len(self.nodes) == wanted:
            for k in free:
                self._place(k, self.spares.pop(0))
            return
        there_now = [name for name in self.nodes if name] + self.spares
        self.nodes, self.spares = there_now[:wanted], there_now[wanted:]
        self._ours = {}
        for k, name in enumerate(self.nodes):
            self._place(k, name)

    def _place(self, k: int, name: str) -> None:
        self.nodes[k] = name
        self._ours[k] = Exit(k, -9, 0.0, name, ours=True)

    # --- one attempt ---

    def _attempt(self) -> str | None:
        """Train until a failure or the end; returns why the run is over, or None."""
        job, costs = self.job, self.costs
        self.outcome.attempts += 1
        number = self.outcome.attempts - 1
        step = costs.step * job.nodes / len(self.nodes)
        ready = costs.start + costs.load
        fails, kind, node = self._next_failure(step, ready)
        left = job.steps - self.kept
        # The last checkpoint is waited for.
        train = left * step + math.ceil(left / job.every) * costs.stall + costs.write
        if fails >= ready + train:
            saves = math.ceil(left / job.every)
            self.outcome.saves += saves
            self._account(ready, left, step, saves)
            self._spend("stall", costs.write)
            self.kept = job.steps
            return "done"
        if fails < ready:
            self._spend("start", fails)
            reached = budget.Reached(self.kept if fails >= costs.start else 0, self.kept)
        else:
            reached = self._account_until(fails, ready, step)
        self.outcome.failures[kind.name] = self.outcome.failures.get(kind.name, 0) + 1
        self._spend("notice", {"crash": costs.crash, "hang": costs.hang, "lost": costs.lost}[kind.seen])
        if kind.machine and kind.seen == "crash" and self._random.random() < job.broken:
            self._broken.add(self.nodes[node])
        return self._end(number, kind, node, reached)

    def _account(self, ready: float, steps: int, step: float, saves: int) -> None:
        self._spend("start", ready)
        self._spend("train", steps * self.costs.step)
        self._spend("short", steps * (step - self.costs.step))  # by the nodes that are missing
        self._spend("stall", saves * self.costs.stall)

    def _account_until(self, fails: float, ready: float, step: float) -> budget.Reached:
        """Where training was after ``fails`` seconds of an attempt, and what of it a checkpoint has."""
        every, costs = self.job.every, self.costs
        trained = fails - ready
        cycle = every * step + costs.stall
        begun = int(trained // cycle)
        complete = max(0, int((trained - costs.write) // cycle))
        steps = begun * every + min(every, int((trained - begun * cycle) // step))
        kept = min(complete * every, self.job.steps - self.kept)
        self.outcome.saves += complete
        self._account(ready, kept, step, complete)
        self._spend("again", trained - kept * step - complete * costs.stall)
        reached = min(self.kept + steps, self.job.steps)
        self.kept += kept
        return budget.Reached(reached, self.kept)

    def _next_failure(self, step: float, ready: float) -> tuple[float, Kind, int]:
        """(seconds after the attempt's begin, kind, which node)."""
        job = self.job
        # A flaky node counts as FLAKY others, so that drawing one of all these draws it as often as it fails.
        flaky = [k for k, name in enumerate(self.nodes) if name in self._flaky] if self._flaky else []
        count = len(self.nodes) + (FLAKY - 1) * len(flaky)
        mean = job.node_hours * HOUR / count
        fails = self._random.expovariate(1.0 / mean) if math.isfinite(mean) else math.inf
        kind, node = Kind("none", 0, "crash"), 0
        if job.kinds:
            kind = self._random.choices(job.kinds, [k.weight for k in job.kinds])[0]
            node = self._random.randrange(count)
            if node >= len(self.nodes):
                node = flaky[(node - len(self.nodes)) // (FLAKY - 1)]
        for k, name in enumerate(self.nodes) if self._broken else ():
            if name in self._broken and self.costs.start < fails:
                fails, kind, node = self.costs.start, Kind("broken node", 0, "crash"), k
        if job.bug is not None and job.bug > self.kept:
            steps = job.bug - self.kept
            crash = ready + steps * step + ((steps - 1) // job.every) * self.costs.stall
            if crash < fails:
                fails, kind, node = crash, Kind("bug", 0, "crash", machine=False), 0
        return fails, kind, node

    # --- what follows: the real decisions ---

    def _end(self, number: int, kind: Kind, node: int, reached: budget.Reached) -> str | None:
        exits, failed = self._exits(kind, node), self.nodes[node]
        waited = range(len(self.nodes)) if kind.seen == "hang" else ()
        verdict = judge(exits, len(self.nodes), False, lambda rank: self.nodes[rank], waited)
        self._record(number, verdict, reached)
        chosen = self.rules(
            verdict, self.events, restarts=self.job.restarts, nodes=len(self.nodes), asked=False,
            whole=len(exits) == len(self.nodes), idle=self._idle, others=self._others,
        )  # fmt: skip
        for name in chosen.avoid:
            self.events.append({"event": "left_out", "node": name, "time": self._now})
            self._send_away(name)
            self.outcome.left_out += 1
        if chosen.again and not self._could_grow():
            return None
        if chosen.code == FATAL:
            return chosen.why
        if kind.seen == "lost":
            self._send_away(failed)
        self._begin_life()
        return None

    def _could_grow(self) -> bool:
        """takeover.larger."""
        there, wanted = len(self.nodes) + len(self._idle()), self.job.nodes
        if len(self.nodes) == wanted:
            return False
        return (wanted if there >= wanted else self.job.fitting(there) or 0) > len(self.nodes)

    def _exits(self, kind: Kind, node: int) -> Mapping[int, Exit]:
        """How the processes end, one for a node."""
        exits, now, nodes = dict(self._ours), self._now, self.nodes
        if kind.seen == "crash":
            exits[node] = Exit(node, RETRYABLE, now, nodes[node])
        elif kind.seen == "hang":  # within a look of the watchdogs
            late = [now + self._random.random() for _ in nodes]
            exits = {k: Exit(k, RETRYABLE, late[k], nodes[k]) for k in range(len(nodes))}
        else:
            peer = (node + 1) % len(nodes)
            exits[peer] = Exit(peer, RETRYABLE, now, nodes[peer])
            del exits[node]
        return exits

    def _record(self, number: int, verdict: Verdict, reached: budget.Reached) -> None:
        self.events.append(
            {"event": "ended", "time": self._now, "attempt": number, "code": verdict.code,
             "rank": verdict.rank, "node": verdict.node, "step": reached.step, "kept": reached.kept,
             "progress": budget.progressed(self.events, reached)}
        )  # fmt: skip

    def _idle(self) -> Collection[str]:
        """The nodes that are free now, those among them that have been repaired meanwhile."""
        while self._away and self._away[0][0] <= self._now:
            back = heapq.heappop(self._away)[1]
            self._broken.discard(back)
            self._flaky.discard(back)
            self.spares.append(back)
        return self.spares

    def _others(self) -> Collection[str]:
        return [name for _, name in self._away]

    def _send_away(self, name: str) -> None:
        if name in self.nodes:
            self.nodes[self.nodes.index(name)] = ""
            heapq.heappush(self._away, (self._now + self.job.repair * HOUR, name))


def simulate(job: Job, seed: int, rules: Rules = after_attempt) -> Outcome:
    """One job, to its end."""
    return Simulation(job, seed, rules).run()


def expected_seconds(segments: int, segment: float, restart: float, mean: float) -> float:
    """Daly's expected time of ``segments`` pieces of work of that many seconds, and a restart before them.

    Failures are exponential with ``mean`` seconds between two, strike restarts too, and cost a restart.
    Daly, A higher order estimate of the optimum checkpoint interval for restart dumps, 2006.
    """
    first = mean * math.expm1(restart / mean)
    return first + segments * mean * math.exp(restart / mean) * math.expm1(segment / mean)


def daly(stall: float, mean: float) -> float:
    """``launch.follow.interval.young`` to higher order (Daly 2006, equation 37)."""
    if stall >= 2.0 * mean:
        return mean
    half = math.sqrt(stall / (2.0 * mean))
    return math.sqrt(2.0 * stall * mean) * (1.0 + half / 3.0 + half * half / 9.0) - stall
