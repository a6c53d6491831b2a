"""Steps in a row that are left out because a gradient is not finite: within them no checkpoint is made.

The weights may be what makes them, and a checkpoint of such weights would take the place of a good one.
"""

from __future__ import annotations

from pathlib import Path

from diffcore.runs import checkpoint


class Streak:
    """``on`` within one; ``owed``: a checkpoint was due in one, and is made at the first step after it."""

    def __init__(self) -> None:
        self.on = self.owed = False

    @property
    def over(self) -> bool:
        """Whether a checkpoint is owed, and can be made."""
        return self.owed and not self.on


def last_good(run: Path, step: int, in_row: int) -> str:
    """After ``step`` steps, the last ``in_row`` of them left out: which checkpoint to trust, what may help.

    None of the very weights that the streak began with: it is they that give what is not finite.
    """
    good = [f.name for f in checkpoint.complete(run) if checkpoint.step_of(f) < step - in_row]
    return f"Last good checkpoint: {good[-1] if good else 'none'}. A lower optimizer.lr may help"
