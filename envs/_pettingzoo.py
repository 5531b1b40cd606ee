"""The PettingZoo side of `envs.adapt`, apart so that importing `envs` stays light."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from pettingzoo import ParallelEnv
from torch import Tensor

from envs.adapt import images, numpy_info, require_one_row, row_info, to_numpy, view_metadata
from envs.base import BatchedEnv


class PettingZooView(ParallelEnv[str, Any, Any]):
    """See `envs.adapt.to_pettingzoo`.

    When an episode ends, the batched environment has already begun the next one, which a plain
    `reset()` directly after it hands out; any other `reset` begins a new episode.
    """

    def __init__(self, env: BatchedEnv, render_mode: str | None = None) -> None:
        require_one_row(env, "to_pettingzoo")
        if env.num_agents is None:
            raise ValueError("to_pettingzoo: expected an environment with num_agents")
        self.env, self.render_mode = env, render_mode
        self.metadata = {**view_metadata(env, render_mode), "name": type(env).__name__}
        self.possible_agents = [f"agent_{i}" for i in range(env.num_agents)]
        self.agents = []
        self.max_cycles = env.max_episode_steps
        self._masks = "avail_actions" in env.context()
        box, actions = env.single_observation_space, env.single_action_space
        assert isinstance(box, spaces.Box)
        self.observation_spaces, self.action_spaces = {}, {}
        for i, agent in enumerate(self.possible_agents):
            space: Any = spaces.Box(box.low[i], box.high[i], dtype=box.dtype)  # type: ignore[arg-type]
            action: Any
            if isinstance(actions, spaces.Box):
                action = spaces.Box(actions.low[i], actions.high[i], dtype=actions.dtype)  # type: ignore[arg-type]
            else:
                assert isinstance(actions, spaces.MultiDiscrete)
                action = spaces.Discrete(int(actions.nvec[i]), start=int(actions.start[i]))
            if self._masks:
                mask = spaces.Box(0, 1, env.context()["avail_actions"].shape[2:], np.int8)
                space = spaces.Dict(observation=space, action_mask=mask)
            self.observation_spaces[agent], self.action_spaces[agent] = space, action
        # What an agent that is gone does: nothing, or the lowest action.
        low = actions.low if isinstance(actions, spaces.Box) else actions.start
        high = actions.high if isinstance(actions, spaces.Box) else actions.start
        self._idle = np.clip(np.zeros_like(low), low, high)
        self._context: dict[str, Tensor] = {}
        self._next_obs: Tensor | None = None  # of the episode that autoreset has begun

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        """The agent's, the same object every time."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        """The agent's, the same object every time."""
        return self.action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Begin an episode; see `BatchedEnv.reset` for the arguments."""
        if self._next_obs is not None and seed is None and not options:
            obs = self._next_obs
        else:
            obs, _ = self.env.reset(seed=seed, options=options)
        self._next_obs, self._context = None, self.env.context()
        self.agents = self._alive()
        return self._observations(obs, self.agents), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, Any]) -> tuple[dict[str, Any], ...]:
        """Advance the agents that are there.

        The team's numbers, as whether a battle is won, are in every agent's info.

        Args:
            actions: one of each agent in `agents`.

        Raises:
            ValueError: actions of other agents than those, or see `BatchedEnv.step`.
        """
        acting = self.agents
        if set(actions) != set(acting):
            raise ValueError(f"step: expected actions of {acting}, got {sorted(actions)}")
        if not acting:
            return {}, {}, {}, {}, {}
        joint = self._idle.copy()
        for i, agent in enumerate(self.possible_agents):
            if agent in actions:
                joint[i] = actions[agent]
            elif self._masks:  # the first action that it may take
                joint[i] += int(self._context["avail_actions"][0, i].to(torch.uint8).argmax())
        obs, reward, terminated, truncated, info = self.env.step(torch.tensor(joint[None]))
        self._context = info.get("final_info", {})
        over, cut = bool(info["_final_obs"][0]), bool(truncated[0])
        self.agents = [] if over else [agent for agent in self._alive() if agent in acting]
        each = info.get("reward_per_agent", reward[:, None].expand(1, len(self.possible_agents)))[0]
        rewards = dict(zip(self.possible_agents, each.tolist(), strict=True))
        alive = set(self._alive())
        observations = self._observations(info["final_obs"], acting)
        self._next_obs = obs if over else None
        row = row_info(numpy_info(info), 0)
        scalars = {k: v for k, v in row.items() if isinstance(v, (bool, int, float))}
        return (
            observations,
            {agent: rewards[agent] for agent in acting},
            {agent: agent not in alive or bool(terminated[0]) for agent in acting},
            {agent: agent in alive and cut for agent in acting},
            {agent: dict(scalars) for agent in acting},
        )

    def state(self) -> np.ndarray:
        """The environment's state [S].

        Raises:
            NotImplementedError: it has none.
        """
        if "state" not in self._context:
            raise NotImplementedError(f"{type(self.env).__name__} reports no state")
        return to_numpy(self._context["state"][0])

    def render(self) -> np.ndarray | None:
        """Image uint8 [height, width, 3], or None without a render mode."""
        return None if self.render_mode is None else images(self.env)[0]

    def close(self) -> None:
        """Close the batched environment."""
        self.env.close()

    def _alive(self) -> list[str]:
        if "alive" not in self._context:
            return list(self.possible_agents)
        alive = self._context["alive"][0].tolist()
        return [agent for agent, here in zip(self.possible_agents, alive, strict=True) if here]

    def _observations(self, obs: Tensor, agents: list[str]) -> dict[str, Any]:
        rows = to_numpy(obs[0])
        each: dict[str, Any] = {a: rows[i].copy() for i, a in enumerate(self.possible_agents)}
        if self._masks:
            masks = to_numpy(self._context["avail_actions"][0].to(torch.int8))
            for i, agent in enumerate(self.possible_agents):
                each[agent] = {"observation": each[agent], "action_mask": masks[i].copy()}
        return {agent: each[agent] for agent in agents}
