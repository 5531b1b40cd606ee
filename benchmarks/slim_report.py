"""Tables (Markdown) and plots from the CSVs of `benchmarks/slim.py`."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from agents.core.plot import save_figure

SHOWN = {
    "coverage": "coverage [5 cm bins]",
    "r2": "R² of skill",
    "direction_error": "direction error [deg]",
    "consistency": "consistency (0 best)",
    "moved": "moved > 5 cm",
    "lifted": "lifted",
    "violations": "violations / episode",
    "violations_sampled": "violations, sampled actions",
    "off_table": "off table",
}


def iqm(values: np.ndarray, axis: int = -1) -> Any:
    """Interquartile mean."""
    return stats.trim_mean(values, 0.25, axis=axis)


def interval(values: list[float]) -> tuple[float, float, float]:
    """IQM over seeds with a 95 % percentile bootstrap interval."""
    sample = np.array(values, dtype=float)
    if len(sample) < 2 or np.ptp(sample) == 0:
        return (float(iqm(sample)),) * 3
    done = stats.bootstrap(
        (sample,), iqm, method="percentile", n_resamples=5000, vectorized=True,
        rng=np.random.default_rng(0),
    )  # fmt: skip
    low, high = done.confidence_interval
    return float(iqm(sample)), float(low), float(high)


def read(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="") as file:
        return [{k: _number(v) for k, v in row.items() if v != ""} for row in csv.DictReader(file)]


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def group(
    rows: list[dict[str, Any]], key: Callable[[dict[str, Any]], Any]
) -> dict[Any, list[dict[str, Any]]]:
    groups: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return groups


def cell(rows: list[dict[str, Any]], column: str) -> str:
    values = [row[column] for row in rows if column in row]
    if not values:
        return "–"
    middle, low, high = interval(values)
    if low == high and middle >= 1000:  # a budget
        return f"{middle:,.0f}"
    digits = 0 if column == "coverage" else 1 if max(abs(high), abs(low)) >= 10 else 2
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def table(groups: dict[Any, list[dict[str, Any]]], columns: dict[str, str], head: str) -> str:
    lines = [f"| {head} | n | " + " | ".join(columns.values()) + " |"]
    lines.append("|" + "---|" * (len(columns) + 2))
    for name, rows in groups.items():
        cells = " | ".join(cell(rows, column) for column in columns)
        lines.append(f"| {name} | {len(rows)} | {cells} |")
    return "\n".join(lines)


def skills_section(rows: list[dict[str, Any]], results: Path) -> str:
    text = []
    for start in ("hard", "easy"):
        chosen = [r for r in rows if r["start"] == start and r["scale"] == 1]
        text.append(f"## Skills, `{start}` start\n")
        text.append(table(group(chosen, lambda r: r["method"]), SHOWN, "method") + "\n")
    scaled = [r for r in rows if r["start"] == "hard" and r["method"].startswith("slim")]
    scaled.sort(key=lambda r: (r["method"], r["scale"]))
    text.append("## Reward scale (`hard` start, reach reward multiplied)\n")
    groups = group(scaled, lambda r: f"{r['method']}, reach x {r['scale']:g}")
    text.append(table(groups, SHOWN, "method") + "\n")
    plot_skills(rows, scaled, results / "skills.png")
    return "\n".join(text)


def plot_skills(rows: list[dict[str, Any]], scaled: list[dict[str, Any]], path: Path) -> None:
    figure = Figure(figsize=(13, 6.5), layout="constrained")
    hard = group(
        [r for r in rows if r["start"] == "hard" and r["scale"] == 1], lambda r: r["method"]
    )
    for i, column in enumerate(("coverage", "r2", "violations_sampled")):
        axes = figure.add_subplot(2, 3, i + 1)
        _bars(axes, {name: rows for name, rows in hard.items() if column in rows[0]}, column)
        axes.set_title(f"hard start: {SHOWN[column]}")
        axes = figure.add_subplot(2, 3, i + 4)
        for method, of_method in group(scaled, lambda r: r["method"]).items():
            by_scale = sorted(group(of_method, lambda r: r["scale"]).items())
            values = np.array([interval([r[column] for r in g]) for _, g in by_scale])
            scales = [scale for scale, _ in by_scale]
            axes.errorbar(
                scales, values[:, 0], np.abs(values[:, 1:].T - values[:, 0]),
                marker="o", capsize=3, label=method,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xlabel("factor on the reach reward")
        axes.set_title(SHOWN[column])
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()
    save_figure(figure, path)


def _bars(axes: Any, groups: dict[str, list[dict[str, Any]]], column: str) -> None:
    for x, rows in enumerate(groups.values()):
        values = [row[column] for row in rows]
        middle, low, high = interval(values)
        axes.bar(x, middle, yerr=[[middle - low], [high - middle]], capsize=3, alpha=0.6)
        axes.scatter([x] * len(values), values, s=10, color="black", zorder=3)
        axes.set_xticks(range(x + 1), [*groups][: x + 1], rotation=20, ha="right")
    axes.grid(alpha=0.3, axis="y")


def downstream_section(rows: list[dict[str, Any]], results: Path) -> str:
    text = ["## Downstream: success and violations after the whole budget\n"]
    last = {
        key: max(r["env_steps"] for r in g)
        for key, g in group(rows, lambda r: (r["task"], r["way"])).items()
    }
    final = [r for r in rows if r["env_steps"] == last[r["task"], r["way"]]]
    columns = {
        "success": "success",
        "violations": "violations / episode",
        "env_steps": "env steps on the task",
        "pretraining_steps": "steps of reward-free pretraining",
    }
    text.append(table(group(final, lambda r: f"{r['task']}, {r['way']}"), columns, "task, learner"))
    tasks = group(rows, lambda r: r["task"])
    figure = Figure(figsize=(5.5 * len(tasks), 4), layout="constrained")
    for i, (task, of_task) in enumerate(tasks.items()):
        axes = figure.add_subplot(1, len(tasks), i + 1)
        for way, of_way in group(of_task, lambda r: r["way"]).items():
            curve = sorted(group(of_way, lambda r: r["env_steps"]).items())
            values = np.array([interval([r["success"] for r in g]) for _, g in curve])
            steps = [step for step, _ in curve]
            if len(steps) == 1:  # planning is not trained on the task
                colour = f"C{2 + len(axes.patches)}"  # beyond the two that learn
                axes.axhline(values[0, 0], linestyle="--", color=colour, label=f"{way} (zero-shot)")
                axes.axhspan(*values[0, 1:], color=colour, alpha=0.15)
                continue
            axes.plot(steps, values[:, 0], marker="o", label=way)
            axes.fill_between(steps, values[:, 1], values[:, 2], alpha=0.2)
        axes.set(
            title=task,
            xlabel="environment steps on the task",
            ylabel="success rate",
            ylim=(-0.02, 1.02),
        )
        axes.grid(alpha=0.3)
        axes.legend()
    save_figure(figure, results / "downstream.png")
    return "\n".join(text) + "\n"


def speed_section(rows: list[dict[str, Any]]) -> str:
    lines = ["## Speed\n", "| what | value | unit | against |", "|---|---|---|---|"]
    lines += [
        f"| {r['what']} | {r['value']:g} | {r['unit']} | {r.get('against', '')} |" for r in rows
    ]
    return "\n".join(lines) + "\n"


def report(results: Path) -> None:
    """Write REPORT.md, skills.png and downstream.png from whatever CSVs are there."""
    text = [
        "# SLIM on the tabletop",
        "",
        "Interquartile mean over seeds with its 95 % bootstrap interval in brackets; made from the "
        "CSVs here by `python benchmarks/slim.py report`.",
        "",
    ]
    if (results / "skills.csv").exists():
        text.append(skills_section(read(results / "skills.csv"), results))
    if (results / "downstream.csv").exists():
        text.append(downstream_section(read(results / "downstream.csv"), results))
    if (results / "speed.csv").exists():
        text.append(speed_section(read(results / "speed.csv")))
    (results / "REPORT.md").write_text("\n".join(text))
    print("\n".join(text))
