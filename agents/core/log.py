"""Metrics: accumulated on the device, read once per log interval, written to a CSV file."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agents.core.structure import require_like


class NonFiniteError(RuntimeError):
    """A NaN or infinity reached the training loop; the message names its source."""


class FiniteGuard:
    """Remembers the first non-finite source without waiting for the device.

    Sources are checked in the order in which they were first watched, so the cause is named rather
    than what it infected.
    """

    def __init__(self) -> None:
        self._bad: dict[str, Tensor] = {}

    def watch(self, source: str, value: Tensor) -> None:
        """Note whether `value` ([N, ...] per environment, or 0-d) is finite."""
        bad = ~torch.isfinite(value)
        if bad.dim() > 1:
            bad = bad.flatten(1).any(1)
        if source in self._bad:
            self._bad[source] |= bad
        else:
            self._bad[source] = bad

    def check(self) -> None:
        """Wait for the device and raise if anything watched was not finite.

        Raises:
            NonFiniteError: names the source and the environment.
        """
        for source, bad in self._bad.items():
            if bool(bad.any()):
                where = f" in environment {int(bad.nonzero()[0])}" if bad.dim() else ""
                raise NonFiniteError(f"{source}: NaN or infinity{where}; expected finite values")


class Mean:
    """Means of 0-d tensors over a log interval, without waiting for the device."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Add one value of each metric."""
        for name, value in metrics.items():
            value = value.detach().to(torch.float64)
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def pop(self) -> dict[str, float]:
        """Means since the last call, with one transfer from the device."""
        if not self._sums:
            return {}
        values = torch.stack(list(self._sums.values())).tolist()
        means = {k: v / self._counts[k] for k, v in zip(self._sums, values, strict=True)}
        self.__init__()
        return means

    def state_dict(self) -> dict[str, object]:
        """Sums and counts so far."""
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state_dict(self, state: Mapping[str, Mapping]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            ValueError: the state is none of means'.
        """
        names, zero = list(state["sums"]), torch.zeros((), dtype=torch.float64)
        like = {"sums": dict.fromkeys(names, zero), "counts": dict.fromkeys(names, 1)}
        require_like(state, like, "metrics")
        if min(state["counts"].values(), default=1) < 1:
            raise ValueError(f"metrics: expected counts of at least 1, got {state['counts']}"[:200])
        self._sums, self._counts = dict(state["sums"]), dict(state["counts"])


class MetricsFile:
    """A CSV with one row per log interval; new columns may appear at any time.

    Args:
        path: of the file, which is created or continued.
        last_step: rows with a larger `timesteps` are dropped: they were written after the
            checkpoint that training resumes from and will be written again.
    """

    def __init__(self, path: Path, last_step: int) -> None:
        self.path = path
        self._columns: list[str] = []
        if path.exists():
            with path.open(newline="") as file:
                rows = list(csv.DictReader(file))
            # A row cut short by a crash has no complete step and goes as well.
            kept = [row for row in rows if _step(row) <= last_step and None not in row.values()]
            if kept:
                self._columns = list(rows[0])
            self._rewrite(kept)

    def write(self, row: Mapping[str, float]) -> None:
        """Append a row; `row["timesteps"]` orders the file."""
        new = [name for name in row if name not in self._columns]
        if new:
            rows: list[dict[str, Any]] = []
            if self._columns:
                with self.path.open(newline="") as file:
                    rows = list(csv.DictReader(file))
            self._columns += new
            self._rewrite([*rows, dict(row)])
            return
        with self.path.open("a", newline="") as file:
            file.write(self._text([row], header=False))

    def _rewrite(self, rows: Sequence[Mapping[Any, Any]]) -> None:
        temporary = self.path.with_suffix(".csv.tmp")
        temporary.write_text(self._text(rows, header=bool(self._columns)))
        os.replace(temporary, self.path)

    def _text(self, rows: Sequence[Mapping[Any, Any]], header: bool) -> str:
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, self._columns, restval="", lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return buffer.getvalue()


def _step(row: Mapping[str, str]) -> float:
    try:
        return float(row["timesteps"])
    except (KeyError, TypeError, ValueError):
        return math.inf


def read_metrics(path: Path) -> dict[str, list[float]]:
    """Columns of a metrics file; cells that were not logged are NaN."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        name: [float(row[name]) if row[name] else math.nan for row in rows]
        for name in (rows[0] if rows else ())
    }
