"""Environments of other libraries as a `BatchedEnv`; `envs.adapt` lists the functions.

Shape letters: N environments, A agents, D observation features, U action features.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import sys
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from torch import Tensor

from envs.base import BatchedEnv, check_seed, processors
from envs.workers import Arrays, Layout, Rows, WorkerPool, require_same_spaces
from envs.wrappers import DmControlEnv, TeamEnv

if TYPE_CHECKING:
    import dm_env
    import pettingzoo

Workers = int | Literal["auto"]

HAND_OVER = 500e-6
"""Seconds per step that workers must save to be worth their messages (600e-6 measured, on a busy
machine with two processors)."""


def from_gymnasium(
    make: Callable[[], gym.Env[Any, Any]] | str | gym.Env[Any, Any],
    num_envs: int = 1,
    device: torch.device | str = "cpu",
    seed: int = 0,
    workers: Workers = "auto",
    timeout: float = 60.0,
    **kwargs: Any,
) -> GymnasiumBatch:
    """Copies of a gymnasium environment, in this process or in a few workers.

    Whoever steps them, the numbers are the same. A worker that raises, hangs or dies becomes one
    `SimulationError` that says which it was and what it was doing, and no process is left behind;
    in this process a copy's own exception comes through, and nothing watches the time.

    Args:
        make: a function that makes one copy, a registered id, or one instance for `num_envs=1`.
        num_envs: N.
        device: where the tensors live.
        seed: copy i is seeded with `seed + i`, as gymnasium's vector environments do.
        workers: processes among which the copies are divided; 0 steps them one after the other
            in this process; 'auto' measures a few steps of the first copy and takes one worker per
            processor where that saves time.
        timeout: seconds a worker may take to make, reset or step its copies.
        **kwargs: arguments of a registered environment.

    Raises:
        ValueError: unknown id, spaces that tensors cannot hold, copies that differ or are one
            object, or several environments wanted of one instance.
        SimulationError: a worker could not make its copies.
    """
    if isinstance(make, str):
        spec = _spec(make)
        return _batch(functools.partial(gym.make, spec, **kwargs), num_envs, device, seed, workers,
                      timeout)  # fmt: skip
    if kwargs:
        raise ValueError(f"{next(iter(kwargs))}: only a registered id takes arguments")
    return _batch(make, num_envs, device, seed, workers, timeout)


def from_dm_control(
    domain: str | Callable[[], dm_env.Environment] | dm_env.Environment,
    task: str | None = None,
    num_envs: int = 1,
    device: torch.device | str = "cpu",
    seed: int = 0,
    workers: Workers = "auto",
    timeout: float = 60.0,
    **kwargs: Any,
) -> GymnasiumBatch:
    """Copies of a dm_control environment; see `DmControlEnv` and `from_gymnasium`.

    Args:
        domain: of the suite; or a function that makes a `dm_env.Environment`; or one of them.
        task: of the suite.
        num_envs: N.
        device: where the tensors live.
        seed: copy i draws from `numpy.random.RandomState(seed + i)`.
        workers: see `from_gymnasium`.
        timeout: see `from_gymnasium`.
        **kwargs: the suite's `task_kwargs`.

    Raises:
        ValueError: unknown domain or task, or see `DmControlEnv` and `from_gymnasium`.
    """
    if isinstance(domain, str):
        from dm_control import suite  # takes a second to import

        tasks = suite.TASKS_BY_DOMAIN
        _require(domain, tasks, "domain")
        _require(task, tasks[domain], f"task of {domain}")
        load = functools.partial(suite.load, domain, task, task_kwargs=kwargs)
        make: Any = functools.partial(_dm_control_env, load)
    elif callable(domain):
        make = functools.partial(_dm_control_env, domain)
    else:
        make = DmControlEnv(domain)
    return _batch(make, num_envs, device, seed, workers, timeout)


def from_pettingzoo(
    make: Callable[[], pettingzoo.ParallelEnv] | str | pettingzoo.ParallelEnv,
    num_envs: int = 1,
    device: torch.device | str = "cpu",
    seed: int = 0,
    workers: Workers = "auto",
    timeout: float = 60.0,
    reward: str = "sum",
    **kwargs: Any,
) -> GymnasiumBatch:
    """Copies of a PettingZoo `ParallelEnv` whose agents are alike: [N, A, D]; see `TeamEnv`.

    Args:
        make: a function that makes one copy, an id such as 'mpe/simple_spread_v3' or
            'sisl/pursuit_v5', or one instance for `num_envs=1`.
        num_envs: N.
        device: where the tensors live.
        seed: copy i is seeded with `seed + i`.
        workers: see `from_gymnasium`.
        timeout: see `from_gymnasium`.
        reward: of the team: 'sum' or 'mean' of its agents'.
        **kwargs: arguments of an environment given by id.

    Raises:
        ValueError: unknown id, a package that is missing, or see `TeamEnv` and `from_gymnasium`.
    """
    if isinstance(make, str):
        make = functools.partial(_parallel_env(make), **kwargs)
    elif kwargs:
        raise ValueError(f"{next(iter(kwargs))}: only an id takes arguments")
    if callable(make):
        return _batch(
            functools.partial(_team_env, make, reward), num_envs, device, seed, workers, timeout
        )
    return _batch(TeamEnv(make, reward), num_envs, device, seed, workers, timeout)


def from_envpool(
    id: str,
    num_envs: int = 1,
    device: torch.device | str = "cpu",
    seed: int = 0,
    **kwargs: Any,
) -> GymnasiumBatch:
    """An EnvPool task (https://envpool.readthedocs.io), with its own threads.

    EnvPool fixes seeds when it is made, so every reset with a seed makes it anew.

    Args:
        id: EnvPool's name of the task.
        num_envs: N.
        device: where the tensors live.
        seed: copy i is seeded with `seed + i`.
        **kwargs: EnvPool's, e.g. `num_threads`.

    Raises:
        ValueError: EnvPool is not installed, or does not know the task.
    """
    try:
        envpool: Any = importlib.import_module("envpool")
    except ImportError as error:
        raise ValueError(
            f"envpool/{id}: needs the package envpool (pip install envpool): {error}"
        ) from None
    _require(id, envpool.list_all_envs(), "EnvPool task")
    from envs._envpool import EnvPoolRows

    rows = EnvPoolRows(
        functools.partial(envpool.make_gymnasium, id, num_envs=num_envs, **kwargs), num_envs, seed
    )
    return GymnasiumBatch(rows, rows, num_envs, device, seed)


class GymnasiumBatch(BatchedEnv):
    """See `from_gymnasium`.

    Observations are float32 [N, D] or [N, A, D], or uint8 [N, C, H, W] with the smallest image axis
    taken as channels. An entry of `info` is there when every copy reports it as a number or as an
    array of numbers of one shape.

    The simulations cannot be captured, so `state_dict` begins a new episode everywhere from a seed
    that the state holds: the run that goes on and the run that resumes then see the same future.

    Args:
        rows: what steps the copies: `Rows`, `WorkerPool` or `EnvPoolRows`.
        copy: a copy, or anything with its spaces; nothing is called.
        num_envs: N.
        device: where the tensors live.
        seed: see `from_gymnasium`.

    Attributes:
        envs: the copies, where they are in this process.
        last_obs: the current observation, also after `state_dict` and `load_state_dict`.
        max_episode_steps: as the environment declares it, or `sys.maxsize`.
    """

    captures_state: bool = False
    last_obs: Tensor

    def __init__(
        self, rows: Any, copy: Any, num_envs: int, device: torch.device | str = "cpu", seed: int = 0
    ) -> None:
        self._rows = rows  # first: `close` finds them if anything below fails
        space, self.channels = tensor_space(copy)
        super().__init__(num_envs, space, copy.action_space, device, seed)
        self.envs = rows.envs if isinstance(rows, Rows) else []
        self.spec = copy.spec
        self.num_agents = getattr(copy, "num_agents", None)
        self.max_episode_steps = _max_episode_steps(copy)
        self._context: tuple[str, ...] = tuple(getattr(copy, "context_layout", ()))
        self._views = {name: torch.from_numpy(array) for name, array in rows.arrays.items()}
        self._seeds: list[int | None] = [seed + i for i in range(num_envs)]
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
            self.rng.seed = check_seed(seed)
            for i in rows:
                self._seeds[i] = seed + i
        infos = self._rows.reset(rows, [self._seeds[i] for i in rows], options or None)
        for i in rows:
            self._seeds[i] = None  # from here on the copy draws from its own generator
        self.elapsed[rows], self._ended[rows] = 0, False
        self.last_obs = self._tensor("obs")
        return self.last_obs, self._tensors(infos) | self.context()

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """See `BatchedEnv.step`.

        Raises:
            ValueError: wrong action, or a copy returned an observation of the wrong shape.
            SimulationError: a worker raised, hung or died.
        """
        action = self._check(actions)
        if self.autoreset is AutoresetMode.DISABLED:
            self._require_running()
        self._views["action"].copy_(action)
        self._views["ended"].copy_(self._ended)
        infos = self._rows.step(self._same_step)
        self._steps += 1
        terminated = self._tensor("terminated")
        truncated = self._tensor("truncated") & ~terminated
        done = terminated | truncated
        self.elapsed += 1
        self.elapsed.masked_fill_(done if self._same_step else self._ended, 0)
        if not self._same_step:
            self._ended.copy_(done)
        final_obs = self.last_obs = self._tensor("final_obs")
        info = self._tensors(infos) | {"final_obs": final_obs, "_final_obs": done}
        if self._context:
            info["final_info"] = {name: self._tensor(f"final_{name}") for name in self._context}
            info |= self.context()
        if self._same_step and bool(done.any()):
            self.last_obs = self._tensor("obs")
        return self.last_obs, self._tensor("reward"), terminated, truncated, info

    def context(self) -> dict[str, Tensor]:
        """See `BatchedEnv`."""
        return {name: self._tensor(name) for name in self._context}

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
        """Close the copies and end the workers."""
        self._rows.close()

    def _begin(self, mask: Tensor) -> None:
        self.reset(options={"reset_mask": mask})

    def _observe(self) -> Tensor:
        return self.last_obs.clone()

    def _tensor(self, name: str) -> Tensor:
        return self._views[name].to(self.device, copy=True)

    def _tensors(self, infos: Arrays) -> dict[str, Any]:
        return {
            name: torch.from_numpy(array).to(self.device)
            for name, array in infos.items()
            if name not in self._context
        }


# ---- pieces


def _batch(
    make: Any,
    num_envs: int,
    device: torch.device | str,
    seed: int,
    workers: Workers,
    timeout: float,
) -> GymnasiumBatch:
    """Copies of what `make` makes, or of the instance that it is."""
    if num_envs < 1:
        raise ValueError(f"num_envs={num_envs}: expected at least 1")
    if workers != "auto" and not (isinstance(workers, int) and workers >= 0):
        raise ValueError(f"workers={workers!r}: expected 'auto' or an integer of at least 0")
    if timeout <= 0:
        raise ValueError(f"timeout={timeout}: expected more than 0 seconds")
    instance = isinstance(make, gym.Env)
    if instance and num_envs != 1:
        raise ValueError(f"num_envs={num_envs}: one instance makes 1; pass a function")
    first: Any = make if instance else make()
    workers = 0 if instance else workers
    try:
        space, channels = tensor_space(first)
        layout = rows_layout(num_envs, space, first.action_space, first)
        if workers == "auto":
            workers = _workers_that_pay(first, num_envs)
    except BaseException:
        first.close()
        raise
    context = tuple(getattr(first, "context_layout", ()))
    rows: Rows | WorkerPool
    if workers:
        first.close()
        both = (first.observation_space, first.action_space)
        rows = WorkerPool(make, num_envs, workers, both, layout, context, channels, timeout)
    else:
        envs = [first, *(make() for _ in range(num_envs - 1))]
        if len({id(env) for env in envs}) < len(envs):
            raise ValueError("make: returned the same environment twice; expected a new one")
        for i, env in enumerate(envs):
            require_same_spaces(env, (first.observation_space, first.action_space), i)
        arrays = {name: np.zeros(shape, dtype) for name, (shape, dtype) in layout.items()}
        rows = Rows(envs, arrays, context, channels)
    return GymnasiumBatch(rows, first, num_envs, device, seed)


def _workers_that_pay(env: gym.Env[Any, Any], num_envs: int) -> int:
    """One per processor if that saves more than `HAND_OVER` per step of all copies, else 0."""
    count = min(processors(), num_envs)
    if count < 2:
        return 0
    env.action_space.seed(0)
    env.reset(seed=0)
    costs = []
    for _ in range(9):  # always as many: what a copy has seen must not depend on the clock
        action = env.action_space.sample()
        start = time.perf_counter()
        _, _, terminated, truncated, _ = env.step(action)
        costs.append(time.perf_counter() - start)
        if terminated or truncated:
            env.reset()
    saved = sorted(costs)[4] * num_envs * (1 - 1 / count)
    return count if saved > HAND_OVER else 0


def rows_layout(
    num_envs: int, space: spaces.Box, action_space: spaces.Space[Any], copy: Any = None
) -> Layout:
    """Shape and dtype of the arrays of `Rows`."""
    layout: Layout = {
        "action": ((num_envs, *(action_space.shape or ())), np.dtype(action_space.dtype).str),
        "reward": ((num_envs,), "float32"),
        **{name: ((num_envs,), "bool") for name in ("terminated", "truncated", "ended")},
    }
    own = {"obs": (space.shape, np.dtype(space.dtype).str), **getattr(copy, "context_layout", {})}
    for name, (shape, dtype) in own.items():
        array = ((num_envs, *shape), dtype)
        layout |= {name: array, f"final_{name}": array}
    return layout


def tensor_space(copy: Any) -> tuple[spaces.Box, int | None]:
    """The space of one row of tensors, and the axis of channels in a copy's images."""
    space, action_space = copy.observation_space, copy.action_space
    if not isinstance(action_space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete)):
        raise ValueError(
            f"action_space: expected Box, Discrete or MultiDiscrete, got {action_space}"
        )
    axes = 1 if getattr(copy, "num_agents", None) is None else 2
    if isinstance(space, spaces.Box) and len(space.shape) == axes:
        with np.errstate(over="ignore"):  # a float64 bound beyond float32 is no bound
            low, high = space.low.astype(np.float32), space.high.astype(np.float32)
        return spaces.Box(low, high, dtype=np.float32), None
    if isinstance(space, spaces.Box) and len(space.shape) == 3 and space.dtype == np.uint8:
        channels = int(np.argmin(space.shape))
        low, high = (np.moveaxis(bound, channels, 0) for bound in (space.low, space.high))
        return spaces.Box(low, high, dtype=np.uint8), channels
    if isinstance(space, spaces.Box) and len(space.shape) == 3 and min(space.shape) <= 4:
        raise ValueError(
            f"observation_space: expected images of uint8, 0 to 255, got {space.dtype} of shape "
            f"{space.shape}; gymnasium.wrappers.TransformObservation can convert them"
        )
    raise ValueError(
        f"observation_space: expected a Box with one axis or a uint8 image, got {space}; "
        "wrap the environment in gymnasium.wrappers.FlattenObservation"
    )


def _max_episode_steps(copy: Any) -> int:
    spec = copy.spec
    limit = spec.max_episode_steps if spec is not None else None
    return limit or getattr(copy, "max_episode_steps", None) or sys.maxsize


def _spec(id: str) -> Any:
    try:
        return gym.spec(id)
    except gym.error.Error as error:
        close = difflib.get_close_matches(id, gym.registry, 1)
        hint = f"; did you mean {close[0]!r}?" if close else f": {error}"
        raise ValueError(f"unknown gymnasium environment {id!r}{hint}") from None


def _dm_control_env(make: Callable[[], dm_env.Environment]) -> DmControlEnv:
    return DmControlEnv(make())


def _team_env(make: Callable[[], Any], reward: str) -> TeamEnv:
    return TeamEnv(make(), reward)


def _parallel_env(id: str) -> Callable[..., Any]:
    """What makes the PettingZoo environment `id`; 'mpe/...' lives in the package mpe2."""
    from pettingzoo.env_registry import registration

    mpe: Any = {}
    if id.startswith("mpe/"):
        try:
            mpe = importlib.import_module("mpe2.all_modules").mpe_environments
        except ImportError as error:
            raise ValueError(f"pettingzoo/{id}: needs mpe2 (pip install mpe2): {error}") from None
    known = {name.replace("-v", "_v"): name for name in registration.parallel_registry}
    _require(id, [*known, *mpe], "PettingZoo environment")
    if id in mpe:
        return mpe[id].parallel_env
    return functools.partial(registration.make, "parallel", known[id])


def _require(name: Any, known: Iterable[str], what: str) -> None:
    known = sorted(known)
    if name not in known:
        close = difflib.get_close_matches(str(name), known, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(known)}"
        raise ValueError(f"unknown {what} {name!r}; {hint}")
