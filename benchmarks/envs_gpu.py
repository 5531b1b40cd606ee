"""CUDA: environment steps and images per second of wall-clock time on one GPU.

The peer is the bare mujoco_warp graph: the same physics steps, captured and replayed without a task
around them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from common import Skipped

import envs

WORLDS = 8192


def measure(rounds: int) -> list[dict[str, Any]]:
    """Rows for speed.csv."""
    if not torch.cuda.is_available():
        raise Skipped("torch sees no CUDA device")
    return [*physics(rounds), *images(rounds)]


def rate(work: Callable[[], object], count: int) -> float:
    """Environments that `work` serves per second; it is called `count` times."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(count):
        work()
    torch.cuda.synchronize()
    return WORLDS * count / (time.perf_counter() - start)


def physics(rounds: int) -> list[dict[str, Any]]:
    rows = []
    for id, target in (("half-cheetah", 0.9), ("dmc/walker-walk", "")):
        env: Any = envs.make(id, num_envs=WORLDS, device="cuda")
        env.reset(seed=0)
        action = torch.rand(WORLDS, *env.single_action_space.shape, device="cuda") * 2 - 1
        skip, fresh = env.task.frame_skip, env.task.fresh
        for _ in range(200):  # compiles, captures, and brings robots into contact with the ground
            env.step(action)
        env.check()
        ours: list[float] = []
        bare: list[float] = []
        for _ in range(rounds):
            ours.append(rate(lambda: env.step(action), 50))  # noqa: B023
            bare.append(rate(lambda: env.sim.step(skip, fresh), 50))  # noqa: B023
        ratio = statistics.median(a / b for a, b in zip(ours, bare, strict=True))
        peer = ("bare mujoco_warp graph", statistics.median(bare), ratio, target)
        rows.append(row(id, "env steps / s", statistics.median(ours), *peer))
    return rows


def images(rounds: int) -> list[dict[str, Any]]:
    rows = []
    for id in ("half-cheetah", "dmc/cheetah-run"):
        env: Any = envs.make(id, num_envs=WORLDS, device="cuda")
        env.reset(seed=0)
        for _ in range(3):
            env.render(resolution=(64, 64))
        values = [rate(lambda: env.render(resolution=(64, 64)), 5) for _ in range(rounds)]  # noqa: B023
        rows.append(row(f"{id}, 64 x 64 images", "images / s", statistics.median(values)))
    return rows


def row(
    what: str,
    unit: str,
    value: float,
    peer: str = "",
    peer_value: float | str = "",
    ratio: float | str = "",
    target: float | str = "",
) -> dict[str, Any]:
    print(f"{torch.cuda.get_device_name()}: {what} {value:,.0f} {unit} {ratio}", flush=True)
    return {
        "part": "gpu",
        "what": f"{what} ({torch.cuda.get_device_name()})",
        "num_envs": WORLDS,
        "value": value,
        "unit": unit,
        "peer": peer,
        "peer_value": peer_value,
        "ratio": ratio,
        "target": target,
    }
