"""REPORT.md and curves.png of `benchmarks/infopower.py`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from slim_report import group, read, table

SHOWN = {
    "timesteps": "steps", "updates": "updates", "cpu_seconds": "CPU-s", "return": "return",
    "return_equal_time": "return at equal CPU-s",
    "return_unseen": "return, unseen backdrop", "linear_controllable": "R² agent, linear",
    "mlp_controllable": "R² agent, MLP", "linear_distractor": "R² distractor, linear",
    "mlp_distractor": "R² distractor, MLP", "nats_controllable": "nats, agent",
    "nats_distractor": "nats, distractor", "rsa": "RSA", "linear_cka": "CKA",
    "neighbour_overlap": "k-NN overlap", "edge_similarity": "edge similarity",
}  # fmt: skip
DRAWN = ("return", "return_unseen", "linear_controllable", "linear_distractor")


def report(results: Path) -> None:
    """Tables of the last points, interquartile means [95 %] over seeds, and curves."""
    text = ["# InfoPower: tables", ""]
    if (results / "speed.csv").exists():
        rows = read(results / "speed.csv")
        columns = list(rows[0])
        text += [
            "## CPU-seconds of an update, B = 16, T = 32",
            "",
            "| " + " | ".join(columns) + " |",
        ]
        text += ["|" + "---|" * len(columns)]
        text += ["| " + " | ".join(str(row[c]) for c in columns) + " |" for row in rows] + [""]
    if (results / "curves.csv").exists():
        rows = read(results / "curves.csv")
        for where, some in group(rows, _where).items():
            last = max(row["timesteps"] for row in some)
            ends = [row for row in some if row["timesteps"] == last]
            _equal_time(some, ends)
            text += [f"## {where}", "", table(group(ends, lambda r: r["method"]), SHOWN, "method")]
            text += [""]
            _plot(some, results / f"{re.sub('[ ,/]+', '-', where)}.png")
    (results / "REPORT.md").write_text("\n".join(text))


def _equal_time(rows: list[dict[str, Any]], ends: list[dict[str, Any]]) -> None:
    """Add to the last points the return at the CPU-seconds after which the first run was done.

    Between two points of a curve it is interpolated.
    """
    spent = min(row["cpu_seconds"] for row in ends)
    for end in ends:
        curve = [r for r in rows if (r["method"], r["seed"]) == (end["method"], end["seed"])]
        times, returns = ([r[name] for r in curve] for name in ("cpu_seconds", "return"))
        end["return_equal_time"] = np.interp(spent, times, returns)


def _where(row: dict[str, Any]) -> str:
    return f"{row['task']}, {row['background']}, {row['scale']} scale, {row['steps']:.0f} steps"


def _plot(rows: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    from agents.core.plot import save_figure

    figure = Figure(figsize=(4 * len(DRAWN), 6), layout="constrained")
    for i, axis in enumerate(("updates", "cpu_seconds")):
        for j, name in enumerate(DRAWN):
            axes = figure.add_subplot(2, len(DRAWN), i * len(DRAWN) + j + 1)
            runs, methods = group(rows, lambda r: (r["method"], r["seed"])), []
            for (method, _), points in runs.items():
                if name not in points[0]:  # no distractor
                    continue
                label = None if method in methods else method  # a line per seed, named once
                methods += [method] if label else []
                x, y = ([p[column] for p in points] for column in (axis, name))
                colour = f"C{methods.index(method)}"
                axes.plot(x, y, marker=".", color=colour, label=label)
            axes.set(xlabel=axis, title=name)
            axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=7)
    save_figure(figure, path)
