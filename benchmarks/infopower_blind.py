"""Returns that need no look at the picture: what a policy learnt from pixels has to beat.

    python benchmarks/infopower_blind.py

Writes blind.csv beside the curves of `benchmarks/infopower.py`. On cartpoles: the best of 156
forces a·cos(2πft), of 6 amplitudes and 26 frequencies, held as long as the agents' actions are. On
the arm: the tip folded to where the arm is fixed, whatever the target, which also has the joints'
angles; and, as what is possible, the tip moved into the target by inverse kinematics. Means of 64
episodes of each on the arm and of 8 of each force, whose starts differ by a hundredth of a radian.
On the walker, which starts in any pose: the best of all 729 torques of -1, 0 and 1 at its six
joints, held for the whole episode, and of 1,024 that swing there (one frequency up to 2.5 Hz, any
amplitudes and phases); the 16 best of one episode each are compared on 64 others.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
from common import write_csv  # noqa: E402

import envs  # noqa: E402

EPISODES, STARTS, WAVES = 64, 8, 1024


def returns(env: Any, policy: Callable[[int], Tensor], hold: int = 1) -> Tensor:
    """Of one episode in every row, [N]; `policy` is asked every `hold` steps."""
    env.reset(seed=5)
    total = torch.zeros(env.num_envs)
    for t in range(env.max_episode_steps):
        if t % hold == 0:
            action = policy(t)
        total += env.step(action)[1]
    return total


def cartpole(name: str, hold: int, **kwargs: Any) -> list[dict[str, Any]]:
    """Uniform actions, and the best open-loop force."""
    amplitude, frequency = (
        torch.cartesian_prod(
            torch.tensor([0.1, 0.2, 0.3, 0.5, 0.7, 1.0]), torch.linspace(0, 2.5, 26)
        )
        .repeat_interleave(STARTS, 0)
        .unbind(1)
    )
    env: Any = envs.make(name, len(amplitude), "cpu", 5, **kwargs)
    generator = torch.Generator().manual_seed(0)

    def swing(t: int) -> Tensor:
        return (amplitude * torch.cos(2 * math.pi * frequency * t * env.dt))[:, None]

    def uniform(t: int) -> Tensor:
        return 2 * torch.rand(len(amplitude), 1, generator=generator) - 1

    found = returns(env, swing, hold).view(-1, STARTS).mean(1)
    best = int(found.argmax())
    size, rate = amplitude[best * STARTS], frequency[best * STARTS]
    what = f"{size:.1f} cos(2π {rate:.1f} Hz t)"
    return [
        {"task": name, "policy": "uniform", "return": returns(env, uniform, hold).mean().item()},
        {"task": name, "policy": what, "return": found[best].item()},
    ]


def walker() -> list[dict[str, Any]]:
    """Uniform actions, none, and the best torques that do not depend on anything."""
    name, generator = "dmc/walker-stand", torch.Generator().manual_seed(0)
    amplitude = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0])] * 6)
    waves = torch.rand(WAVES, 13, generator=generator)
    amplitude = torch.cat([amplitude, waves[:, :6]])
    phase = 2 * math.pi * functional.pad(waves[:, 6:12], (0, 0, len(amplitude) - WAVES, 0))
    rate = 2.5 * functional.pad(waves[:, 12:], (0, 0, len(amplitude) - WAVES, 0))

    def play(rows: Tensor, seed: int) -> Tensor:
        env: Any = envs.make(name, len(rows), "cpu", seed)
        a, f, p = amplitude[rows], rate[rows], phase[rows]
        return returns(env, lambda t: a * torch.cos(2 * math.pi * f * t * env.dt + p), 4)

    best = play(torch.arange(len(amplitude)), 5).topk(16).indices
    found = play(best.repeat_interleave(EPISODES), 6).view(-1, EPISODES).mean(1)
    which, first = best[found.argmax()], found.max().item()
    env: Any = envs.make(name, EPISODES, "cpu", 5)
    policies: dict[str, Callable[[int], Tensor]] = {
        "uniform": lambda t: 2 * torch.rand(EPISODES, 6, generator=generator) - 1,
        "none": lambda t: torch.zeros(EPISODES, 6),
    }
    rows = [
        {"task": name, "policy": what, "return": returns(env, policy, 4).mean().item()}
        for what, policy in policies.items()
    ]
    if rate[which] > 0:
        what = f"torques swinging at {rate[which].item():.1f} Hz"
    else:
        what = f"torques {' '.join(f'{a:.0f}' for a in amplitude[which])}"
    return [*rows, {"task": name, "policy": what, "return": first}]


def arm() -> list[dict[str, Any]]:
    """Uniform actions, none, the tip folded away, and the tip in the target."""
    env: Any = envs.make("pixels/arm", EPISODES, "cpu", 5, size=16)
    generator = torch.Generator().manual_seed(0)

    def turn(wanted: Tensor) -> Tensor:
        error = torch.remainder(wanted - env.state[:, :2] + math.pi, 2 * math.pi) - math.pi
        return (4 * error).clamp(-1, 1).float()

    def fold(t: int) -> Tensor:
        return turn(torch.stack([env.state[:, 0], torch.full((EPISODES,), math.pi)], 1))

    def reach(t: int) -> Tensor:
        x, y = env.target.double().unbind(1)
        bend = torch.acos(torch.hypot(x, y).clamp_max(0.999) / (2 * env.link))
        return turn(torch.stack([torch.atan2(y, x) - bend, 2 * bend], 1))

    policies: dict[str, Callable[[int], Tensor]] = {
        "uniform": lambda t: 2 * torch.rand(EPISODES, 2, generator=generator) - 1,
        "none": lambda t: torch.zeros(EPISODES, 2),
        "folded, blind to the target": fold,
        "inverse kinematics": reach,
    }
    return [
        {"task": "pixels/arm", "policy": name, "return": returns(env, policy).mean().item()}
        for name, policy in policies.items()
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    rows = arm() + cartpole("pixels/cartpole", 1, size=16)
    rows += cartpole("dmc/cartpole-swingup", 4) + walker()
    for row in rows:
        print(row)
    write_csv(ROOT / "benchmarks" / "results" / "infopower" / "blind.csv", rows)
