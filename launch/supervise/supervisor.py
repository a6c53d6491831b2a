"""The supervisor of a node: starts its ranks' processes, passes signals on, ends them when a peer is gone.

    hello -> plan 0 -> attempt 0 -> exit -> plan 1 -> ... until a plan says leave

Every node has one, and they talk over connections to rank 0's (meeting.py). Rank 0's also decides
(leader.py): what failed is tried again in the same allocation while that is whole; what was preempted, ran
out of time or lost a node is given back to Slurm, which queues it again. The exit code is the plan's
(diffbase/exits.py).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from diffbase import trust
from diffbase.cli import InputError
from diffbase.exits import DONE, FATAL, PREEMPTED, RETRYABLE
from diffbase.files import REPOSITORY
from launch.job.code import by_name
from launch.job.folder import log_of
from launch.supervise import preflight, takeover
from launch.supervise.child import Child, Prepared, die_with_parent
from launch.supervise.environment import Layout, own_cores, rank_environment
from launch.supervise.leader import Leader
from launch.supervise.life import Life, SupersededError
from launch.supervise.limits import END_GRACE, LAST_SAVE_GRACE, LEAVE_GRACE, SAVE_GRACE
from launch.supervise.meeting import Exit, Plan
from launch.supervise.preflight import PROBE

SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)


class Supervisor:
    """Supervises a node's training processes through a life of the job."""

    def __init__(self, life: Life, code: Path, successor: takeover.Successor) -> None:
        """``successor``: what submitit is given for another job of the run, in that job's folder."""
        self.life, self.code, self.successor = life, code, successor
        self.where, self.spec, self.meeting = life.where, life.spec, life.meeting
        self.run_folder, self.say = life.run_folder, life.say
        self._children: dict[int, Child] = {}
        """The processes that run, by rank."""
        self._prepared: dict[int, Prepared] = {}
        """Those that have been through the preflight and wait to train."""

    # --- life ---

    def run(self) -> int:
        """Supervise until the job ends; returns the exit code."""
        self.life.respond = self._respond
        for number in SIGNALS:  # in the place of submitit's, which acts on rank 0 alone
            signal.signal(number, self.life.on_signal)
        if not self.spec.requeue:
            die_with_parent(signal.SIGTERM)
        self.meeting.open()
        try:
            return self._live()
        except SupersededError as error:
            self.say(str(error))
            return FATAL
        except OSError as error:
            # A full or lost disk under the run folder: the next life's preflight says so.
            self.say(f"error: {error}")
            return RETRYABLE
        finally:
            for child in (self._prepared | self._children).values():
                child.kill()
            self.meeting.close()
            if self.spec.cluster.scratch and self.life.scratch:
                shutil.rmtree(self.life.scratch, ignore_errors=True)

    def _live(self) -> int:
        problems = self._make_scratch()
        problems += preflight.local(self.spec, self.run_folder, self.life.scratch, self.life.place.config)
        self.meeting.say_hello(self.where.node, self.where.node_name, problems)
        leader = Leader(self.life) if self.where.leader else None
        probing = self.spec.cluster.preflight.mode == "full" and self.where.world > 1
        if leader:
            leader.lead(leader.muster, PROBE if probing else 0)
        if probing:
            plan = self.await_plan(PROBE)
            if plan.leave:
                return self._leave(leader, plan)
            self._attempt(PROBE, plan)
            if leader:
                leader.lead(leader.judge_probe, 0)
        number = 0
        while True:
            plan = self.await_plan(number)
            if plan.leave:
                return self._leave(leader, plan)
            self._attempt(number, plan)
            number += 1
            if leader:
                leader.lead(leader.decide, number, plan)

    def _leave(self, leader: Leader | None, plan: Plan) -> int:
        if leader:
            leader.leave(plan, self._elsewhere)
        return plan.code

    def _elsewhere(self, avoid: Sequence[str], lost: Sequence[str]) -> str | None:
        """Have a job go on with more nodes, where this one lacks some, or with fewer, without those that are
        to be left out (takeover.py); a line, or None. ``lost``: as ``Leader.lost``."""
        job = (self.life.place, self.code, self.where, self.spec, self.successor)
        variables = dict(os.environ)
        try:
            # At a SIGTERM the nodes are wanted for something else, or lost.
            larger = None if self.life.asked == signal.SIGTERM else takeover.grow(*job, {*avoid, *lost})
            return larger or (takeover.without(*job, avoid) if avoid else None)
        except (OSError, InputError, RuntimeError, subprocess.SubprocessError) as error:
            os.environ.update(variables)
            self.say(f"no job with other nodes: {error}")
            return None

    # --- one attempt ---

    def _attempt(self, number: int | str, plan: Plan) -> None:
        """Run the ranks' processes to their ends, which a peer's end may make necessary; report each."""
        if self.life.asked:
            for rank in self.where.ranks():
                self._report(number, rank.rank, PREEMPTED)
            return
        for rank in self.where.ranks():
            self._children[rank.rank] = self._start(number, rank, plan)
        self._watch(number)

    def _start(self, number: int | str, rank: Layout, plan: Plan) -> Child:
        env = rank_environment(os.environ, rank, self.spec, plan.attempt, (plan.address, plan.port))
        if self.life.scratch:
            env["SLURM_TMPDIR"] = str(self.life.scratch)
        training = [str(self.code / "diffcore" / "train.py"), "--config", str(self.life.place.config)]
        log, cores = log_of(self.life.logs, self.where.job, rank.rank), own_cores(os.environ, rank)
        if number == PROBE:
            order = preflight.order(self.meeting, self.life.limits.probe)
            command = [sys.executable, *by_name("launch.supervise.probe.rank", REPOSITORY), *training]
            self._prepared[rank.rank] = Prepared(order, command, env, self.run_folder, log, cores)
            return self._prepared[rank.rank]
        if waiting := self._prepared.pop(rank.rank, None):
            if waiting.train(env):
                return waiting
            waiting.kill()
        return Child([sys.executable, *training], env, self.run_folder, log, cores)

    def _watch(self, number: int | str) -> None:
        """Until every process has ended; those that this supervisor ended are reported as its own doing."""
        own: dict[int, Exit] = {}
        first_failure = first_leaver = None
        ended = False
        while True:
            for rank, child in [*self._children.items()]:
                if (code := child.poll()) is not None:
                    del self._children[rank]
                    ours = ended and code not in (DONE, PREEMPTED)
                    own[rank] = self._report(number, rank, code, ours)
            if not self._children:
                return
            self.life.tick()
            now = time.monotonic()
            told = self.meeting.ended(number)
            gone = max(len(own), told.count)  # the leader's count has this node's too, a little later
            failed = any(exit.code not in (DONE, PREEMPTED) for exit in own.values())
            if first_leaver is None and gone:
                first_leaver = now
            if first_failure is None and (failed or told.failed or self.meeting.gone):
                first_failure = now
            # Whether a checkpoint is being written is asked of the disk: only when it decides something.
            if ended or not (first_leaver or first_failure or self._warned):
                continue
            saving = self.life.saving() and not (told.first or 0 in own)
            grace = LAST_SAVE_GRACE if gone >= self.where.world - 1 else SAVE_GRACE
            due = first_failure is not None and (not saving or now - first_failure > grace)
            due |= first_leaver is not None and not saving and now - first_leaver > LEAVE_GRACE
            if due or self._out_of_time(now, saving):
                for child in self._children.values():
                    child.end(END_GRACE)
                ended = True

    def _report(self, number: int | str, rank: int, code: int, ours: bool = False) -> Exit:
        exit = Exit(rank, code, time.time(), self.where.node_name, ours)
        self.meeting.report(number, exit)
        return exit

    def _respond(self, number: int) -> None:
        """Pass a signal on. After SIGTERM: if a node is lost, a job with fewer may go on (takeover.py)."""
        for child in (self._prepared | self._children).values():
            child.forward(number)
        # Not only while training runs: it may have ended at once, when its peer on the lost node did.
        if number == signal.SIGTERM:
            line = takeover.consider(self.life.place, self.code, self.where, self.spec, self.successor)
            if line:
                self.say(line)

    @property
    def _warned(self) -> bool:
        """Whether Slurm has said that it will end the job, which then has to have it queued again."""
        return self.life.asked == signal.SIGUSR2 and self.spec.requeue

    def _out_of_time(self, now: float, saving: bool) -> bool:
        """Whether the job is about to be killed, so that leaving now at least has it queued again."""
        if not self._warned:
            return False
        warned, used = self.spec.cluster.signal_seconds, now - self.life.asked_at
        return used > max(warned - (3 if saving else 10), 0.6 * warned)

    # --- waiting ---

    def await_plan(self, number: int | str) -> Plan:
        """The plan of that number; one to leave if rank 0's supervisor does not make it."""
        until = time.monotonic() + self.life.limits.leader_lost
        while time.monotonic() < until:
            if plan := self.meeting.plan(number):
                self.life.claimed = True  # by rank 0, before it published
                return plan
            # Slurm may take minutes to notice a lost node: who may go on with fewer waits for its signal.
            if self.meeting.gone and (self.life.asked or not self._may_shrink):
                break
            self.life.tick()
        self.say("no word from rank 0's supervisor")
        return Plan(0, leave=True, code=RETRYABLE, why="no word from rank 0's supervisor")

    @property
    def _may_shrink(self) -> bool:
        """Whether the run may go on with fewer nodes (takeover.py)."""
        return self.spec.requeue and self.spec.nodes_min < self.spec.nodes

    def _make_scratch(self) -> list[str]:
        """Make the job's folder there; that somebody else made it before is something wrong with the node."""
        if self.life.scratch and self.spec.cluster.scratch:
            try:
                trust.own_folder(self.life.scratch)
            except InputError as error:
                self.life.scratch = None
                return [f"scratch: {error}"]
            except OSError:
                pass  # the preflight says what is wrong with it
        return []
