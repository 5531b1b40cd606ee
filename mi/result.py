"""What every estimator answers."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

Kind = Literal["lower", "upper", "estimate"]


class MIResult(NamedTuple):
    """An information quantity measured from samples."""

    value: float
    """[nats]. May lie a little below 0: clipping would bias averages over many estimates."""
    stderr: float
    """Standard error [nats]; of independent samples."""
    interval: tuple[float, float]
    """Confidence interval [nats] of the sampling error, and of the bias that `auto` sees."""
    kind: Kind
    """What the value is in expectation: a lower bound, an upper bound, or a consistent estimate."""
    estimator: str
    """Which one answered."""
    warnings: tuple[str, ...]
    """What to beware of, in sentences."""
    diagnostics: dict[str, float]
    """Numbers behind the answer."""

    @property
    def bits(self) -> float:
        """The value in bits."""
        return self.value / math.log(2)

    def __str__(self) -> str:
        low, high = self.interval
        lines = [f"{self.value:.4f} nats ± {self.stderr:.4f} [{low:.4f}, {high:.4f}]"]
        lines[0] += f", {self.kind} by {self.estimator}"
        return "\n".join([*lines, *(f"warning: {w}" for w in self.warnings)])
