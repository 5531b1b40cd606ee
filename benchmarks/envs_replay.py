"""Sampling from a replay of a million transitions, against SB3 and torchrl.

Transitions per CPU-second of one thread; paired rounds, ratios are medians over them. torchrl lives
in a virtual environment of its own, `.venv-torchrl`, which the first run makes.
"""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from common import foreign_python
from stable_baselines3.common.buffers import ReplayBuffer

from agents.core.replay import Replay

CAPACITY, OBS, ACTIONS, NUM_ENVS = 1_000_000, 17, 6, 1_000
BATCHES = {256: 400, 4096: 40}  # batch size -> samples per round
SEQUENCES, LENGTH = 64, 64
TORCHRL = f"""
import sys, time, torch
torch.set_num_threads(1)
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
buffer = TensorDictReplayBuffer(storage=LazyTensorStorage({CAPACITY}))
n = {CAPACITY}
buffer.extend(TensorDict({{
    "obs": torch.zeros(n, {OBS}), "action": torch.zeros(n, {ACTIONS}),
    "next": TensorDict({{
        "obs": torch.zeros(n, {OBS}), "reward": torch.zeros(n, 1),
        "terminated": torch.zeros(n, 1, dtype=torch.bool),
    }}, [n]),
}}, [n]))
print("ready", flush=True)
for line in sys.stdin:
    size, count = map(int, line.split())
    start = time.process_time()
    for _ in range(count):
        buffer.sample(size)
    print("rate", size * count / (time.process_time() - start), flush=True)
"""

Row = dict[str, Any]


def measure(rounds: int = 5) -> list[Row]:
    """Rows of the table; see `benchmarks/envs.py`."""
    torch.set_num_threads(1)
    with subprocess.Popen(
        [
            foreign_python("torchrl", [f"torch=={torch.__version__}", "torchrl==0.14.1"]),
            "-c",
            TORCHRL,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        while process.stdout.readline() != "ready\n":  # torchrl logs to its standard output
            assert process.poll() is None, "torchrl's process has ended"

        def torchrl(size: int, count: int) -> float:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(f"{size} {count}\n")
            process.stdin.flush()
            return float(process.stdout.readline().split()[-1])

        rows = compare(rounds, torchrl)
        process.stdin.close()
    return rows


def compare(rounds: int, torchrl: Callable[[int, int], float]) -> list[Row]:
    """All pairs of our way of sampling and a peer's."""
    replay, buffer = ours(), sb3()
    generator = torch.Generator().manual_seed(0)

    def transitions(size: int, count: int) -> float:
        return rate(lambda: replay.sample(size, generator), size, count)

    def windows(size: int, count: int) -> float:
        batch = SEQUENCES
        return rate(lambda: replay.sample_sequences(batch, LENGTH, generator), size, count)

    def stable_baselines(size: int, count: int) -> float:
        return rate(lambda: buffer.sample(size), size, count)

    peers = {
        "SB3 ReplayBuffer": (stable_baselines, 4.0),
        "torchrl TensorDictReplayBuffer(LazyTensorStorage)": (torchrl, 8.0),
    }
    kinds = [(f"transitions, batch {size}", transitions, size, True) for size in BATCHES]
    kinds += [(f"sequences, {SEQUENCES} x {LENGTH}", windows, SEQUENCES * LENGTH, False)]
    rows: list[Row] = []
    for what, sample, size, has_target in kinds:
        pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in peers}
        for round in range(rounds + 1):
            for name, (peer, _) in peers.items():
                pair = sample(size, BATCHES[size]), peer(size, BATCHES[size])
                if round:  # the first one warms up
                    pairs[name].append(pair)
        for name, (_, target) in peers.items():
            value, peer_value = zip(*pairs[name], strict=True)
            rows.append(
                {
                    "part": "replay",
                    "what": what,
                    "num_envs": NUM_ENVS,
                    "value": statistics.median(value),
                    "unit": "transitions/CPU-s",
                    "peer": name,
                    "peer_value": statistics.median(peer_value),
                    "ratio": statistics.median(a / b for a, b in pairs[name]),
                    "target": target if has_target else None,
                }
            )
    return rows


def rate(sample: Callable[[], Any], size: int, count: int) -> float:
    """Transitions per CPU-second."""
    start = time.process_time()
    for _ in range(count):
        sample()
    return size * count / (time.process_time() - start)


def ours() -> Replay:
    """A full replay."""
    fields = {"obs": ((OBS,), torch.float32), "next_obs": ((OBS,), torch.float32)}
    fields |= {"action": ((ACTIONS,), torch.float32)}
    fields |= {name: ((), torch.float32) for name in ("reward", "terminated")}
    replay = Replay(fields, CAPACITY // NUM_ENVS, NUM_ENVS)
    step = {name: torch.rand(NUM_ENVS, *shape) for name, (shape, _) in fields.items()}
    for _ in range(CAPACITY // NUM_ENVS):
        replay.add(**step)
    return replay


def sb3() -> ReplayBuffer:
    """A full `ReplayBuffer`."""
    box = gym.spaces.Box(-np.inf, np.inf, (OBS,), np.float32)
    actions = gym.spaces.Box(-1, 1, (ACTIONS,), np.float32)
    buffer = ReplayBuffer(CAPACITY, box, actions, device="cpu")
    for array in (buffer.observations, buffer.next_observations, buffer.actions, buffer.rewards):
        array[:] = 0.5  # touches the memory, which is otherwise one page of zeros
    buffer.dones[:] = buffer.timeouts[:] = 0
    buffer.full = True
    return buffer
