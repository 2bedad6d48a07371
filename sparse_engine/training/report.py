"""What happened while a model was trained and pruned."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Event:
    """One change of the model.

    Attributes:
        step: how many steps of the optimizer were done.
        modifier: its name in the recipe.
        text: what happened, in a few words.
        sparsity: fraction of zeros in the layers that the recipe prunes, afterwards.
    """

    step: int
    modifier: str
    text: str
    sparsity: float


@dataclass
class TrainingReport:
    """Result of `Pruner.finalize`.

    Attributes:
        recipe: as plain values, which `read_training_recipe` reads.
        events: in the order in which they happened.
        warnings: what is not as the recipe has it, a sentence each.
        steps: how many steps of the optimizer were done.
        sparsity: by layer, the fraction of its weights that are zero.
    """

    recipe: dict[str, Any] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    steps: int = 0
    sparsity: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        """A line for each event, and each warning."""
        lines = [
            f"step {event.step:>6}  {event.modifier}: {event.text} ({event.sparsity:.1%} zeros)"
            for event in self.events
        ]
        lines += [f"warning: {text}" for text in self.warnings]
        return "\n".join(lines or [f"step {self.steps:>6}  nothing was removed"])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)
