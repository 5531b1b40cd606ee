"""Tables (Markdown) and plots from the CSVs of `benchmarks/mi.py`."""

from __future__ import annotations

import csv
import statistics as st
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure

from agents.core.plot import save_figure
from benchmarks.mi_tasks import TASKS

Row = dict[str, Any]


def read(path: Path) -> list[Row]:
    if not path.exists():
        return []

    def number(text: str) -> Any:
        try:
            return float(text)
        except ValueError:
            return text

    with path.open(newline="") as file:
        return [{k: number(v) for k, v in row.items()} for row in csv.DictReader(file)]


def group(rows: Iterable[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    groups: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return groups


def markdown(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    lines = ["| " + " | ".join(head) + " |"]
    lines.append("|" + "---|" * (lines[0].count("|") - 1))
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])


def mean(rows: list[Row], column: str) -> float:
    return st.fmean(row[column] for row in rows)


def accuracy(rows: list[Row]) -> str:
    """Errors per estimator, over tasks; each task's error is its mean over seeds."""
    out = []
    for name, own in group(rows, lambda r: r["estimator"]).items():
        tasks = {t: mean(g, "error") for t, g in group(own, lambda r: r["task"]).items()}
        known = {t: e for t, e in tasks.items() if t in TASKS}
        parts = {
            "all 40": known,
            "31 elliptical": {t: e for t, e in known.items() if TASKS[t].elliptical},
            "other 9": {t: e for t, e in known.items() if not TASKS[t].elliptical},
            "ours, 10": {t: e for t, e in tasks.items() if t not in TASKS},
        }
        cells = [f"{st.fmean(p.values()):.3f} ({len(p)})" if p else "–" for p in parts.values()]
        middle = f"{st.median(known.values()):.3f}" if known else "–"
        worst = max(known, key=lambda t: known[t]) if known else "–"
        largest = max((r["error"] for r in own if r["task"] in TASKS), default=float("nan"))
        inside = [r["low"] <= r["truth"] <= r["high"] for r in own]
        seeds = len({r["seed"] for r in own})
        cpu = [r["cpu_s"] for r in own]
        out.append([f"`{name}`", seeds, *cells, middle, f"{largest:.3f} ({worst})",
                    f"{st.median(cpu):.1f} / {max(cpu):.1f}",
                    f"{st.fmean(inside):.0%}"])  # fmt: skip
    head = ["estimator", "seeds", "mean error, of the 40 (tasks measured)", "of 31 elliptical",
            "of other 9", "ours, 10", "median", "largest (worst task)", "CPU-s, median / max",
            "truth in interval"]  # fmt: skip
    return markdown(head, out)


def per_task(rows: list[Row]) -> str:
    names = list(dict.fromkeys(r["estimator"] for r in rows))
    out = []
    for task, own in group(rows, lambda r: r["task"]).items():
        cells = []
        for name in names:
            these = [r for r in own if r["estimator"] == name]
            cells.append(f"{mean(these, 'value'):.3f}" if these else "–")
        chosen = sorted({r["chosen"] for r in own if r["estimator"] == "auto"})
        out.append([task, f"{own[0]['truth']:.3f}", *cells, ", ".join(chosen)])
    return markdown(["task", "truth", *(f"`{n}`" for n in names), "auto chose"], out)


def stairs(rows: list[Row]) -> str:
    levels = sorted({r["nats"] for r in rows})
    out = []
    for (name, cubic), own in group(rows, lambda r: (r["bound"], r["cubic"])).items():
        cells = []
        for level in levels:
            these = [r for r in own if r["nats"] == level]
            cells.append(
                f"{mean(these, 'bias'):+.2f} ± {mean(these, 'std'):.2f} ({mean(these, 'mse'):.2f})"
            )
        cpu = 1000 * sum(r["cpu_s"] for r in own) / sum(r["steps"] for r in own)
        steps = f"{own[0]['steps']:.0f}"
        seeds = len({r["seed"] for r in own})
        out.append([name, "cubic" if cubic else "", steps, seeds, *cells, f"{cpu:.1f}"])
    head = ["bound", "", "steps", "seeds", *(f"{v:.0f} nats" for v in levels), "CPU-ms / step"]
    return markdown(head, out)


def stairs_plot(rows: list[Row], path: Path) -> None:
    figure = Figure(figsize=(9, 4), layout="constrained")
    for index, cubic in enumerate((0, 1)):
        axes = figure.add_subplot(1, 2, index + 1)
        half = [r for r in rows if r["cubic"] == cubic]
        names = sorted({r["bound"] for r in rows})
        for name, own in sorted(group(half, lambda r: r["bound"]).items()):
            levels = group(own, lambda r: r["nats"])
            axes.errorbar(
                list(levels), [mean(g, "mean") for g in levels.values()],
                [mean(g, "std") for g in levels.values()], label=name, capsize=2,
                color=colormaps["tab20"](names.index(name)),
            )  # fmt: skip
        axes.plot([2, 10], [2, 10], "k--", lw=1)
        axes.set(title="cubic" if cubic else "Gaussian", xlabel="truth [nats]", ylabel="value")
        axes.set_ylim(-1, 15)  # some diverge; the table has their numbers
        if cubic:
            axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    save_figure(figure, path)


def _complete(rows: list[Row]) -> bool:
    return set(TASKS) <= {r["task"] for r in rows}


def tasks_plot(rows: list[Row], path: Path) -> None:
    names = list(dict.fromkeys(r["task"] for r in rows))[::-1]
    figure = Figure(figsize=(7, 0.18 * len(names) + 1), layout="constrained")
    axes = figure.add_subplot()
    whole = {n: g for n, g in group(rows, lambda r: r["estimator"]).items() if _complete(g)}
    for index, (name, own) in enumerate(whole.items()):
        axes.plot(
            [r["value"] - r["truth"] for r in own], [names.index(r["task"]) for r in own], "o",
            ms=4, alpha=0.6, label=name, color=colormaps["tab20"](index % 20),
        )  # fmt: skip
    axes.axvline(0, color="k", lw=1)
    axes.set_xscale("symlog", linthresh=0.1)
    axes.set_yticks(range(len(names)), names, fontsize=6)
    axes.set_xlabel("value - truth [nats]")
    figure.legend(fontsize=7, loc="outside upper center", ncols=8)
    save_figure(figure, path)


def against_peers(rows: list[Row]) -> str:
    out = []
    cases = group(rows, lambda r: (r["task"], r["estimator"]))
    for (task, estimator), own in cases.items():
        ours = [r for r in own if r["package"] == "ours"]
        for package, theirs in group(own, lambda r: r["package"]).items():
            if package == "ours" or not ours:
                continue
            ratio = mean(theirs, "cpu_s") / mean(ours, "cpu_s")
            out.append([task, estimator, package, f"{mean(ours, 'error'):.4f}",
                        f"{mean(theirs, 'error'):.4f}", f"{mean(ours, 'cpu_s'):.3f}",
                        f"{mean(theirs, 'cpu_s'):.3f}", f"{ratio:.1f}"])  # fmt: skip
    head = ["task", "estimator", "peer", "our error", "its error", "our CPU-s", "its CPU-s",
            "its / ours"]  # fmt: skip
    return markdown(head, out)


def checked(rows: list[Row]) -> str:
    out = []
    for (case, name), own in group(rows, lambda r: (r["case"], r["estimator"])).items():
        errors = [abs(r["value"] - r["truth"]) for r in own]
        intervals = [r for r in own if r["high"] != "" and r["chosen"] != ""]
        inside = [r["low"] <= r["truth"] <= r["high"] for r in intervals]
        out.append([case, name, len(own), f"{mean(own, 'truth'):.4g}", f"{mean(own, 'value'):.4g}",
                    f"{st.fmean(errors):.2g}", f"{max(errors):.2g}",
                    f"{st.fmean(inside):.0%}" if inside else "–",
                    f"{mean(own, 'cpu_s'):.2f}"])  # fmt: skip
    head = ["case", "estimator", "seeds", "truth", "mean value", "mean error", "largest error",
            "truth in interval", "CPU-s"]  # fmt: skip
    return markdown(head, out)


def broken_bounds(rows: list[Row]) -> str:
    """Bounds beyond the truth by more than 3 standard errors of the held-out samples."""
    out = []
    for (kind, name), own in group(rows, lambda r: (r["case"], r["estimator"])).items():
        sign = 1 if kind == "lower" else -1
        beyond = [sign * (r["value"] - r["truth"]) > 3 * (r["high"] - r["low"]) / 3.92 for r in own]
        out.append([name, kind, len(own), f"{mean(own, 'value'):.3f}", f"{own[0]['truth']:.3f}",
                    f"{sum(beyond)} of {len(own)}"])  # fmt: skip
    return markdown(["estimator", "bound", "seeds", "mean", "truth", "beyond by 3 s.e."], out)


def scores(folder: Path) -> None:
    """`scores.csv`: what each estimator of the registry achieved, for the README's table."""
    found: dict[str, str] = {}
    for part in ("discrete", "mixed", "conditional", "tasks"):  # the last one that has it counts
        rows, key = read(folder / f"{part}.csv"), "case"
        if part == "tasks":
            rows, key = [r for r in rows if r["task"] in TASKS], "task"
        for name, own in group(rows, lambda r: r["estimator"]).items():
            errors = group(own, lambda r, key=key: r[key]).values()
            cases = [st.fmean(abs(r["value"] - r["truth"]) for r in case) for case in errors]
            error = st.fmean(cases)
            found[name] = f"{error:.3f} ({f'{len(cases)} of 40' if part == 'tasks' else part})"
    with (folder / "scores.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("estimator", "score"), *found.items()])


def write(folder: Path, checks: Iterable[str]) -> None:
    """REPORT.md and the plots from whatever has been measured so far."""
    rows = read(folder / "tasks.csv")
    parts = ["# Estimators of mutual information, measured", ""]
    if rows:
        parts += ["## Beyond Normal, and tasks of our own (10,000 samples, nats)", "",
                  accuracy(rows), "", "![tasks](tasks.png)", "", per_task(rows), ""]  # fmt: skip
        tasks_plot(rows, folder / "tasks.png")
    if rows := read(folder / "staircase.csv"):
        parts += ["## Staircase: bias ± deviation (mean squared error) of batches of 64", "",
                  stairs(rows), "", "![staircase](staircase.png)", ""]  # fmt: skip
        stairs_plot(rows, folder / "staircase.png")
    if rows := read(folder / "peers.csv"):
        parts += ["## Peers on the same samples", "", against_peers(rows), ""]
    for name in checks:
        if rows := read(folder / f"{name}.csv"):
            table = broken_bounds if name == "bounds" else checked
            parts += [f"## {name.capitalize()}", "", table(rows), ""]
    scores(folder)
    (folder / "REPORT.md").write_text("\n".join(parts))
