"""Images in front of distractors: our environments against dm_control's plain pictures.

An image is a step of an agent: two control steps (the rasterised tasks: four, cartpole eight), the
picture, a video behind it and the ground truth. dm_control only does two control steps and one
picture as its pixel wrapper takes it by default, without a video; it needs EGL (Debian: `apt-get
install libegl1 libgl1-mesa-dri`), and where there is none, its rows are skipped. The rasterised
tasks are asked for 7,000 a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from common import Peer
from envs_mujoco import paired

import envs

PEER = """
import numpy as np
from dm_control import suite
env = suite.load('{domain}', '{task}')
actions = np.random.default_rng(0).uniform(-1, 1, (64, *env.action_spec().shape))
env.reset()
env.physics.render(64, 64, camera_id=0)
def step(count):
    for i in range(count):
        for _ in range(2):
            if env.step(actions[i % 64]).last():
                env.reset()
        env.physics.render(64, 64, camera_id=0)
"""
ASKED = 7_000
TASKS = (("walker", "stand"), ("cartpole", "swingup"), ("cheetah", "run"), ("ball_in_cup", "catch"))


def stepper(id: str, num_envs: int, **settings: Any) -> Callable[[], float]:
    """Measures images per CPU-second of an environment."""
    env: Any = envs.make(id, num_envs, background="video", **settings)
    env.reset(seed=0)
    action = torch.rand(num_envs, *env.single_action_space.shape) * 2 - 1

    def rate() -> float:
        start, images = time.process_time(), 0
        while time.process_time() - start < 0.5:
            env.step(action)
            images += num_envs
        return images / (time.process_time() - start)

    rate()  # compiles
    return rate


def measure(rounds: int) -> list[dict[str, Any]]:
    """Rows for speed.csv."""
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []

    def add(
        what: str, num_envs: int, peer: str, target: float, numbers: tuple[float, float, float]
    ) -> None:
        value, other, ratio = numbers
        print(f"{what} | {peer}: {value:.0f}, {ratio:.1f}", flush=True)
        row = {"part": "distractors", "what": what, "num_envs": num_envs, "value": value}
        row |= {"unit": "images / CPU-s", "peer": peer, "peer_value": other, "ratio": ratio}
        rows.append({**row, "target": target})

    for name in ("arm", "cartpole", "point"):
        numbers = paired(rounds, stepper(f"pixels/{name}", 16), lambda: float(ASKED))
        add(f"pixels/{name}, video, 64 x 64", 16, "asked for", 1, numbers)
    for domain, task in TASKS:
        try:
            peer = Peer(PEER.format(domain=domain, task=task), MUJOCO_GL="egl")
        except RuntimeError:
            print(f"{domain}-{task}: skipped, dm_control cannot render without EGL")
            continue
        other = lambda: 30 / peer.seconds(30)  # noqa: B023, E731
        for renderer, target in (("ray", 40), ("egl", 10)):
            settings = {"renderer": renderer, "num_threads": 1}
            what = f"pixels/dmc/{domain}-{task}, video, 64 x 64, {renderer}"
            for num_envs in (16, 64) if renderer == "ray" else (16,):
                ours = stepper(f"pixels/dmc/{domain}-{task}", num_envs, **settings)
                numbers = paired(rounds, ours, other)
                add(what, num_envs, "dm_control, EGL on llvmpipe", target, numbers)
        peer.close()
    return rows
