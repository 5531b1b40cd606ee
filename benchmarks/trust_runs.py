"""What campaigns of `trust.py` share: smoke agents, and runs of them in forked processes."""

from __future__ import annotations

import contextlib
import csv
import math
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import envs
import train
from agents import AGENTS, CheckpointError
from agents.core import config as configuration
from agents.core.checkpoint import load_checkpoint
from agents.core.run import EXIT_CODES
from envs.data import TaskData, save

Problems = list[str]
DEADLINE = [math.inf]


def late() -> bool:
    """Whether the campaign's minutes are over; the trials so far are recorded."""
    return time.monotonic() > DEADLINE[0]


STEPS = {"slim": 800, "masd": 800, "acorm": 600, "acorm-mappo": 600, "corro": 60, "infopower": 300}


def dataset(folder: Path) -> Path:
    """A random policy's trajectories of four point-robots."""
    root = folder / "data"
    if root.exists():
        return root
    env: Any = envs.make("point-robot", 1, num_tasks=4)
    generator = torch.Generator().manual_seed(0)
    for tier in ("mixed", "ood"):
        actions = 2 * torch.rand(4, 6, 10, 2, generator=generator) - 1
        walked = torch.cat([torch.zeros(4, 6, 1, 2), 0.1 * actions.cumsum(2)], 2)
        rewards = -(walked[:, :, 1:] - env.tasks[:, None, None]).norm(dim=-1)
        data = TaskData.build(
            walked, actions, rewards, tasks=env.tasks,
            behaviour=torch.arange(4)[:, None].expand(4, 6).clone(),
            training=torch.arange(4) < 3, references=torch.tensor([[-10.0, -4.0]]).repeat(4, 1),
            family="point-robot", tier=tier,
        )  # fmt: skip
        save(data, root)
    return root


def settings(name: str, folder: Path) -> list[str]:
    more = [f"dataset={dataset(folder)}"] if name == "corro" else []
    return [f"total_timesteps={STEPS[name]}", *more]


def make(name: str, folder: Path, **overrides: Any) -> Any:
    """A smoke agent in this process."""
    layers, kind = train._layers(f"smoke/{name}")
    texts = [*settings(name, folder), *(f"{k}={v}" for k, v in overrides.items())]
    return AGENTS[kind](config=configuration.build(AGENTS[kind].Config, layers, texts))


# ---- runs in forked processes


def start(name: str, run: Path, folder: Path) -> int:
    """Begin `train.py smoke/<name>` in a fork; returns its process id."""
    sys.stdout.flush()
    log = folder / f"{run.name}.log"
    log.unlink(missing_ok=True)
    pid = os.fork()
    if pid:
        return pid
    code = 70
    os.environ["INFOMAX_PROCESSORS"] = "1"
    for agent in AGENTS.values():  # plots and videos would take most of the time of these runs
        agent.report = lambda self, directory: self.evaluate()
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout = sys.stderr = os.fdopen(descriptor, "w", buffering=1)  # not pytest's
        code = train.main([f"smoke/{name}", f"run={run}", *settings(name, folder)])
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(pid: int) -> int:
    """Exit code, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def differences(a: Path, b: Path) -> Problems:
    """What two finished runs do not have in common."""
    found = []
    first, second = (load_checkpoint(run / "last.ckpt") for run in (a, b))
    if not same(first, second):
        found.append("another final checkpoint")
    rows = []
    for run in (a, b):
        with (run / "metrics.csv").open(newline="") as file:
            table = list(csv.DictReader(file))
        rows.append([{k: v for k, v in row.items() if not k.startswith("time/")} for row in table])
    if rows[0] != rows[1]:
        found.append("other rows of metrics")
    if (a / "done.json").read_text() != (b / "done.json").read_text():
        found.append("other results")
    return found


def same(a: Any, b: Any) -> bool:
    """Whether two trees are the same bit for bit."""
    if isinstance(a, torch.Tensor):
        equal = isinstance(b, torch.Tensor) and (a.dtype, a.shape) == (b.dtype, b.shape)
        return equal and a.contiguous().numpy().tobytes() == b.contiguous().numpy().tobytes()
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return isinstance(b, (list, tuple)) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or (a != a and b != b))


def whole(name: str, folder: Path) -> tuple[Path, float]:
    """An uninterrupted run, and the seconds it takes."""
    run, began = folder / f"{name}-whole", time.monotonic()
    code = wait(start(name, run, folder))
    assert code == 0, (folder / f"{run.name}.log").read_text()[-2000:]
    return run, time.monotonic() - began


def interrupted(
    name: str, count: int, folder: Path, numbers: list[signal.Signals]
) -> tuple[int, Problems]:
    """Runs that get signals at random moments until `count` of them hit a run that was learning."""
    reference, seconds = whole(name, folder)
    draw, problems, hits, index = random.Random(0), [], 0, 0
    run, number, done = folder / f"{name}-0", signal.SIGKILL, 0
    while True:
        starts, pid = _starts(run), start(name, run, folder)
        count = hits if late() else count
        if hits < count:
            time.sleep(draw.uniform(0, seconds))
            number = numbers[hits % len(numbers)]
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        code = wait(pid)
        if code == 0:
            problems += differences(reference, run)
            index, done = index + 1, 0
            run = folder / f"{name}-{index}"
            if hits >= count:
                return hits, problems
            continue
        if _starts(run) == starts or (run / "done.json").exists():
            continue  # before the run listened, or when all was done
        hits += 1
        said = (folder / f"{run.name}.log").read_text()
        if code != (-number if number == signal.SIGKILL else EXIT_CODES[number]):
            problems.append(f"exit code {code}: {said[-300:]}")
            return hits, problems
        if number != signal.SIGKILL and "saved at" not in said:
            problems.append(f"{number.name}: not saved: {said[-300:]}")
        if done or (run / "last.ckpt").exists():
            try:
                tree: Any = load_checkpoint(run / "last.ckpt")
                if tree["num_timesteps"] < done:
                    problems.append(f"went back from {done} to {tree['num_timesteps']} steps")
                done = tree["num_timesteps"]
            except CheckpointError as error:
                problems.append(str(error))


def _starts(run: Path) -> int:
    """How often a run has begun."""
    file = run / "starts.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


def finite(tree: Any) -> bool:
    """Whether every number of a tree is finite."""
    if isinstance(tree, torch.Tensor):
        return not tree.is_floating_point() or bool(torch.isfinite(tree).all())
    if isinstance(tree, dict):
        return all(map(finite, tree.values()))
    return all(map(finite, tree)) if isinstance(tree, (list, tuple)) else True
