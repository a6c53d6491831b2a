"""fit: the largest micro batch of a card."""

from __future__ import annotations

from collections.abc import Sequence

from diffcore.memory.commands.flags import gigabytes, parser, say_assumed, settings


def fit(argv: Sequence[str]) -> None:
    """Print the largest micro batch of a card, and what makes a wanted one fit."""
    flags = parser("fit", "The largest micro batch of a card, and what makes a wanted one fit.")
    flags.add_argument("--gpu", type=gigabytes, required=True, help="what the card is sold with: 24GB")
    given, config = settings(flags, argv)

    from diffcore.memory import advise, tables
    from diffcore.memory.calibration import calibration_named, capacity

    room, planner = capacity(given.gpu), advise.Planner(config, outside=calibration_named(given.calibration))
    say_assumed(planner.data.assumed)
    micro = config.batch.split(given.world)[0]
    tables.print_fit(
        planner.largest(config, given.world, room),
        micro,
        planner.plan(config, given.world).smi,
        room,
        advise.remedies(planner, config, given.world, room),
        [
            (change, planner.plan(changed, given.world).smi, planner.largest(changed, given.world, room))
            for change, changed in planner.changes(given.world)
        ],
    )
