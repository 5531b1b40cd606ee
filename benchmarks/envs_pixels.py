"""Images: mujoco_warp's ray tracer against dm_control under software OpenGL.

Two control steps and one 64 x 64 image, as pixel agents do. dm_control needs EGL (Debian: `apt-get
install libegl1 libgl1-mesa-dri`); where there is none, this part is skipped.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from common import Peer, Skipped
from envs_distractors import PEER
from envs_mujoco import paired

import envs


def measure(rounds: int) -> list[dict[str, Any]]:
    """Rows for speed.csv."""
    torch.set_num_threads(1)
    rows = []
    for domain, task, num_envs in (
        ("cheetah", "run", 16),
        ("cheetah", "run", 64),
        ("walker", "walk", 64),
    ):
        env: Any = envs.make(f"dmc/{domain}-{task}", num_envs=num_envs, num_threads=1)
        env.reset(seed=0)
        action = torch.rand(num_envs, 6) * 2 - 1

        def rate() -> float:
            start, images = time.process_time(), 0
            while time.process_time() - start < 0.5:
                env.step(action)  # noqa: B023
                env.step(action)  # noqa: B023
                images += len(env.render(resolution=(64, 64)))  # noqa: B023
            return images / (time.process_time() - start)

        rate()  # compiles
        try:
            peer = Peer(PEER.format(domain=domain, task=task), MUJOCO_GL="egl")
        except RuntimeError:
            raise Skipped("dm_control cannot render: no EGL") from None
        value, other, ratio = paired(rounds, rate, lambda: 30 / peer.seconds(30))  # noqa: B023
        peer.close()
        print(f"{domain}-{task} {num_envs} {ratio:.1f}", flush=True)
        rows.append(
            {
                "part": "pixels",
                "what": f"dmc/{domain}-{task}, 64 x 64 images, 2 steps each",
                "num_envs": num_envs,
                "value": value,
                "unit": "images / CPU-s",
                "peer": "dm_control, EGL on llvmpipe",
                "peer_value": other,
                "ratio": ratio,
                "target": 40,
            }
        )
    return rows
