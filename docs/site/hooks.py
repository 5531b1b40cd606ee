"""What the documentation does not say twice: mkdocs calls this while it builds the pages.

A line `<!-- settings slim -->` of a page becomes the table that the code itself gives; functions
of `WRITERS` are what such a line may begin with. What lies outside of docs/ and is linked to
(README, CONTRIBUTING, the results with their pictures) is shown as part of the site, and formulas
become MathML, so that a page loads nothing from elsewhere.
"""

from __future__ import annotations

import fnmatch
import functools
import inspect
import json
import os
import posixpath
import re
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import gymnasium as gym
from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

import envs
from agents import AGENTS, AgentConfig
from agents.core import config as configuration

ROOT = Path(__file__).resolve().parents[2]
MIRROR = "repository"
"""Folder of the site that shows what lies outside of docs/."""
DIRECTIVE = re.compile(r"^<!-- (\w+)(.*?) -->$", re.M)
CODE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.M | re.S)
LINK = re.compile(r"\[([^\]]*)\]\((?!https?:|#)([^)\s#]+)(#[^)\s]*)?\)")


# --- what a line of a page may ask for -----------------------------------------------------------


def settings(agent: str) -> str:
    """Fields of an agent's configuration that not every agent has; `common` for those."""
    cls = AgentConfig if agent == "common" else AGENTS[agent].Config
    path = ROOT / "configs" / f"{agent}.yaml"
    paper = configuration.read_yaml(path) if path.exists() else {}
    shared = {
        row[0]: row[2] for row in configuration._rows(AgentConfig, "", _defaults(AgentConfig))
    }
    rows = []
    for name, kind, default, text in configuration._rows(cls, "", _defaults(cls)):
        if agent != "common" and shared.get(name) == default:
            continue
        differs = name in paper and str(paper[name]) != default
        chosen = f"{default}; `configs/{agent}.yaml`: {paper[name]}" if differs else default
        rows.append((f"`{name}`", kind, chosen, text))
    return _table(("setting", "type", "default", "meaning"), rows)


def _defaults(cls: type) -> dict[str, Any]:
    return configuration._defaults(cls)


def baselines(agent: str) -> str:
    """Configurations of an agent that are known by another name."""
    rows = []
    for path in sorted((ROOT / "configs" / "baselines").glob("*.yaml")):
        values = configuration.read_yaml(path)
        if values.pop("agent") == agent:
            what = path.read_text().splitlines()[0].lstrip("# ")
            given = ", ".join(f"`{key}={json.dumps(value)}`" for key, value in values.items())
            rows.append((f"`{path.stem}`", what, given.replace('"', "")))
    return _table(("name", "what", "settings"), rows)


def environments(*patterns: str) -> str:
    """Ids, shapes and lengths, from environments that are made for it."""
    names = [n for n in envs.ENVS if any(fnmatch.fnmatchcase(n, p) for p in patterns)]
    rows = []
    for name in names:
        env = envs.make(name, num_envs=1)
        what = _doc(_factory(name)).splitlines()[0] if len(names) <= 12 else ""
        observation, action = env.single_observation_space, env.single_action_space
        rows.append((f"`{name}`", _space(observation), _space(action), env.max_episode_steps, what))
        env.close()
    head = ("id", "observation", "action", "steps", "what")
    width = 5 if len({row[4] for row in rows}) == len(rows) else 4
    return _table(head[:width], [row[:width] for row in rows])


def _space(space: gym.Space) -> str:
    shape = "×".join(map(str, space.shape or ())) or "1"
    if isinstance(space, gym.spaces.Box):
        return f"{shape} {space.dtype}"
    if isinstance(space, gym.spaces.MultiDiscrete):
        return f"{shape}, each one of {int(space.nvec.max())}"
    return f"one of {space.n}" if isinstance(space, gym.spaces.Discrete) else str(space)


def arguments(name: str) -> str:
    """Arguments of an environment that not every environment has."""
    factory = envs.find(name)
    parameters = inspect.signature(factory).parameters
    rows = []
    made = _factory(name)  # a class may leave its arguments to the one that it extends
    documented = [
        _arguments(_doc(c)) for c in (inspect.getmro(made) if inspect.isclass(made) else [made])
    ]
    for key, text in next(filter(None, documented), []):
        if key in ("num_envs", "device", "seed") or key not in parameters:
            continue
        default = parameters[key].default
        shown = "required" if default is inspect.Parameter.empty else repr(default)
        rows.append((f"`{key}`", f"`{shown}`", text))
    if not rows:
        raise PluginError(f"{name}: no documented arguments")
    return _table(("argument", "default", "meaning"), rows)


def about(target: str) -> str:
    """The documentation of a class, function or module, without its arguments."""
    found = functools.reduce(
        lambda thing, name: getattr(thing, name, None) or __import__(
            f"{thing.__name__}.{name}", fromlist=[""]),
        target.split(".")[1:], __import__(target.split(".")[0]),
    )  # fmt: skip
    text = re.split(r"^(?:Args|Returns|Raises|Attributes):$", _doc(found), flags=re.M)[0]
    return text.replace("\n- ", "\n\n- ", 1).strip()


def result(area: str, file: str, heading: str = "") -> str:
    """A section of a folder of benchmarks/results, or all of a file but its title."""
    path = ROOT / "benchmarks" / "results" / area / f"{file}.md"
    text = path.read_text()
    if heading:
        parts = re.split(r"^(#+ .*)$", text, flags=re.M)
        titles = [title.lstrip("# ") for title in parts[1::2]]
        if heading not in titles:
            raise PluginError(f"{path}: no heading {heading!r}, expected one of {titles}")
        text = parts[2 * titles.index(heading) + 2]
    else:
        text = text.partition("\n")[2]
        text = re.sub(r"^(#+) ", r"#\1 ", text, flags=re.M)

    def moved(match: re.Match[str]) -> str:  # links count from the page that shows it
        target = posixpath.join("/benchmarks/results", area, match[2])
        return f"[{match[1]}]({target}{match[3] or ''})"

    return LINK.sub(moved, text).strip()


WRITERS: dict[str, Callable[..., str]] = {
    f.__name__: f for f in (settings, baselines, environments, arguments, about, result)
}


def _factory(name: str) -> Any:
    factory = envs.find(name)
    return getattr(factory, "func", factory)


def _doc(thing: Any) -> str:
    return inspect.getdoc(thing) or ""


def _arguments(text: str) -> list[tuple[str, str]]:
    """Names and texts of the section `Args:` of a docstring."""
    section = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)*)", text, re.M)
    found = re.findall(r"^ {4}(\S+): (.*(?:\n {5,}.*)*)", section[1] if section else "", re.M)
    return [(name.lstrip("*"), " ".join(meaning.split())) for name, meaning in found]


def _table(head: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    cells = ([str(cell).replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


# --- what mkdocs calls ---------------------------------------------------------------------------


def on_files(files: Any, config: Any) -> Any:
    """Add what lies outside of docs/, and the notebook as a page."""
    shown = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    for kind in ("md", "png", "csv"):
        shown += sorted((ROOT / "benchmarks" / "results").glob(f"*/*.{kind}"))
    for path in shown:
        name = f"{MIRROR}/{path.relative_to(ROOT).as_posix()}"
        files.append(File.generated(config, name, abs_src_path=str(path)))
    files.append(File.generated(config, "notebook.md", content=_notebook()))
    return files


def _notebook() -> str:
    """The cells of docs/notebook.ipynb, which is committed without outputs, and a link to it."""
    cells = json.loads((ROOT / "docs" / "notebook.ipynb").read_text())["cells"]
    texts = ["".join(cell["source"]) for cell in cells]
    code = [cell["cell_type"] == "code" for cell in cells]
    pieces = [f"```python\n{t}\n```" if c else t for t, c in zip(texts, code, strict=True)]
    pieces.insert(1, '<a href="notebook.ipynb" download>The notebook itself</a>')
    return "\n\n".join(pieces)


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Carry out directives, turn formulas into MathML, and let links stay within the site."""
    source = page.file.src_uri
    if not source.startswith(f"{MIRROR}/"):
        markdown = DIRECTIVE.sub(functools.partial(_write, source), markdown)
        pieces = CODE.split(markdown)
        markdown = "".join(p if i % 2 else _formulas(p) for i, p in enumerate(pieces))
    known = {file.src_uri for file in files}
    return LINK.sub(lambda match: _link(match, source, known), markdown)


def _write(source: str, match: re.Match[str]) -> str:
    name, rest = match[1], shlex.split(match[2])
    if name not in WRITERS:
        raise PluginError(f"{source}: unknown {match[0]}, expected one of {', '.join(WRITERS)}")
    return WRITERS[name](*rest)


def _formulas(text: str) -> str:
    def display(match: re.Match[str]) -> str:
        return f'<div class="formula">{convert(match[1].strip(), display="block")}</div>'

    text = re.sub(r"^\$\$(.+?)\$\$$", display, text, flags=re.M | re.S)
    # Markdown takes a line that begins with <math> for a block of its own.
    return re.sub(r"\$([^$\n]+)\$", lambda match: f"<span>{convert(match[1])}</span>", text)


def _link(match: re.Match[str], source: str, known: set[str]) -> str:
    """A link of a page, as it is on the site; only the text remains of one to source code."""
    text, target, anchor = match[1], match[2], match[3] or ""
    mirrored = source.startswith(f"{MIRROR}/")
    base = source.removeprefix(f"{MIRROR}/") if mirrored else f"docs/{source}"
    path = posixpath.normpath(posixpath.join(posixpath.dirname(base), target)).lstrip("/")
    inside = path.removeprefix("docs/") if path.startswith("docs/") else f"{MIRROR}/{path}"
    inside = re.sub(r"\.ipynb$", ".md", inside)
    if inside in known:
        return f"[{text}]({posixpath.relpath(inside, posixpath.dirname(source) or '.')}{anchor})"
    if not (ROOT / path).exists():
        raise PluginError(f"{source}: links to {target}, which is not there")
    return f"`{text}`" if text == path else text
