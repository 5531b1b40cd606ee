"""Other people's `agents`, `envs` and `mi` in one environment with ours, as the README says.

Fast: directories as `pip` leaves them, since files of the same name are those of who came last.
`-m full`: real wheels from pip's index, see benchmarks/installation.py.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from snippets import ROOT

import envs

THEIRS = {"agents": "class Runner: ...\n", "envs": "def env(): ...\n", "mi": "# nothing\n"}
REPAIR = "pip install --force-reinstall --no-deps infomax-rl"


@pytest.fixture
def packages(tmp_path) -> Path:
    """Our wheel's files, as in a site-packages directory."""
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("agents", "envs", "mi"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    command = tmp_path / "agents" / "command"
    command.mkdir()
    shutil.copy(ROOT / "train.py", command)
    shutil.copytree(ROOT / "configs", command / "configs")
    return tmp_path


def python(packages: Path, *arguments: str) -> tuple[int, str, str]:
    """Exit code, output and last line of errors.

    With `-S` nothing else is on the path: this environment's own (editable) infomax-rl would stand
    in for what is missing. It is enough for what has to fail before torch is imported.
    """
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=300, cwd="/",
        env={"PYTHONPATH": str(packages), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return done.returncode, done.stdout, (done.stderr.strip().splitlines() or [""])[-1]


def test_the_wheels_command_finds_its_configurations(packages):
    code, out, error = python(packages, "-m", "agents", "list")
    assert code == 0, error
    assert "slim-single-critic" in out  # of configs/baselines


def test_the_wheels_files_are_those_this_test_copies():
    text = (ROOT / "pyproject.toml").read_text()
    assert 'packages = ["agents", "envs", "mi"]' in text
    assert '"train.py" = "agents/command/train.py"' in text
    assert '"configs" = "agents/command/configs"' in text


@pytest.mark.parametrize("name", ["envs", "mi"])
def test_theirs_over_ours_is_named(packages, name):
    (packages / name / "__init__.py").write_text(THEIRS[name])
    code, _, error = python(packages, "-S", "-c", "import agents")
    assert code == 1
    assert error.startswith(f"ImportError: infomax-rl needs its own package '{name}', but")
    assert f"{name}/__init__.py is imported instead" in error
    assert REPAIR in error


@pytest.mark.parametrize("name", ["envs", "mi"])
def test_theirs_uninstalled_took_ours_along(packages, name):
    (packages / name / "__init__.py").unlink()
    code, _, error = python(packages, "-S", "-c", "import agents")
    assert code == 1
    assert f"'{name}', which is not installed or has lost its __init__.py" in error
    assert REPAIR in error


@pytest.mark.parametrize("gone", [False, True])
def test_a_foreign_agents_over_ours_is_named_by_the_command(packages, gone):
    """`import agents` cannot tell, as ours never runs; the README's line and the command do."""
    (packages / "agents" / "__init__.py").write_text(THEIRS["agents"])
    if gone:
        (packages / "agents" / "__init__.py").unlink()
    code, _, error = python(packages, "-S", "-m", "agents", "slim", "--help")
    assert code == 2
    assert error.startswith("error: `agents` is ")
    assert REPAIR in error
    (line,) = re.findall(r"python -c \"(import agents; .*)\"", (ROOT / "README.md").read_text())
    code, _, error = python(packages, "-S", "-c", line)
    assert code == 1
    assert "has no attribute 'AGENTS'" in error


def test_the_suite_without_dm_control_says_what_to_do(monkeypatch):
    """Python 3.13 installs us without it."""
    monkeypatch.setattr("envs.suite.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install --no-deps dm-control"):
        envs.make("dmc/walker-walk")


def test_a_python_that_is_not_here_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import installation

    shim = tmp_path / "python3.12"  # of a version manager that has no such version
    shim.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o755)
    found = installation.find([sys.executable, "python3.99", str(shim)])
    assert found == {sys.executable: platform.python_version()}
    assert capsys.readouterr().out.splitlines() == [
        f"{python}: not here, so nothing is tried with it" for python in ("python3.99", shim)
    ]


@pytest.mark.full
def test_wheel_and_checkout_beside_the_real_ones(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import installation

    rows = installation.check(installation.PYTHONS, tmp_path)
    assert len(rows) >= 40
    assert not [row for row in rows if row["as_expected"] == "no"]
