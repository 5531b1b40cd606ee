"""REPORT.md and curves.png of `benchmarks/infopower.py`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from slim_report import group, interval, read, table

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
    """Interquartile means over seeds with their 95 % intervals, a line per method."""
    from matplotlib.figure import Figure

    from agents.core.plot import save_figure

    figure = Figure(figsize=(4 * len(DRAWN), 6.5), layout="constrained")
    methods = group(rows, lambda r: r["method"])
    for i, axis in enumerate(("updates", "cpu_seconds")):
        for j, name in enumerate(DRAWN):
            axes = figure.add_subplot(2, len(DRAWN), i * len(DRAWN) + j + 1)
            for method, runs in methods.items():
                if name not in runs[0]:  # no distractor
                    continue
                points = group(runs, lambda r: r["timesteps"]).values()
                x = [np.mean([r[axis] for r in point]) for point in points]
                y, low, high = zip(*(interval([r[name] for r in p]) for p in points), strict=True)
                axes.plot(x, y, marker=".", label=method)
                axes.fill_between(x, low, high, alpha=0.12)
            axes.set(xlabel=axis, title=name)
            axes.grid(alpha=0.3)
    lines, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=len(names), fontsize=8)
    save_figure(figure, path)
