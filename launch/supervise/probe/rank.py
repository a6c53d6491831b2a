"""python -m launch.supervise.probe.rank SCRIPT [ARGUMENTS]: one rank of the preflight, then of training.

Its standard input is its supervisor (``child.Prepared``); without one it ends. Who looks for a rank's
process finds the training's script and arguments in its command line.
"""

from __future__ import annotations

import sys

from launch.supervise.probe import prepared


def main() -> None:
    """Do as the supervisor says: the all-reduce, then the script in this process."""
    prepared.obey(sys.argv[1:])


if __name__ == "__main__":
    main()
