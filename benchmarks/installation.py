"""Does an installation work: python benchmarks/installation.py [python3.12 …] [into=<directory>]

For each Python (3.11, 3.12 and 3.13 unless said; those that are not here are named): a fresh
virtual environment, our wheel in it with the versions of constraints.txt, and a smoke run in an
empty directory far from any checkout; then the same with an editable installation. In the first
Python's environment, too: `openai-agents`, `envs` and `mi` of PyPI beside us, before and after us,
and uninstalled again. Every case says what has to happen; one that does not is an error at the end.
Environments that exist in `into` are used as they are; versions and outcomes go to
benchmarks/results/installation. Needs pip's index, and about 2 GB for a Python, more where torch
is a CUDA build.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import common

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = str(ROOT / "constraints.txt")
PYTHONS = ("python3.11", "python3.12", "python3.13")
NEIGHBOURS = {"openai-agents": "agents", "envs": "envs", "mi": "mi"}
SMOKE = "-m agents smoke/slim total_timesteps=400 eval_episodes=8"
HELP = "-m agents slim --help"
WHERE = "-c 'import agents; print(agents.AGENTS, agents.__file__)'"  # the README's line
SUITE = "-c 'import envs; print(envs.make(\"dmc/cartpole-swingup\", num_envs=2).reset()[0].shape)'"
REPAIR = "--force-reinstall --no-deps infomax-rl"


class Environment:
    """A virtual environment, and an empty directory from which its Python is called."""

    def __init__(self, python: str, folder: Path) -> None:
        self.python = folder / "bin" / "python"
        self.fresh = not self.python.exists()
        if self.fresh:
            subprocess.run([python, "-m", "venv", str(folder)], check=True)
        self.version = self.call("-c 'import platform; print(platform.python_version())'")[1]

    def call(self, line: str, script: Path | None = None) -> tuple[int, str]:
        """Exit code of `python <line>` in an empty directory, and the last line of what it says."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
        with tempfile.TemporaryDirectory() as empty:
            arguments = re.findall(r"'[^']*'|\S+", line)
            done = subprocess.run(
                [str(self.python), *([str(script)] if script else []),
                 *(a.strip("'") for a in arguments)],
                cwd=empty, capture_output=True, text=True, timeout=1800,
                env={**clean, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
            said = done.stderr if done.returncode else done.stdout
            lines = said.strip().splitlines() or [""]
            return done.returncode, lines[-1].strip().replace(empty, "<empty directory>")

    def pip(self, *arguments: str) -> None:
        """Pip in this environment; its errors are the script's."""
        line = [str(self.python), "-m", "pip", *arguments]
        done = subprocess.run(line, capture_output=True, text=True, timeout=3600)
        if done.returncode:
            raise RuntimeError(f"{' '.join(line)}: {done.stderr[-1500:]}")


def installed(env: Environment, install: str, quick: bool) -> list[dict[str, Any]]:
    """What has to work wherever we are installed, from an empty directory.

    Only the smoke run and a task of dm_control if `quick`.
    """
    torch = env.call("-c 'import torch; print(torch.__version__)'")[1]
    cases = {
        "smoke run": (SMOKE, 0, "skills.mp4"),
        "a baseline's configuration": (
            "-m agents lsd env=tabletop total_timesteps=400 num_envs=8 horizon=10 "
            "discovery_updates=2 eval_episodes=8",
            0,
            "skills.mp4",
        ),
        "a sweep": (
            "-m agents sweep smoke/masd seed=0..1 --jobs 2 total_timesteps=400 eval_episodes=32",
            0,
            "2 runs: 2 finished",
        ),
        "estimators alone": (
            "-c 'import mi, sys; print(mi.estimate_mi, \"gymnasium\" in sys.modules)'",
            0,
            "False",
        ),
        "a mistake": ("-m agents slim lrr=1", 2, "error: unknown key 'lrr'"),
    }
    rows = []

    def run(case: str, line: str, code: int, text: str) -> None:
        got, last = env.call(line)
        good = got == code and text in last
        rows.append(_row(env, torch, install, case, f"{code}: … {text}", good, got, last))

    for case, expected in list(cases.items())[: 1 if quick else None]:
        run(case, *expected)
    lacking = tuple(map(int, env.version.split(".")[:2])) >= (3, 13)  # see pyproject.toml
    if lacking:
        run("dmc/cartpole-swingup without dm-control", SUITE, 1, "pip install --no-deps dm-control")
        env.pip("install", "-q", "--no-deps", "-c", CONSTRAINTS, "dm-control")
    run("dmc/cartpole-swingup", SUITE, 0, "torch.Size([2, 5])")
    if lacking:
        env.pip("uninstall", "-q", "-y", "dm-control")
    return rows


def beside(env: Environment, wheel: Path, install: str) -> list[dict[str, Any]]:
    """Distributions of the same names, before us, after us, and uninstalled again."""
    torch = env.call("-c 'import torch; print(torch.__version__)'")[1]
    ours = ("-e", str(ROOT)) if install == "editable" else (str(wheel),)
    rows = []
    for name, package in NEIGHBOURS.items():
        reinstall = ("install", "-q", "--force-reinstall", "--no-deps", *ours)
        # openai-agents imports what it depends on; the others' need years-old packages.
        alone = () if name == "openai-agents" else ("--no-deps",)
        theirs = ("install", "-q", *alone, "-c", CONSTRAINTS, name)
        for case in ("ours last", "theirs last", "theirs uninstalled"):
            if case == "theirs uninstalled":
                env.pip("uninstall", "-q", "-y", name)
            else:
                env.pip("uninstall", "-q", "-y", name, "infomax-rl")
                for step in (theirs, reinstall) if case == "ours last" else (reinstall, theirs):
                    env.pip(*step)
            for what, line in (("command", HELP), ("import", WHERE)):
                expected, good = _expected(package, case, what, install)
                got, last = env.call(line)
                passed = (got == 0) == good and expected in last
                rows.append(
                    _row(env, torch, install, f"{name}, {case}: {what}",
                         f"{'works' if good else 'fails'}: … {expected}", passed, got, last)
                )  # fmt: skip
    env.pip("install", "-q", "--force-reinstall", "--no-deps", *ours)
    return rows


def _expected(package: str, case: str, what: str, install: str) -> tuple[str, bool]:
    """A part of the last line, and whether all is well."""
    # A checkout is found after what is installed, in whatever order; files of one name in one
    # directory are the last one's, and gone with the first that is uninstalled.
    if case == ("theirs uninstalled" if install == "editable" else "ours last"):
        return ("chooses the run directory" if what == "command" else "/agents/__init__.py"), True
    if package != "agents":
        return (
            "not installed or has lost" if "uninstalled" in case else "is imported instead"
        ), False
    if what == "import":
        return "has no attribute 'AGENTS'", False
    return ("No module named agents.__main__" if install == "editable" else REPAIR), False


def _row(
    env: Environment, torch: str, install: str, case: str, expected: str, good: bool,
    code: int, last: str,
) -> dict[str, Any]:  # fmt: skip
    said = re.sub(r"/\S+/bin/(?=python)", "", last)
    said = re.sub(r"/[^\s:']*?/(?=(?:agents|envs|mi|benchmarks)\b)", "…/", said)[:240]
    print(
        f"{'ok  ' if good else 'FAIL'} {env.version} {install:8} {case}: {code} {said}", flush=True
    )
    return {
        "python": env.version, "torch": torch, "install": install, "case": case,
        "expected": expected, "as_expected": "yes" if good else "no", "exit": code,
        "last_line": said,
    }  # fmt: skip


def prepare(python: str, folder: Path, wheel: Path) -> Environment:
    """An environment with our wheel and everything it needs."""
    env = Environment(python, folder)
    if env.fresh:
        torch = re.findall(r"^torch==.*", Path(CONSTRAINTS).read_text(), re.M)[0]
        try:  # a CPU build where the index has one, as the Makefile does
            env.pip("install", "-q", f"{torch}+cpu")
        except RuntimeError:
            print("no CPU build of torch on offer, taking the default one")
        env.pip("install", "-q", "-c", CONSTRAINTS, str(wheel))
    env.pip("install", "-q", "--force-reinstall", "--no-deps", str(wheel))
    return env


def find(pythons: Iterable[str]) -> dict[str, str]:
    """The version of each Python that is here; says which are not."""
    found = {}
    for python in pythons:
        line = [python, "-c", "import platform; print(platform.python_version())"]
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            done = subprocess.run(line, check=True, capture_output=True, text=True)
            found[python] = done.stdout.strip()
        if python not in found:
            print(f"{python}: not here, so nothing is tried with it")
    return found


def check(pythons: Iterable[str], into: Path) -> list[dict[str, Any]]:
    """One row per case, see the top of this file."""
    found = find(pythons)
    if not found:
        sys.exit(2)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(into), str(ROOT)],
        check=True,
    )
    (wheel,) = into.glob("infomax_rl-*.whl")
    rows = []
    for i, (python, version) in enumerate(found.items()):
        env = prepare(python, into / version, wheel)
        for install in ("wheel", "editable"):
            if install == "editable":
                env.pip("uninstall", "-q", "-y", "infomax-rl")
                env.pip("install", "-q", "--no-deps", "-e", str(ROOT))
            rows += installed(env, install, quick=i > 0 or install == "editable")
            if i == 0:
                rows += beside(env, wheel, install)
    return rows


def main(arguments: list[str]) -> None:
    into = next((a[5:] for a in arguments if a.startswith("into=")), None)
    pythons = [a for a in arguments if not a.startswith("into=")] or PYTHONS
    with tempfile.TemporaryDirectory() as temporary:
        rows = check(pythons, Path(into or temporary))
    common.write_csv(ROOT / "benchmarks" / "results" / "installation" / "installation.csv", rows)
    bad = [row for row in rows if row["as_expected"] == "no"]
    tried = ", ".join(dict.fromkeys(row["python"] for row in rows)) or "no Python"
    print(f"{len(rows) - len(bad)} of {len(rows)} cases as expected, with {tried}")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main(sys.argv[1:])
