"""python -m launch.notify < NEWS: hands one piece of news of a run over, as its profile's ``notify`` says.

NEWS is JSON: {"settings": launch.ask.profile.Notify without its secret, "news": what is sent}. Leaves with 75
where it was not taken, and when its time is over.
"""

from __future__ import annotations

import os
import sys
import threading

from diffbase import cli
from diffbase.exits import RETRYABLE
from diffbase.explain import validated
from diffbase.formats import json_file
from diffbase.line import say
from launch.ask.profile import Notify
from launch.notify.deliver import deliver

LARGEST = 1 << 20
LONGER = 0.5
"""Seconds, within those that the supervisor waits longer (``launch.supervise.news.EXTRA``)."""


def main() -> None:
    """Read it, hand it over, say what went wrong."""
    tree = json_file.parse(sys.stdin.buffer.read(LARGEST), "standard input")
    settings = validated(Notify, tree.get("settings") if isinstance(tree, dict) else tree, "settings")
    # Each has its own limit and its own words; names that are looked up and answers in drops have none.
    limit = threading.Timer(settings.seconds + LONGER, _too_late, [settings.seconds])
    limit.daemon = True
    limit.start()
    problems = deliver(settings, tree["news"])
    for line in problems:
        say(f"launch: notify: {line}", error=True)
    limit.cancel()
    sys.exit(RETRYABLE if problems else 0)


def _too_late(seconds: float) -> None:
    say(f"launch: notify: not done after {seconds:g} s", error=True)
    os._exit(RETRYABLE)


if __name__ == "__main__":
    cli.run(main)
