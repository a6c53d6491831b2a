"""Exit codes of a training process: what a launcher, a scheduler or a shell script may do next.

An uncaught signal (128 + n in a shell) counts as RETRYABLE: somebody killed the process, the run is whole.
"""

from __future__ import annotations

DONE = 0
"""The run reached its last step, and everything is written."""
FATAL = 1
"""A bug, or numbers that will not become finite: the same command would fail again."""
BAD_INPUT = 2
"""A mistake in what was given; one line says which. The same command would fail again."""
RETRYABLE = 75
"""A lost peer, a hang, a device or a disk that failed: the same command goes on from the last checkpoint."""
PREEMPTED = 85
"""Asked to stop by a signal: every rank saved, the same command goes on without a lost step."""

HOLD_BACK = 6.0
"""Seconds that a rank with trouble waits before it speaks, so that the one with the cause speaks first."""


class RunFailedError(Exception):
    """The run cannot go on, and the same command would fail again; the message is for the user."""


def may_retry(code: int) -> bool:
    """Whether the same command can go on. ``code`` as of subprocess: negative for a signal."""
    return code in (RETRYABLE, PREEMPTED) or code < 0 or code > 128
