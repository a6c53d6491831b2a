"""A checkpoint opened by several ranks: rank 0 reads what is for all, and each rank the files of its part."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from diffbase.cli import InputError
from diffcore.engine.ranks import World
from diffcore.runs.checkpoint import opened
from diffcore.runs.stored.record import OtherVersionError, shard_name
from tests.support.ranks import run_ranks
from tests.unit.diffcore.runs.test_checkpoint import written

RANKS = 2
HEADS = ["COMPLETE", "state.json"]


def opens_of(log: list[str], folder: Path) -> list[str]:
    """Names of the files in ``folder`` that were opened, once for each time; the log is emptied."""
    names = sorted(Path(path).name for path in log if Path(path).parent == folder)
    log.clear()
    return names


def attempt(folder: Path, world: World) -> Any:
    """The kind of error that opening it gives, or what this rank's half of a parameter is."""
    try:
        state, shards = opened(folder, world)
    except InputError as error:
        return [type(error).__name__, str(error)]
    count = 4 // world.size
    return [state.step, shards.read("weights", "w", world.rank * count, count).tolist()]


def rank_of(rank: int, meet: Path, folders: list[Path]) -> None:
    """Open each of ``folders`` as one of two ranks; what was found and opened goes into a file."""
    log: list[str] = []
    sys.addaudithook(lambda event, args: log.append(str(args[0])) if event == "open" else None)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meet}/meet", rank=rank, world_size=RANKS
    )
    world = World(rank, RANKS, rank, torch.device("cpu"))
    found = []
    for folder in folders:
        log.clear()
        found.append([attempt(folder, world), opens_of(log, folder)])
    (meet / f"{rank}").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_rank_0_alone_reads_what_is_for_all(tmp_path: Path) -> None:
    [sealed] = written(tmp_path / "sealed", 5)
    [mapped] = written(tmp_path / "mapped", 5, old=True)
    [cut] = written(tmp_path / "cut", 5)
    [other] = written(tmp_path / "other", 5)
    (cut / "COMPLETE").write_text('{"state.json": ')
    state = json.loads((other / "state.json").read_text())
    (other / "state.json").write_text(json.dumps(state | {"version": 1}))

    run_ranks(rank_of, range(RANKS), tmp_path, [sealed, mapped, cut, other])

    for rank in range(RANKS):
        (part, opens), (part_of_old, opens_of_old), (cut_off, _), (old, _) = json.loads(
            (tmp_path / f"{rank}").read_text()
        )
        assert part == part_of_old == [5, [2.0 * rank, 2.0 * rank + 1]]
        heads = HEADS if rank == 0 else []
        assert opens == sorted([*heads, shard_name(rank, RANKS)])
        assert [name for name in opens_of_old if name in HEADS] == heads
        assert cut_off[0] == "InputError" and "COMPLETE: not a JSON file" in cut_off[1]
        assert old[0] == "OtherVersionError"


def test_one_rank_reads_them_itself(tmp_path: Path) -> None:
    [folder] = written(tmp_path, 5)
    alone = World(0, 1, 0, torch.device("cpu"))
    assert attempt(folder, alone) == [5, [0.0, 1.0, 2.0, 3.0]]
    (folder / "COMPLETE").unlink()
    assert attempt(folder, alone) == ["InputError", f"{folder}/COMPLETE: no such file"]
    (folder / "state.json").write_text('{"version": 1}')
    with pytest.raises(InputError, match="no such file"):
        opened(folder, alone)
    (folder / "COMPLETE").write_text("{}")
    with pytest.raises(OtherVersionError):
        opened(folder, alone)
