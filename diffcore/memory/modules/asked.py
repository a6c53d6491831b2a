"""A plan of a network as a command line asks for it, as a report (anatomy.json)."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from diffcore.memory import report
from diffcore.memory.calibration import Calibration
from diffcore.memory.modules import answers, inputs, libraries
from diffcore.memory.modules.job import Job
from diffcore.memory.modules.plan import job_of, loss_of, optimizer_of, plan_of, settings
from diffcore.memory.planning.plan import Plan

SIZES = ("length", "side")
MIB = 2**20


def anatomy(given: Namespace, outside: Calibration) -> dict[str, Any]:
    """The report. InputError where the network cannot be planned."""
    job = job_asked(given)
    planned = plan_of(job, outside)
    advice, room = list[str](), given.gpu.usable if given.gpu else None
    if room is not None:
        if planned.smi > room:
            for other in answers.alternatives(job, outside):
                fits = "fits" if other.plan.smi <= room else "does not fit"
                size = f"{other.plan.smi / MIB:,.0f} MiB"
                advice.append(f"{other.flag}: {size}, {fits}; slower by {other.slower}")
        if given.largest:
            most = answers.largest(job, room, outside)
            more = " or more" * (most == answers.MOST)
            found = f"{most}{more}" if most else "none, not even one sample"
            advice.append(f"largest micro batch with these settings: {found}")
    return report.tree_of(about(job, planned), [planned], advice, room)


def job_asked(given: Namespace) -> Job:
    """What the flags ask for, checked."""
    return job_of(
        given.target,
        inputs.named(given.inputs) if given.inputs else None,
        {name: getattr(given, name) for name in SIZES if getattr(given, name) is not None},
        given.micro_batch,
        loss=loss_of(libraries.named(given.loss, "--loss") if given.loss else None),
        optimizer=optimizer_of(given.optimizer),
        strategy=given.strategy,
        precision=given.precision,
        checkpointing=given.checkpointing,
        accumulation=given.accumulation,
        world=given.world,
        rank=given.rank,
        offload=given.offload,
        ema=given.ema,
        deepspeed=settings(given.deepspeed),
        cuda=given.device == "cuda",
    )


def about(job: Job, planned: Plan) -> dict[str, Any]:
    """The settings that memory depends on, as a report has them."""
    return {
        "model": job.name,
        "parameters": planned.parameters,
        "world": job.world,
        "strategy": job.strategy,
        "zero": job.stage or 0,
        "precision": job.precision,
        "checkpointing": planned.checkpointing,
        "offload": job.offload,
        "micro_batch": job.micro,
        "accumulation": job.accumulation,
    }
