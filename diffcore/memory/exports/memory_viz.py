"""A step as a snapshot of torch's CUDA allocator, which https://pytorch.org/memory_viz opens.

What came and went is the step's; where it lay is what the planner's model of the allocator makes of it. A
frame is a module, the one outside last, as a call stack has it; the category is a frame and a colour.
"""

from __future__ import annotations

import pickle
from typing import Any

from diffbase.cli import InputError
from diffcore.memory.planning import lifetimes
from diffcore.memory.planning.allocator import SMALL_SEGMENT, CachingAllocator
from diffcore.memory.planning.states import WORDS
from diffcore.memory.reading import SIDES

START = 0x7F00_0000_0000
"""Address of the first segment: nothing is at 0."""
STREAM = 0

Row = dict[str, Any]


class Placing(CachingAllocator):
    """The allocator's model, which says where it has put what."""

    def place(self, number: int, size: int) -> tuple[int, tuple[int, int] | None]:
        """The address of allocation ``number``, and the (address, size) of a segment that is new for it."""
        before, after = self.reserved, self._next
        self.allocate(number, size)
        new = (START + after, self.reserved - before) if self.reserved > before else None
        return START + self._held[number].address, new

    def segments(self) -> list[list[tuple[int, int, int | None]]]:
        """Each segment's blocks in order: address, bytes, and the number of the allocation that is in it."""
        held = {block.address: number for number, block in self._held.items()}
        first = [block for block in self._blocks.values() if block.before is None]
        found = []
        for block in sorted(first, key=lambda block: block.address):
            blocks, at = [], block
            while True:
                blocks.append((START + at.address, at.size, held.get(at.address)))
                if at.after is None:
                    break
                at = at.after
            found.append(blocks)
        return found


def pickled(anatomy: dict[str, Any]) -> bytes:
    """The file: plain lists, dicts, texts and whole numbers, in the protocol that the viewer reads."""
    return pickle.dumps(snapshot(anatomy), protocol=4)


def snapshot(anatomy: dict[str, Any]) -> dict[str, Any]:
    """The snapshot: a device for each rank whose tensors are known. InputError where none is."""
    known = [(which, rank) for which in SIDES for rank in anatomy[which] if rank.get("lifetimes")]
    if not known:
        why = "it is of an earlier version, or its step had too many"
        raise InputError(f"no tensor's life is in this report: {why}")
    segments, traces = list[Row](), list[list[Row]]()
    for device, (which, rank) in enumerate(known):
        mine, events = _Device(rank["lifetimes"], device, f"{which}, rank {rank['rank']}").told()
        segments += mine
        traces.append(events)
    return {"segments": segments, "device_traces": traces}


class _Device:
    def __init__(self, told: dict[str, Any], device: int, of: str) -> None:
        self.lives, self.device, self.of = told, device, of
        self._frames: dict[tuple[str, str, str], list[Row]] = {}

    def told(self) -> tuple[list[Row], list[Row]]:
        """Its segments at the end, and its events."""
        allocator, events, addresses = Placing(), list[Row](), dict[int, int]()
        for change in lifetimes.changes(self.lives):
            row = self.lives["tensors"][change.tensor]
            named = {"frames": self.frames(row), "stream": STREAM, "time_us": change.at}
            kind = {"category": self.category(row)}
            if change.bytes > 0:
                address, new = allocator.place(change.tensor, change.bytes)
                if new:  # where there are categories, the viewer needs something of the category "unknown"
                    whole = {"action": "segment_alloc", "addr": new[0], "size": new[1], "category": "unknown"}
                    events.append(whole | named)
                addresses[change.tensor] = address
                events.append({"action": "alloc", "addr": address, "size": change.bytes, **named, **kind})
            else:
                allocator.release(change.tensor)
                gone = {"addr": addresses.pop(change.tensor), "size": -change.bytes, **named, **kind}
                events += [{"action": "free_requested", **gone}, {"action": "free_completed", **gone}]
        return [self.segment(blocks) for blocks in allocator.segments()], events

    def segment(self, blocks: list[tuple[int, int, int | None]]) -> Row:
        """A segment with its blocks, at the end."""
        rows, asked, held = list[Row](), 0, 0
        for address, size, number in blocks:
            row = self.lives["tensors"][number] if number is not None else None
            block = {"address": address, "size": size, "requested_size": 0, "state": "inactive", "frames": []}
            if row:
                of_it = {"requested_size": row[2], "state": "active_allocated", "frames": self.frames(row)}
                block |= of_it
                asked, held = asked + row[2], held + size
            rows.append(block)
        total = sum(size for _, size, _ in blocks)
        return {
            "device": self.device,
            "address": blocks[0][0],
            "total_size": total,
            "allocated_size": held,
            "active_size": held,
            "requested_size": asked,
            "stream": STREAM,
            "segment_type": "small" if total == SMALL_SEGMENT else "large",
            "is_expandable": False,
            "frames": [],
            "blocks": rows,
        }

    def category(self, row: list[int]) -> str:
        """Of a tensor, as people call it."""
        name = str(self.lives["categories"][row[0]])
        return WORDS.get(name, name)

    def frames(self, row: list[int]) -> list[Row]:
        """Of a tensor: its category, its modules from the inside out, its phase; one list for all alike."""
        phase = lifetimes.phase_at(self.lives, row[3]) if row[3] else "before the step"
        key = (self.category(row), self.lives["layers"][row[1]], phase)
        if key not in self._frames:
            path = key[1].split(".") if key[1] else []
            modules = [".".join(path[:long]) for long in range(len(path), 0, -1)]
            names = [key[0], *modules, phase, self.of]
            self._frames[key] = [{"name": name, "filename": "diffcore", "line": 0} for name in names]
        return self._frames[key]
