"""The documentation: its blocks run, its metrics are those that are logged, and the site builds."""

from __future__ import annotations

import fnmatch
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import browser
import numpy as np
import pytest
import torch
from snippets import ROOT, blocks, command_lines, small

import envs
import train
from agents import AGENTS
from agents.core import config as configuration
from agents.core.generate import DataConfig, generate

PAGES = sorted(path for path in (ROOT / "docs").rglob("*.md"))
METRICS = (ROOT / "docs" / "guides" / "metrics.md").read_text()
NAMES = {path.relative_to(ROOT / "docs").as_posix(): path for path in PAGES}


@pytest.mark.parametrize("name", [n for n, p in NAMES.items() if blocks(p.read_text(), "python")])
def test_python_blocks_of_a_page_run_in_order(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = types.ModuleType("page")  # dataclasses look for the module they are in
    monkeypatch.setitem(sys.modules, "page", page)
    torch.manual_seed(0)
    for block in blocks(NAMES[name].read_text(), "python"):
        exec(compile(block, f"docs/{name}", "exec"), vars(page))


@pytest.mark.parametrize("name", [n for n, p in NAMES.items() if command_lines(p.read_text())])
def test_commands_of_a_page_run_in_order(name, tmp_path, monkeypatch):
    """`train.py` and `mi` in this process, with small settings; there is no third command."""
    import mi.__main__

    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).normal(size=(3, 200))
    label = np.arange(200) % 3
    np.savez("data.npz", x=x[0] + label, y=x[0] + x[1], z=x[2], label=label)
    for words in command_lines(NAMES[name].read_text()):
        if words[:2] == ["python", "train.py"]:
            assert train.main(small(words[2:])) == 0, words
        else:
            assert words[:3] == ["python", "-m", "mi"], words
            assert mi.__main__.main(words[3:]) == 0, words


def test_the_warnings_that_are_explained_are_those_of_mi():
    page = NAMES["mi.md"].read_text()
    quoted = re.findall(r'^\| "(.+?)" \|', page, re.M)
    code = "".join(path.read_text() for path in (ROOT / "mi").rglob("*.py"))
    code = re.sub(r'"\s+f?"', "", code)  # texts that go on in the next line
    assert len(quoted) >= 6
    for text in quoted:
        for piece in text.replace("\\|", "|").split("…"):
            assert piece.strip() in code, piece


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("data")
    generate("point-robot", DataConfig(tasks=4, episodes=4, tier="mixed,ood", out=str(folder)))
    return str(folder)


def logged(name: str, dataset: str, report: Path | None) -> set[str]:
    """Names of all metrics of a smoke run of an agent or baseline, with its report or without."""
    layers, kind = train._layers(name)
    smoke = configuration.read_yaml(ROOT / "configs" / "smoke" / f"{kind}.yaml")
    smoke.pop("agent")
    smoke |= {"log_interval": 1, "eval_episodes": 32 if kind == "masd" else 4}
    smoke |= {"dataset": dataset} if kind == "corro" else {}
    agent = AGENTS[kind](config=configuration.build(AGENTS[kind].Config, [*layers, smoke]))
    names: set[str] = set()

    def look(agent, row) -> bool:
        names.update(row)
        return report is not None or agent.num_updates < 12

    agent.learn(callback=look)
    return names | (agent.evaluate() if report is None else agent.report(report)).keys()


def entries(section: str) -> list[re.Pattern[str]]:
    """Patterns of the names that the metrics page explains for an agent."""
    parts = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", METRICS, re.S | re.M))
    rows = re.findall(r"^\| (`.*?) \|", parts["Every agent"] + parts[section], re.M)
    names = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    return [re.compile(re.sub(r"<.*?>", ".+", name)) for name in names]


SECTIONS = {"slim": "SLIM", "masd": "MASD", "acorm": "ACORM", "acorm-mappo": "ACORM"}
SECTIONS |= {"corro": "CORRO", "infopower": "InfoPower"}
BASELINES = sorted(path.stem for path in (ROOT / "configs" / "baselines").glob("*.yaml"))


def unexplained(name: str, names: set[str]) -> set[str]:
    known = entries(SECTIONS[train._layers(name)[1]])
    plain = {name: name.removeprefix("random/") for name in names}
    return {n for n, short in plain.items() if not any(p.fullmatch(short) for p in known)}


@pytest.mark.parametrize("name", AGENTS)
def test_every_logged_metric_is_explained(name, dataset):
    names = logged(name, dataset, None)
    assert len(names) > 8
    assert not unexplained(name, names)


@pytest.mark.full
@pytest.mark.parametrize("name", [*AGENTS, *BASELINES])
def test_every_metric_of_reports_and_baselines_is_explained(name, dataset, tmp_path):
    assert not unexplained(name, logged(name, dataset, tmp_path))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("material", reason="needs the extra docs")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-f", "docs/site/mkdocs.yml",
         "-d", str(folder)],
        cwd=ROOT, capture_output=True, text=True, timeout=600,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_builds_without_warnings(site):
    page = (site / "agents" / "slim.html").read_text()
    assert "slim-single-critic, reach x 10" in page, "a table of the results is missing"
    assert "<code>violation_budget</code>" in page, "the table of settings is missing"
    assert "<math" in page
    assert "<!-- result" not in page
    for path in site.rglob("*.html"):
        text = path.read_text()
        loaded = re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"?(https?:[^\" >]+)", text)
        assert not loaded, (path, loaded)


def test_the_notebook_is_a_page_of_the_navigation(site):
    index, page = ((site / f"{name}.html").read_text() for name in ("index", "notebook"))
    navigation = re.findall(r"<nav.*?</nav>", index, re.S)
    assert any('href="notebook.html"' in part for part in navigation)
    assert "ipynb" not in index
    assert '<h1 id="information-in-data-and-skills-from-information">' in page
    assert page.count('<div class="highlight">') == 6
    assert 'href="repository/benchmarks/results/masd/index.html"' in page
    assert 'href="notebook.ipynb" download' in page
    assert (site / "notebook.ipynb").read_text() == (ROOT / "docs/notebook.ipynb").read_text()


@pytest.mark.parametrize("name", ["index", "agents/infopower", "environments/combat", "mi"])
def test_a_browser_shows_the_site_and_loads_nothing_else(name, site):
    with browser.tab(site / f"{name}.html") as (page, requests):
        assert page.locator("h1").is_visible()
        assert page.locator("main table").count() >= 1
        assert {url.partition(":")[0] for url in requests} == {"file"}
        assert all(url.startswith(site.as_uri()) for url in requests)


def test_every_agent_and_environment_has_a_page():
    texts = {name: path.read_text() for name, path in NAMES.items()}
    for name in AGENTS:
        assert any(f"<!-- settings {name} -->" in text for text in texts.values()), name
    shown = " ".join(texts.values())
    patterns = " ".join(re.findall(r"<!-- environments (.*?) -->", shown)).split()
    for id in envs.ENVS:
        elsewhere = id.startswith("pixels/dmc/")  # those of `dmc/*`, which have the table
        assert elsewhere or any(fnmatch.fnmatchcase(id, p) for p in patterns), id
    pictures = list((ROOT / "docs" / "environments").glob("*.png"))
    assert len(pictures) >= 6
    for picture in pictures:
        assert picture.stat().st_size < 150_000, picture
        assert f"]({picture.name})" in shown, picture


@pytest.mark.full
@pytest.mark.parametrize("name", ["tabletop", "locomotion", "particles", "combat", "pixels"])
def test_the_pictures_are_those_that_the_command_makes(name, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "site"))
    import pictures
    from PIL import Image

    pictures.PICTURES[name](tmp_path / "new.png")
    new, old = (
        np.asarray(Image.open(path).convert("RGB"), np.float32)
        for path in (tmp_path / "new.png", ROOT / "docs" / "environments" / f"{name}.png")
    )
    assert new.shape == old.shape
    assert np.abs(new - old).mean() < 2  # of 255: fonts and versions may differ a little


@pytest.mark.full
def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    pytest.importorskip("ipykernel", reason="needs the extra docs")
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    notebook = nbformat.read(ROOT / "docs" / "notebook.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit it without outputs"
    nbclient.NotebookClient(
        notebook, timeout=900, resources={"metadata": {"path": tmp_path}}
    ).execute()
    pictures = [o for c in notebook.cells for o in c.get("outputs", []) if "data" in o]
    assert sum("image/png" in output["data"] for output in pictures) >= 3
