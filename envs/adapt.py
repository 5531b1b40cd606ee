"""Bridges between `BatchedEnv` and the environment interfaces of other libraries.

Shape letters: N environments, D observation features, U action features.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv
from torch import Tensor

from envs.base import BatchedEnv

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv


# ---- BatchedEnv -> gymnasium, Stable-Baselines3


def to_gymnasium(env: BatchedEnv, render_mode: str | None = None) -> GymnasiumView:
    """A `gymnasium.Env` in numpy over a `BatchedEnv` of one environment.

    Args:
        env: with `num_envs` 1; the view steps it, so nobody else should.
        render_mode: 'rgb_array' if `render()` shall return images, which needs `env.render`.

    Raises:
        ValueError: more than one environment, or a render mode that `env` does not have.
    """
    return GymnasiumView(env, render_mode)


def to_sb3(env: BatchedEnv) -> VecEnv:
    """A Stable-Baselines3 `VecEnv` in numpy over a `BatchedEnv`.

    Infos follow SB3: a finished row has `terminal_observation`, `TimeLimit.truncated`, `episode`
    (`r`, `l`, `t` as `Monitor` writes them), `is_success` where the environment reports `success`,
    and its row of the environment's own info; the info of any other row is empty.

    Args:
        env: the environment; the view steps it, so nobody else should.
    """
    from envs._sb3 import SB3View  # stable_baselines3 takes seconds to import

    return SB3View(env)


class GymnasiumView(gym.Env[np.ndarray, Any]):
    """See `to_gymnasium`.

    `step` returns the terminal observation of a finished episode. The batched environment has by
    then begun the next one, which a plain `reset()` directly after it hands out; any other `reset`
    begins a new episode. `spec.make()` gives another view of the same simulation, and closing one
    view closes the simulation.
    """

    def __init__(self, env: BatchedEnv, render_mode: str | None = None) -> None:
        if env.num_envs != 1:
            raise ValueError(f"to_gymnasium: expected num_envs=1, got num_envs={env.num_envs}")
        modes = ["rgb_array"] if can_render(env) else []
        if render_mode is not None and render_mode not in modes:
            raise ValueError(f"render_mode={render_mode!r}: expected None or one of {modes}")
        self.env = env
        self.render_mode = render_mode
        self.observation_space = env.single_observation_space
        self.action_space = env.single_action_space
        self.metadata = {"render_modes": modes}
        if modes:  # steps of an abstract environment have no duration: any rate shows them
            self.metadata["render_fps"] = 1 / (env.dt or 1 / 30)

        # A closure, because gymnasium's wrappers deepcopy the spec: only functions are spared.
        def entry_point(**kwargs: Any) -> GymnasiumView:
            return GymnasiumView(env, **kwargs)

        self.spec = EnvSpec(
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
            obs, info = self._next_obs, {}
        else:
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


# ---- gymnasium -> BatchedEnv


def from_gymnasium(
    make: Callable[[], gym.Env[Any, Any]] | str | gym.Env[Any, Any],
    num_envs: int = 1,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> GymnasiumBatch:
    """A `BatchedEnv` that steps copies of a gymnasium environment one after the other.

    Args:
        make: a function that makes one copy, a registered id, or one instance for `num_envs=1`.
        num_envs: N.
        device: where the tensors live.
        seed: copy i is seeded with `seed + i`, as gymnasium's vector environments do.

    Raises:
        ValueError: spaces that tensors cannot hold, copies that differ or are one object, or
            several environments wanted of one instance.
    """
    if num_envs < 1:
        raise ValueError(f"num_envs={num_envs}: expected at least 1")
    if isinstance(make, gym.Env):
        if num_envs != 1:
            raise ValueError(f"num_envs={num_envs}: one instance makes 1; pass a function")
        return GymnasiumBatch([make], device, seed)
    if isinstance(make, str):
        return GymnasiumBatch([gym.make(make) for _ in range(num_envs)], device, seed)
    return GymnasiumBatch([make() for _ in range(num_envs)], device, seed)


class GymnasiumBatch(BatchedEnv):
    """See `from_gymnasium`.

    Observations are float32 [N, D], or uint8 [N, C, H, W] with the smallest image axis taken as
    channels. An entry of `info` is there when every copy reports it as a number.

    The simulations cannot be captured, so `state_dict` begins a new episode everywhere from a seed
    that the state holds: the run that goes on and the run that resumes then see the same future.

    Attributes:
        envs: the copies.
        last_obs: the current observation, also after `state_dict` and `load_state_dict`.
        max_episode_steps: as the environment's spec declares it, or `sys.maxsize`.
    """

    captures_state: bool = False
    last_obs: Tensor

    def __init__(
        self,
        envs: Sequence[gym.Env[Any, Any]],
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        if len({id(env) for env in envs}) < len(envs):
            raise ValueError("make: returned the same environment twice; expected a new one")
        for i, env in enumerate(envs):
            for name in ("observation_space", "action_space"):
                expected, got = getattr(envs[0], name), getattr(env, name)
                if expected != got:
                    raise ValueError(f"environment {i}: expected {name} {expected}, got {got}")
        self.envs = list(envs)
        self.spec = envs[0].spec
        self.max_episode_steps = (self.spec and self.spec.max_episode_steps) or sys.maxsize
        space, action_space = envs[0].observation_space, envs[0].action_space
        if not isinstance(action_space, (spaces.Box, spaces.Discrete)):
            raise ValueError(f"action_space: expected Box or Discrete, got {action_space}")
        tensor_space, to_foreign = _tensor_space(space)
        super().__init__(len(envs), tensor_space, action_space, device, seed)
        self._foreign_shape = space.shape
        self._obs = np.zeros((self.num_envs, *tensor_space.shape), tensor_space.dtype)
        self._foreign_obs = to_foreign(self._obs)  # a view: writing it fills `_obs`
        self._reward = np.zeros(self.num_envs, np.float32)
        self._terminated, self._truncated = np.zeros((2, self.num_envs), np.bool_)
        self._seeds: list[int | None] = [seed + i for i in range(self.num_envs)]
        self._steps = 0

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """See `BatchedEnv.reset`; other `options` are handed to the copies."""
        options = dict(options or {})
        mask = torch.as_tensor(options.pop("reset_mask", self._everyone)).cpu()
        if mask.shape != self._everyone.shape:
            raise ValueError(f"reset_mask: expected shape ({self.num_envs},), got {(*mask.shape,)}")
        if isinstance(seed, list):
            raise ValueError("seed: expected one integer; every row derives its own from it")
        rows = mask.bool().nonzero()[:, 0].tolist()
        if seed is not None:
            self.rng.seed = seed
            for i in rows:
                self._seeds[i] = seed + i
        infos: list[dict[str, Any]] = [{} for _ in self.envs]
        for i in rows:
            infos[i] = self._reset_row(i, options or None)
        self.elapsed[rows] = 0
        self.last_obs = self._tensor(self._obs)
        return self.last_obs, self._stack(infos)

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """See `BatchedEnv.step`.

        Raises:
            ValueError: wrong action, or a copy returned an observation of the wrong shape.
        """
        action = self._check(actions).cpu().numpy().astype(self.single_action_space.dtype)
        infos: list[dict[str, Any]] = []
        for i, env in enumerate(self.envs):
            obs, reward, terminated, truncated, info = env.step(action[i])
            self._write(i, obs)
            self._reward[i], self._terminated[i], self._truncated[i] = reward, terminated, truncated
            infos.append(info)
        self._steps += 1
        self._truncated &= ~self._terminated
        ended = self._terminated | self._truncated
        final_obs = self.last_obs = self._tensor(self._obs)
        done = self._tensor(ended)
        self.elapsed = (self.elapsed + 1) * ~done
        if ended.any():
            for i in np.flatnonzero(ended):
                self._reset_row(int(i), None)
            self.last_obs = self._tensor(self._obs)
        return (
            self.last_obs,
            self._tensor(self._reward),
            self._tensor(self._terminated),
            self._tensor(self._truncated),
            {**self._stack(infos), "final_obs": final_obs, "_final_obs": done},
        )

    def state_dict(self) -> dict[str, Any]:
        """Begin a new episode everywhere and return what `load_state_dict` needs to do the same.

        The new observations are in `last_obs`.
        """
        # 31 bits leave room for `seed + i` where a copy wants 32.
        key = np.random.SeedSequence([self.rng.seed, self._steps])
        state = {
            "num_envs": self.num_envs,
            "seed": self.rng.seed,
            "steps": self._steps,
            "reset_seed": int(key.generate_state(1)[0]) >> 1,
        }
        self.load_state_dict(state)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly as the environment did after `state_dict`.

        Raises:
            ValueError: the state belongs to another environment or number of environments.
        """
        expected = ["num_envs", "reset_seed", "seed", "steps"]
        if sorted(state) != expected:
            raise ValueError(f"environment state: expected {expected}, got {sorted(state)}")
        if state["num_envs"] != self.num_envs:
            raise ValueError(
                f"environment state: expected num_envs={self.num_envs}, got {state['num_envs']}"
            )
        self.reset(seed=state["reset_seed"])
        self.rng.seed, self._steps = state["seed"], state["steps"]

    def close_extras(self) -> None:
        """Close the copies."""
        for env in self.envs:
            env.close()

    def _reset_row(self, i: int, options: dict[str, Any] | None) -> dict[str, Any]:
        obs, info = self.envs[i].reset(seed=self._seeds[i], options=options)
        self._seeds[i] = None  # from here on the copy draws from its own generator
        self._write(i, obs)
        return info

    def _write(self, i: int, obs: Any) -> None:
        shape = np.shape(obs)
        if shape != self._foreign_shape:  # numpy would broadcast
            raise ValueError(
                f"environment {i}: expected observation shape {self._foreign_shape}, got {shape}"
            )
        self._foreign_obs[i] = obs

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.tensor(array, device=self.device)  # a copy

    def _stack(self, infos: list[dict[str, Any]]) -> dict[str, Any]:
        stacked: dict[str, Any] = {}
        for name in infos[0]:
            column = [info.get(name) for info in infos]
            if all(isinstance(value, (int, float, np.number, np.bool_)) for value in column):
                values = np.asarray(column)
                single = values.astype(np.float32) if values.dtype == np.float64 else values
                stacked[name] = self._tensor(single)
        return stacked


def _tensor_space(
    space: spaces.Space[Any],
) -> tuple[spaces.Box, Callable[[np.ndarray], np.ndarray]]:
    """The space of one row of tensors, and how to view a batch of such rows in a copy's layout."""
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        with np.errstate(over="ignore"):  # a float64 bound beyond float32 is no bound
            low, high = space.low.astype(np.float32), space.high.astype(np.float32)
        return spaces.Box(low, high, dtype=np.float32), lambda batch: batch
    if isinstance(space, spaces.Box) and len(space.shape) == 3 and space.dtype == np.uint8:
        channels = int(np.argmin(space.shape))
        low, high = (np.moveaxis(bound, channels, 0) for bound in (space.low, space.high))
        return (
            spaces.Box(low, high, dtype=np.uint8),
            lambda batch: np.moveaxis(batch, 1, 1 + channels),
        )
    raise ValueError(
        f"observation_space: expected a Box with one axis or a uint8 image, got {space}; "
        "wrap the environment in gymnasium.wrappers.FlattenObservation"
    )
