"""What benchmarks share: results with their provenance, the C loop, peers in other processes."""

from __future__ import annotations

import csv
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mujoco
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "mujoco", "gymnasium", "stable-baselines3", "numpy", "scipy")


class Skipped(RuntimeError):
    """What was to be measured needs something that is not here; the message says what."""


def write_csv(path: Path, rows: list[dict[str, Any]], keys: tuple[str, ...] = ()) -> None:
    """Rows to a CSV file, and where they come from to README.md beside it.

    With `keys`, which say what was measured, rows of the file that are not measured again stay.
    """

    def grouped(rows: Iterable[dict[str, Any]]) -> dict[tuple[str, ...], list[dict[str, Any]]]:
        groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for row in rows:
            groups.setdefault(tuple(str(row.get(k, "")) for k in keys), []).append(row)
        return groups

    path.parent.mkdir(parents=True, exist_ok=True)
    if keys and path.exists():
        with path.open(newline="") as file:
            kept = grouped(csv.DictReader(file))
        rows = [row for group in (kept | grouped(rows)).values() for row in group]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()})
    note(path)


def in_parallel(command: str, runs: list[dict[str, Any]], jobs: int) -> None:
    """Each run in a process of its own with one torch thread, `jobs` at a time, with progress.

    The script that calls this is called again as `<script> <command> <run as JSON>`.
    """

    def one(run: dict[str, Any]) -> None:
        arguments = [sys.executable, sys.argv[0], command, json.dumps(run)]
        done = subprocess.run(arguments, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{run}: {done.stderr[-2000:]}")

    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(runs), desc=command) as bar:
        for _ in pool.map(one, runs):
            bar.update()


def train_run(
    folder: Path,
    name: str,
    config_name: str,
    overrides: dict[str, Any],
    measure: Callable[[Any], dict[str, Any]],
) -> None:
    """Train and measure one run in this process, or go on with it; results go to done.json.

    Args:
        folder: the run's directory; nothing happens if it is finished.
        name: of the run.
        config_name: a name of `train.py`, whose configuration `overrides` change.
        overrides: settings, nested ones as dicts.
        measure: what to report of the trained agent, beside `cpu_seconds` of its training.
    """  # fmt: skip
    import torch

    import train
    from agents import AGENTS
    from agents.core.config import build, to_dict
    from agents.core.run import Run

    torch.set_num_threads(1)
    layers, agent = train._layers(config_name)
    config = build(AGENTS[agent].Config, layers, overrides)
    with Run(folder, name, to_dict(config)) as files:
        if files.finished:
            return
        learner = AGENTS[agent](config=config)
        learner.run = files
        if files.checkpoint is not None:
            learner.restore(files.checkpoint, files.last)
        started, first = time.process_time(), learner.num_timesteps
        learner.learn()
        if files.stop is None:
            # An interrupted run knows the time of its last stretch only.
            share = config.total_timesteps / max(config.total_timesteps - first, 1)
            cpu = (time.process_time() - started) * share
            files.finish({"cpu_seconds": cpu, **measure(learner)})


def note(result: Path, name: str = "", packages: tuple[str, ...] = ()) -> None:
    """Command, versions and date of a result, in README.md beside it.

    Args:
        result: the file.
        name: of the part of the file that was measured, if it is not all of it.
        packages: whose versions matter, besides the usual ones.
    """
    script = Path(sys.argv[0]).name
    path, name = result.parent / "README.md", name or result.name
    lines = (
        path.read_text().splitlines()
        if path.exists()
        else [f"# Results of benchmarks/{script}", ""]
    )
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in (*PACKAGES, *packages))
    processor = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    entry = (
        f"- `{name}`: `python benchmarks/{' '.join([script, *sys.argv[1:]])}`, "
        f"{datetime.date.today()}, Python {platform.python_version()}, {versions}; "
        f"{os.cpu_count()} processors, {processor}, one torch thread per process"
    )
    lines = [line for line in lines if not line.startswith(f"- `{name}`:")] + [entry]
    path.write_text("\n".join(lines) + "\n")


def compile_limit(folder: Path) -> Path:
    """The C loop, against the MuJoCo library that the Python package ships."""
    package = Path(mujoco.__file__).parent
    library = next(package.glob("libmujoco.so*"))
    binary = folder / "mj_step"
    subprocess.run(
        ["cc", "-O3", "-march=native", f"-I{package / 'include'}",
         str(ROOT / "benchmarks" / "mj_step.c"), str(library), f"-Wl,-rpath,{package}",
         "-o", str(binary)],
        check=True,
    )  # fmt: skip
    return binary


def run_limit(binary: Path, folder: Path, num_envs: int, steps: int, skip: int) -> list[float]:
    """CPU-seconds and checksum of the C loop over `model.mjb` and `input.bin` of a folder."""
    command = [binary, folder / "model.mjb", folder / "input.bin", num_envs, steps, skip]
    done = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    return [float(word) for word in done.stdout.split()]


def cpu_seconds(pid: int) -> float:
    """CPU time that a process and its living descendants have used so far (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    total = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")  # with children that ended
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        total += sum(cpu_seconds(int(child)) for child in children.read_text().split())
    return total


def foreign_python(name: str, packages: list[str]) -> str:
    """Python of a virtual environment of its own, for peers whose pins or licence clash with ours.

    It is made where there is none, or where an earlier attempt did not come to its end.
    """
    folder = ROOT / f".venv-{name}"
    python = str(folder / "bin" / "python")
    if not (folder / "installed").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
        (folder / "installed").touch()
    return python


class Peer:
    """A process that steps somebody else's environments on demand.

    Args:
        code: Python that defines `step(n)`, which takes n steps.
        python: interpreter.
        environment: variables to add.
    """

    def __init__(self, code: str, python: str = sys.executable, **environment: str) -> None:
        serve = 'print("ready", flush=True)\nfor line in sys.stdin:\n    step(int(line))\n'
        self._process = subprocess.Popen(
            [python, "-c", f"import sys\n{code}\n{serve}    print('ready', flush=True)\n"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT / "benchmarks" / "results",  # where no directory shadows a package
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )
        self._wait()

    def seconds(self, steps: int) -> float:
        """CPU-seconds of `steps` steps, of the process and its workers together."""
        before = cpu_seconds(self._process.pid)
        assert self._process.stdin
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        self._wait()
        return cpu_seconds(self._process.pid) - before

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(30)

    def _wait(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            if line.strip() == "ready":
                return
        raise RuntimeError(f"a peer ended with exit status {self._process.wait()}")
