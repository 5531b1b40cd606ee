"""What happens when things go wrong.

    python benchmarks/trust.py <campaign|all> [count=N] [minutes=M] [agents=slim,masd,…]

    kill         kill -9 at random moments; the same command goes on, bit for bit
    signals      SIGTERM, SIGINT, SIGUSR1 at random moments
    disk         a full, a read-only and a deleted directory
    same         the same seed twice, and with evaluation and prediction in between
    nan          NaN in observations, rewards, actions, parameters, gradients and Adam's moments
    configs      mutated settings: one clear error, or a configuration
    checkpoints  mutated files and mutated contents: one clear error, or the identical tree
    datasets     mutated HDF5, Minari and npz files: one clear error, or the identical data
    workers      workers of foreign environments that die, hang or raise
    soak         growth of memory and file descriptors in a run; count is seconds

Runs are configs/smoke/<agent> in forked processes, so that a start costs no imports, and end with
an evaluation instead of a report, so that signals hit the learning. Every campaign is one function
that returns how many trials it made and what was wrong (trust_inputs.py: untrusted input;
trust_faults.py: faults inside a process); results/trust/trust.csv has a row per campaign and agent,
the newest.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import torch
from scipy.stats import theilslopes
from trust_faults import nan, workers
from trust_inputs import checkpoints, configs, datasets
from trust_runs import DEADLINE, Problems, interrupted, make, same, start, wait, whole

from agents import AGENTS
from agents.core.checkpoint import load_checkpoint
from agents.core.run import Run

# ---- campaigns: (agent, count, folder) -> trials, problems


def kill(name: str, count: int, folder: Path) -> tuple[int, Problems]:
    return interrupted(name, count, folder, [signal.SIGKILL])


def signals(name: str, count: int, folder: Path) -> tuple[int, Problems]:
    return interrupted(name, count, folder, [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])


def disk(name: str, count: int, folder: Path) -> tuple[int, Problems]:
    """Each ends with exit code 2, one line, and the previous checkpoint as it was."""
    reference, _ = whole(name, folder)
    size = (reference / "last.ckpt").stat().st_size
    problems, trials = [], 0
    for _ in range(count):
        for kind in ("full", "read-only", "deleted"):
            mount = folder / "mount"
            mount.mkdir(exist_ok=True)
            # Full: there is room for one checkpoint, and not for its successor beside it.
            room = int(min(1.6 * size + 65536, 1.9 * size))
            room = room if kind == "full" else 8 * size + (1 << 20)
            options = f"size={max(room, 1 << 16)}"
            done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(mount)])
            if done.returncode:
                raise common.Skipped("disk: needs the right to mount a tmpfs")
            try:
                run, before = mount / "run", b""
                if kind == "read-only":  # with a checkpoint that was written before
                    run.mkdir()
                    shutil.copy(reference / "last.ckpt", run)
                    shutil.copy(reference / "config.yaml", run)
                    subprocess.run(["mount", "-o", "remount,ro", str(mount)], check=True)
                pid = start(name, run, folder)
                while not (run / "last.ckpt").exists():
                    time.sleep(0.002)
                    if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                        break
                if (run / "last.ckpt").exists():
                    before = (run / "last.ckpt").read_bytes()
                if kind == "deleted":
                    os.kill(pid, signal.SIGSTOP)  # so that it does not finish meanwhile
                    shutil.rmtree(run, ignore_errors=True)
                    os.kill(pid, signal.SIGCONT)
                code = wait(pid)
                trials += 1
                said = (folder / f"{run.name}.log").read_text()
                if code != 2 or "Traceback" in said or said.count("error:") != 1:
                    problems.append(f"{kind}: exit code {code}: {said[-300:]}")
                if kind != "deleted":
                    load_checkpoint(run / "last.ckpt")
                if kind == "read-only" and (run / "last.ckpt").read_bytes() != before:
                    problems.append(f"{kind}: the previous checkpoint has changed")
            finally:
                subprocess.run(["umount", "-l", str(mount)], check=False)
    return trials, problems


def repeated(name: str, count: int, folder: Path) -> tuple[int, Problems]:
    """The same seed gives the same tree, whatever is looked at in between."""

    def looked_at(agent: Any, row: dict[str, float]) -> None:
        agent.evaluate(episodes=10)  # MASD needs as many
        agent.report(folder)  # with plots and videos
        observation = agent.env.last_obs if hasattr(agent.env, "last_obs") else None
        if observation is not None and name not in ("acorm", "acorm-mappo"):
            agent.predict(observation)

    problems = []
    for seed in range(count):
        first = make(name, folder, seed=seed).learn().state_dict()
        second = make(name, folder, seed=seed).learn(callback=looked_at).state_dict()
        other = make(name, folder, seed=seed + 1000).learn().state_dict()
        if not same(first, second):
            problems.append(f"seed {seed}: evaluation in between changed the agent")
        if same(first["parts"], other["parts"]):
            problems.append(f"seed {seed}: another seed gives the same agent")
    return count, problems


def soak(name: str, count: int, folder: Path) -> tuple[int, Problems]:
    """Learns for `count` seconds in a run directory; growth after the first third of the time.

    With rows of metrics, checkpoints and evaluations all along. Memory grows as the median slope
    between 24 measurements says (Theil-Sen), since an evaluation's memory comes and goes.
    """
    agent = make(name, folder, log_interval=5, eval_interval=100, eval_episodes=16)
    began, marks = time.monotonic(), []

    def measure(agent: Any, row: dict[str, float]) -> bool:
        passed = time.monotonic() - began
        if passed > count / 3 + len(marks) * count / 36:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            descriptors = len(os.listdir("/proc/self/fd"))
            marks.append((passed, pages * 4096 / 2**20, descriptors, agent.num_updates))
        return passed < count

    with (
        open(os.devnull, "w") as nothing,
        contextlib.redirect_stdout(nothing),
        Run(folder / name, name, {}) as files,
    ):
        agent.run = files
        agent.learn(total_timesteps=10**12, callback=measure)
    if len(marks) < 12:
        return count, ["too few measurements"]
    seconds, memory, descriptors, updates = zip(*marks, strict=True)
    growth = 600 * theilslopes(memory, seconds).slope / memory[0]
    print(
        f"{name}: {growth:+.2%} in 10 minutes: {memory[0]:.1f} to {memory[-1]:.1f} MB, "
        f"{updates[0]:,} to {updates[-1]:,} updates, {descriptors[-1]} descriptors"
    )
    problems = [f"memory grows by {growth:.1%} in 10 minutes"] if growth > 0.01 else []
    if descriptors[-1] > descriptors[0]:
        problems.append(f"{descriptors[0]} file descriptors became {descriptors[-1]}")
    return count, problems


CAMPAIGNS: dict[str, tuple[Callable[[str, int, Path], tuple[int, Problems]], int]] = {
    "kill": (kill, 200), "signals": (signals, 150), "disk": (disk, 10), "same": (repeated, 3),
    "nan": (nan, 50), "configs": (configs, 10_000), "checkpoints": (checkpoints, 10_000),
    "datasets": (datasets, 10_000), "workers": (workers, 20), "soak": (soak, 3600),
}  # fmt: skip
"""Name -> the campaign and its full count."""
ONCE = ("datasets", "workers")
"""Campaigns that are no agent's."""


def campaign(which: str, name: str, count: int) -> tuple[int, Problems]:
    """One campaign of one agent in a directory that is removed afterwards."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        return CAMPAIGNS[which][0](name, count, Path(folder))


def record(which: str, name: str, trials: int, problems: Problems) -> None:
    """Put a row into trust.csv."""
    path = common.ROOT / "benchmarks" / "results" / "trust" / "trust.csv"
    first = " ".join(problems[0].split())[:200] if problems else ""
    new = {"campaign": which, "agent": name, "trials": trials, "full": CAMPAIGNS[which][1],
           "problems": len(problems), "first": first}  # fmt: skip
    common.write_csv(path, [new], ("campaign", "agent"))


def main(arguments: list[str]) -> int:
    options = dict(a.split("=", 1) for a in arguments if "=" in a)
    names = [a for a in arguments if "=" not in a]
    if len(names) != 1 or names[0] not in (*CAMPAIGNS, "all"):
        print(__doc__)
        return 2
    failed = 0
    for which in CAMPAIGNS if names[0] == "all" else names:
        for name in ["-"] if which in ONCE else options.get("agents", ",".join(AGENTS)).split(","):
            began = time.monotonic()
            DEADLINE[0] = began + 60 * float(options.get("minutes", "inf"))
            try:
                trials, problems = campaign(
                    which, name, int(options.get("count", CAMPAIGNS[which][1]))
                )
            except common.Skipped as reason:
                print(f"{which:12} {name:12} skipped: {reason}")
                continue
            record(which, name, trials, problems)
            seconds = time.monotonic() - began
            counts = f"{trials:6} trials {len(problems):4} problems {seconds:6.0f} s"
            print(f"{which:12} {name:12} {counts}", flush=True)
            for problem in problems[:3]:
                print(f"    {problem[:300]}", flush=True)
            failed += bool(problems)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
