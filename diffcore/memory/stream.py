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
    marks: list[tuple[str, int]] = field(default_factory=list)
    """(phase that ends here, number of events so far)"""

    def allocate(self, category: str, size: int, layer: str = "", host: bool = False) -> int:
        number = len(self.category)
        self.category.append(category)
        self.layer.append(layer)
        self.host.append(host)
        if size:
            self.events.append((number, size))
        return number

    def free(self, number: int) -> None:
        self.events.append((number, 0))

    def brief(self, category: str, size: int) -> None:
        """Allocated and freed at once."""
        if size:
            self.free(self.allocate(category, size))

    def mark(self, phase: str) -> None:
        self.marks.append((phase, len(self.events)))
