"""Playing whole episodes and measuring them; never touches the training's random numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch
from torch import Tensor

from envs.base import BatchedEnv

if TYPE_CHECKING:
    from agents.base import Agent


@dataclass
class Episodes:
    """Complete episodes, one row each (E of them).

    Attributes:
        returns: sums of rewards [E].
        lengths: steps [E].
        first_obs: observation at the start [E, D].
        last_obs: true successor of the last step [E, D].
        state: the agent's state at the start (skill, ...), [E, ...] each.
        total: sums over the episode of every numeric info entry, [E, ...] each.
        last: the same entries after the last step.
    """

    returns: Tensor
    lengths: Tensor
    first_obs: Tensor
    last_obs: Tensor
    state: dict[str, Tensor]
    total: dict[str, Tensor]
    last: dict[str, Tensor]

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """All episodes of `parts`, in order."""
        joined: dict[str, Any] = {}
        for name, first in vars(parts[0]).items():
            values = [getattr(part, name) for part in parts]
            if isinstance(first, dict):
                joined[name] = {key: torch.cat([v[key] for v in values]) for key in first}
            else:
                joined[name] = torch.cat(values)
        return cls(**joined)


class Policy(Protocol):
    """What can play: an agent, or a baseline such as a random policy.

    One that has a method `perceive`, as agents do, sees the environment's context through it.
    """

    def initial_state(self, num_envs: int) -> dict[str, Tensor]:
        """What is carried at the start of an episode."""
        ...

    def act(
        self, obs: Tensor, state: dict[str, Tensor], deterministic: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Actions and the state to carry on."""
        ...


@torch.no_grad()
def play(
    agent: Policy,
    env: BatchedEnv,
    seed: int,
    deterministic: bool = True,
    state: dict[str, Tensor] | None = None,
    on_step: Callable[[Tensor], None] | None = None,
) -> Episodes:
    """One episode in every environment, from a reset with `seed`.

    Args:
        agent: whose `act` is called.
        env: reset first, by `reset(seed=seed)`.
        seed: of the environment.
        deterministic: act without exploration.
        state: the agent's initial state (to choose skills); drawn by the agent if None.
        on_step: called with the observation before every step, e.g. to render.
    """
    obs, info = env.reset(seed=seed)
    perceive: Any = getattr(agent, "perceive", lambda state, context: state)
    first, start = obs, agent.initial_state(env.num_envs) if state is None else state
    carried = start
    alive = torch.ones(env.num_envs, dtype=torch.bool, device=env.device)
    returns = torch.zeros(env.num_envs, device=env.device)
    lengths, last_obs = torch.zeros_like(returns), obs
    total: dict[str, Tensor] = {}
    last: dict[str, Tensor] = {}
    while bool(alive.any()):
        if on_step is not None:
            on_step(obs)
        action, carried = agent.act(obs, perceive(carried, info), deterministic)
        obs, reward, terminated, truncated, info = env.step(action)
        returns += reward * alive
        lengths += alive
        last_obs = torch.where(_like(alive, obs), info["final_obs"], last_obs)
        for name, value in info.items():
            if name in ("final_obs", "_final_obs") or not isinstance(value, Tensor):
                continue
            value = value.to(torch.float32)
            mask = _like(alive, value)
            total[name] = total.get(name, 0) + value * mask
            last[name] = torch.where(mask, value, last.get(name, value))
        alive &= ~(terminated | truncated)
    env.check()
    return Episodes(returns, lengths, first, last_obs, start, total, last)


def _like(mask: Tensor, value: Tensor) -> Tensor:
    return mask.view(-1, *[1] * (value.dim() - 1))


def evaluate(
    agent: Agent, env: BatchedEnv, episodes: int, seed: int, deterministic: bool = True
) -> dict[str, float]:
    """`return_mean`, `return_std`, `length_mean`, `episodes` and the agent's own metrics.

    Args:
        agent: to evaluate.
        env: where; every batch of episodes starts from a reset with the next seed.
        episodes: at least so many, in whole batches of `env.num_envs`.
        seed: of the first batch.
        deterministic: act without exploration.
    """
    batches = -(-episodes // env.num_envs)
    played = [play(agent, env, seed + i, deterministic) for i in range(batches)]
    every = Episodes.concatenate(played)
    metrics = {
        "return_mean": every.returns.mean().item(),
        "return_std": every.returns.std(correction=0).item(),
        "length_mean": every.lengths.mean().item(),
        "episodes": len(every.returns),
    }
    if "success" in every.last:
        metrics["success_rate"] = every.last["success"].mean().item()
    return metrics | agent.episode_metrics(every)
