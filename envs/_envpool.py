"""The EnvPool side of `envs.foreign`; `envpool` itself is imported there, where it is asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from envs.foreign import rows_layout, tensor_space
from envs.workers import Arrays, columns


class EnvPoolRows:
    """EnvPool with the interface of `Rows`; see `from_envpool`.

    Args:
        make: `envpool.make_gymnasium` without the seed.
        num_envs: N.
        seed: of the first copies.
    """

    spec = None

    def __init__(self, make: Callable[..., Any], num_envs: int, seed: int) -> None:
        self._make, self._num_envs = make, num_envs
        self._pool = self._made(seed)
        self.observation_space = self._pool.observation_space
        self.action_space = self._pool.action_space
        self.max_episode_steps = int(self._pool.config.get("max_episode_steps", sys.maxsize))
        space, self._channels = tensor_space(self)
        layout = rows_layout(num_envs, space, self.action_space)
        self.arrays = {name: np.zeros(shape, dtype) for name, (shape, dtype) in layout.items()}
        self._everyone = np.arange(num_envs, dtype=np.int32)

    def reset(self, rows: list[int], seeds: list[int | None], options: Any) -> Arrays:
        """See `Rows.reset`.

        Raises:
            ValueError: some rows only with a seed, or `options`, which EnvPool does not have.
        """
        if options:
            raise ValueError(f"options: EnvPool takes none, got {sorted(options)}")
        if rows and seeds[0] is not None:
            if len(rows) < self._num_envs:
                raise ValueError("seed: EnvPool can only be seeded as a whole, without reset_mask")
            self._pool.close()
            self._pool = self._made(seeds[0])
        if rows:
            obs, info = self._pool.reset(np.asarray(rows, np.int32))
            self._write("obs", obs, info)
        return {}

    def step(self, same_step: bool) -> Arrays:
        """See `Rows.step`; EnvPool itself resets the rows that have ended before."""
        arrays = self.arrays
        obs, reward, terminated, truncated, info = self._pool.step(arrays["action"].copy())
        order = info["env_id"]
        arrays["reward"][order], arrays["terminated"][order] = reward, terminated
        arrays["truncated"][order] = truncated
        self._write("final_obs", obs, info)
        arrays["obs"][:] = arrays["final_obs"]
        numbers: Arrays = {}
        for name, value in info.items():
            if name not in ("env_id", "players") and len(np.shape(value)) >= 1:
                by_row = np.empty_like(value)
                by_row[order] = value
                numbers |= columns([{name: row} for row in by_row])
        done = np.flatnonzero(arrays["terminated"] | arrays["truncated"])
        if same_step and len(done):
            self.reset(done.tolist(), [None] * len(done), None)
        return numbers

    def close(self) -> None:
        """Close the pool."""
        self._pool.close()

    def _made(self, seed: int) -> Any:
        return self._make(seed=[(seed + i) % 2**31 for i in range(self._num_envs)])

    def _write(self, name: str, obs: np.ndarray, info: dict[str, Any]) -> None:
        if self._channels is not None:
            obs = np.moveaxis(obs, 1 + self._channels, 1)
        self.arrays[name][info["env_id"]] = obs
