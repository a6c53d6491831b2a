"""What a training step allocates and frees, in order: as planned (``replay``) or as followed (``trace``)."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Stream:
    """Allocations (number, bytes > 0) and frees (number, 0) in order, and where the phases end."""

    events: list[tuple[int, int]] = field(default_factory=list)
    category: list[str] = field(default_factory=list)
    layer: list[str] = field(default_factory=list)
    host: list[bool] = field(default_factory=list)
    lane: list[int] = field(default_factory=list)
    """Number of the CUDA stream that it was asked for on; 0 is the one that computes."""
    marks: list[tuple[str, int]] = field(default_factory=list)
    """(phase that ends here, number of events so far)"""

    def allocate(self, category: str, size: int, layer: str = "", host: bool = False, lane: int = 0) -> int:
        """Note an allocation of ``size`` bytes; returns its number. One of 0 bytes makes no event."""
        number = len(self.category)
        self.category.append(category)
        self.layer.append(layer)
        self.host.append(host)
        self.lane.append(lane)
        if size:
            self.events.append((number, size))
        return number

    def free(self, number: int) -> None:
        """Note that the allocation ``number`` is freed."""
        self.events.append((number, 0))

    def brief(self, category: str, size: int, lane: int = 0) -> None:
        """Allocated and freed at once."""
        if size:
            self.free(self.allocate(category, size, lane=lane))

    def mark(self, phase: str) -> None:
        """Note that ``phase`` ends here."""
        self.marks.append((phase, len(self.events)))
