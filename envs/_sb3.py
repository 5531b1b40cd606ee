"""The Stable-Baselines3 side of `envs.adapt`, apart so that importing `envs` stays light."""

from __future__ import annotations

import time
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices

from envs.adapt import can_render, images, numpy_info, require_same_step, row_info, to_numpy
from envs.base import BatchedEnv


class SB3View(VecEnv):
    """See `envs.adapt.to_sb3`."""

    def __init__(self, env: BatchedEnv) -> None:
        require_same_step(env, "to_sb3")
        if env.num_agents is not None:
            raise ValueError(
                "to_sb3: SB3 has one agent, expected an environment without num_agents"
            )
        self.env = env
        self.render_mode = "rgb_array" if can_render(env) else None
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self._start = time.time()
        self._returns = np.zeros(env.num_envs)
        self._lengths = np.zeros(env.num_envs, np.int64)

    def reset(self) -> np.ndarray:
        """Begin a new episode everywhere with the last `seed()` and `set_options()`; [N, D]."""
        if any(options != self._options[0] for options in self._options):
            raise ValueError("set_options: expected the same options for all environments")
        # SB3 derives one seed per row, a BatchedEnv all rows from one.
        obs, _ = self.env.reset(seed=self._seeds[0], options=self._options[0])
        self._reset_seeds()
        self._reset_options()
        self._returns[:], self._lengths[:] = 0, 0
        return to_numpy(obs)

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions [N, U] for `step_wait`."""
        self._actions = torch.tensor(np.asarray(actions))

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Observations [N, D], rewards [N], dones [N] and one info per row."""
        obs, reward, terminated, truncated, info = self.env.step(self._actions)
        rewards, timed_out = to_numpy(reward), to_numpy(truncated & ~terminated)
        dones = to_numpy(info["_final_obs"])
        self._returns += rewards
        self._lengths += 1
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if dones.any():
            arrays, final_obs = numpy_info(info), to_numpy(info["final_obs"])
            for i in np.flatnonzero(dones).tolist():
                infos[i] = row_info(arrays, i) | {
                    "terminal_observation": final_obs[i],
                    "TimeLimit.truncated": bool(timed_out[i]),
                    "episode": {
                        "r": float(self._returns[i]),
                        "l": int(self._lengths[i]),
                        "t": round(time.time() - self._start, 6),
                    },
                }
                if "success" in arrays:
                    infos[i]["is_success"] = bool(arrays["success"][i])
        self._returns[dones], self._lengths[dones] = 0, 0
        return to_numpy(obs), rewards, dones, infos

    def close(self) -> None:
        """Close the batched environment."""
        self.env.close()

    def get_images(self) -> list[np.ndarray]:
        """Images uint8 [height, width, 3] of all rows."""
        return list(images(self.env))

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The batched environment's attribute, once per index; spaces are those of one row."""
        of_one_row = attr_name in ("render_mode", "observation_space", "action_space")
        value = getattr(self if of_one_row else self.env, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of the batched environment, which all rows share.

        Raises:
            ValueError: `indices` leaves a row out.
        """
        self._require_all(indices)
        setattr(self.env, attr_name, value)

    def env_method(
        self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any
    ) -> list[Any]:
        """Call a method of the batched environment once; its result once per row.

        Raises:
            ValueError: `indices` leaves a row out.
        """
        self._require_all(indices)
        return [getattr(self.env, method_name)(*args, **kwargs)] * self.num_envs

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None
    ) -> list[bool]:
        """True for `Monitor`, whose episode statistics this view writes itself."""
        return [issubclass(wrapper_class, Monitor) for _ in self._get_indices(indices)]

    def _require_all(self, indices: VecEnvIndices) -> None:
        chosen = sorted(set(self._get_indices(indices)))
        if chosen != list(range(self.num_envs)):
            raise ValueError(f"indices: the rows are one environment, expected all, got {chosen}")
