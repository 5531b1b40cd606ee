"""The one kind of environment: a `gymnasium.vector.VectorEnv` whose arrays are torch tensors.

Shape letters: N environments, D observation features, U action features.
"""

from __future__ import annotations

import math
import operator
import os
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

_GOLDEN, _MIX1, _MIX2 = (
    constant - 2**64 for constant in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def processors() -> int:
    """How many processors an environment may use unless its arguments say otherwise.

    `INFOMAX_PROCESSORS`, which a sweep sets for its runs, or those this process may run on:
    affinity knows of containers and schedulers, but does not exist everywhere.
    """
    limit = os.environ.get("INFOMAX_PROCESSORS", "")
    if limit:
        if not limit.isdigit() or not int(limit):
            raise ValueError(f"INFOMAX_PROCESSORS={limit!r}: expected a positive integer")
        return int(limit)
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64 tensors (Steele, Lea & Flood, OOPSLA 2014)."""

    def xorshift(x: Tensor, bits: int) -> Tensor:
        return x ^ ((x >> bits) & ((1 << (64 - bits)) - 1))  # the mask makes the shift logical

    return xorshift(xorshift(xorshift(x, 30) * _MIX1, 27) * _MIX2, 31)


def check_seed(seed: int) -> int:
    """`seed`, if it is one.

    Raises:
        ValueError: not in 0 .. 2^63 - 1.
    """
    try:
        number = operator.index(seed)  # of any kind of integer
    except TypeError:
        number = -1
    if not 0 <= number < 2**63:
        raise ValueError(f"seed={seed}: expected an integer in 0 .. 2^63 - 1")
    return number


def check_device(name: torch.device | str) -> torch.device:
    """The device of that name, if there is one.

    Raises:
        ValueError: no device's name, or of a GPU where torch sees none.
    """
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise ValueError(f"device={name!r}: expected cpu, cuda or cuda:<index>") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={str(name)!r}: torch {torch.__version__} sees no CUDA device")
    return device


def to_tensor(value: Any, name: str, device: torch.device) -> Tensor:
    """`value` on a device.

    Raises:
        ValueError: it is neither a tensor nor anything like an array of numbers.
    """
    if isinstance(value, Tensor):
        return value.to(device)
    try:
        return torch.as_tensor(value, device=device)
    except (TypeError, ValueError, RuntimeError):
        kind = type(value).__name__
        kind += f" of {value.dtype}" if isinstance(value, np.ndarray) else ""
        raise ValueError(f"{name}: expected a tensor or an array of numbers, got {kind}") from None


class SimulationError(RuntimeError):
    """The simulation went wrong: contacts were dropped, or the physics raised an error."""


class CounterRNG:
    """Random numbers that are a function of (seed, environment, episode, step, draw).

    Environment i therefore sees the same numbers whatever `num_envs`, the device or the order of
    resets; the whole generator state is the seed and the episode counters. `BatchedEnv` calls
    `begin` and `advance`; draw in `_begin` and `_advance`, which are called as often for every row.

    Attributes:
        seed: the seed.
        episode: episode counters, int64 [N].
        elapsed: steps of the running episodes, int64 [N], the environment's own tensor.
    """

    def __init__(self, num_envs: int, device: torch.device | str = "cpu", seed: int = 0) -> None:
        self.seed = check_seed(seed)
        self.episode = torch.full((num_envs,), -1, dtype=torch.int64, device=device)
        self.elapsed = torch.zeros(num_envs, dtype=torch.int64, device=device)
        self._env = torch.arange(1, num_envs + 1, dtype=torch.int64, device=device)  # mix(0) is 0
        self._draws, self._ahead = 0, 0
        self._stream: tuple[int, Tensor] | None = None  # the seed, and a hash of it and each row
        self._key: Tensor | None = None  # a hash of seed, row and episode, [N]

    def share(self) -> None:
        """From now on every environment sees the numbers of the first, e.g. the same starts."""
        self._env.fill_(1)
        self._stream = self._key = None

    def begin(self, mask: Tensor) -> None:
        """Start the next episode of the environments in `mask` (bool [N]); draws restart at 0."""
        self.episode += mask
        self.follow()

    def advance(self) -> None:
        """Go on to the next step's numbers, which belong to `elapsed + 1`; draws restart at 0."""
        self._draws, self._ahead = 0, 1

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Uniform float32 draws in [low, high), [N, *shape]."""
        count = int(np.prod(shape, dtype=int))
        draws = torch.arange(self._draws, self._draws + count, device=self.episode.device)
        unit = uniform(self.keys(), draws)
        self._draws += count
        return (low + (high - low) * unit).view(-1, *shape)

    def keys(self) -> Tensor:
        """Of `uniform`'s draws now, int64 [N], for code that draws by itself and is compiled."""
        if self._key is None:
            self._key = episode_keys(self.stream(), self.episode)
        return step_keys(self._key, self.elapsed + self._ahead)

    def stream(self) -> Tensor:
        """What `keys` come from besides the episode and the step, int64 [N]."""
        if self._stream is None or self._stream[0] != self.seed:
            seed = torch.full_like(self._env, self.seed)  # filled on the device: nothing is copied
            self._stream = self.seed, _mix(_mix(seed) + self._env * _GOLDEN)
        return self._stream[1]

    def follow(self) -> None:
        """Compiled code that took `stream` has set `episode` and `elapsed`: go on from there."""
        self._draws, self._ahead, self._key = 0, 0, None

    def normal(self, *shape: int) -> Tensor:
        """Standard normal float32 draws (Box-Muller), [N, *shape]."""
        radius = (-2 * torch.log1p(-self.uniform(*shape))).sqrt()
        return radius * torch.cos(2 * torch.pi * self.uniform(*shape))

    def state_dict(self) -> dict[str, Any]:
        """The seed and the episode counters."""
        return {"seed": self.seed, "episode": self.episode.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken.

        Raises:
            ValueError: the seed is no integer of 64 bits.
        """
        if type(state["seed"]) is not int or not -(2**63) <= state["seed"] < 2**63:
            raise ValueError(f"seed: expected a 64-bit integer, got {state['seed']!r}"[:200])
        self.seed, self._key = state["seed"], None
        self.episode.copy_(state["episode"])


def episode_keys(stream: Tensor, episode: Tensor) -> Tensor:
    """Of the first draws of episodes, int64 [N]; see `CounterRNG.keys`."""
    return _mix(stream + episode * _GOLDEN)


def step_keys(keys: Tensor, elapsed: Tensor) -> Tensor:
    """Of the draws of a step of episodes with `episode_keys`, int64 [N]."""
    return keys + (elapsed << 32) * _GOLDEN  # 2^32 draws lie between two steps


def uniform(keys: Tensor, draws: Tensor) -> Tensor:
    """Uniform float32 draws number `draws` (int64 [D]) in [0, 1) of some keys, [N, D]."""
    bits = (_mix(keys[:, None] + (draws + 1) * _GOLDEN) >> 40) & 0xFFFFFF  # 24: exact in float32
    return bits.to(torch.float32) / 2**24


class BatchedEnv(VectorEnv[Tensor, Tensor, Tensor]):
    """N environments stepped as one; every array is a tensor on `device`.

    Autoreset is SAME_STEP: the observation returned for a finished row already belongs to its next
    episode, and `info["final_obs"]` (always there, all N rows) is the true successor of every row,
    from which a truncated episode bootstraps. `info["_final_obs"]` marks the finished rows. For
    comparison with others, `autoreset` can be set to gymnasium's other two modes.

    A subclass sets `max_episode_steps` and writes four methods: `_begin`, `_advance`, `_observe`
    and `_state`. Nothing in `step` waits for a CUDA device.

    A multi-agent environment sets `num_agents` (A) and has an agent axis: observations [N, A, D],
    actions [N, A, U] (or int64 [N, A]), one reward [N] for the team. What its agents share besides
    observations is `context()`: entries of `info` after a reset and a step, and, of the true
    successor, of `info["final_info"]`.

    Args:
        num_envs: N.
        observation_space: space of one environment.
        action_space: space of one environment.
        device: where all tensors live.
        seed: of every random number the environment draws.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}  # noqa: RUF012
    max_episode_steps: int
    spec: Any = None
    """gymnasium's `EnvSpec` of one row, if it can be made again from that."""
    dt: float | None = None
    """Seconds per step, where time means something."""
    terminates: bool = True
    """Whether an episode may end before `max_episode_steps`. If not, the host knows when one ends,
    and a GPU need not prepare a new one at every step."""
    captures_state: bool = True
    """Whether `state_dict` holds the whole simulation; if not, taking it restarts the episodes."""
    last_obs: Tensor
    """The current observation, kept by environments whose state cannot be captured."""
    reward_names: tuple[str, ...] = ("reward",)
    """Names of the columns of `info["reward_terms"]`, for environments that report terms."""
    skill_columns: list[int] | None = None
    """Observation columns that skills should be about; None means all."""
    num_agents: int | None = None
    """A of a multi-agent environment."""
    channels: int | None = None
    """Axis of channels in the images of the environment behind this one, where it has another
    layout; images here are [C, H, W]."""

    def __init__(
        self,
        num_envs: int,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs={num_envs}: expected at least 1")
        self.num_envs = num_envs
        self.device = check_device(device)
        self.single_observation_space = observation_space
        self.single_action_space = action_space
        self.observation_space = batch_space(observation_space, num_envs)
        self.action_space = batch_space(action_space, num_envs)
        self.rng = CounterRNG(num_envs, self.device, seed)
        self.elapsed = self.rng.elapsed
        self._everyone = torch.ones(num_envs, dtype=torch.bool, device=self.device)
        self._ended = torch.zeros_like(self._everyone)  # rows that wait for a reset
        self._same_step = True
        self._clock: np.ndarray | None = None  # `elapsed`, where only the host's copy can be read
        if self.device.type != "cpu" and not self.terminates:
            self._clock = np.zeros(num_envs, np.int64)
        self._action_shape = (num_envs, *(action_space.shape or ()))
        self._integer = not isinstance(action_space, gym.spaces.Box)
        self._action_dtype = torch.int64 if self._integer else torch.float32
        bounds = [np.asarray(bound) for bound in _action_bounds(action_space)]
        if all((bound == bound.flat[0]).all() for bound in bounds):
            # Numbers where all actions share them: clamp is faster with those.
            self._bounds: list[Any] = [bound.flat[0].item() for bound in bounds]
        else:
            self._bounds = [
                torch.as_tensor(bound, dtype=self._action_dtype, device=self.device)
                for bound in bounds
            ]

    # ---- what a subclass writes

    def _begin(self, mask: Tensor) -> None:
        """Put the environments in `mask` (bool [N]) at the start of their next episode."""
        raise NotImplementedError

    def _advance(self, action: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Apply `action` [N, U]; return reward [N], terminated bool [N] and info."""
        raise NotImplementedError

    def _observe(self) -> Tensor:
        """Observations of all environments, a fresh tensor [N, D]."""
        raise NotImplementedError

    def _state(self) -> dict[str, Any]:
        """Live tensors that together are the simulation's state."""
        raise NotImplementedError

    def context(self) -> dict[str, Tensor]:
        """What goes with the current observation, [N, ...] each, fresh tensors.

        `state` [N, S] for a centralised critic; `avail_actions` bool [N, A, U] and `alive` bool
        [N, A] where not every action or agent always exists.
        """
        return {}

    # ---- what a user calls

    @property
    def autoreset(self) -> AutoresetMode:
        """What happens to a row whose episode has ended; `envs.make(..., autoreset=...)` sets it.

        - SAME_STEP ('same-step'): `step` itself begins the next episode; see the class.
        - NEXT_STEP ('next-step'): the following `step` begins it and ignores the row's action; the
          row's reward, flags and info entries are then 0.
        - DISABLED ('disabled'): the caller resets it, by `options["reset_mask"]`.

        In the last two modes `info["final_obs"]` equals the observation.

        Raises:
            ValueError: when set to anything else.
        """
        return self.metadata["autoreset_mode"]

    @autoreset.setter
    def autoreset(self, mode: AutoresetMode | str) -> None:
        names = {m.name.lower().replace("_", "-"): m for m in AutoresetMode}
        chosen = mode if isinstance(mode, AutoresetMode) else names.get(mode)
        if chosen is None:
            raise ValueError(f"autoreset={mode!r}: expected one of {', '.join(names)}")
        self.metadata = {**self.metadata, "autoreset_mode": chosen}
        before, self._same_step = self._same_step, chosen is AutoresetMode.SAME_STEP
        if self._same_step > before and bool(self._ended.any()):  # nobody would begin them
            self._restart(self._ended.clone())
            self._ended.zero_()
        self._synchronise()

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Begin a new episode everywhere, or in `options["reset_mask"]` (bool [N]).

        Args:
            seed: restarts the random numbers; None continues with each row's next episode.
            options: optionally `reset_mask`.

        Returns:
            Observations [N, D] and an info dict.
        """
        mask = self._everyone
        if options and "reset_mask" in options:
            mask = torch.as_tensor(options["reset_mask"], dtype=torch.bool, device=self.device)
            if mask.shape != (self.num_envs,):
                raise ValueError(
                    f"reset_mask: expected shape ({self.num_envs},), got {tuple(mask.shape)}"
                )
        if seed is not None:
            if isinstance(seed, list):
                raise ValueError("seed: expected one integer; every row derives its own from it")
            self.rng.seed = check_seed(seed)
            self.rng.episode.masked_fill_(mask, -1)
        self._restart(mask)
        self._ended &= ~mask
        self._synchronise()
        return self._observe(), dict(self.context())

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Advance every environment by one control step.

        Args:
            actions: [N, *action shape], tensor (or array) in environment units; what lies outside
                a Box is clipped to it.

        Returns:
            obs [N, D], reward float32 [N], terminated bool [N], truncated bool [N], info.

        Raises:
            ValueError: no array, wrong shape or dtype, or (on CPU, where looking is free) actions
                that are not finite, or not among the discrete ones.
        """
        action = self._check(actions)
        if self.autoreset is AutoresetMode.DISABLED and self.device.type == "cpu":
            self._require_running()
        self.rng.advance()
        reward, terminated, info = self._advance(action)
        self.elapsed += 1
        if not self._same_step:
            reward, terminated, info = self._begin_late(reward, terminated, info)
        done = terminated | (self.elapsed >= self.max_episode_steps)
        truncated = done ^ terminated
        obs = self._observe()
        context = self.context()
        info["final_obs"], info["_final_obs"] = obs, done
        if context:
            info["final_info"] = context
        if not self._same_step:
            self._ended.copy_(done)
        elif self._may_restart(done):
            self._restart(done)
            obs, context = self._observe(), self.context()
        info |= context
        return obs, reward, terminated, truncated, info

    def _may_restart(self, done: Tensor) -> bool:
        """Whether a row of `done` may be set; looking would make the host wait for a GPU."""
        if self._clock is None:
            return self.device.type != "cpu" or bool(done.any())
        self._clock += 1
        ended = self._clock >= self.max_episode_steps
        self._clock[ended] = 0
        return bool(ended.any())

    def _synchronise(self) -> None:
        """Called after `elapsed` was set from outside of `step`, for what follows it; may wait."""
        if self._clock is not None:
            self._clock = self.elapsed.cpu().numpy().copy()

    def _restart(self, mask: Tensor) -> None:
        self.rng.begin(mask)
        self.elapsed.masked_fill_(mask, 0)
        self._begin(mask)

    def _begin_late(
        self, reward: Tensor, terminated: Tensor, info: dict[str, Any]
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """NEXT_STEP: the rows that had ended begin an episode, and this step was none of theirs."""
        ended = self._ended
        if self.device.type == "cpu" and not bool(ended.any()):
            return reward, terminated, info
        if self.autoreset is AutoresetMode.NEXT_STEP:
            self._restart(ended)
            return reward.masked_fill(ended, 0), terminated & ~ended, _blank(info, ended)
        return reward, terminated, info

    def _check(self, actions: Any) -> Tensor:
        action = to_tensor(actions, "action", self.device)
        if self._integer and action.is_floating_point():
            raise ValueError(f"action: expected integers, got {action.dtype}")
        action = action.to(self._action_dtype)
        if action.shape != self._action_shape:
            raise ValueError(
                f"action: expected shape {self._action_shape}, got {tuple(action.shape)}"
            )
        if self.device.type == "cpu":
            self._look(action)
        return torch.clamp(action, *self._bounds)

    def _look(self, action: Tensor) -> None:
        """Refuse what clipping would hide; on a GPU looking would wait."""
        if self._integer:
            low, high = self._bounds
            if not isinstance(low, Tensor):
                least, most = (bound.item() for bound in action.aminmax())
                if low <= least and most <= high:
                    return
            bad, what = torch.clamp(action, low, high) != action, "out of range"
        elif math.isfinite(action.detach().sum().item()):  # one pass; but finite ones may overflow
            return
        else:
            bad, what = ~torch.isfinite(action), "non-finite"
        if bool(bad.any()):
            row = int(bad.nonzero()[0, 0])
            raise ValueError(f"action: {what} in environment {row}: {action[row].tolist()}")

    def _require_running(self) -> None:
        if bool(self._ended.any()):
            row = int(self._ended.nonzero()[0, 0])
            raise ValueError(f"step: environment {row} has ended; reset it (autoreset is disabled)")

    def check(self) -> None:
        """Raise SimulationError if the simulation went wrong since the last call; may wait."""

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything that decides the future of the environments."""
        return {
            "rng": self.rng.state_dict(),
            "elapsed": self.elapsed.clone(),
            "ended": self._ended.clone(),
            "state": {name: value.clone() for name, value in self._state().items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken.

        Raises:
            ValueError: the state belongs to another environment or number of environments.
        """
        live = self._state() | {"elapsed": self.elapsed, "ended": self._ended}
        saved = state["state"] | {"elapsed": state["elapsed"], "ended": state["ended"]}
        live["episode"], saved["episode"] = self.rng.episode, state["rng"]["episode"]
        if live.keys() != saved.keys():
            raise ValueError(f"environment state: expected {sorted(live)}, got {sorted(saved)}")
        for name, value in live.items():  # all are checked before the first is changed
            expected, got = (f"{t.dtype} of shape {tuple(t.shape)}" for t in (value, saved[name]))
            if expected != got:
                raise ValueError(f"environment state {name!r}: expected {expected}, got {got}")
        self.rng.load_state_dict(state["rng"])
        for name, value in live.items():
            value.copy_(saved[name])
        self._synchronise()


def _action_bounds(space: gym.Space[Any]) -> tuple[Any, Any]:
    """The lowest and the highest action of one environment."""
    if isinstance(space, gym.spaces.Box):
        return space.low, space.high
    if isinstance(space, gym.spaces.Discrete):
        return space.start, space.start + space.n - 1
    if isinstance(space, gym.spaces.MultiDiscrete):
        return space.start, space.start + space.nvec - 1
    raise ValueError(f"action_space: expected Box, Discrete or MultiDiscrete, got {space}")


def _blank(info: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    """`info` with the entries of `rows` (bool [N]) set to 0."""

    def blank(value: Any) -> Any:
        if isinstance(value, dict):
            return _blank(value, rows)
        if not isinstance(value, Tensor) or value.shape[:1] != rows.shape:
            return value
        return value.masked_fill(rows.view(-1, *[1] * (value.dim() - 1)), 0)

    return {name: blank(value) for name, value in info.items()}
