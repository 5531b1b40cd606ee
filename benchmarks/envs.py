"""Speed of the environments against a bare loop in C and against other libraries.

    python benchmarks/envs.py [part ...] [rounds=7]

Parts: `mujoco` (physics), `pixels` (images), `gpu` (the same on CUDA), `adapters` (other people's
environments), `replay` (memory), `particles` and `combat` (multi-agent worlds); all of them unless
some are named. A part is the module `envs_<part>` beside this file; one that lacks something here
(a GPU, a package that cannot be installed) is skipped with the reason.

Everything but `gpu` is measured in CPU-seconds of a process and its workers, in rounds that
alternate between us and the peer; `ratio` is the median over the rounds. Results: `speed.csv` (rows
of parts that were not measured again are kept), `speed.png` and the provenance in README.md, all
under benchmarks/results/envs.
"""

from __future__ import annotations

import csv
import importlib
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
HERE = Path(__file__).resolve().parent
# This file must not be found when the parts import our package `envs`.
sys.path[:] = [str(HERE.parent), *(p for p in sys.path if Path(p).resolve() != HERE), str(HERE)]

from common import Skipped, note, write_csv  # noqa: E402

RESULTS = HERE / "results" / "envs"
PARTS = ("mujoco", "pixels", "gpu", "adapters", "replay", "particles", "combat")


def measure(parts: list[str], rounds: int) -> None:
    """Measure some parts and renew their rows."""
    path = RESULTS / "speed.csv"
    rows: list[dict[str, Any]] = []
    if path.exists():
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    measured = []
    for part in parts:
        try:
            new = importlib.import_module(f"envs_{part}").measure(rounds)
        except Skipped as reason:
            print(f"{part}: skipped, {reason}")
            continue
        measured.append(part)
        rows = [row for row in rows if row["part"] != part] + new
        rows.sort(key=lambda row: PARTS.index(row["part"]))
        write_csv(path, rows)
    lines = (RESULTS / "README.md").read_text().splitlines()
    kept = [line for line in lines if not line.startswith("- `speed.csv`:")]
    (RESULTS / "README.md").write_text("\n".join(kept) + "\n")
    for part in measured:  # each part has its own date
        note(path, f"speed.csv, {part}")
    with path.open(newline="") as file:
        chart(list(csv.DictReader(file)), RESULTS / "speed.png")


def chart(rows: list[dict[str, str]], path: Path) -> None:
    """Ratios to peers as bars on a log axis, with the targets; the C loop is the limit, at 1."""
    from matplotlib.figure import Figure

    rows = [row for row in rows if row["ratio"]][::-1]
    figure = Figure(figsize=(9, 0.8 + 0.27 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    parts = list(dict.fromkeys(row["part"] for row in rows))
    colours = {part: f"C{PARTS.index(part)}" for part in parts}
    for y, row in enumerate(rows):
        ratio = float(row["ratio"])
        axes.barh(y, ratio - 0.01, left=0.01, color=colours[row["part"]], height=0.7)
        target = float(row["target"] or 0)
        axes.text(max(ratio, target, 1) * 1.05, y, f"{ratio:.2g}", va="center", fontsize=7)
        if target:
            axes.plot([target] * 2, [y - 0.45, y + 0.45], color="black", linewidth=1.5)
    labels = [f"{row['what']}, {row['num_envs']} | {row['peer']}" for row in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=7)
    axes.axvline(1, color="red", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlim(0.1, max(float(row["ratio"]) for row in rows) * 2)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.set_xlabel(
        "speed relative to the peer (log); black: target; red: as fast as the peer,\n"
        "which is the physical limit where the peer is the C loop",
        fontsize=8,
    )
    figure.savefig(path, dpi=130)


def main(arguments: list[str]) -> None:
    parts, rounds = [], 7
    for argument in arguments:
        if argument.startswith("rounds="):
            rounds = int(argument.removeprefix("rounds="))
        elif argument in PARTS:
            parts.append(argument)
        else:
            sys.exit(f"{argument!r}: expected rounds=<n> or one of {', '.join(PARTS)}")
    if rounds < 1:
        sys.exit(f"rounds={rounds}: expected at least 1")
    measure(parts or [part for part in PARTS if (HERE / f"envs_{part}.py").exists()], rounds)


if __name__ == "__main__":
    main(sys.argv[1:])
