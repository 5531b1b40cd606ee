"""Environments that count, and misbehave when asked to; light, for workers import this file."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv


class Counter(gym.Env[np.ndarray, Any]):
    """Counts its steps; misbehaves on action 9 as told."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gym.spaces.Discrete(10)

    def __init__(self, failure: str = "", pause: float = 0.0, end: int = 5) -> None:
        self.failure, self.pause, self.end = failure, pause, end
        if failure == "make":
            raise RuntimeError("no licence")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.count = 0
        info = {"options": len(options or {}), "noise": self.np_random.random()}
        return np.array([0, info["noise"]]), info

    def step(self, action: Any) -> Any:
        self.count += 1
        time.sleep(self.pause)
        if action == 9:
            if self.failure == "raise":
                raise ValueError("the arm is stuck")
            if self.failure == "exit":
                sys.exit(3)
            if self.failure == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.failure == "leave":
                os._exit(4)
            while self.failure == "hang":
                time.sleep(0.01)
        noise = self.np_random.random()
        info = {"count": self.count, "noise": noise, "pair": np.array([noise, 1.0]), "text": "a"}
        if self.count % 2:
            info["odd"] = True
        ended = self.count == self.end
        return np.array([self.count, noise]), action, ended and noise < 0.5, ended, info


class Countdown(ParallelEnv):
    """Agent i leaves after 2 + i steps, by termination or (`cut`) truncation of the last one."""

    metadata = {"name": "countdown"}  # noqa: RUF012

    def __init__(self, cut: bool = False, agents: int = 3) -> None:
        self.possible_agents = [f"a{i}" for i in range(agents)]
        self.cut = cut
        box = spaces.Box(1, 9, (2,), np.float64)
        mask = spaces.Box(0, 1, (4,), np.int8)
        self._spaces = {
            agent: spaces.Dict(observation=box, action_mask=mask) for agent in self.possible_agents
        }

    def observation_space(self, agent: Any) -> Any:
        return self._spaces[agent]

    def action_space(self, agent: Any) -> Any:
        return spaces.Discrete(4)

    def state(self) -> np.ndarray:
        return np.array([[self.time, len(self.agents)]])

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        if seed is not None:
            self.random = np.random.default_rng(seed)
        self.agents, self.time = list(self.possible_agents), 0
        return self._obs(self.agents), {agent: {} for agent in self.agents}

    def step(self, actions: Any) -> Any:
        assert set(actions) == set(self.agents)
        assert all(type(action) is int for action in actions.values())
        self.time += 1
        acting = self.agents
        leaving = {agent: self.time >= 2 + int(agent[1:]) for agent in acting}
        self.agents = [agent for agent in acting if not leaving[agent]]
        cut = {agent: self.cut and leaving[agent] for agent in acting}
        terminated = {agent: leaving[agent] and not cut[agent] for agent in acting}
        rewards = {agent: float(action) for agent, action in actions.items()}
        return self._obs(acting), rewards, terminated, cut, {agent: {} for agent in acting}

    def _obs(self, agents: list[str]) -> Any:
        noise = self.random.random()
        return {
            agent: {
                "observation": np.array([1 + self.time, 1 + noise]),
                "action_mask": np.arange(4) != self.time % 4,
            }
            for agent in agents
        }
