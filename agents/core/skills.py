"""Measuring and showing skills: where each one moves the object, how reliably and how safely.

Shape letters: E episodes, Z skill size.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from agents.core import plot
from agents.core.evaluate import Episodes, play
from envs.adapt import can_render
from envs.base import BatchedEnv

if TYPE_CHECKING:
    from agents.slim import SLIM

BIN = 0.05  # side of a coverage bin [m]
MOVED = 0.05  # displacement that counts as an interaction [m]
STILL = 1e-3  # displacement below which an object rests: settling and rounding [m]


def displacement(episodes: Episodes, columns: Tensor) -> Tensor:
    """Displacement of the first object in the plane (or of the first two features), [E, 2]."""
    xy = columns[:2]
    moved = episodes.last_obs[:, xy] - episodes.first_obs[:, xy]
    moved = torch.where(moved.abs() < STILL, 0.0, moved)
    return torch.nn.functional.pad(moved, (0, 2 - moved.shape[1]))  # a single feature is x


def skill_metrics(episodes: Episodes, columns: Tensor, prior: str) -> dict[str, float]:
    """What the skills do, from one episode of each.

    - `coverage`: distinct 5 cm bins of the final displacement, one of them centred on no
      displacement (objects off the table do not count);
    - `r2`: of the skill predicted linearly from the displacement, on held-out episodes;
    - `direction_error` (continuous skills): mean angle [deg] between displacement and commanded
      direction after the best rotation (fitted on the other half); 90 where nothing moved;
    - `moved`, `contact`, `lifted`: share of episodes; `displacement`: mean [m];
    - `violations` per episode; `off_table`: share of episodes that end so.

    Args:
        episodes: E of them, each with its own skill; at least 8.
        columns: observation columns that hold the object's position.
        prior: 'sphere' or 'discrete'.
    """
    skill, moved = episodes.state["skill"], displacement(episodes, columns)
    distance = moved.norm(dim=1)
    metrics = {
        "r2": linear_r2(moved, skill),
        "moved": (distance > MOVED).float().mean().item(),
        "displacement": distance.mean().item(),
    }
    kept = moved
    if "off_table" in episodes.last:
        off = episodes.last["off_table"].amax(1) > 0
        metrics["off_table"] = off.float().mean().item()
        kept = moved[~off]
    metrics["coverage"] = float(len(torch.unique((kept / BIN).round(), dim=0)))
    if prior == "sphere" and skill.shape[1] == 2:
        metrics["direction_error"] = direction_error(moved, skill)
    if "cost" in episodes.total:
        metrics["violations"] = episodes.total["cost"].mean().item()
    for name in ("contact", "lifted"):
        if name in episodes.total:
            metrics[name] = (episodes.total[name].amax(1) > 0).float().mean().item()
    return metrics


def linear_r2(x: Tensor, y: Tensor) -> float:
    """Coefficient of determination of y [E, Z] from x [E, D], fitted on one half, on the other.

    At most 1; 0 is as good as the mean, negative is worse.
    """
    x = torch.cat([x, torch.ones_like(x[:, :1])], 1).double().cpu()
    y, half = y.double().cpu(), len(x) // 2
    # The minimum-norm solution, so that an object that never moved is no error.
    solution = torch.linalg.lstsq(x[:half], y[:half], driver="gelsd").solution
    residual = (x[half:] @ solution - y[half:]).square().sum()
    return (1 - residual / (y[half:] - y[half:].mean(0)).square().sum()).item()


def direction_error(moved: Tensor, skill: Tensor) -> float:
    """Mean angle [deg] between displacement and skill, both [E, 2], after the best rotation.

    Rotation or reflection is fitted on the first half (orthogonal Procrustes) and judged on the
    second; an episode that moved the object less than 1 cm counts as chance, 90 degrees.
    """
    half = len(moved) // 2
    u, _, vt = torch.linalg.svd(moved[:half].double().T @ skill[:half].double())
    turned = moved[half:].double() @ (u @ vt)
    cosine = torch.nn.functional.cosine_similarity(turned, skill[half:].double())
    angle = torch.rad2deg(torch.arccos(cosine.clamp(-1, 1)))
    return torch.where(moved[half:].norm(dim=1) > 0.01, angle, 90.0).mean().item()


@torch.no_grad()
def consistency(agent: SLIM, env: BatchedEnv, seed: int, repeats: int = 16) -> float:
    """Variance of the displacement for a fixed skill over its total variance; 0 is consistent.

    Every skill is repeated from `repeats` different starts; `env.num_envs` must be a multiple.
    """
    skills = agent.initial_state(env.num_envs // repeats)["skill"].repeat_interleave(repeats, 0)
    moved = displacement(play(agent, env, seed, state={"skill": skills}), agent.columns)
    groups = moved.view(-1, repeats, 2)
    within = groups.var(1).sum(-1).mean()
    return (within / moved.var(0).sum().clamp_min(1e-12)).item()


def grid_of_skills(agent: SLIM, count: int) -> Tensor:
    """`count` evenly spread skills [count, Z]: a circle, or the categories in turn."""
    size = agent.config.skill_size
    if agent.config.skill == "discrete":
        return torch.eye(size, device=agent.device)[torch.arange(count) % size]
    if size == 2:
        angle = torch.arange(count, device=agent.device) * (2 * math.pi / count)
        return torch.stack([angle.cos(), angle.sin()], 1)
    with agent.using(torch.Generator(agent.device).manual_seed(0)):
        return agent.initial_state(count)["skill"]


def report_skills(agent: SLIM, directory: Path) -> dict[str, float]:
    """Displacement plot, skill video, consistency, and a random policy beside the learned one.

    Writes `plots/skills.png` and, where the environment renders, `video/skills.mp4`.
    """
    env = agent.make_eval_env(512)
    seed = agent.config.seed + 2
    with agent.using(torch.Generator(agent.device).manual_seed(seed)):
        learned = play(agent, env, seed)
        results = {"consistency": consistency(agent, env, seed)}
    random = play(RandomPolicy(agent), env, seed)
    baseline = skill_metrics(random, agent.columns, agent.config.skill)
    plot.plot_skills(
        {
            f"{agent.name} (R² {linear_r2(_moved(agent, learned), learned.state['skill']):.2f})": (
                _moved(agent, learned), learned.state["skill"],
            ),
            f"random policy (R² {baseline['r2']:.2f})": (
                _moved(agent, random), random.state["skill"],
            ),
        },
        directory / "plots" / "skills.png",
    )  # fmt: skip
    record_skills(agent, directory / "video" / "skills.mp4")
    return results | {f"random/{name}": value for name, value in baseline.items()}


def _moved(agent: SLIM, episodes: Episodes) -> Tensor:
    return displacement(episodes, agent.columns)


class RandomPolicy:
    """Uniform actions under the agent's skill prior: the row every table needs."""

    def __init__(self, agent: SLIM) -> None:
        self.agent = agent
        self.generator = torch.Generator(agent.device).manual_seed(agent.config.seed + 3)

    def initial_state(self, num_envs: int) -> dict[str, Tensor]:
        """Skills from the prior, which the actions do not heed."""
        with self.agent.using(self.generator):
            return self.agent.initial_state(num_envs)

    def act(
        self, obs: Tensor, state: dict[str, Tensor], deterministic: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Uniform in the action space's bounds, [N, U]."""
        space = self.agent.env.single_action_space
        low, high = (torch.as_tensor(b, device=obs.device) for b in (space.low, space.high))  # type: ignore[attr-defined]
        unit = torch.rand(
            (len(obs), len(low)), generator=self.generator, device=self.generator.device
        )
        return low + (high - low) * unit, state


def record_skills(agent: SLIM, path: Path, count: int = 8) -> None:
    """Video of `count` skills side by side, all from the same start."""
    env = agent.make_eval_env(count)
    if not can_render(env):
        return
    env.rng.share()
    frames: list[Tensor] = []
    skills = grid_of_skills(agent, count)
    play(
        agent,
        env,
        seed=agent.config.seed + 2,
        state={"skill": skills},
        on_step=lambda _: frames.append(env.render().clone()),  # type: ignore[union-attr]
    )
    plot.write_video(path, torch.stack(frames), fps=round(1 / (env.dt or 0.05)))
