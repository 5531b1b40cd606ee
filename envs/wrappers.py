"""Environments of dm_env and PettingZoo as `gymnasium.Env`, for `envs.foreign` to step in batches.

Neither torch nor `envs` is used here, because worker processes receive these classes by value.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class DmControlEnv(gym.Env[np.ndarray, Any]):
    """A `dm_env.Environment`, its observations flattened in the order of its specification.

    One uint8 image as the only observation stays an image. An episode that ends with discount 0
    has terminated, any other end is a truncation.

    Args:
        env: from dm_control's suite or composer, whose random numbers can be seeded.

    Raises:
        ValueError: no way to seed it, or specifications that are not arrays of numbers.
    """

    def __init__(self, env: Any) -> None:
        self.env = env
        task = getattr(env, "task", None)
        self._random = getattr(env, "random_state", None) or getattr(task, "random", None)
        if not isinstance(self._random, np.random.RandomState):
            raise ValueError(
                f"{type(env).__name__}: expected a RandomState to seed, as `task.random` (suite) "
                "or `random_state` (composer)"
            )
        specs = env.observation_spec()
        self._specs = list(specs.values()) if isinstance(specs, dict) else [specs]
        for spec in self._specs:
            if np.dtype(spec.dtype).kind not in "biuf":
                raise ValueError(f"observation {spec.name!r}: expected numbers, got {spec.dtype}")
        only = self._specs[0]
        self._image = len(self._specs) == 1 and len(only.shape) == 3 and only.dtype == np.uint8
        if self._image:
            self.observation_space = spaces.Box(0, 255, only.shape, np.uint8)
        else:
            low, high = (self._bounds(name, inf) for name, inf in _INFINITIES)
            self.observation_space = spaces.Box(low, high, dtype=np.float32)
        action = env.action_spec()
        if hasattr(action, "num_values"):
            self.action_space: Any = spaces.Discrete(action.num_values)
        else:
            low, high = (
                np.broadcast_to(getattr(action, name, inf), action.shape).astype(np.float32)
                for name, inf in _INFINITIES
            )
            self.action_space = spaces.Box(low, high, dtype=np.float32)
        self._action_dtype = action.dtype
        limit = getattr(env, "_step_limit", math.inf)
        self.max_episode_steps = math.ceil(limit) if math.isfinite(limit) else sys.maxsize

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode; see `gymnasium.Env`."""
        super().reset(seed=seed)
        if seed is not None:
            self._random.seed(seed % 2**32)
        return self._observation(self.env.reset()), {"discount": 1.0}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Advance by one control step; see `gymnasium.Env`."""
        timestep = self.env.step(np.asarray(action, self._action_dtype))
        last, discount = timestep.last(), timestep.discount
        terminated = last and discount == 0
        reward = 0.0 if timestep.reward is None else float(timestep.reward)
        info = {"discount": float(discount)}
        return self._observation(timestep), reward, terminated, last and not terminated, info

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def _bounds(self, name: str, infinity: float) -> np.ndarray:
        bounds = [
            np.broadcast_to(getattr(spec, name, infinity), spec.shape).ravel()
            for spec in self._specs
        ]
        with np.errstate(over="ignore"):
            return np.concatenate(bounds).astype(np.float32)

    def _observation(self, timestep: Any) -> np.ndarray:
        values = timestep.observation
        values = list(values.values()) if isinstance(values, dict) else [values]
        if self._image:
            return values[0]
        return np.concatenate([np.ravel(value) for value in values]).astype(np.float32)


_INFINITIES = (("minimum", -np.inf), ("maximum", np.inf))


class TeamEnv(gym.Env[np.ndarray, Any]):
    """A `pettingzoo.ParallelEnv` of A agents alike as one environment with an agent axis.

    Observations [A, D] are flattened and zero for an agent that is not there (any more). The reward
    is the team's; each agent's own is `info["reward_per_agent"]`. The episode ends with the last
    agent: by truncation if that is how any agent left in the last step, else by termination.

    Infos hold `alive` [A], `avail_actions` [A, U] where observations are dicts with an
    `action_mask`, and `state` [S] where the environment has one; `context_space` describes them.

    Args:
        env: the environment.
        reward: 'sum' or 'mean' over the A agents, where an agent that is gone counts 0.

    Raises:
        ValueError: agents whose spaces differ, or an unknown `reward`.
    """

    def __init__(self, env: Any, reward: str = "sum") -> None:
        if reward not in ("sum", "mean"):
            raise ValueError(f"reward={reward!r}: expected 'sum' or 'mean'")
        self.env, self._reward = env, reward
        self.agents: list[Any] = list(env.possible_agents)
        self.num_agents = len(self.agents)
        first = self.agents[0]
        for agent in self.agents[1:]:
            for kind in ("observation_space", "action_space"):
                mine, theirs = getattr(env, kind)(agent), getattr(env, kind)(first)
                if mine != theirs:
                    raise ValueError(
                        f"{kind}: expected the same for all agents, got {theirs} of {first!r} and "
                        f"{mine} of {agent!r}; pad them (SuperSuit has wrappers for that)"
                    )
        space, action = env.observation_space(first), env.action_space(first)
        self._masked = isinstance(space, spaces.Dict) and set(space) == {
            "observation",
            "action_mask",
        }
        self._inner = (
            space["observation"] if isinstance(space, spaces.Dict) and self._masked else space
        )
        flat = spaces.flatten_space(self._inner)
        if not isinstance(flat, spaces.Box):
            raise ValueError(f"observation_space: expected one that flattens to a Box, got {space}")
        shape = (self.num_agents, *flat.shape)
        with np.errstate(over="ignore"):
            low, high = (
                np.broadcast_to(bound.astype(np.float32), shape).copy()
                for bound in (np.minimum(flat.low, 0), np.maximum(flat.high, 0))
            )  # with the zeros of agents that are gone
        self.observation_space = spaces.Box(low, high, dtype=np.float32)
        self.action_space: Any = _team_actions(action, self.num_agents)
        self._discrete = isinstance(action, spaces.Discrete)
        limit = getattr(env.unwrapped, "max_cycles", None)
        self.max_episode_steps = sys.maxsize if limit is None else int(limit)
        env.reset(seed=0)  # a state needs an episode
        self.context_space = {"alive": spaces.Box(0, 1, (self.num_agents,), np.bool_)}
        if self._masked:
            mask = (self.num_agents, space["action_mask"].shape[0])
            self.context_space["avail_actions"] = spaces.Box(0, 1, mask, np.bool_)
        try:
            size = np.size(env.state())
        except (NotImplementedError, AttributeError):
            size = 0
        if size:
            self.context_space["state"] = spaces.Box(-np.inf, np.inf, (size,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode; see `gymnasium.Env`."""
        super().reset(seed=seed)
        obs, _ = self.env.reset(seed=seed, options=options)
        context = self._context(obs)
        context["reward_per_agent"] = np.zeros(self.num_agents, np.float32)
        return self._observation(obs), context

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Advance the agents that are there; see `gymnasium.Env`."""
        alive = set(self.env.agents)
        actions = {
            agent: int(action[i]) if self._discrete else action[i]
            for i, agent in enumerate(self.agents)
            if agent in alive
        }
        obs, rewards, _, truncations, _ = self.env.step(actions)
        each = np.array([rewards.get(agent, 0.0) for agent in self.agents], np.float32)
        over = not self.env.agents
        truncated = over and any(truncations.values())
        info = self._context(obs)
        info["reward_per_agent"] = each
        team = float(each.sum() if self._reward == "sum" else each.mean())
        return self._observation(obs), team, over and not truncated, truncated, info

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def _observation(self, obs: dict[Any, Any]) -> np.ndarray:
        out = np.zeros(self.observation_space.shape, np.float32)  # type: ignore[arg-type]
        alive = set(self.env.agents)
        for i, agent in enumerate(self.agents):
            # An agent that leaves has an observation still: the successor of its last action.
            if agent in obs and (agent in alive or not alive):
                value = obs[agent]["observation"] if self._masked else obs[agent]
                out[i] = spaces.flatten(self._inner, value)
        return out

    def _context(self, obs: dict[Any, Any]) -> dict[str, np.ndarray]:
        alive = np.array([agent in self.env.agents for agent in self.agents])
        context: dict[str, np.ndarray] = {"alive": alive}
        if self._masked:
            mask = np.zeros(self.context_space["avail_actions"].shape, np.bool_)  # type: ignore[arg-type]
            mask[:, 0] = True  # an agent that is gone may pick what is ignored
            for i, agent in enumerate(self.agents):
                if agent in obs and (alive[i] or not alive.any()):
                    mask[i] = obs[agent]["action_mask"]
            context["avail_actions"] = mask
        if "state" in self.context_space:
            context["state"] = np.ravel(self.env.state()).astype(np.float32)
        return context


def _team_actions(space: spaces.Space[Any], agents: int) -> spaces.Space[Any]:
    if isinstance(space, spaces.Discrete):
        return spaces.MultiDiscrete([int(space.n)] * agents, start=[int(space.start)] * agents)
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        shape = (agents, *space.shape)
        low, high = (np.broadcast_to(b, shape).astype(np.float32) for b in (space.low, space.high))
        return spaces.Box(low, high, dtype=np.float32)
    raise ValueError(f"action_space: expected Discrete or a Box with one axis, got {space}")
