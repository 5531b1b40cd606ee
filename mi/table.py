"""`python -m mi.table`: the README's tables of estimators and objectives, from the registries."""

from __future__ import annotations

import csv
from pathlib import Path

from mi.estimate import list_estimators
from mi.objectives import PUBLISHED

_SCORES = Path(__file__).parents[1] / "benchmarks" / "results" / "mi" / "scores.csv"
"""Mean absolute error [nats] of each, made by `python benchmarks/mi.py report`."""


def table() -> str:
    """Markdown, a row per estimator of `list_estimators()`, with its score in the benchmark."""
    rows = [
        "| `estimator=` | kind | takes | given z | value | reference | error [nats] (of what) |",
        "|---|---|---|---|---|---|---|",
    ]
    with _SCORES.open(newline="") as file:
        scores = {row["estimator"]: row["score"] for row in csv.DictReader(file)}
    for e in list_estimators():
        formula = e.formula.replace("|", "\\|")
        given = "yes" if e.conditional else ""
        rows.append(
            f"| `{e.name}` | {e.kind} | {e.variables} | {given} | {formula} | {e.reference} "
            f"| {scores.get(e.name, '')} |"
        )
    return "\n".join(rows)


def objectives() -> str:
    """Markdown, a row per publication of `mi.objectives.PUBLISHED`."""
    rows = ["| published objective | maximises | kind | here | use |", "|---|---|---|---|---|"]
    for p in PUBLISHED:
        here = ", ".join(f"`{name}`" for name in p.objects)
        use = "only a primitive: no class of its own" if p.only_primitive else p.use
        maximises = p.maximises.replace("|", "\\|")
        rows.append(f"| {p.paper} | {maximises} | {p.kind} | {here} | {use} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table(), objectives(), sep="\n\n")
