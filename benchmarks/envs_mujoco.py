"""Physics: batched MuJoCo against a C loop of `mj_step`, Gymnasium, SB3, EnvPool and dm_control.

One thread everywhere but in the peers that are processes. Episodes are staggered, so that a
thousandth of the environments begins anew at every step, which the C loop has no counterpart of.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import torch
from common import Peer, compile_limit, foreign_python, run_limit
from mujoco.batch import Batch

import envs

VECTOR = """
import gymnasium as gym, numpy as np
{setup}
actions = np.random.default_rng(0).uniform(-1, 1, (64, n, 6)).astype(np.float32)
env.reset()
def step(count):
    for i in range(count):
        {call}(actions[i % 64])
"""
GYMNASIUM = (
    "from gymnasium.vector import SyncVectorEnv, AsyncVectorEnv\n"
    "env = {kind}([lambda: gym.make('HalfCheetah-v5')] * n)\nenv.action_space.seed(0)"
)
SB3 = (
    "from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv\n"
    "env = {kind}([lambda: gym.make('HalfCheetah-v5')] * n{more})"
)
ENVPOOL = "import envpool\nenv = envpool.make_gymnasium('{id}', num_envs=n, num_threads=1, seed=0)"
DM_CONTROL = """
import numpy as np
from dm_control import suite
env = suite.load('{domain}', '{task}')
actions = np.random.default_rng(0).uniform(-1, 1, (64, 6))
env.reset()
def step(count):
    for i in range(count):
        if env.step(actions[i % 64]).last():
            env.reset()
"""


def vector(setup: str, num_envs: int, call: str = "env.step") -> str:
    return VECTOR.format(setup=f"n = {num_envs}\n{setup}", call=call)


class Ours:
    """An environment of ours in full motion, and the same states and controls for the C loop.

    Args:
        id: of the environment.
        num_envs: N.
        steps: in one round.
        folder: for the C loop's files; None does without it.
        **kwargs: arguments of the environment.
    """

    def __init__(
        self, id: str, num_envs: int, steps: int, folder: Path | None = None, **kwargs: Any
    ) -> None:
        self.env: Any = envs.make(id, num_envs=num_envs, num_threads=1, **kwargs)
        self.num_envs, self.steps = num_envs, steps
        generator = torch.Generator().manual_seed(0)
        shape = (steps, num_envs, *self.env.single_action_space.shape)
        self.actions = torch.rand(shape, generator=generator) * 2 - 1
        self.env.reset(seed=0)
        for i in range(100):  # until the robots lie and struggle on the ground
            self.env.step(self.actions[i % steps])
        self.start = self.env.state_dict()
        if folder is not None:
            self.record(folder)

    def record(self, folder: Path) -> None:
        """Write the C loop's input, and check that both simulate the same."""
        folder.mkdir()
        mujoco.mj_saveModel(self.env.sim.model, str(folder / "model.mjb"), None)
        with (folder / "input.bin").open("wb") as file:
            file.write(self.start["state"]["rows"].numpy().tobytes())
            file.write(self.actions.double().numpy().tobytes())
        self.run()
        self.folder, self.binary = folder, compile_limit(folder)
        checksum = run_limit(*self._limit)[1]
        if abs(checksum - float(self.env.sim.qpos.sum())) > 1e-9 * abs(checksum):
            raise RuntimeError("the C loop and the environment did not simulate the same thing")

    @property
    def _limit(self) -> tuple[Path, Path, int, int, int]:
        skip = self.env.task.frame_skip
        return self.binary, self.folder, self.num_envs, self.steps, skip

    def run(self) -> None:
        for action in self.actions:
            self.env.step(action)

    def rate(self) -> float:
        """Environment steps per CPU-second."""
        self.env.load_state_dict(self.start)
        self.env.elapsed.copy_(torch.arange(self.num_envs) * 617 % self.env.max_episode_steps)
        start = time.process_time()
        self.run()
        return self.num_envs * self.steps / (time.process_time() - start)

    def bare(self) -> float:
        """The engine's, with the same states and controls and nothing around it."""
        batch = Batch(self.env.sim.model, self.num_envs, 1)
        batch.state[:] = self.start["state"]["rows"].numpy()
        ctrl = torch.from_numpy(batch.bind("ctrl"))
        start = time.process_time()
        for action in self.actions:
            ctrl.copy_(action)
            batch.step(None, self.env.task.frame_skip)
        return self.num_envs * self.steps / (time.process_time() - start)

    def limit(self) -> float:
        """The C loop's."""
        return self.num_envs * self.steps / run_limit(*self._limit)[0]


def paired(
    rounds: int, ours: Callable[[], float], theirs: Callable[[], float]
) -> tuple[float, float, float]:
    """Medians of two rates measured in turn, and of their ratio."""
    pairs = [(ours(), theirs()) for _ in range(rounds)]
    ratio = statistics.median(a / b for a, b in pairs)
    return (*map(statistics.median, zip(*pairs, strict=True)), ratio)  # type: ignore[return-value]


def row(what: str, num_envs: int, values: tuple[float, ...], peer: str, target: Any = "") -> dict:
    value, peer_value, ratio = values
    print(f"{what:30} {num_envs:5} {peer:40} {ratio:8.3f}  target {target}", flush=True)
    return {
        "part": "mujoco",
        "what": what,
        "num_envs": num_envs,
        "value": value,
        "unit": "env steps / CPU-s",
        "peer": peer,
        "peer_value": peer_value,
        "ratio": ratio,
        "target": target,
    }


def against(
    rounds: int, ours: Ours, code: str, batch: int, steps: int, python: str | None = None
) -> tuple[float, float, float]:
    """Ours against a peer that steps `batch` environments at a time."""
    peer = Peer(code, **({"python": python} if python else {}), MUJOCO_GL="disable")
    try:
        peer.seconds(steps // 4)
        return paired(rounds, ours.rate, lambda: batch * steps / peer.seconds(steps))
    finally:
        peer.close()


def measure(rounds: int) -> list[dict[str, Any]]:
    """Rows for speed.csv."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return [
            *half_cheetah(rounds, folder),
            *suite(rounds, folder),
            *parameters(rounds),
            fixed_cost(rounds),
        ]


def half_cheetah(rounds: int, folder: Path) -> list[dict[str, Any]]:
    rows, sizes = [], {64: (200, 0.75), 512: (25, 0.90), 4096: (4, 0.75)}
    ours = {}
    for num_envs, (steps, target) in sizes.items():
        ours[num_envs] = Ours("half-cheetah", num_envs, steps, folder / f"cheetah{num_envs}")
        values = paired(rounds, ours[num_envs].rate, ours[num_envs].limit)
        rows.append(row("half-cheetah", num_envs, values, "C loop of mj_step", target))
    best = ours[512]
    values = paired(rounds, best.rate, best.bare)  # what task, resets and checks cost
    rows.append(row("half-cheetah", 512, values, "mujoco.batch alone", 0.95))
    fork = ", start_method='fork'"
    for peer, setup, batch, steps, target in (
        ("Gymnasium SyncVectorEnv(64)", GYMNASIUM.format(kind="SyncVectorEnv"), 64, 100, 1.9),
        ("SB3 DummyVecEnv(64)", SB3.format(kind="DummyVecEnv", more=""), 64, 100, 1.9),
        ("Gymnasium AsyncVectorEnv(8)", GYMNASIUM.format(kind="AsyncVectorEnv"), 8, 300, 7),
        ("SB3 SubprocVecEnv(8)", SB3.format(kind="SubprocVecEnv", more=fork), 8, 300, 7),
    ):
        values = against(rounds, best, vector(setup, batch), batch, steps)
        rows.append(row("half-cheetah", 512, values, peer, target))
    try:
        python = foreign_python("envpool", ["envpool==1.2.5", "gymnasium", "numpy<2.4"])
    except Exception as error:  # no wheel for this platform, or no network
        print(f"EnvPool: skipped, {error}")
        return rows
    for num_envs, steps, target in ((64, 200, 1.0), (512, 25, 1.2)):
        code = vector(ENVPOOL.format(id="HalfCheetah-v5"), num_envs)
        values = against(rounds, ours[num_envs], code, num_envs, steps, python)
        rows.append(row("half-cheetah", num_envs, values, f"EnvPool({num_envs})", target))
    return rows


def suite(rounds: int, folder: Path) -> list[dict[str, Any]]:
    rows = []
    for domain, task, steps, limit, ratio in (
        ("walker", "walk", 15, 0.9, 1.9),
        ("cheetah", "run", 100, 0.42, 2.2),
    ):
        id = f"dmc/{domain}-{task}"
        ours = Ours(id, 512, steps, folder / domain)
        values = paired(rounds, ours.rate, ours.limit)
        rows.append(row(id, 512, values, "C loop of mj_step", limit))
        code = DM_CONTROL.format(domain=domain, task=task)
        values = against(rounds, ours, code, 1, 4000 if domain == "walker" else 16000)
        rows.append(row(id, 512, values, "dm_control", ratio))
    return rows


def parameters(rounds: int) -> list[dict[str, Any]]:
    """The same physics with one copy of the parameters for each environment."""
    shared, own = (Ours("half-cheetah", 512, 25) for _ in range(2))
    model = own.env.sim.model
    names = ("body_mass", "body_inertia", "dof_damping", "geom_friction")
    own.env.set_params({n: np.stack([getattr(model, n)] * 512) for n in names})
    values = paired(rounds, own.rate, shared.rate)
    return [row("half-cheetah, own parameters", 512, values, "shared parameters", 0.95)]


def fixed_cost(rounds: int) -> dict[str, Any]:
    """What `step` costs besides the simulation."""
    ours = Ours("half-cheetah", 8, 1000)
    ours.env.sim.step = lambda *arguments: None
    cost = 1e6 / statistics.median(ours.rate() / 8 for _ in range(rounds))
    print(f"fixed cost of step: {cost:.1f} µs, target 60")
    return {
        "part": "mujoco",
        "what": "half-cheetah, step without the simulation",
        "num_envs": 8,
        "value": cost,
        "unit": "µs / step (at most 60)",
    }
