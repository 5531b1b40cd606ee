"""Foreign environments in batches, against the vector environments of gymnasium and SB3.

CPU-seconds of this process and of its workers; paired rounds, ratios are medians over them. The
last row is the time that `BatchedEnv.step` takes by itself.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv
from stable_baselines3.common.vec_env import SubprocVecEnv
from torch import Tensor

from envs.adapt import from_gymnasium
from envs.base import BatchedEnv

NUM_ENVS = 64
STEPS = {"HalfCheetah-v5": 30, "CartPole-v1": 60}
FIXED_COST = 60.0  # [us], at most

Row = dict[str, Any]


def measure(rounds: int = 5) -> list[Row]:
    """Rows of the table; see `benchmarks/envs.py`."""
    torch.set_num_threads(1)
    rows: list[Row] = []
    for id in STEPS:
        rows += against_peers(id, rounds)
    return [*rows, fixed_cost(rounds)]


def against_peers(id: str, rounds: int) -> list[Row]:
    """Our adapter as it chooses itself, and with two workers, against one process per copy."""
    # Those who fork come first: what they copy has no threads yet.
    asynchronous = AsyncVectorEnv([lambda: gym.make(id)] * NUM_ENVS)
    subprocesses = SubprocVecEnv([lambda: gym.make(id)] * NUM_ENVS, start_method="fork")
    ours = {"auto": from_gymnasium(id, NUM_ENVS), "2": from_gymnasium(id, NUM_ENVS, workers=2)}
    asynchronous.reset(seed=0)
    subprocesses.reset()
    rng = np.random.default_rng(0)
    space = asynchronous.action_space
    space.seed(0)
    actions = [space.sample() for _ in range(8)]
    tensors = [torch.from_numpy(action) for action in actions]
    pools: dict[str, tuple[Callable[[int], Any], list[int]]] = {
        "gymnasium AsyncVectorEnv": (
            lambda t: asynchronous.step(actions[t % 8]),
            [process.pid for process in asynchronous.processes],
        ),
        "SB3 SubprocVecEnv": (
            lambda t: subprocesses.step(actions[t % 8]),
            [process.pid for process in subprocesses.processes],
        ),
    }
    for name, env in ours.items():
        env.reset(seed=0)
        pids = [process.pid for process in getattr(env._rows, "_processes", [])]
        pools[name] = (lambda t, env=env: env.step(tensors[t % 8]), pids)
    rates: dict[str, list[float]] = {name: [] for name in pools}
    for round in range(rounds + 1):
        for name in rng.permutation(list(pools)).tolist():
            step, pids = pools[name]
            start = cpu_seconds(pids)
            for t in range(STEPS[id]):
                step(t)
            if round:  # the first one warms up
                rates[name].append(STEPS[id] * NUM_ENVS / (cpu_seconds(pids) - start))
    asynchronous.close()
    subprocesses.close()
    for env in ours.values():
        env.close()
    return [
        {
            "part": "adapters",
            "what": f"from_gymnasium {id}, workers={name}",
            "num_envs": NUM_ENVS,
            "value": statistics.median(rates[name]),
            "unit": "env steps/CPU-s",
            "peer": f"{peer}({NUM_ENVS})",
            "peer_value": statistics.median(rates[peer]),
            "ratio": statistics.median(
                a / b for a, b in zip(rates[name], rates[peer], strict=True)
            ),
            "target": 4.0 if name == "auto" and "Async" in peer else None,
        }
        for name in ours
        for peer in ("gymnasium AsyncVectorEnv", "SB3 SubprocVecEnv")
    ]


class Nothing(BatchedEnv):
    """An environment that does nothing, of HalfCheetah's sizes."""

    max_episode_steps = 1000

    def __init__(self, num_envs: int) -> None:
        box = gym.spaces.Box(-np.inf, np.inf, (17,), np.float32)
        super().__init__(num_envs, box, gym.spaces.Box(-1, 1, (6,), np.float32))
        self.x = torch.zeros(num_envs, 17)
        self.reward = torch.zeros(num_envs)
        self.terminated = torch.zeros(num_envs, dtype=torch.bool)

    def _begin(self, mask: Tensor) -> None:
        pass

    def _advance(self, action: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
        return self.reward.clone(), self.terminated, {}

    def _observe(self) -> Tensor:
        return self.x.clone()

    def _state(self) -> dict[str, Any]:
        return {"x": self.x}


def fixed_cost(rounds: int, steps: int = 2_000) -> Row:
    """Microseconds per step of an environment that does nothing."""
    env, costs = Nothing(NUM_ENVS), []
    env.reset()
    action = torch.rand(NUM_ENVS, 6)
    for _ in range(rounds + 1):
        start = time.process_time()
        for _ in range(steps):
            env.step(action)
        costs.append((time.process_time() - start) / steps * 1e6)
    cost = statistics.median(costs[1:])
    return {
        "part": "adapters",
        "what": "BatchedEnv.step of an environment that does nothing",
        "num_envs": NUM_ENVS,
        "value": cost,
        "unit": "us",
        "peer": f"allowed {FIXED_COST:g} us",
        "peer_value": FIXED_COST,
        "ratio": FIXED_COST / cost,
        "target": 1.0,
    }


def cpu_seconds(children: Iterable[int]) -> float:
    """CPU time so far of this process and of running children."""
    clocks = [(~pid << 3) | 2 for pid in children]  # what clock_getcpuclockid(3) returns on Linux
    return time.process_time() + sum(map(time.clock_gettime, clocks))
