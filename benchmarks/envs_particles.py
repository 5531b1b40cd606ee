"""Speed of `particles/spread`, against mpe2, VMAS and a C loop; one thread, CPU-seconds.

    python benchmarks/envs_particles.py [rounds=5]        prints the rows

Rounds are interleaved, ours and the peer's one after the other; ratios are medians over rounds.
VMAS (GPL, another task of the same name: 3 agents and marks, other constants) runs in an
environment of its own, `.venv-vmas`, and is no dependency of anything.
"""

from __future__ import annotations

import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import ROOT, foreign_python

SECONDS = 0.5  # CPU time of one measurement
VMAS = """
import sys, time, torch
torch.set_num_threads(1)
import vmas
made = {}
for line in sys.stdin:
    n = int(line)
    if n not in made:
        env = vmas.make_env("simple_spread", num_envs=n, device="cpu", continuous_actions=True,
                            max_steps=None, seed=0)
        env.reset()
        made[n] = env, [torch.rand(n, 2) * 2 - 1 for _ in range(3)]
        for _ in range(5):
            env.step(made[n][1])
    env, action = made[n]
    steps, start = 0, time.process_time()
    while time.process_time() - start < SECONDS:
        for _ in range(25):
            env.step(action)
        env.reset()
        steps += 25
    print("rate", n * steps / (time.process_time() - start), flush=True)
""".replace("SECONDS", str(SECONDS))


def rate(run: Callable[[], None], steps: int) -> float:
    """Environment steps per CPU-second of `run`, which takes `steps` of them."""
    count, start = 0, time.process_time()
    while time.process_time() - start < SECONDS:
        run()
        count += steps
    return count / (time.process_time() - start)


class Ours:
    """`particles/spread`, stepped whole episodes at a time, resets included."""

    def __init__(self, num_envs: int, compile: bool) -> None:
        import envs

        self.env = envs.make("particles/spread", num_envs=num_envs, compile=compile)
        self.env.reset(seed=0)
        self.action = torch.rand(num_envs, 3, 2) * 2 - 1
        self.episode()  # compiles

    def episode(self) -> None:
        for _ in range(25):
            self.env.step(self.action)

    def rate(self) -> float:
        return rate(self.episode, 25 * self.env.num_envs)


class Mpe2:
    """One environment of mpe2, the only number it has."""

    def __init__(self) -> None:
        from mpe2 import simple_spread_v3

        self.env = simple_spread_v3.parallel_env(max_cycles=25)
        self.env.reset(seed=0)

    def episode(self) -> None:
        self.env.reset()
        for step in range(25):
            self.env.step({agent: step % 5 for agent in self.env.agents})

    def rate(self) -> float:
        return rate(self.episode, 25)


class Vmas:
    """VMAS in its own process and environment."""

    def __init__(self) -> None:
        # the same build of torch as ours
        python = foreign_python("vmas", [f"torch=={torch.__version__}", "vmas==1.5.2"])
        self.process = subprocess.Popen(
            [python, "-c", VMAS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def rate(self, num_envs: int) -> float:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{num_envs}\n")
        self.process.stdin.flush()
        line = next((x for x in self.process.stdout if x.startswith("rate")), None)
        if line is None:
            raise RuntimeError("VMAS ended without a result; its error is above")
        return float(line.split()[1])

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


class Loop:
    """The C loop of particles.c, compiled here."""

    def __init__(self, folder: Path) -> None:
        self.binary = folder / "particles"
        source = ROOT / "benchmarks" / "particles.c"
        flags = ["-O3", "-march=native", "-ffast-math"]
        command = ["cc", *flags, str(source), "-lm", "-o", str(self.binary)]
        subprocess.run(command, check=True)

    def rate(self, num_envs: int) -> float:
        steps = max(20, 4_000_000 // num_envs)
        command = [str(self.binary), str(num_envs), "3", str(steps)]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return num_envs * steps / float(out.split()[0])


def measure(rounds: int = 5) -> list[dict[str, Any]]:
    """Rows `part, what, num_envs, value, unit, peer, peer_value, ratio, target`."""

    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        loop, mpe2, vmas = Loop(Path(name)), Mpe2(), Vmas()
        try:
            for num_envs, target in ((32, 15.0), (1024, 12.0), (8192, 7.0)):
                eager, compiled = Ours(num_envs, False), Ours(num_envs, True)
                peers: dict[str, tuple[Callable[[], float], float | str]] = {
                    "VMAS simple_spread": (lambda n=num_envs: vmas.rate(n), target),
                    "hand-written C loop": (lambda n=num_envs: loop.rate(n), ""),
                }
                if num_envs == 1024:
                    peers["mpe2 simple_spread, one environment"] = (mpe2.rate, 1000.0)
                rows += _rows("compiled", compiled.rate, num_envs, peers, rounds)
                eager_peers = {name: (run, "") for name, (run, _) in peers.items()}
                rows += _rows("eager", eager.rate, num_envs, eager_peers, rounds)
        finally:
            vmas.close()
    return rows


def _rows(
    what: str,
    ours: Callable[[], float],
    num_envs: int,
    peers: dict[str, tuple[Callable[[], float], Any]],
    rounds: int,
) -> list[dict[str, Any]]:
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in peers}
    for _ in range(rounds):
        for name, (peer, _) in peers.items():
            results[name].append((ours(), peer()))
    return [
        {
            "part": "particles",
            "what": f"particles/spread, {what}",
            "num_envs": num_envs,
            "value": statistics.median(a for a, _ in pairs),
            "unit": "env steps / CPU-s",
            "peer": name,
            "peer_value": statistics.median(b for _, b in pairs),
            "ratio": statistics.median(a / b for a, b in pairs),
            "target": peers[name][1],
        }
        for name, pairs in results.items()
    ]
