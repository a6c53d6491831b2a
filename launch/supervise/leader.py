"""What rank 0's supervisor decides for all: the next attempt, or the end and what Slurm is asked for."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

from diffbase import ledger
from diffbase.cli import InputError
from diffbase.exits import BAD_INPUT, DONE, FATAL, PREEMPTED, RETRYABLE
from diffbase.locking.lock import Lock
from diffbase.system_error import DISK
from launch.job import registry
from launch.scheduler import client
from launch.supervise import preflight, requeue, takeover
from launch.supervise.decide import budget, decision, pace
from launch.supervise.decide.verdict import Verdict, judge
from launch.supervise.environment import address, free_port, ports
from launch.supervise.life import Life
from launch.supervise.limits import OLD_LIFE
from launch.supervise.meeting import Exit, Meeting, Plan
from launch.supervise.news import News
from launch.supervise.preflight import PROBE

Elsewhere = Callable[[Sequence[str], Sequence[str]], str | None]
"""(nodes to avoid, nodes that are lost) -> a line that says that another job goes on; or None."""


class Leader:
    """Makes the plans of one life of the job; only rank 0's supervisor has one."""

    def __init__(self, life: Life) -> None:
        self.life, self.spec = life, life.spec
        self.run, self.where = life.run_folder, life.where
        self.meeting = cast(Meeting, life.meeting)  # the leader's, of the two kinds
        self.attempt = 0
        self._number = 0
        self._said = ""
        self.news = News(life)
        self._queued: float | None = None
        """Since when this life of the job had been queued, until the ledger has it."""

    def lead(self, decide: Callable[..., Plan | None], number: int | str, *arguments: Any) -> None:
        """Publish as ``number`` the plan that ``decide`` makes; None: another attempt.

        What goes wrong meanwhile must not leave the other ranks waiting.
        """
        try:
            self._publish(number, decide(*arguments) or self._attempt_plan(number))
        except OSError as error:  # no port, no name, no such interface; or a disk, which may come back
            code = RETRYABLE if error.errno in DISK else BAD_INPUT
            self._publish(number, self._leave(code, f"{error.filename or 'launch'}: {error}"))
        except Exception as error:
            plan = self._leave(FATAL, f"{type(error).__name__}: {error}")
            self._publish(number, plan)
            self._tell("failed", plan)
            raise

    def _publish(self, number: int | str, plan: Plan) -> None:
        if not plan.leave and number != PROBE:
            # fmt: off
            ledger.record(
                self.run, "started", attempt=plan.attempt, job=self.where.job, restart=self.where.restart,
                world=self.where.world, nodes=list(self.where.nodes), port=plan.port,
                slow_factor=self.spec.cluster.slow_factor,
                **({} if self._queued is None else {"queued": self._queued}),
            )
            self._queued = None
            # fmt: on
            self.news.show_figures()
            line = f"{self.where.world} ranks meet at {plan.address}:{plan.port}"
            self.life.say(f"attempt {plan.attempt}: {line}")
        self.meeting.publish(number, plan)

    # --- begin of a life ---

    def muster(self) -> Plan | None:
        """Take the run over from an older life, and wait for all nodes."""
        self._queued = client.queued_since(self.where.job) if self.spec.requeue else None
        self.meeting.listen(self._address, ports(self.where.job, self.where.restart, -1))
        return self._take_over() or self._close_lost_attempt() or self._refuse() or self._hellos()

    def _take_over(self) -> Plan | None:
        """Become the one life of the run that writes."""
        mine = self.where.job
        before = self.meeting.claimed_by()
        if before and before not in (mine, self.spec.takes_over) and self._lives(before):
            # Another job's: that one is not pushed out, it has to be over.
            if not self._unlocked(OLD_LIFE):
                return self._leave(BAD_INPUT, f"job {before} is training in {self.run}; cancel it first")
            self.meeting.claim(mine)
            return None
        self.meeting.claim(mine)
        if not self._unlocked(OLD_LIFE):
            return self._leave(RETRYABLE, f"an older process still trains in {self.run}")
        return None

    def _lives(self, job: str) -> bool:
        """Whether another job may still train: where Slurm does not say, the run folder's lock does."""
        if not self.spec.requeue:
            return True
        state = client.state_of(job)
        return state is not None and state.name in client.LIVING

    def _unlocked(self, seconds: float) -> bool:
        """Wait until no training process holds the run folder; False if ``seconds`` pass before."""
        until = time.monotonic() + seconds
        with Lock(self.run / ".lock") as lock:
            while not lock.is_free():
                if time.monotonic() > until or self.life.asked:
                    return False
                self.life.tick()
        return True

    def _close_lost_attempt(self) -> Plan | None:
        """Write the end of an attempt that could not, and see whether there may be another."""
        events = list(ledger.events(self.run))
        begun = {int(e["attempt"]) for e in events if e["event"] == "started"}
        ended = {int(e["attempt"]) for e in events if e["event"] == "ended"}
        for lost in sorted(begun - ended):
            # Where Slurm has one of its nodes as down, that is why.
            down = client.lost_among(_nodes_of(events, lost)) if self.spec.requeue else []
            why = "killed with its node or by the scheduler" + (f" ({down[0]} is down)" if down else "")
            self._record_end(lost, Verdict(RETRYABLE, why, node=down[0] if down else ""))
            if not _by_hand_since(events, lost):
                self.news.tell("requeued", lost, why)  # by others than this run's supervisor
        by_hand = {int(e["attempt"]) for e in events if e["event"] == "start"}
        self.attempt = max(begun | ended | by_hand, default=-1) + 1
        (self.run / ".saving").unlink(missing_ok=True)
        return self._no_more()

    def _refuse(self) -> Plan | None:
        """Leave at once where Slurm gave this life a node that an earlier one left out."""
        since = time.time() - self.spec.cluster.preflight.exclude_hours * 3600
        bad = (
            decision.came_back(ledger.events(self.run), self.where.nodes, since) if self.spec.requeue else {}
        )
        if not bad:
            return None
        ledger.record(self.run, "refused", attempt=self.attempt, job=self.where.job, nodes=sorted(bad))
        lines = "; ".join(f"{node} ({why})" for node, why in sorted(bad.items()))
        return self._leave(RETRYABLE, f"Slurm gave this job a node again that was left out: {lines}", bad)

    def _hellos(self) -> Plan | None:
        """Wait for every node's supervisor; a plan to leave if one is missing or found something wrong."""
        limit = self.life.limits.muster
        until = time.monotonic() + limit
        while len(hellos := self.meeting.hellos()) < self.where.supervisors:
            if self.life.asked:
                return self._leave(PREEMPTED, "stopped by a signal before training began")
            if time.monotonic() > until:
                missing = sorted(set(range(self.where.supervisors)) - set(hellos))
                names = [self.where.nodes[number] for number in missing]
                why = f"no supervisor on {', '.join(names[:8])} after {limit:.0f} s"
                # One that is alone with it is left out, where another can be had for it at once.
                alone = names[0] if len(names) == 1 < self.where.supervisors else ""
                return self._failed(why, {alone: why} if alone and self._idle() else {}, alone)
            self.life.tick()
        found: dict[str, list[str]] = {}
        for hello in hellos.values():
            found.setdefault(hello.node, []).extend(hello.problems)
        bad = {node: "; ".join(dict.fromkeys(problems)) for node, problems in found.items() if problems}
        if not bad:
            return None
        lines = "; ".join(f"{node}: {why}" for node, why in sorted(bad.items()))
        if len(bad) == len(found):  # what is wrong everywhere is not a node's fault
            if all(why.startswith(preflight.PASSING) for why in bad.values()):
                return self._failed(f"preflight: {lines}", {})
            return self._leave(BAD_INPUT, f"preflight: {lines}")
        return self._failed(f"preflight: {lines}", bad)

    def judge_probe(self) -> Plan | None:
        """After the timed all-reduce: a plan to leave if it failed or was too slow, else None."""
        exits = self._collect(PROBE)
        if self.life.asked:
            return self._leave(PREEMPTED, "stopped by a signal before training began")
        line, bad = preflight.judge(self.meeting, exits, self.where, self.spec)
        return None if line is None else self._failed(f"preflight: {line}", bad)

    def _failed(self, why: str, bad: dict[str, str], node: str = "") -> Plan:
        """A life that ends before an attempt could begin; counts as one that made no progress.

        ``bad``: nodes to leave out, and why. ``node``: one to blame, though it is not left out.
        """
        self._exclude(bad)
        self._record_end(self.attempt, Verdict(RETRYABLE, why, node=min(bad, default=node)))
        if over := self._no_more():
            return over
        for name, problem in bad.items():  # for the next life, if Slurm gives it that node all the same
            ledger.record(self.run, "left_out", attempt=self.attempt, node=name, why=problem, preflight=True)
        return self._leave(RETRYABLE, why, bad)

    def _exclude(self, bad: Mapping[str, str]) -> None:
        """Leave these nodes (name -> why) out of this user's next submissions."""
        if not bad:
            return
        names = ", ".join(sorted(bad))
        failed = preflight.exclude(self.spec, bad)
        self.life.say(
            f"nodes to leave out, which could not be written down ({failed}): {names}"
            if failed
            else f"nodes left out of the next submissions: {names}"
        )

    def _node_of(self, rank: int) -> str:
        """Name of a rank's node: srun deals the ranks out in blocks."""
        node = rank // max(self.where.local_world, 1)
        return self.where.nodes[node] if node < len(self.where.nodes) else ""

    def _idle(self) -> set[str]:
        """Nodes that Slurm could give this job in the place of one of its own."""
        state = client.state_of(self.where.job) if self.spec.requeue else None
        return set(client.idle_nodes(state.partition)) - self._out() if state else set()

    def _others(self) -> set[str]:
        """Nodes of the partition that are up and not this job's, whoever has them now."""
        state = client.state_of(self.where.job) if self.spec.requeue else None
        return set(client.up_nodes(state.partition)) - {*self.where.nodes, *self._out()} if state else set()

    def _out(self) -> set[str]:
        """Nodes that are left out of submissions now."""
        return {*self.spec.exclude, *registry.excluded(self.spec.cluster.name)}

    # --- end of an attempt ---

    def decide(self, plan: Plan) -> Plan | None:
        """Wait for the attempt's exits; a plan to leave, or None for another attempt."""
        exits = self._collect(self._number)
        self._number += 1
        waited = _waited(ledger.events(self.run), plan.attempt)
        verdict = judge(exits, self.where.world, bool(self.life.asked), self._node_of, waited)
        self._record_end(plan.attempt, verdict)
        self.life.say(f"attempt {plan.attempt} ended: {verdict.why}")
        self._said = verdict.why
        chosen = decision.after_attempt(
            verdict,
            list(ledger.events(self.run)),
            restarts=self.spec.restarts,
            nodes=len(self.where.nodes),
            asked=bool(self.life.asked),
            whole=len(exits) == self.where.world,
            idle=self._idle,
            others=self._others,
        )
        avoid = chosen.avoid if chosen.again or chosen.avoid else self._slow(chosen.code)
        for node, why in avoid.items():
            ledger.record(self.run, "left_out", attempt=plan.attempt, node=node, why=why)
        self._exclude(avoid)
        if not chosen.again:
            return self._leave(chosen.code, chosen.why, avoid)
        if self._may_grow():
            return self._leave(RETRYABLE, f"{verdict.why}; nodes are free that this job lacks")
        self.attempt = plan.attempt + 1
        (self.run / ".saving").unlink(missing_ok=True)
        return None

    def _may_grow(self) -> bool:
        """Whether nodes are free that this job lacks: an attempt's end is the moment to go on with them."""
        try:
            return takeover.larger(self.life.place, self.where, self.spec, self.lost()) is not None
        except InputError:  # a config that cannot be read now; the attempt says so better
            return False

    def lost(self) -> list[str]:
        """Nodes whose supervisors are gone; Slurm may not know of it for minutes."""
        return [self.where.nodes[number] for number in sorted(self.meeting.lost())]

    def _slow(self, code: int) -> dict[str, str]:
        """The slowest node, where the profile would do without it and this life is the one that has it queued
        again; after SIGTERM Slurm has done so already."""
        cluster, events = self.spec.cluster, list(ledger.events(self.run))
        ours = code in (RETRYABLE, PREEMPTED) and self.life.asked != signal.SIGTERM
        if not (cluster.leave_out_slow and self.spec.requeue and ours):
            return {}
        slow = pace.slow_nodes(events, cluster.slow_factor)
        if not slow or not decision.may_leave_out(events, len(self.where.nodes), time.time()):
            return {}
        node = max(slow, key=lambda name: slow[name])
        return (
            {node: f"took {slow[node]:g} times its peers' time for a step"} if self._idle() - {node} else {}
        )

    def _collect(self, number: int | str) -> dict[int, Exit]:
        """Every rank's exit, or those that came before it was clear that no more will."""
        exits: dict[int, Exit] = {}
        changed = time.monotonic()
        while len(exits) < self.where.world:
            before = len(exits)
            exits = self.meeting.exits(number, exits)
            if len(exits) != before or self.life.saving():
                changed = time.monotonic()
            if time.monotonic() - changed > self.life.limits.stragglers or self._all_lost(exits):
                break
            self.life.tick()
        with contextlib.suppress(OSError):  # nothing is decided by it
            self.meeting.keep_exits(number, exits.values())
        return exits

    def _all_lost(self, exits: Mapping[int, Exit]) -> bool:
        """Whether the ranks that are not among ``exits`` are all of nodes whose supervisors are gone."""
        lost, ranks = self.meeting.lost(), self.where.local_world
        return bool(lost) and all(rank in exits or rank // ranks in lost for rank in range(self.where.world))

    # --- plans and the ledger ---

    def _attempt_plan(self, number: int | str) -> Plan:
        # The probe and each attempt meet at a port of their own.
        salt = self.attempt * 2 + (number == PROBE)
        return Plan(
            attempt=self.attempt,
            address=self._address(),
            port=free_port(self.where.job, self.where.restart, salt),
        )

    def _address(self) -> str:
        return address(self.where, self.spec.cluster.network.interface)

    def _record_end(self, attempt: int, verdict: Verdict) -> None:
        got = budget.reached(self.run, attempt)
        beat = ledger.heartbeat(self.run)
        late = verdict.code == PREEMPTED and self.life.used_up
        # fmt: off
        further = budget.progressed(ledger.events(self.run), got)
        ledger.record(
            self.run, "ended", **({"timeout": True} if late else {}),
            attempt=attempt, job=self.where.job, code=verdict.code, why=verdict.why,
            rank=verdict.rank, node=verdict.node,
            step=got.step, kept=got.kept, progress=further,
            beat=beat.get("time") if beat and beat.get("attempt") == attempt else None,
        )
        # fmt: on
        if verdict.code == RETRYABLE and not further:
            self.news.tell("no_progress", attempt, verdict.why)

    def _no_more(self) -> Plan | None:
        why = budget.spent(ledger.events(self.run), self.spec.restarts)
        return self._leave(FATAL, f"given up: {why}") if why else None

    def _leave(self, code: int, why: str, bad: Mapping[str, str] | None = None) -> Plan:
        avoid = sorted({*bad, *self._out()}) if bad else []
        return Plan(self.attempt, leave=True, code=code, why=why, avoid=avoid)

    def leave(self, plan: Plan, elsewhere: Elsewhere = lambda avoid, lost: None) -> None:
        """The last thing: say why, and have Slurm queue the job again where it is to go on.

        ``elsewhere``: has another job go on in its place, without the nodes to avoid, and says so; or None.
        """
        if plan.code == DONE:
            self._tell("done", plan)
            return
        again, goes_on = plan.code in (RETRYABLE, PREEMPTED), False
        if not again:
            self.life.say(f"error: {plan.why}")
        elif plan.why != self._said:
            self.life.say(plan.why)
        if again and self.spec.requeue:
            line = elsewhere(plan.avoid, self.lost())
            answer = requeue.Answer(line, True) if line else requeue.requeue(self.where, plan.avoid)
            goes_on = answer.again
            self.life.say(answer.line)
        elif again:
            self.life.say("the same command goes on from the newest checkpoint")
        self._tell("requeued" if goes_on else "stopped" if again else "failed", plan)

    def _tell(self, event: str, plan: Plan) -> None:
        """Whoever wants to know how this life ended: after what Slurm had to be asked for."""
        self.news.tell(event, plan.attempt, plan.why)
        self.news.close()


def _nodes_of(events: Sequence[Mapping[str, Any]], attempt: int) -> list[str]:
    """The nodes that an attempt was started on."""
    began = [e for e in events if e["event"] == "started" and e["attempt"] == attempt]
    return [str(node) for node in began[-1].get("nodes") or []] if began else []


def _by_hand_since(events: Sequence[Mapping[str, Any]], attempt: int) -> bool:
    """Whether somebody has submitted the run again since an attempt was started."""
    began = [i for i, e in enumerate(events) if e["event"] == "started" and e["attempt"] == attempt]
    return any(
        e["event"] == "submitted" and not e.get("takeover") for e in events[began[-1] if began else 0 :]
    )


def _waited(events: Iterable[Mapping[str, Any]], attempt: int) -> set[int]:
    """The ranks whose watchdogs told of a hang in an attempt."""
    return {
        e["rank"]
        for e in events
        if e["event"] == "hang" and e["attempt"] == attempt and isinstance(e.get("rank"), int)
    }
