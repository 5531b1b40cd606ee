"""What was measured, on one page: python benchmarks/gallery.py [runs …] [out=runs/gallery.html]

For each folder of benchmarks/results its headline table, its pictures and videos, and folded below
them what its README says and its REPORT lists; then what the given directories of runs left
(videos, curves). Nothing is measured here.
"""

from __future__ import annotations

import base64
import re
import sys
from pathlib import Path

import markdown

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from agents.core.config import ConfigError
from agents.core.report import find_runs, page, picture, report_body, video

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TITLES = {
    "slim": "SLIM: skills on the tabletop",
    "masd": "MASD: skills of a team",
    "acorm": "ACORM: roles of a team",
    "corro": "CORRO: task codes from offline data",
    "infopower": "InfoPower: world models of pixels",
    "mi": "Estimators of mutual information",
    "envs": "Environments: speed",
    "installation": "Installations",
    "trust": "When things go wrong",
    "scale": "Many processes",
}
HEADLINES = {
    "acorm": ("REPORT", "2s3z, 80,000 environment steps"),
    "infopower": ("README", ""),
    "trust": ("README", ""),
    "scale": ("README", ""),
}
"""File and beginning of the heading of a headline table that is not the first of REPORT."""


def first_table(text: str, heading: str = "") -> tuple[str, str]:
    """The first Markdown table below a heading that begins so, with the last heading before it.

    ("", "") where there is none.
    """
    found = ""
    for part in re.split(r"^(?=#+ )", text, flags=re.M):
        title = re.match(r"#+ (.*)", part)
        found = title[1] if title else found
        match = re.search(r"^\|.*\n\|[ :|-]+\n(\|.*\n?)+", part, re.M)
        if match is not None and found.startswith(heading):
            return found, match.group()
    return "", ""


def render(text: str, folder: Path) -> str:
    """Markdown as HTML whose pictures are inside, and which links to no other file."""
    body = markdown.markdown(text, extensions=["tables", "fenced_code"])

    def embed(match: re.Match[str]) -> str:
        data = base64.b64encode((folder / match.group(1)).read_bytes()).decode()
        return f'src="data:image/png;base64,{data}"'

    body = re.sub(r'src="(?!data:)([^"]+\.png)"', embed, body)
    body = re.sub(r'<a href="(?!https?:)[^"]*">(.*?)</a>', r"\1", body, flags=re.S)
    return body.replace("<table>", '<div class="wide"><table>').replace(
        "</table>", "</table></div>"
    )


def section(name: str, title: str) -> str:
    """Everything about one folder of results."""
    folder = RESULTS / name
    texts = {file.stem: file.read_text() for file in sorted(folder.glob("*.md"))}
    parts = [f"<h2 id={name}>{title}</h2>"]
    chosen = [HEADLINES[name]] if name in HEADLINES else [("REPORT", ""), ("README", "")]
    for source, beginning in chosen:
        heading, table = first_table(texts.get(source, ""), beginning)
        if table:
            parts.append(render(f"### {heading}\n\n{table}", folder))
            break
    parts += [picture(p.read_bytes(), f"{name}/{p.name}") for p in sorted(folder.glob("*.png"))]
    parts += [video(p.read_bytes(), f"{name}/{p.name}") for p in sorted(folder.glob("*.mp4"))]
    for source, text in texts.items():
        text = re.sub(r"!\[[^]]*\]\([^)]*\)", "", text)  # shown above already
        parts.append(f"<details><summary>{source}</summary>{render(text, folder)}</details>")
    return "\n".join(parts)


def gallery(runs: list[Path]) -> str:
    """The page."""
    present = [name for name in TITLES if (RESULTS / name).is_dir()]
    unknown = {p.name for p in RESULTS.iterdir() if p.is_dir()} - set(TITLES)
    sections = {name: TITLES[name] for name in present} | {n: n for n in sorted(unknown)}
    navigation = "".join(f"<a href=#{n}>{title}</a>" for n, title in sections.items())
    intro = (
        "<p>Made from the committed results by <code>make report</code>. A table's heading says "
    )
    intro += "what it is of; misses and what was not measured stand in the texts below it.</p>"
    body = [f"<nav>{navigation}</nav>", intro, *(section(*item) for item in sections.items())]
    if runs:
        body.append(report_body(find_runs(runs)))
    return page("infomax-rl: what was measured", "\n".join(body))


def main(arguments: list[str]) -> None:
    output = next((a[4:] for a in arguments if a.startswith("out=")), "runs/gallery.html")
    path = Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    runs = [Path(a) for a in arguments if not a.startswith("out=")]
    try:
        text = gallery([run for run in runs if any(run.rglob("config.yaml"))])
    except ConfigError as error:
        sys.exit(f"error: {error}")
    path.write_text(text)
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main(sys.argv[1:])
