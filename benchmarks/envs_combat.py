"""Speed of `combat` against JaxMARL's SMAX, which has the same rules; per CPU-second.

Both sides draw random actions among the available ones, play against the scripted opponent, compute
observations, states and masks, and begin new episodes by themselves. SMAX runs in a Python
environment of its own (`.venv-jaxmarl`), one of it in `lax.scan`, many in one compiled step: a scan
gains nothing there. Its CPU-seconds are those of all its threads. Rounds are interleaved; ratios
are medians over rounds.

smaclite, the other clone of SMAC, is not on PyPI: its number is one of an earlier day (146 steps
per CPU-second on 2s3z, at best), so the ratio of that row is not of one run.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from common import Peer, foreign_python
from torch import Tensor

MAPS = ("3m", "2s3z", "5m_vs_6m")
SECONDS = 1.0  # CPU time of one measurement of ours
SMACLITE = 146.0
SMAX = """
import jax, jax.numpy as jnp
from jaxmarl import make
from jaxmarl.environments.smax import map_name_to_scenario
env = make("HeuristicEnemySMAX", scenario=map_name_to_scenario("{name}"))
N, T = {num_envs}, {length}
agents = env.agents

def one(carry, key):
    obs, state = carry
    masks = jax.vmap(env.get_avail_actions)(state)
    keys = jax.random.split(key, len(agents) + 1)
    actions = {{
        a: jax.random.categorical(k, jnp.where(masks[a] > 0, 0.0, -1e9), axis=-1)
        for a, k in zip(agents, keys[1:])}}
    obs, state, reward, done, _ = jax.vmap(env.step)(
        jax.random.split(keys[0], N), state, actions)
    return (obs, state), reward[agents[0]].sum() + obs[agents[0]].sum() + obs["world_state"].sum()

def several(carry, key):
    return jax.lax.scan(one, carry, jax.random.split(key, T))

run = jax.jit(one if T == 1 else several)

carry = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.PRNGKey(0), N))
carry, out = run(carry, jax.random.PRNGKey(1))  # compiles; once more, for types of the first state
carry, out = run(carry, jax.random.PRNGKey(2))
jax.block_until_ready(out)

def step(n):
    global carry
    for i in range(n // T):
        carry, out = run(carry, jax.random.PRNGKey(i))
    jax.block_until_ready(out)
"""


class Smax:
    """SMAX, steps of all its environments per CPU-second."""

    def __init__(self, name: str, num_envs: int) -> None:
        self.num_envs, self.length = num_envs, 2000 if num_envs == 1 else 1
        python = foreign_python("jaxmarl", ["jaxmarl==0.2.0"])
        code = SMAX.format(name=name, num_envs=num_envs, length=self.length)
        self.peer = Peer(code, python, JAX_PLATFORMS="cpu")

    def rate(self) -> float:
        steps = self.length * (5 if self.num_envs == 1 else 40)
        return steps * self.num_envs / self.peer.seconds(steps)


class Ours:
    """`combat`, the same."""

    def __init__(self, name: str, num_envs: int, rules: str, compile: bool) -> None:
        import envs

        self.env = envs.make(f"combat/{name}", num_envs=num_envs, rules=rules, compile=compile)
        self.generator = torch.Generator().manual_seed(0)
        _, info = self.env.reset(seed=0)
        self.mask: Tensor = info["avail_actions"]
        self.play(3)

    def play(self, steps: int) -> None:
        for _ in range(steps):
            draw = torch.rand(self.mask.shape, generator=self.generator)
            action = (draw + 1).masked_fill_(~self.mask, 0).argmax(-1)
            *_, info = self.env.step(action)
            self.mask = info["avail_actions"]

    def rate(self) -> float:
        count, start = 0, time.process_time()
        while time.process_time() - start < SECONDS:
            self.play(10)
            count += 10 * self.env.num_envs
        return count / (time.process_time() - start)


def measure(rounds: int = 5) -> list[dict[str, Any]]:
    """Rows `part, what, num_envs, value, unit, peer, peer_value, ratio, target`."""
    torch.set_num_threads(1)
    rows = []
    for num_envs, target in ((1024, 1.5), (1, 0.25)):
        for name in MAPS:
            ways = {"eager": Ours(name, num_envs, "smax", False)}
            if num_envs == 1 or name == MAPS[0]:  # for many it takes minutes
                ways["compiled"] = Ours(name, num_envs, "smax", True)
            rows += _pairs(name, ways, Smax(name, num_envs), rounds, target)
    ours = Ours("2s3z", 1024, "sc2", False)
    rates = [ours.rate() for _ in range(rounds)]
    value = statistics.median(rates)
    row = _row("combat/2s3z, sc2, eager", 1024, value, "smaclite (of an earlier day)", SMACLITE)
    rows.append({**row, "ratio": value / SMACLITE, "target": 100.0})
    return rows


def _pairs(
    name: str, ways: dict[str, Ours], peer: Smax, rounds: int, target: float
) -> list[dict[str, Any]]:
    results: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, ours in ways.items():
            results[way].append((ours.rate(), peer.rate()))
    peer.peer.close()
    return [
        {
            **_row(
                f"combat/{name}, smax, {way}",
                peer.num_envs,
                statistics.median(a for a, _ in pairs),
                "JaxMARL SMAX",
                statistics.median(b for _, b in pairs),
            ),
            "ratio": statistics.median(a / b for a, b in pairs),
            "target": target,
        }
        for way, pairs in results.items()
    ]


def _row(what: str, num_envs: int, value: float, peer: str, peer_value: float) -> dict[str, Any]:
    return {
        "part": "combat",
        "what": what,
        "num_envs": num_envs,
        "value": value,
        "unit": "env steps / CPU-s",
        "peer": peer,
        "peer_value": peer_value,
    }
