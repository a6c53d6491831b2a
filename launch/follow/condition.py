"""A run's state in a word that scripts can act on, and its exit code."""

from __future__ import annotations

from collections.abc import Iterable

CODES = {"done": 0, "running": 3, "waiting": 4, "stopped": 5, "failed": 6, "unknown": 7}
"""Exit codes of ``status --exit-code``: 1 and 2 are those of every command (a bug, a mistake)."""
CODE_WORDS = ", ".join(f"{word} {code}" for word, code in CODES.items())
OVER = ("done", "stopped", "failed")
WORST = ("failed", "unknown", "running", "waiting", "stopped", "done")
"""Of several runs the first of these that there is."""

_OF_STATE = {
    "COMPLETED": "done",
    "STOPPED": "stopped",  # by the folder's account: the same submission goes on
    **dict.fromkeys(("RUNNING", "COMPLETING", "SUSPENDED", "STAGE_OUT", "SIGNALING", "RESIZING"), "running"),
    **dict.fromkeys(
        (
            "PENDING",
            "CONFIGURING",
            "REQUEUED",
            "REQUEUE_FED",
            "REQUEUE_HOLD",
            "SPECIAL_EXIT",
            "RESV_DEL_HOLD",
        ),
        "waiting",
    ),
    **dict.fromkeys(("CANCELLED", "TIMEOUT", "PREEMPTED", "DEADLINE", "REVOKED"), "stopped"),
    **dict.fromkeys(("FAILED", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL", "LAUNCH_FAILED"), "failed"),
}


def of(state: str) -> str:
    """The word for Slurm's or the folder's state."""
    return _OF_STATE.get(state, "unknown")


def worst(conditions: Iterable[str]) -> str:
    """The one word for several runs; unknown for none."""
    there = set(conditions)
    return next((word for word in WORST if word in there), "unknown")
