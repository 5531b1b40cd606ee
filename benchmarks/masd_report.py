"""Tables (Markdown) and plots from the CSVs of `benchmarks/masd.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from slim_report import group, interval, read, table

from agents.core.plot import save_figure

SHOWN = {
    "joint": "joint [nats]",
    "single_max": "best single [nats]",
    "pair_max": "best pair [nats]",
    "pair_mean": "mean pair [nats]",
    "coordination": "coordination [nats]",
    "relative": "relative [nats]",
    "exchanged": "joint, one agent exchanged [nats]",
    "intervened": "joint, one agent random [nats]",
    "intervened_rest": "the others, one agent random [nats]",
    "joint_knn": "joint, k-NN",
    "single_knn_max": "best single, k-NN",
    "coverage": "coverage [bins]",
    "cpu_seconds": "CPU-s",
}
DOWNSTREAM = {
    "zero_shot": "best skill, zero-shot return",
    "auc_10": "mean return, first 10 %",
    "auc_100": "mean return, whole budget",
    "final_return": "final return",
    "final_success": "final success",
}


def write_report(results: Path) -> None:
    """Write REPORT.md, skills.png and downstream.png from whatever CSVs are there."""
    text = [
        "# MASD in particle worlds\n",
        "Interquartile mean over seeds with its 95 % bootstrap interval in brackets; made from the "
        "CSVs here by `python benchmarks/masd.py report`.\n",
    ]
    if (results / "skills.csv").exists():
        text.append(_skills(read(results / "skills.csv"), results / "skills.png"))
    if (results / "downstream.csv").exists():
        text.append(_downstream(read(results / "downstream.csv")))
        _plot_curves(read(results / "curves.csv"), results / "downstream.png")
    (results / "REPORT.md").write_text("\n".join(text))
    print("\n".join(text))


def _skills(rows: list[dict[str, Any]], path: Path) -> str:
    text = []
    for start, of_start in group(rows, lambda r: r["start"]).items():
        text.append(f"## Skills, agents start within {start:g} m of the origin\n")
        text.append(table(group(of_start, lambda r: r["method"]), SHOWN, "method") + "\n")
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.add_subplot()
    methods = group([r for r in rows if r["start"] == 1], lambda r: r["method"])
    columns = ("joint", "pair_max", "single_max", "exchanged")
    for i, column in enumerate(columns):
        values = np.array([
            interval([r[column] for r in of_method if column in r] or [np.nan])
            for of_method in methods.values()
        ])  # fmt: skip
        x = np.arange(len(methods)) + 0.2 * (i - 1.5)
        error = np.abs(values[:, 1:] - values[:, :1]).T
        axes.bar(x, values[:, 0], 0.18, yerr=error, capsize=2, label=SHOWN[column])
    axes.set_xticks(range(len(methods)), [*methods], rotation=15)
    axes.axhline(np.log(8), color="grey", linestyle="--", linewidth=1)
    axes.set_ylabel("information about the skill [nats]")
    axes.grid(alpha=0.3, axis="y")
    axes.legend(fontsize=7, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    save_figure(figure, path)
    return "\n".join(text)


def _way(row: dict[str, Any]) -> str:
    return ", ".join(str(row[k]) for k in ("way", "method") if k in row)


def _downstream(rows: list[dict[str, Any]]) -> str:
    text = ["## Downstream\n"]
    for task, of_task in group(rows, lambda r: r["task"]).items():
        text.append(f"### {task}\n")
        text.append(table(group(of_task, _way), DOWNSTREAM, "learner") + "\n")
        scratch = [r for r in of_task if r["way"] == "scratch"]
        for name, of_way in group(of_task, _way).items():
            if name == "scratch" or min(len(of_way), len(scratch)) < 5:
                continue  # fewer seeds have no interval worth the name
            for column in ("auc_10", "auc_100"):
                low = interval([r[column] for r in of_way])[1]
                high = interval([r[column] for r in scratch])[2]
                if low > high:
                    text.append(f"- {name} beats scratch: {column}, intervals apart")
        text.append("")
    return "\n".join(text)


def _plot_curves(rows: list[dict[str, Any]], path: Path) -> None:
    tasks = group(rows, lambda r: r["task"])
    figure = Figure(figsize=(5.5 * len(tasks), 4), layout="constrained")
    for i, (task, of_task) in enumerate(tasks.items()):
        axes = figure.add_subplot(1, len(tasks), i + 1)
        for name, of_way in group(of_task, _way).items():
            curve = sorted(group(of_way, lambda r: r["env_steps"]).items())
            values = np.array([interval([r["return"] for r in g]) for _, g in curve])
            steps = [step for step, _ in curve]
            axes.plot(steps, values[:, 0], label=name)
            axes.fill_between(steps, values[:, 1], values[:, 2], alpha=0.2)
        axes.set(title=task, xlabel="environment steps on the task", ylabel="return")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    save_figure(figure, path)
