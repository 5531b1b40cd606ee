"""Mutual information, measured: `python benchmarks/mi.py tasks --seeds 3`, and so on.

Every command appends one row per (task, seed, estimator) to a CSV under `benchmarks/results/mi` and
skips the rows that are there, so that it can be stopped and called again. `report` makes tables and
plots of them.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mi
from benchmarks.common import ROOT, note
from benchmarks.mi_checks import CHECKS
from benchmarks.mi_peers import OURS, PEERS, ask
from benchmarks.mi_report import write
from benchmarks.mi_staircase import BOUNDS, LEVELS, climb
from benchmarks.mi_tasks import TASKS, Task, extra

RESULTS = ROOT / "benchmarks" / "results" / "mi"
SIZE = 10_000
Row = dict[str, Any]


class Ledger:
    """A CSV that grows by rows, each identified by its first columns.

    Args:
        name: of the file.
        keys: columns that identify a row.
        values: other columns.
    """

    def __init__(self, name: str, keys: tuple[str, ...], values: tuple[str, ...]) -> None:
        self.path, self.keys, self.columns = RESULTS / f"{name}.csv", keys, (*keys, *values)
        self._noted = False

    def missing(self, *key: Any) -> bool:
        """Whether no row has this key yet; others may be writing too."""
        if not self.path.exists():
            return True
        with self.path.open(newline="") as file:
            done = {tuple(row[k] for k in self.keys) for row in csv.DictReader(file)}
        return tuple(map(_shown, key)) not in done

    def add(self, **row: Any) -> None:
        """Append a row and, once, note the command that made it."""
        if not self.missing(*(row[k] for k in self.keys)):
            return
        first = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, self.columns, restval="", lineterminator="\n")
            if first:
                writer.writeheader()
            writer.writerow({k: _shown(v) for k, v in row.items()})
        if not self._noted:
            note(self.path)
        self._noted = True


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


ESTIMATE = ("truth", "value", "error", "low", "high", "kind", "chosen", "cpu_s")


def estimated(task: Task, seed: int, estimator: str) -> tuple[Row, dict[str, float]]:
    """A row and diagnostics of `estimate_mi` on a task; `quick` is auto without a network."""
    x, y = task.draw(SIZE, seed)
    options = {"quick": True} if estimator == "quick" else {"estimator": estimator}
    start = time.process_time()
    found = mi.estimate_mi(x, y, **options)  # type: ignore[arg-type]
    cpu = time.process_time() - start
    return {
        "task": task.name, "seed": seed, "estimator": estimator, "truth": task.truth,
        "value": found.value, "error": abs(found.value - task.truth), "low": found.interval[0],
        "high": found.interval[1], "kind": found.kind, "chosen": found.estimator, "cpu_s": cpu,
    }, found.diagnostics  # fmt: skip


def tasks(options: argparse.Namespace) -> None:
    """The 40 tasks of "Beyond Normal" and those of our own."""
    ledger = Ledger("tasks", ("task", "seed", "estimator"), ESTIMATE)
    chosen = (TASKS if options.suite != "extra" else {}) | (
        extra() if options.suite != "bmi" else {}
    )
    ordered = [t for word in options.only for name, t in chosen.items() if word in name]
    for seed in range(options.first, options.seeds):
        for task in ordered:
            same = False
            for estimator in options.estimators:
                if not ledger.missing(task.name, seed, estimator):
                    continue
                if not (same and estimator == "quick"):
                    row, diagnostics = estimated(task, seed, estimator)
                # Where auto has trained no network, quick is the same computation.
                same = estimator == "auto" and "network" not in diagnostics
                ledger.add(**row | {"estimator": estimator})
                print(f"{task.name} {seed} {estimator}: {row['value']:.3f} of {task.truth:.3f} "
                      f"by {row['chosen']}, {row['cpu_s']:.1f} s", flush=True)  # fmt: skip


def checks(options: argparse.Namespace) -> None:
    """Discrete, mixed, conditional, multivariate, capacity, bounds, coverage, numerics …"""
    for part in CHECKS:
        if options.part not in (part.__name__, "all"):
            continue
        columns = ("truth", "value", "low", "high", "chosen", "cpu_s")
        ledger = Ledger(part.__name__, ("case", "seed", "estimator"), columns)
        for case, seed, estimator, truth, measure in part(options.seeds):
            if not ledger.missing(case, seed, estimator):
                continue
            start = time.process_time()
            found = measure()
            row = {"case": case, "seed": seed, "estimator": estimator, "truth": truth,
                   "cpu_s": time.process_time() - start}  # fmt: skip
            if isinstance(found, mi.MIResult):
                low, high = found.interval
                row |= {"value": found.value, "low": low, "high": high, "chosen": found.estimator}
            elif isinstance(found, mi.Capacity):
                row |= {"value": found.value, "low": found.value, "high": found.value + found.gap}
            else:
                row["value"] = found
            ledger.add(**row)
            print(f"{part.__name__}: {case}, {estimator}, seed {seed}: {row['value']:.5g} of "
                  f"{truth:.5g}, {row['cpu_s']:.1f} s", flush=True)  # fmt: skip


def staircase(options: argparse.Namespace) -> None:
    """20-d Gaussian pairs and their cubes, 2 to 10 nats."""
    columns = ("steps", "mean", "bias", "std", "mse", "cpu_s")
    ledger = Ledger("staircase", ("bound", "cubic", "seed", "nats"), columns)
    for seed in range(options.seeds):
        for name in options.bounds:
            for cubic in (False, True):
                if ledger.missing(name, int(cubic), seed, LEVELS[-1]):
                    for row in climb(name, cubic, seed, options.steps):
                        ledger.add(**row)
                    print(f"{name}, cubic {cubic}, seed {seed}", flush=True)


def peers(options: argparse.Namespace) -> None:
    """Ours beside bmi, torch-mist and NPEET on the same samples: error and CPU-seconds."""
    columns = ("truth", "value", "error", "cpu_s")
    ledger = Ledger("peers", ("task", "seed", "package", "estimator"), columns)
    for seed in range(options.seeds):
        for name in options.tasks:
            task = TASKS[name]
            x, y = task.draw(SIZE, seed)
            for package, estimator in [(p, e) for p, e in PEERS if e in options.estimators]:
                for who in (package, "ours"):
                    if not ledger.missing(name, seed, who, estimator):
                        continue
                    if who == "ours":
                        row, _ = estimated(task, seed, OURS[estimator])
                        value, cpu = row["value"], row["cpu_s"]
                    else:
                        value, cpu = ask(package, estimator, x, y, seed)
                    ledger.add(task=name, seed=seed, package=who, estimator=estimator,
                               truth=task.truth, value=value, error=abs(value - task.truth),
                               cpu_s=cpu)  # fmt: skip
                    print(f"{name} {who} {estimator}: {value:.3f} of {task.truth:.3f}, "
                          f"{cpu:.2f} s", flush=True)  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("tasks", help=tasks.__doc__)
    command.add_argument("--seeds", type=int, default=10)
    command.add_argument("--first", type=int, default=0, help="first seed")
    command.add_argument("--only", nargs="+", default=[""], help="parts of names, in this order")
    command.add_argument("--suite", choices=["bmi", "extra", "all"], default="all")
    command.add_argument("--estimators", nargs="+", default=["auto", "quick"])
    command.set_defaults(run=tasks)
    command = commands.add_parser("checks", help=checks.__doc__)
    command.add_argument("part", choices=["all", *(part.__name__ for part in CHECKS)])
    command.add_argument("--seeds", type=int, default=20)
    command.set_defaults(run=checks)
    command = commands.add_parser("staircase", help=staircase.__doc__)
    command.add_argument("--bounds", nargs="+", choices=BOUNDS, default=list(BOUNDS))
    command.add_argument("--seeds", type=int, default=1)
    command.add_argument("--steps", type=int, default=4000, help="per level")
    command.set_defaults(run=staircase)
    command = commands.add_parser("peers", help=peers.__doc__)
    command.add_argument("--tasks", nargs="+", default=["1v1-normal", "dense-5-5", "dense-25-25"])
    command.add_argument("--estimators", nargs="+", choices=OURS, default=list(OURS))
    command.add_argument("--seeds", type=int, default=1)
    command.set_defaults(run=peers)
    command = commands.add_parser("report", help="tables and plots of what there is")
    command.set_defaults(run=lambda _: write(RESULTS, [part.__name__ for part in CHECKS]))
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
