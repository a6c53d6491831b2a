"""The supervisor of one rank: starts the training process, passes signals on, ends it when a peer is gone.

    hello -> plan 0 -> attempt 0 -> exit -> plan 1 -> ... until a plan says leave

Every rank has one, and they talk through files (meeting.py). Rank 0's also decides (leader.py): what failed
is tried again in the same allocation while that is whole; what was preempted, ran out of time or lost a node
is given back to Slurm, which queues it again. The rank's exit code is the plan's (diffbase/exits.py).
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from diffbase import trust
from diffbase.cli import InputError
from diffbase.exits import DONE, FATAL, PREEMPTED, RETRYABLE
from launch.supervise import preflight, takeover
from launch.supervise.child import Child, die_with_parent
from launch.supervise.environment import rank_environment
from launch.supervise.leader import Leader
from launch.supervise.life import Life, SupersededError
from launch.supervise.limits import END_GRACE, LAST_SAVE_GRACE, LEAVE_GRACE, SAVE_GRACE
from launch.supervise.meeting import Exit, Plan
from launch.supervise.preflight import PROBE

SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)


class Supervisor:
    """Supervises one rank's training process through a life of the job."""

    def __init__(self, life: Life, code: Path, successor: takeover.Successor) -> None:
        """``successor``: what submitit is given for another job of the run, in that job's folder."""
        self.life, self.code, self.successor = life, code, successor
        self.where, self.spec, self.meeting = life.where, life.spec, life.meeting
        self.run_folder, self.say = life.run_folder, life.say
        self._looked = 0.0
        self._child: Child | None = None

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
            if self._child is not None:
                self._child.kill()
            if self.where.local_rank == 0 and self.spec.cluster.scratch and self.life.scratch:
                shutil.rmtree(self.life.scratch, ignore_errors=True)

    def _live(self) -> int:
        problems = self._make_scratch()
        problems += preflight.local(self.spec, self.run_folder, self.life.scratch, self.where)
        self.meeting.say_hello(self.where.rank, self.where.node_name, problems)
        leader = Leader(self.life) if self.where.leader else None
        probing = self.spec.cluster.preflight.mode == "full" and self.where.world > 1
        if leader:
            leader.lead(leader.muster, PROBE if probing else 0)
        if probing:
            plan = self.await_plan(PROBE)
            if plan.leave:
                return self._leave(leader, plan)
            self._attempt(PROBE, plan, preflight.command(self.meeting, self.where, self.life.limits.probe))
            if leader:
                leader.lead(leader.judge_probe, 0)
        number = 0
        while True:
            plan = self.await_plan(number)
            if plan.leave:
                return self._leave(leader, plan)
            self._attempt(number, plan, self._training())
            number += 1
            if leader:
                leader.lead(leader.decide, number, plan)

    def _leave(self, leader: Leader | None, plan: Plan) -> int:
        if leader:
            leader.leave(plan)
        return plan.code

    def _training(self) -> list[str]:
        return [
            sys.executable,
            str(self.code / "diffcore" / "train.py"),
            "--config",
            str(self.life.place.config),
        ]

    # --- one attempt ---

    def _attempt(self, number: int | str, plan: Plan, command: Sequence[str]) -> None:
        """Run the rank's process to its end, or end it when a peer's end makes that necessary; report it."""
        if self.life.asked:
            code, ours = PREEMPTED, False
        else:
            env = rank_environment(os.environ, self.where, self.spec, plan.attempt, (plan.address, plan.port))
            if self.life.scratch:
                env["SLURM_TMPDIR"] = str(self.life.scratch)
            self._child = Child(command, env, self.run_folder)
            code, ours = self._watch(number, self._child)
            self._child = None
        self.meeting.report(number, Exit(self.where.rank, code, time.time(), self.where.node_name, ours))

    def _watch(self, number: int | str, child: Child) -> tuple[int, bool]:
        """(exit code, whether it was this supervisor who ended it)."""
        exits: dict[int, Exit] = {}
        first_failure = first_leaver = None
        ended = False
        while (code := child.poll()) is None:
            self.life.tick()
            now = time.monotonic()
            if now - self._looked >= self.life.look_every:
                self._looked = now
                exits = self.meeting.exits(number, exits)
            if first_leaver is None and exits:
                first_leaver = now
            if first_failure is None and any(e.code not in (DONE, PREEMPTED) for e in exits.values()):
                first_failure = now
            # Whether a checkpoint is being written is asked of the disk: only when it decides something.
            if ended or not (exits or self._warned):
                continue
            saving = self.life.saving() and 0 not in exits
            grace = LAST_SAVE_GRACE if len(exits) >= self.where.world - 1 else SAVE_GRACE
            due = first_failure is not None and (not saving or now - first_failure > grace)
            due |= first_leaver is not None and not saving and now - first_leaver > LEAVE_GRACE
            if due or self._out_of_time(now, saving):
                child.end(END_GRACE)
                ended = True
        return code, ended and code not in (DONE, PREEMPTED)

    def _respond(self, number: int) -> None:
        """Pass a signal on. After SIGTERM: if a node is lost, a job with fewer may go on (takeover.py)."""
        if self._child is not None:
            self._child.forward(number)
        # Not only while training runs: it may have ended at once, when its peer on the lost node did.
        if number == signal.SIGTERM and self.where.local_rank == 0:
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
            self.life.tick()
        self.say("no word from rank 0's supervisor")
        return Plan(0, leave=True, code=RETRYABLE, why="no word from rank 0's supervisor")

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
