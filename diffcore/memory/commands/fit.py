"""fit: the largest micro batch of a card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from diffbase import cli
from diffcore.memory.commands import flags
from diffcore.memory.commands.flags import gigabytes, say, settings

PROG = "python -m diffcore.memory fit"


def parser(prog: str = PROG) -> cli.Parser:
    """The command's flags; others override the config."""
    parser = flags.parser(prog, "The largest micro batch of a card, and what makes a wanted one fit.")
    card = "what the card is sold with, 24GB, or its name, RTX4090"
    parser.add_argument("--gpu", type=gigabytes, required=True, help=card)
    return parser


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> None:
    """Print the largest micro batch of a card, and what makes a wanted one fit."""
    given, config = settings(parser(prog), argv)

    from diffcore.memory import advise, tables
    from diffcore.memory.calibration import calibration_named, capacity

    room, planner = capacity(given.gpu), advise.Planner(config, outside=calibration_named(given.calibration))
    micro, have = config.batch.split(given.world)[0], planner.plan(config, given.world).smi
    largest = planner.largest(config, given.world, room)
    steps = advise.remedies(planner, config, given.world, room)
    alone = [
        (change, planner.plan(changed, given.world).smi, planner.largest(changed, given.world, room))
        for change, changed in planner.changes(given.world)
    ]
    with cli.answer(given) as give:
        say(planner.data.assumed)
        tables.print_fit(largest, micro, have, room, steps, alone)
        give(
            {
                "room_bytes": room,
                "largest_micro_batch": largest,
                "micro_batch": micro,
                "planned_bytes": have,
                "fits": have <= room,
                "changes": [
                    {"setting": change.setting, "planned_bytes": smi, "largest_micro_batch": most}
                    for change, smi, most in alone
                ],
                "together": [asdict(step) for step in steps],
            }
        )
