"""The pictures of the environments: python docs/site/pictures.py [name …]

Each is one PNG in docs/environments, made by the environments' own `render` after some steps of
random (in `combat`: scripted) actions from seed 1.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import matplotlib.pyplot as plt
import torch
from torch import Tensor

import envs

DOCS = Path(__file__).resolve().parents[1]


def after(id: str, steps: int, **kwargs: Any) -> Any:
    """An environment of one row after random actions."""
    env = envs.make(id, num_envs=1, seed=1, **kwargs)
    env.reset(seed=1)
    env.action_space.seed(1)
    for _ in range(steps):
        env.step(torch.as_tensor(env.action_space.sample()))
    return env


def row(path: Path, pictures: dict[str, Tensor], side: float = 2.2) -> None:
    """Pictures [1, 3, height, width] side by side, with their names above."""
    figure, axes = plt.subplots(1, len(pictures), figsize=(side * len(pictures), side * 1.15))
    for axis, (name, picture) in zip(axes, pictures.items(), strict=True):
        axis.imshow(picture[0].permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
        axis.set_title(name, fontsize=8)
        axis.axis("off")
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=100, pil_kwargs={"optimize": True})
    plt.close(figure)


def tabletop(path: Path) -> None:
    """Both robots, and three cubes."""
    views = {
        "tabletop, start=easy": after("tabletop", 4, start="easy", num_threads=1),
        "tabletop, objects=3 task=place": after(
            "tabletop", 4, objects=3, task="place", num_threads=1
        ),
        "tabletop/panda": after("tabletop/panda", 2, num_threads=1),
    }
    row(path, {k: env.render("main", (220, 220)) for k, env in views.items()}, 2.8)


def locomotion(path: Path) -> None:
    """Gymnasium's bodies, and some of the suite's."""
    names = ("half-cheetah", "ant", "walker2d", "dmc/quadruped-walk", "dmc/finger-spin")
    row(path, {n: after(n, 10, num_threads=1).render(None, (200, 200)) for n in names})


def particles(path: Path) -> None:
    """Five scenarios."""
    names = ("free", "spread", "tag", "formation", "push-ball")
    row(path, {n: after(f"particles/{n}", 12).render(192) for n in names})


def combat(path: Path) -> None:
    """Battles between scripts, some seconds in."""
    pictures = {}
    for name in ("2s3z", "MMM2", "protoss_10_vs_10"):
        env = envs.make(f"combat/{name}", num_envs=1, seed=1)
        env.reset(seed=1)
        idle = torch.zeros(1, env.num_agents, dtype=torch.int64)
        for _ in range(14):
            env.rng.advance()
            env._proceed(idle, ("closest", env.opponent))
        pictures[name] = env.render(256)
    row(path, pictures, 2.8)


def families(path: Path) -> None:
    """The parameters of the tasks of four families."""
    figure, axes = plt.subplots(1, 4, figsize=(11, 2.8))
    plane = {"point-robot": "goals [m]", "point-robot/square": "goals [m]", "ant-dir": "directions"}
    for axis, (name, what) in zip(axes, plane.items(), strict=False):
        axis.scatter(*envs.make(name, num_envs=1).tasks.cpu().T, s=14)
        axis.plot(0, 0, "k+")
        axis.set_title(f"{name}: {what}", fontsize=9)
        axis.set_aspect("equal")
    speeds = envs.make("half-cheetah-vel", num_envs=1, num_threads=1).tasks.cpu()
    axes[3].hist(speeds[:, 0], bins=12)
    axes[3].set_title("half-cheetah-vel: speeds [m/s]", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=75)
    plt.close(figure)


def pixels(path: Path) -> None:
    """Agents in front of what they cannot control."""
    shown = (
        ("pixels/arm", "none"), ("pixels/arm", "ghost"), ("pixels/cartpole", "noise"),
        ("pixels/point", "ghost"), ("pixels/dmc/walker-walk", "noise"),
    )  # fmt: skip
    pictures = {}
    for name, background in shown:
        more = {"num_threads": 1} if "dmc" in name else {}
        env = after(name, 4, background=background, **more)
        action = torch.as_tensor(env.action_space.sample())
        pictures[f"{name[7:]}, {background}"] = env.step(action)[0]  # what is observed
    row(path, pictures)


PICTURES: dict[str, Callable[[Path], None]] = {
    f.__name__: f for f in (tabletop, locomotion, particles, combat, families, pixels)
}


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    for name in names or PICTURES:
        path = DOCS / "environments" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        PICTURES[name](path)
        print(f"{path}: {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main(sys.argv[1:])
