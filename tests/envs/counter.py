"""A gymnasium environment that counts, and misbehaves when asked to; light, for workers."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

import gymnasium as gym
import numpy as np


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
