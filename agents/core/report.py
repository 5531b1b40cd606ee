"""One HTML page about runs that holds everything it shows: it can be mailed, and loads nothing."""

from __future__ import annotations

import base64
import contextlib
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy import stats

from agents.core.config import ConfigError, read_yaml
from agents.core.log import read_metrics

MEDIA_LIMIT = 24 << 20  # [byte] of videos and pictures of runs on one page
_APART = ("seed", "device", "run", "agent", "env")
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2rem auto;
padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; } h2 { margin-top: 3rem; border-top: 1px solid var(--line);
padding-top: 1rem; } nav a { margin-right: 1rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: left;
white-space: nowrap; font-variant-numeric: tabular-nums; } tr:hover { background: var(--soft); }
img, video { max-width: 100%; background: white; }
figure { margin: 1rem 0; display: inline-block; } figcaption, small { color: gray; }
pre { overflow-x: auto; background: var(--soft); padding: .6rem; }
"""


@dataclass
class RunFiles:
    """What a run directory says."""

    directory: Path
    config: dict[str, Any]
    metrics: dict[str, list[float]]
    results: dict[str, float] | None
    """None as long as the run is not finished."""
    starts: list[dict[str, Any]]

    @property
    def steps(self) -> int:
        """Environment steps at the last row of metrics."""
        return int(self.metrics["timesteps"][-1]) if self.metrics else 0


@dataclass
class Group:
    """Runs that differ in their seed only."""

    label: str
    runs: list[RunFiles] = field(default_factory=list)

    @property
    def chosen(self) -> list[RunFiles]:
        """The finished ones, or all where none is."""
        return [run for run in self.runs if run.results is not None] or self.runs


def iqm(values: np.ndarray, resamples: int = 2000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Interquartile mean over seeds with its 95 % bootstrap interval, [P] each.

    Agarwal et al. 2021. Of one seed all three are its value.

    Args:
        values: one row per seed, [S, P].
        resamples: of the seeds.
    """
    rows = np.random.default_rng(0).integers(len(values), size=(resamples, len(values)))
    drawn = stats.trim_mean(values[rows], 0.25, axis=1)
    low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
    return np.asarray(stats.trim_mean(values, 0.25, axis=0)), low, high


def curve(runs: Sequence[RunFiles], name: str, points: int = 100) -> np.ndarray | None:
    """A metric over steps: step, IQM, low, high, [4, P], where all runs have it; None if never."""
    lines = []
    for run in runs:
        if name not in run.metrics:
            return None
        steps, values = (np.array(run.metrics[key]) for key in ("timesteps", name))
        logged = np.isfinite(values)
        if not logged.any():
            return None
        lines.append((steps[logged], values[logged]))
    first, last = max(s[0] for s, _ in lines), min(s[-1] for s, _ in lines)
    if last < first:
        return None
    grid = np.unique(np.linspace(first, last, points))
    return np.stack([grid, *iqm(np.stack([np.interp(grid, *line) for line in lines]))])


def find_runs(paths: Sequence[Path]) -> list[RunFiles]:
    """Every run in directories and below them.

    Raises:
        ConfigError: a path without any.
    """
    found: dict[Path, None] = {}
    for path in paths:
        below = {p.parent: None for p in sorted(path.rglob("config.yaml"))}
        if not below:
            raise ConfigError(f"report: no run in {path}; expected directories with a config.yaml")
        found |= below
    return [read_run(path) for path in found]


def read_run(directory: Path) -> RunFiles:
    """The files of a run.

    Raises:
        ConfigError: one of them is damaged.
    """
    try:
        metrics = directory / "metrics.csv"
        done, starts = directory / "done.json", directory / "starts.jsonl"
        return RunFiles(
            directory,
            read_yaml(directory / "config.yaml"),
            read_metrics(metrics) if metrics.exists() else {},
            json.loads(done.read_text()) if done.exists() else None,
            _whole_lines(starts.read_text()) if starts.exists() else [],
        )
    except (ValueError, OSError) as error:
        raise ConfigError(f"report: {directory}: cannot read the run: {error}") from None


def _whole_lines(text: str) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, without those that a full disk cut off."""
    found = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def group(runs: Sequence[RunFiles]) -> dict[str, list[Group]]:
    """Environment -> groups of runs, named by their agent and by what tells them apart."""
    families: dict[tuple[str, str], list[tuple[RunFiles, dict[str, Any]]]] = {}
    for run in runs:
        flat = _flat({k: v for k, v in run.config.items() if k not in _APART})
        family = str(run.config.get("env")), str(run.config.get("agent"))
        families.setdefault(family, []).append((run, flat))
    sections: dict[str, dict[str, Group]] = {}
    for (env, agent), members in families.items():
        keys = sorted({key for _, flat in members for key in flat})
        differing = [k for k in keys if len({repr(flat.get(k)) for _, flat in members}) > 1]
        groups = sections.setdefault(env, {})
        for run, flat in members:
            label = " ".join([agent, *(f"{key}={flat.get(key)}" for key in differing)])
            groups.setdefault(label, Group(label)).runs.append(run)
    return {env: list(groups.values()) for env, groups in sections.items()}


def report(paths: Sequence[Path]) -> str:
    """The page about all runs in directories.

    Raises:
        ConfigError: a path without runs, or damaged ones.
    """
    return page("Runs", report_body(find_runs(paths)))


def report_body(runs: Sequence[RunFiles]) -> str:
    """What a page says about runs."""
    sections = group(runs)
    media = Media(MEDIA_LIMIT)
    body = [
        f"<nav>{''.join(f'<a href=#{_anchor(env)}>{_text(env)}</a>' for env in sections)}</nav>"
    ]
    body.append(
        "<p>Lines and numbers are interquartile means over seeds, bands and brackets their 95 % "
        "bootstrap intervals (Agarwal et al. 2021); one seed has none. "
        "Finished runs only, where a group has any.</p>"
    )
    for env, groups in sections.items():
        body.append(f"<h2 id={_anchor(env)}>{_text(env)}</h2>")
        body += [results_table(groups), learning_curves(groups)]
        for one in groups:
            body += _group_details(one, media)
    if media.left_out:
        body.append(
            f"<p><small>{media.left_out} pictures and videos were left out, which would exceed "
            f"{MEDIA_LIMIT >> 20} MiB: see the run directories.</small></p>"
        )
    return "\n".join(body)


def results_table(groups: Sequence[Group]) -> str:
    """Final metrics, a row for each (`random/…` are a random policy's) and a column per group."""
    finished = [g for g in groups if g.chosen[0].results is not None]
    names = dict.fromkeys(k for g in finished for k in g.chosen[0].results or {})
    rows = []
    for name in names:
        cells: list[str] = []
        for one in finished:
            values = [(run.results or {}).get(name) for run in one.chosen]
            numbers = [v for v in values if isinstance(v, (int, float))]
            cells.append(interval(numbers) if len(numbers) == len(values) else "")
        rows.append([name, *cells])
    head = ["evaluation at the end", *(f"{g.label} (n={len(g.chosen)})" for g in finished)]
    return table(head, rows) if rows else "<p>No run is finished.</p>"


def interval(values: Sequence[float]) -> str:
    """`0.73 [0.65, 0.79]`; of one value that value."""
    centre, low, high = (float(v[0]) for v in iqm(np.array(values, dtype=float)[:, None]))
    return f"{centre:.4g}" + (f" [{low:.4g}, {high:.4g}]" if len(values) > 1 else "")


def learning_curves(groups: Sequence[Group], width: int = 4) -> str:
    """A picture with one panel per logged metric and one line with its band per group."""
    names = dict.fromkeys(
        name for g in groups for name in g.runs[0].metrics
        if name not in ("timesteps", "updates") and not name.startswith("time/")
    )  # fmt: skip
    panels = {
        name: [(g.label, c) for g in groups if (c := curve(g.chosen, name)) is not None]
        for name in names
    }
    panels = {name: lines for name, lines in panels.items() if lines}
    if not panels:
        return "<p>Nothing was logged yet.</p>"
    height = math.ceil(len(panels) / width)
    figure = Figure(figsize=(3 * width, 2.2 * height + 0.5), layout="constrained")
    colours = {g.label: f"C{i % 10}" for i, g in enumerate(groups)}
    for i, (name, lines) in enumerate(panels.items()):
        axes = figure.add_subplot(height, width, i + 1)
        for label, (steps, centre, low, high) in lines:
            axes.plot(steps, centre, color=colours[label], linewidth=1.2, label=label)
            axes.fill_between(steps, low, high, color=colours[label], alpha=0.2, linewidth=0)
        axes.set_title(name, fontsize=8)
        axes.tick_params(labelsize=6)
        axes.ticklabel_format(axis="x", style="sci", scilimits=(0, 3))
        axes.grid(alpha=0.3)
    known = {}
    for axes in figure.axes:
        known |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(known.values(), known.keys(), loc="outside lower center", fontsize=8, ncols=2)
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    return picture(buffer.getvalue(), "learning curves over environment steps")


def _group_details(one: Group, media: Media) -> list[str]:
    """Commands, versions, configuration and what the first run shows."""
    first = min(one.chosen, key=lambda run: run.config.get("seed", 0))
    rows, versions = [], {}
    for run in sorted(one.runs, key=lambda run: run.config.get("seed", 0)):
        last = run.starts[-1] if run.starts else {}
        versions |= last.get("versions", {})
        command = last.get("command", f"python train.py resume run={run.directory}")
        state = "finished" if run.results is not None else "unfinished"
        rows.append(
            [str(run.config.get("seed")), state, f"{run.steps:,}", len(run.starts), command]
        )
    parts = [
        f"<h3>{_text(one.label)}</h3>",
        table(["seed", "", "steps", "starts", "command"], rows),
    ]
    files = [p for kind in ("plots", "video") for p in sorted((first.directory / kind).glob("*"))]
    parts += [media.add(path) for path in files if path.name != "learning.png"]
    written = json.dumps(first.config, indent=2)
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    parts.append(f"<p><small>{_text(listed)}</small></p>" if listed else "")
    parts.append(f"<details><summary>configuration</summary><pre>{_text(written)}</pre></details>")
    return parts


class Media:
    """Pictures and videos for a page, up to a limit [byte]."""

    def __init__(self, limit: int) -> None:
        self.left, self.left_out = limit, 0

    def add(self, path: Path) -> str:
        """A figure with a PNG or MP4; "" where it is something else or there is no room."""
        if path.suffix not in (".png", ".mp4"):
            return ""
        size = path.stat().st_size
        if size > self.left:
            self.left_out += 1
            return ""
        self.left -= size
        show = picture if path.suffix == ".png" else video
        return show(path.read_bytes(), f"{path.parent.parent.name}: {path.name}")


# ---- pieces of a page


def page(title: str, body: str) -> str:
    """A whole page; its policy forbids the browser to load anything."""
    policy = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width">'
        f"<style>{_STYLE}</style></head><body><h1>{_text(title)}</h1>{body}</body></html>\n"
    )


def table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """A table of texts."""
    cells = ["".join(f"<td>{_text(cell)}</td>" for cell in row) for row in rows]
    top = "".join(f"<th>{_text(cell)}</th>" for cell in head)
    lines = "".join(f"<tr>{row}</tr>" for row in cells)
    return f'<div class="wide"><table><tr>{top}</tr>{lines}</table></div>'


def picture(png: bytes, caption: str) -> str:
    """A PNG with its caption."""
    data = base64.b64encode(png).decode()
    return _figure(f'<img alt="{_text(caption)}" src="data:image/png;base64,{data}">', caption)


def video(mp4: bytes, caption: str) -> str:
    """An MP4 that repeats, with its caption."""
    data = base64.b64encode(mp4).decode()
    tag = f'<video controls loop muted autoplay src="data:video/mp4;base64,{data}"></video>'
    return _figure(tag, caption)


def _figure(content: str, caption: str) -> str:
    return f"<figure>{content}<figcaption>{_text(caption)}</figcaption></figure>"


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


def _anchor(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        inner = isinstance(value, Mapping) and value
        flat |= _flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return flat
