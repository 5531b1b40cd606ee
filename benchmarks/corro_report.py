"""Tables (Markdown) and a plot from the CSVs of `benchmarks/corro.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from slim_report import group, interval, read, table

from agents.core.plot import save_figure

SETTINGS = ("steps", "width", "rows")
"""What runs of one table have in common."""
SHOWN = {
    "test_iid": "test, IID context",
    "test_ood": "test, OOD context",
    "test_zero": "test, no context",
    "test_iid_score": "score, IID context",
    "test_ood_score": "score, OOD context",
    "train_iid": "train, IID context",
    "train_ood": "train, OOD context",
    "cpu_seconds": "CPU-s",
}


def write_report(results: Path) -> None:
    """Write REPORT.md and <family>.png from whatever CSVs are there."""
    text = [
        "# CORRO on offline data\n",
        "Interquartile mean over seeds with its 95 % bootstrap interval in brackets (one seed: its "
        "value); made from the CSVs here by `python benchmarks/corro.py report`.\n",
    ]
    for path in sorted(results.glob("*-*.csv")):
        settings = group(read(path), lambda row: tuple(row[name] for name in SETTINGS))
        for setting, rows in settings.items():
            seeds = ", ".join(sorted({f"{row['seed']:g}" for row in rows}))
            steps, width, count = (f"{value:g}" for value in setting)
            sizes = f"{steps} gradient steps of 16 x {count} rows, width {width}"
            text.append(f"## {path.stem}: mean return, seeds {seeds}, {sizes}\n")
            methods = group(rows, lambda row: row["method"])
            text.append(table(methods, SHOWN, "method") + "\n")
            suffix = f"-{steps}-{width}-{count}" if len(settings) > 1 else ""
            plot(methods, results / f"{path.stem}{suffix}.png")
    for name in ("generator", "speed", "evaluation"):
        if (results / f"{name}.csv").exists():
            text += [f"## {name.capitalize()}\n", plain(read(results / f"{name}.csv")) + "\n"]
    (results / "REPORT.md").write_text("\n".join(text))
    print("\n".join(text))


def plain(rows: list[dict[str, Any]]) -> str:
    """All rows and columns."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = (row.get(name, "") for name in columns)
        cells = (f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(methods: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """IID and OOD returns, a bar per method."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.add_subplot()
    for i, column in enumerate(("test_iid", "test_ood")):
        values = np.array([interval([row[column] for row in rows]) for rows in methods.values()])
        x = np.arange(len(methods)) + 0.4 * (i - 0.5)
        error = np.abs(values[:, 1:] - values[:, :1]).T
        axes.bar(x, values[:, 0], 0.36, yerr=error, capsize=2, label=SHOWN[column])
    axes.set_xticks(range(len(methods)), [*methods], rotation=20)
    axes.set_ylabel("return")
    axes.grid(alpha=0.3, axis="y")
    axes.legend(fontsize=8)
    save_figure(figure, path)
