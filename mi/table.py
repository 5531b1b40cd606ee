"""`python -m mi.table`: the README's table of estimators, from the registry."""

from __future__ import annotations

from mi.estimate import list_estimators


def table() -> str:
    """Markdown, a row per estimator of `list_estimators()`."""
    rows = [
        "| `estimator=` | kind | takes | given z | value | reference |",
        "|---|---|---|---|---|---|",
    ]
    for e in list_estimators():
        formula = e.formula.replace("|", "\\|")
        given = "yes" if e.conditional else ""
        rows.append(
            f"| `{e.name}` | {e.kind} | {e.variables} | {given} | {formula} | {e.reference} |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
