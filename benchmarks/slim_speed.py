"""Speed of `tabletop`: against a bare C loop, against FetchPush, and within the training loop.

All in CPU-seconds of one thread, in interleaved rounds within one run; ratios are medians.
"""

from __future__ import annotations

import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import torch
from common import compile_limit, foreign_python, run_limit

import envs
from agents import SLIM

STEPS, ROUNDS = 50, 7
FETCH = """
import sys, time, gymnasium, gymnasium_robotics
gymnasium.register_envs(gymnasium_robotics)
env = gymnasium.make("FetchPush-v4")
env.reset(seed=0); env.action_space.seed(0)
for line in sys.stdin:
    start = time.process_time()
    for i in range(500):
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            env.reset()
    print("rate", 500 / (time.process_time() - start), flush=True)
"""


def record(num_envs: int, folder: Path) -> tuple[Any, list[torch.Tensor]]:
    """The model, start states and controls of one random episode, for the C loop to repeat."""
    arguments = {"start": "easy", "num_threads": 1, "horizon": STEPS + 1}  # no reset on the way
    env = envs.make("tabletop", num_envs=num_envs, seed=0, **arguments)
    env.reset(seed=0)
    sim = env.sim  # type: ignore[attr-defined]
    generator = torch.Generator().manual_seed(0)
    actions = [torch.rand(num_envs, 5, generator=generator) * 2 - 1 for _ in range(STEPS)]
    with (folder / "input.bin").open("wb") as file:
        file.write(sim.state()["rows"].numpy().tobytes())
        for action in actions:
            env.step(action)
            file.write(np.ascontiguousarray(sim.ctrl.numpy()).tobytes())
    mujoco.mj_saveModel(sim.model, str(folder / "model.mjb"), None)
    return env, actions


def speed() -> list[dict[str, Any]]:
    """Rows for speed.csv."""
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        binary = compile_limit(folder)
        for num_envs in (64, 512):
            rows += against_limit(binary, folder, num_envs)
        rows += against_fetch(folder)
    return rows + training_loop()


def against_limit(binary: Path, folder: Path, num_envs: int) -> list[dict[str, Any]]:
    env, actions = record(num_envs, folder)
    ours, limit = [], []
    for _ in range(ROUNDS):
        env.reset(seed=0)
        start = time.process_time()
        for action in actions:
            env.step(action)
        ours.append(num_envs * STEPS / (time.process_time() - start))
        seconds, checksum = run_limit(binary, folder, num_envs, STEPS, env.task.frame_skip)
        if abs(checksum - float(env.sim.qpos.sum())) > 1e-6:
            raise RuntimeError("the C loop and the environment did not simulate the same thing")
        limit.append(num_envs * STEPS / seconds)
    ratio = statistics.median(a / b for a, b in zip(ours, limit, strict=True))
    what = f"tabletop, {num_envs} environments"
    return [
        row(what, statistics.median(ours), "env steps / CPU-s", ""),
        row(what, ratio, "ratio", f"bare C mj_step loop ({statistics.median(limit):.0f} / CPU-s)"),
    ]


def against_fetch(folder: Path) -> list[dict[str, Any]]:
    """gymnasium-robotics in its own environment: it does not run with our MuJoCo."""
    packages = ["gymnasium-robotics==1.4.2", "mujoco==3.3.7", "gymnasium<1.3", "numpy"]
    python = foreign_python("fetch", packages)
    peer = subprocess.Popen(
        [python, "-c", FETCH], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert peer.stdin
    assert peer.stdout
    rows = []
    settings = [("gantry", 5, 1), ("gantry", 5, 3), ("panda", 7, 1)]
    for robot, size, objects in settings:
        env = envs.make(
            "tabletop", num_envs=64, start="easy", robot=robot, objects=objects, num_threads=1
        )
        env.reset(seed=0)
        generator = torch.Generator().manual_seed(0)
        ours, theirs = [], []
        for _ in range(ROUNDS):
            start = time.process_time()
            for _ in range(STEPS):
                env.step(torch.rand(64, size, generator=generator) * 2 - 1)
            ours.append(64 * STEPS / (time.process_time() - start))
            peer.stdin.write("\n")
            peer.stdin.flush()
            line = next(line for line in peer.stdout if line.startswith("rate"))
            theirs.append(float(line.split()[1]))
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        # A control step is 10 x 5 ms of physics here, 20 x 2 ms there, each with its own MuJoCo.
        fetch = f"FetchPush-v4, one environment ({statistics.median(theirs):.0f} / CPU-s)"
        what = f"tabletop {robot}, {objects} object(s), 64 environments"
        rows.append(row(what, ratio, "ratio", fetch))
    peer.stdin.close()
    peer.wait()
    return rows


def training_loop() -> list[dict[str, Any]]:
    """Where the CPU time of training goes."""
    agent = SLIM(env_kwargs={"num_threads": 1}, violation_budget=5.0, device="cpu")
    spent = {"simulation": 0.0, "acting": 0.0, "learning": 0.0}

    def timed(owner: Any, name: str, part: str) -> None:
        original = getattr(owner, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return original(*args, **kwargs)
            finally:
                spent[part] += time.process_time() - start

        setattr(owner, name, wrapper)

    agent.learn(agent.num_envs * agent.rollout_steps)  # warm up
    timed(agent.env, "step", "simulation")
    timed(agent, "act", "acting")
    timed(agent, "update", "learning")
    start, first = time.process_time(), agent.num_timesteps
    agent.learn(first + 200_000)
    total, steps = time.process_time() - start, agent.num_timesteps - first
    return [
        row("SLIM training loop", steps / total, "env steps / CPU-s", ""),
        row("SLIM learner time / simulation time", spent["learning"] / spent["simulation"],
            "ratio", ""),
        *(row(f"SLIM training loop: {k}", v / total, "share", "") for k, v in spent.items()),
    ]  # fmt: skip


def row(what: str, value: float, unit: str, against: str) -> dict[str, Any]:
    return {"what": what, "value": value, "unit": unit, "against": against}
