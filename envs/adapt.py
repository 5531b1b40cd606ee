"""Bridges between `BatchedEnv` and the environment interfaces of other libraries.

| other library | into a `BatchedEnv` | out of one |
|---|---|---|
| gymnasium | `from_gymnasium` | `to_gymnasium` (one row), `to_gymnasium_vector` |
| Stable-Baselines3 | | `to_sb3` |
| PettingZoo | `from_pettingzoo` | `to_pettingzoo` (one row) |
| dm_control | `from_dm_control` | |
| EnvPool | `from_envpool` | |

Shape letters: N environments, A agents, D observation features, U action features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import gymnasium as gym
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from envs.base import BatchedEnv
from envs.foreign import (
    GymnasiumBatch,
    from_dm_control,
    from_envpool,
    from_gymnasium,
    from_pettingzoo,
)

if TYPE_CHECKING:
    from pettingzoo import ParallelEnv
    from stable_baselines3.common.vec_env import VecEnv

__all__ = [
    "GymnasiumBatch",
    "GymnasiumVectorView",
    "GymnasiumView",
    "from_dm_control",
    "from_envpool",
    "from_gymnasium",
    "from_pettingzoo",
    "to_gymnasium",
    "to_gymnasium_vector",
    "to_pettingzoo",
    "to_sb3",
]


def to_gymnasium(env: BatchedEnv, render_mode: str | None = None) -> GymnasiumView:
    """A `gymnasium.Env` in numpy over a `BatchedEnv` of one environment.

    Args:
        env: with `num_envs` 1; the view steps it, so nobody else should.
        render_mode: 'rgb_array' if `render()` shall return images, which needs `env.render`.

    Raises:
        ValueError: more than one environment, a render mode that `env` does not have, or another
            autoreset than SAME_STEP.
    """
    return GymnasiumView(env, render_mode)


def to_gymnasium_vector(env: BatchedEnv, render_mode: str | None = None) -> GymnasiumVectorView:
    """A `gymnasium.vector.VectorEnv` in numpy over a `BatchedEnv`, with its autoreset mode.

    Args:
        env: the environment; the view steps it, so nobody else should.
        render_mode: 'rgb_array' if `render()` shall return images, which needs `env.render`.

    Raises:
        ValueError: a render mode that `env` does not have.
    """
    return GymnasiumVectorView(env, render_mode)


def to_pettingzoo(env: BatchedEnv, render_mode: str | None = None) -> ParallelEnv:
    """A PettingZoo `ParallelEnv` in numpy over a multi-agent `BatchedEnv` of one environment.

    Agents are called `agent_0`, `agent_1`, ... An agent's reward is its own where the environment
    reports `reward_per_agent`, else the team's. Observations are dicts with an `action_mask` where
    the environment has `avail_actions`. An agent that is no longer `alive` has terminated.

    Args:
        env: with `num_envs` 1 and `num_agents`; the view steps it, so nobody else should.
        render_mode: 'rgb_array' if `render()` shall return images, which needs `env.render`.

    Raises:
        ValueError: no agents or more than one environment, a render mode that `env` does not have,
            or another autoreset than SAME_STEP.
    """
    from envs._pettingzoo import PettingZooView

    return PettingZooView(env, render_mode)


def to_sb3(env: BatchedEnv) -> VecEnv:
    """A Stable-Baselines3 `VecEnv` in numpy over a `BatchedEnv`.

    Infos follow SB3: a finished row has `terminal_observation`, `TimeLimit.truncated`, `episode`
    (`r`, `l`, `t` as `Monitor` writes them), `is_success` where the environment reports `success`,
    and its row of the environment's own info; the info of any other row is empty.

    Args:
        env: the environment; the view steps it, so nobody else should.

    Raises:
        ValueError: another autoreset than SAME_STEP, or several agents.
    """
    from envs._sb3 import SB3View  # stable_baselines3 takes seconds to import

    return SB3View(env)


def make_view(env_id: str, render_mode: str | None = None, **kwargs: Any) -> GymnasiumView:
    """`to_gymnasium` of one environment by `envs.make`: the entry point of specs."""
    from envs import make

    return to_gymnasium(make(env_id, 1, **kwargs), render_mode)


class GymnasiumView(gym.Env[np.ndarray, Any]):
    """See `to_gymnasium`.

    `step` returns the terminal observation of a finished episode. The batched environment has by
    then begun the next one, which a plain `reset()` directly after it hands out; any other `reset`
    begins a new episode. `spec` says how `envs.make` made the environment, so that gymnasium (and a
    Minari dataset) can make it again; that of an environment which was made without it gives
    another view of the same simulation, where closing one view closes the simulation.
    """

    def __init__(self, env: BatchedEnv, render_mode: str | None = None) -> None:
        require_one_row(env, "to_gymnasium")
        self.env = env
        self.render_mode = render_mode
        self.observation_space = env.single_observation_space
        self.action_space = env.single_action_space
        self.metadata = view_metadata(env, render_mode)

        # A closure, because gymnasium's wrappers deepcopy the spec: only functions are spared.
        def entry_point(**kwargs: Any) -> GymnasiumView:
            return GymnasiumView(env, **kwargs)

        self.spec = env.spec or EnvSpec(
            f"infomax/{type(env).__name__}", entry_point, max_episode_steps=env.max_episode_steps
        )
        self._running = False
        self._next_obs: np.ndarray | None = None  # of the episode that autoreset has begun

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode; see `BatchedEnv.reset` for the arguments."""
        super().reset(seed=seed)
        if self._next_obs is not None and seed is None and not options:
            obs, info = self._next_obs, row_info(numpy_info(self.env.context()), 0)
        else:
            if seed is not None and seed >= 0:
                seed %= 2**63  # Minari's collector draws seeds of 64 bits
            batch, info = self.env.reset(seed=seed, options=options)
            obs, info = to_numpy(batch[0]), row_info(numpy_info(info), 0)
        self._running, self._next_obs = True, None
        return obs, info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Advance by one control step.

        Args:
            action: one action, [U] or a scalar.

        Raises:
            gymnasium.error.ResetNeeded: no episode is running.
            ValueError: see `BatchedEnv.step`.
        """
        if not self._running:
            raise gym.error.ResetNeeded("step: call reset() first and after every episode")
        obs, reward, terminated, truncated, info = self.env.step(
            torch.tensor(np.asarray(action)[None])
        )
        if bool(info["_final_obs"][0]):
            self._running, self._next_obs = False, to_numpy(obs[0])
            info = {**info, **info.get("final_info", {})}  # not of the episode that has begun
        return (
            to_numpy(info["final_obs"][0]),
            float(reward[0]),
            bool(terminated[0]),
            bool(truncated[0]),
            row_info(numpy_info(info), 0),
        )

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """Image uint8 [height, width, 3], or None without a render mode.

        After the last step of an episode it shows the start of the next one.
        """
        return None if self.render_mode is None else images(self.env)[0]

    def close(self) -> None:
        """Close the batched environment."""
        self.env.close()


class GymnasiumVectorView(VectorEnv[np.ndarray, Any, np.ndarray]):
    """See `to_gymnasium_vector`.

    Infos are gymnasium's: every entry `x` has a mask `_x` of the rows it holds for. With SAME_STEP
    the entries of a row whose episode ended are in `final_info` and its last observation in
    `final_obs`, an object array; both are there only when some row ended.
    """

    def __init__(self, env: BatchedEnv, render_mode: str | None = None) -> None:
        self.env, self.num_envs, self.spec = env, env.num_envs, env.spec
        self.render_mode = render_mode
        self.single_observation_space = env.single_observation_space
        self.single_action_space = env.single_action_space
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self.metadata = {**view_metadata(env, render_mode), "autoreset_mode": env.autoreset}
        self._everyone = np.ones(self.num_envs, np.bool_)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin new episodes; see `BatchedEnv.reset` for the arguments."""
        obs, info = self.env.reset(seed=seed, options=options)
        rows = (options or {}).get("reset_mask", self._everyone)
        return to_numpy(obs), masked_info(numpy_info(info), np.asarray(rows, np.bool_))

    def step(
        self, actions: Any
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Advance every environment by one control step; see `BatchedEnv.step`."""
        obs, reward, terminated, truncated, info = self.env.step(torch.tensor(np.asarray(actions)))
        ended, arrays = to_numpy(info["_final_obs"]), numpy_info(info)
        if self.env.autoreset is not AutoresetMode.SAME_STEP or not ended.any():
            infos = masked_info(arrays, self._everyone)
        else:
            context = {name: arrays.pop(name) for name in self.env.context()}
            infos = masked_info(arrays, ~ended) | masked_info(context, self._everyone)
            final = {**arrays, **numpy_info(info.get("final_info", {}))}
            infos["final_info"] = masked_info(final, ended)
            infos["final_obs"] = np.full(self.num_envs, None, object)
            for i, row in zip(
                np.flatnonzero(ended), to_numpy(info["final_obs"])[ended], strict=True
            ):
                infos["final_obs"][i] = row
            infos["_final_obs"], infos["_final_info"] = ended.copy(), ended.copy()
        flags = to_numpy(terminated), to_numpy(truncated)
        return to_numpy(obs), to_numpy(reward), *flags, infos

    def render(self) -> Any:
        """Images uint8 [height, width, 3] of all environments, or None without a render mode."""
        return None if self.render_mode is None else tuple(images(self.env))

    def close_extras(self) -> None:
        """Close the batched environment."""
        self.env.close()


def require_one_row(env: BatchedEnv, view: str) -> None:
    """Raise ValueError unless `env` is one environment whose `step` begins new episodes."""
    if env.num_envs != 1:
        raise ValueError(f"{view}: expected num_envs=1, got num_envs={env.num_envs}")
    require_same_step(env, view)


def require_same_step(env: BatchedEnv, view: str) -> None:
    """Raise ValueError unless `env.step` itself begins new episodes."""
    if env.autoreset is not AutoresetMode.SAME_STEP:
        raise ValueError(f"{view}: expected autoreset='same-step', got {env.autoreset.name}")


def view_metadata(env: BatchedEnv, render_mode: str | None) -> dict[str, Any]:
    """Gymnasium's metadata of a view.

    Raises:
        ValueError: `env` does not have the render mode.
    """
    modes = ["rgb_array"] if can_render(env) else []
    if render_mode is not None and render_mode not in modes:
        raise ValueError(f"render_mode={render_mode!r}: expected None or one of {modes}")
    # Steps of an abstract environment have no duration: any rate shows them.
    return {"render_modes": modes} | ({"render_fps": 1 / (env.dt or 1 / 30)} if modes else {})


def can_render(env: BatchedEnv) -> bool:
    """Whether `env` brings its own `render`."""
    return type(env).render is not VectorEnv.render


def images(env: BatchedEnv) -> np.ndarray:
    """Images of all environments, uint8 [N, height, width, 3]."""
    return to_numpy(cast(Tensor, env.render()).permute(0, 2, 3, 1))


def to_numpy(tensor: Tensor) -> np.ndarray:
    """A copy of `tensor`: what a view returns is the caller's to keep and to change."""
    return tensor.cpu().numpy().copy()


def numpy_info(info: dict[str, Any]) -> dict[str, Any]:
    """An info dict with numpy arrays for tensors, without the autoreset keys."""

    def convert(value: Any) -> Any:
        if isinstance(value, dict):
            return numpy_info(value)
        return to_numpy(value) if isinstance(value, Tensor) else value

    autoreset = ("final_obs", "_final_obs", "final_info")
    return {name: convert(value) for name, value in info.items() if name not in autoreset}


def row_info(info: dict[str, Any], row: int) -> dict[str, Any]:
    """Row `row` of a `numpy_info` dict as arrays and Python scalars of its own."""

    def select(value: Any) -> Any:
        if isinstance(value, dict):
            return row_info(value, row)
        if not isinstance(value, np.ndarray):
            return value
        value = value[row] if value.ndim else value[()]
        return value.copy() if value.ndim else value.item()

    return {name: select(value) for name, value in info.items()}


def masked_info(info: dict[str, Any], rows: np.ndarray) -> dict[str, Any]:
    """A `numpy_info` dict in gymnasium's form: 0 outside `rows` (bool [N]), and their mask `_x`."""
    masked: dict[str, Any] = {}
    for name, value in info.items():
        if isinstance(value, dict):
            masked[name] = masked_info(value, rows)
        elif isinstance(value, np.ndarray) and value.shape[:1] == rows.shape:
            keep = rows.reshape(-1, *[1] * (value.ndim - 1))
            masked[name] = np.where(keep, value, np.zeros((), value.dtype))
        else:
            masked[name] = value
        masked[f"_{name}"] = rows.copy()
    return masked
