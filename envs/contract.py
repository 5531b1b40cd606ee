"""A checker for batched environments: `check(env)` finds the promise that an environment breaks.

gymnasium has a checker for single environments and none for vector environments; this is ours.

Shape letters: N environments, A agents, D observation features, U action features, T steps.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from torch import Tensor

from envs.base import BatchedEnv

SEED = 11
Record = dict[str, Tensor]
"""Everything that one reset or step has returned, copied, [N, ...] each."""


class ContractError(ValueError):
    """An environment breaks a promise of `BatchedEnv`; says which, and where."""


def check(
    env: BatchedEnv | Callable[..., BatchedEnv] | str,
    steps: int = 60,
    num_envs: int = 4,
    **kwargs: Any,
) -> None:
    """Check that an environment keeps the promises of `BatchedEnv`.

    That are: spaces, shapes, dtypes and device of all that `reset` and `step` return, and finite
    values within the spaces; returned tensors that nobody writes again; `final_obs`, flags and
    limits of episodes; autoreset in all modes; the same numbers for the same seed; rows that do not
    depend on each other; resets by mask that touch nothing else; exact continuation from a state;
    what multi-agent environments share; errors for bad actions.

    Random actions are taken, and only what happens within `steps` is seen. To see ends of episodes
    the checker moves `env.elapsed` towards `max_episode_steps`, unless the environment's state
    cannot be captured. An instance that was passed is used and afterwards in some other state.

    Args:
        env: an instance; or an id or a function, which is called with `num_envs` and `seed` and
            shows in addition that a row does not depend on `num_envs`.
        steps: of each rollout; a check takes about fifteen.
        num_envs: N, at least 2, for ids and functions.
        **kwargs: arguments of an environment given by id.

    Raises:
        ContractError: the first promise found to be broken.
    """
    make: Callable[..., BatchedEnv] | None = None
    if isinstance(env, str):
        import envs

        id = env
        make = lambda **settings: envs.make(id, **settings, **kwargs)  # noqa: E731
    elif not isinstance(env, BatchedEnv):
        make = env
    if make is not None:
        env = make(num_envs=num_envs, seed=SEED)
    try:
        _Checker(env, steps).run()
        if make is not None:
            _check_other_sizes(make, env, steps)  # type: ignore[arg-type]
    finally:
        if make is not None:
            env.close()  # type: ignore[union-attr]


class _Checker:
    def __init__(self, env: Any, steps: int) -> None:
        self.env, self.steps = env, steps
        _require(isinstance(env, BatchedEnv), "spaces", f"expected a BatchedEnv, got {type(env)}")
        self._check_spaces()
        self.actions = _Actions(env, 2 * steps, env.num_envs)

    def run(self) -> None:
        """All checks, those first on which others build."""
        self._check_returns()
        self._check_freshness()
        self._check_determinism()
        self._check_rows()
        self._check_masked_reset()
        self._check_state()
        self._check_bad_actions()
        for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED):
            self._check_autoreset(mode)

    # ---- one transition

    def _check_spaces(self) -> None:
        env = self.env
        space, actions, agents = (
            env.single_observation_space,
            env.single_action_space,
            env.num_agents,
        )
        _require(isinstance(space, gym.spaces.Box), "spaces", f"observations: {space} is no Box")
        dtypes = (np.float32, np.uint8)
        _require(
            space.dtype in dtypes, "spaces", f"observations: float32 or uint8, got {space.dtype}"
        )
        allowed = (gym.spaces.Box, gym.spaces.Discrete, gym.spaces.MultiDiscrete)
        _require(isinstance(actions, allowed), "spaces", f"actions: unexpected {actions}")
        for name in ("observation", "action"):
            single, batched = (getattr(env, f"{p}{name}_space") for p in ("single_", ""))
            expected = batch_space(single, env.num_envs)
            _require(batched == expected, "spaces", f"{name}_space: {batched}, expected {expected}")
        limit = env.max_episode_steps
        _require(
            isinstance(limit, int) and limit >= 1,
            "spaces",
            f"max_episode_steps={limit!r}: no count",
        )
        _require(
            env.autoreset is AutoresetMode.SAME_STEP, "spaces", f"autoreset is {env.autoreset}"
        )
        if agents is not None:
            for what, shape in (("observation", space.shape), ("action", actions.shape)):
                _require(
                    bool(shape) and shape[0] == agents,
                    "agents",
                    f"{what} space: expected {agents} agents first, got shape {shape}",
                )

    def _check_returns(self) -> None:
        """Shapes, values, flags and limits, from a reset to the ends of episodes."""
        env, self.count = self.env, torch.zeros(self.env.num_envs, dtype=torch.int64)
        obs, info = self._reset()
        self._check_obs(obs, "reset")
        self._check_context(info, "reset's info")
        self.shared = sorted(env.context())
        for t in range(2 * self.steps):
            if t == self.steps and env.captures_state:
                self._move_to_the_end()
            action = self.actions(t)
            given = action.clone()
            returned = env.step(action)
            _require(
                torch.equal(action, given), "freshness", f"step {t} has changed the action it got"
            )
            _require(len(returned) == 5, "step", f"returned {len(returned)} values, expected 5")
            self._check_step(t, *returned)

    def _check_step(
        self, t: int, obs: Tensor, reward: Tensor, terminated: Tensor, truncated: Tensor, info: Any
    ) -> None:
        env, n, where = self.env, (self.env.num_envs,), f"step {t}"
        self._check_obs(obs, where)
        self._check_tensor(reward, n, torch.float32, "reward", where)
        _require(bool(reward.isfinite().all()), "values", f"{where}: reward is not finite")
        self._check_tensor(terminated, n, torch.bool, "terminated", where)
        self._check_tensor(truncated, n, torch.bool, "truncated", where)
        both = terminated & truncated
        _require(not both.any(), "episodes", f"{where}: a row both terminated and was truncated")
        done = terminated | truncated
        for name in ("final_obs", "_final_obs"):
            _require(name in info, "final_obs", f"{where}: info lacks {name!r}")
        self._check_tensor(info["_final_obs"], n, torch.bool, "_final_obs", where)
        _require(
            torch.equal(info["_final_obs"], done),
            "final_obs",
            f"{where}: `_final_obs` is not the mask of the rows that ended",
        )
        self._check_obs(info["final_obs"], where, "final_obs")
        _require(
            torch.equal(info["final_obs"][~done], obs[~done]),
            "final_obs",
            f"{where}: differs from the observation of a row that goes on",
        )
        if "reward_terms" in info:
            shape = (*n, len(env.reward_names))
            self._check_tensor(info["reward_terms"], shape, torch.float32, "reward_terms", where)
        self._check_context(info, f"{where}: info")
        if self.shared:
            _require("final_info" in info, "agents", f"{where}: info lacks 'final_info'")
            self._check_context(info["final_info"], f"{where}: final_info")
        self._check_limits(where, truncated.cpu(), done.cpu())

    def _check_limits(self, where: str, truncated: Tensor, done: Tensor) -> None:
        env, limit = self.env, self.env.max_episode_steps
        self.count += 1
        late = (self.count >= limit) & ~done
        _require(
            not late.any(), "episodes", f"{where}: a row runs beyond max_episode_steps={limit}"
        )
        if limit < sys.maxsize:
            early = truncated & (self.count < limit)
            _require(
                not early.any(),
                "episodes",
                f"{where}: truncated after {int(self.count[early].min()) if early.any() else 0} "
                f"steps, max_episode_steps is {limit}",
            )
        self.count[done] = 0
        _require(
            torch.equal(env.elapsed.cpu(), self.count),
            "episodes",
            f"{where}: elapsed is {env.elapsed.tolist()}, expected {self.count.tolist()}",
        )

    def _check_obs(self, obs: Tensor, where: str, name: str = "observation") -> None:
        env, space = self.env, self.env.single_observation_space
        dtype = torch.uint8 if space.dtype == np.uint8 else torch.float32
        self._check_tensor(obs, (env.num_envs, *space.shape), dtype, name, where)
        finite = bool(obs.isfinite().all())
        _require(finite, "values", f"{where}: {name} is not finite")
        low, high = (torch.as_tensor(b, device=obs.device) for b in (space.low, space.high))
        outside = (obs < low) | (obs > high)
        _require(
            not outside.any(),
            "values",
            f"{where}: {name} lies outside the observation space at (row, ...) "
            f"{outside.nonzero()[0].tolist() if outside.any() else ''}",
        )

    def _check_context(self, info: Any, where: str) -> None:
        env, agents = self.env, self.env.num_agents
        _require(isinstance(info, dict), "step", f"{where}: expected a dict, got {type(info)}")
        for name, value in env.context().items():
            _require(name in info, "agents", f"{where}: lacks {name!r} of `context()`")
            expected = tuple(value.shape)
            if name in ("alive", "avail_actions"):
                _require(agents is not None, "agents", f"{name!r} without num_agents")
                _require(value.dtype == torch.bool, "agents", f"{name!r}: expected bool tensors")
                expected = (env.num_envs, agents, *value.shape[2:])
                axes = 2 if name == "alive" else 3
                _require(value.dim() == axes, "agents", f"{name!r}: expected {axes} axes")
            _require(
                value.shape[:1] == (env.num_envs,),
                "agents",
                f"{name!r}: expected {env.num_envs} rows",
            )
            self._check_tensor(info[name], expected, value.dtype, name, where)

    def _check_tensor(
        self, value: Any, shape: tuple[Any, ...], dtype: torch.dtype, name: str, where: str
    ) -> None:
        _require(isinstance(value, Tensor), "types", f"{where}: {name} is a {type(value).__name__}")
        _require(
            tuple(value.shape) == shape,
            "shapes",
            f"{where}: {name} has shape {tuple(value.shape)}, expected {shape}",
        )
        _require(
            value.dtype == dtype, "types", f"{where}: {name} is {value.dtype}, expected {dtype}"
        )
        _require(
            value.device.type == self.env.device.type,
            "types",
            f"{where}: {name} is on {value.device}, expected {self.env.device}",
        )

    # ---- rollouts

    def _reset(self, **kwargs: Any) -> Any:
        returned = self.env.reset(seed=SEED, **kwargs)
        _require(
            isinstance(returned, tuple) and len(returned) == 2, "step", "reset: expected obs, info"
        )
        return returned

    def _move_to_the_end(self) -> None:
        """Rows reach their limit one after the other, from 2 steps ahead."""
        ahead = torch.arange(self.env.num_envs, device=self.env.device) * 2 + 2
        self.env.elapsed.copy_((self.env.max_episode_steps - ahead).clamp(min=0))
        if hasattr(self, "count"):
            self.count = self.env.elapsed.cpu().clone()

    def _start(self) -> Record:
        obs, info = self._reset()
        if self.env.captures_state:
            self._move_to_the_end()
        return _record(obs=obs, info=info)

    def _play(
        self, first: int = 0, last: int | None = None, scribble: bool = False, other: int = -1
    ) -> list[Record]:
        """Steps `first` to `last`; row `other` takes actions of its own choice."""
        records: list[Record] = []
        live: Record = {}
        for t in range(first, self.steps if last is None else last):
            action = self.actions(t)
            if other >= 0:
                action[other] = self.actions(t + self.steps)[other]
            obs, reward, terminated, truncated, info = self.env.step(action)
            if live:
                what = f"step {t} has changed what step {t - 1} returned"
                _require_same(records[-1], live, "freshness", what)
            returned = {"obs": obs, "reward": reward, "info": info}
            returned |= {"terminated": terminated, "truncated": truncated}
            records.append(_record(**returned))
            if scribble:
                for value in _tensors([action, returned]):
                    value.fill_(1)
            else:
                live = _record(copy=False, **returned)
        return records

    def _check_freshness(self) -> None:
        """Tensors are their receiver's: neither does the environment write them, nor read them."""
        self._start()
        clean = self._play()
        self._start()
        _require_same_runs(
            clean,
            self._play(scribble=True),
            "freshness",
            "writing to returned tensors changes the environment",
        )

    def _check_determinism(self) -> None:
        first = [self._start(), *self._play()]
        second = [self._start(), *self._play()]
        _require_same_runs(first, second, "determinism", f"two runs from reset(seed={SEED}) differ")

    def _check_rows(self) -> None:
        if self.env.num_envs == 1:
            return
        self._start()
        one = self._play()
        self._start()
        two = self._play(other=0)
        _require_same_runs(
            one, two, "rows", "another row changes with the actions of row 0", _others(self.env, 0)
        )

    def _check_masked_reset(self) -> None:
        env, half = self.env, self.steps // 2
        if env.num_envs == 1:
            return
        mask = torch.zeros(env.num_envs, dtype=torch.bool, device=env.device)
        mask[0] = True
        others = _others(env, 0)
        self._start()
        before, *_ = [r["obs"] for r in self._play(0, half)][::-1]
        after = self._play(half)
        self._start()
        self._play(0, half)
        obs, info = env.reset(options={"reset_mask": mask})
        self._check_obs(obs, "reset by mask")
        self._check_context(info, "reset by mask: info")
        _require(
            torch.equal(obs[others], before[others]),
            "masked reset",
            "the observation of a row outside the mask changes",
        )
        _require(int(env.elapsed[0]) == 0, "masked reset", "elapsed of the row is not 0")
        _require_same_runs(
            after, self._play(half), "masked reset", "changes the future of other rows", others
        )

    def _check_state(self) -> None:
        env, half = self.env, self.steps // 2
        self._start()
        self._play(0, half)
        untouched = self._play(half)
        self._start()
        self._play(0, half)
        state = env.state_dict()
        kept = [value.clone() for value in _tensors(state)]
        future = self._play(half, half + 1)
        same = all(torch.equal(a, b) for a, b in zip(kept, _tensors(state), strict=True))
        _require(same, "state", "stepping changes a state_dict taken before: expected copies")
        future += self._play(half + 1)
        if env.captures_state:
            _require_same_runs(untouched, future, "state", "taking a state_dict changes the future")
        env.load_state_dict(state)
        _require_same_runs(
            future, self._play(half), "state", "what follows load_state_dict is not what followed"
        )

    # ---- errors, modes

    def _check_bad_actions(self) -> None:
        self._start()
        good = self.actions(0)
        self._refuses(good[:, None].repeat_interleave(2, 1), "of the wrong shape")
        self._refuses(torch.cat([good, good]), "for too many environments")
        if self.env.device.type != "cpu":
            return
        if good.is_floating_point():
            for value in (torch.nan, torch.inf):
                bad = good.clone()
                bad[-1].fill_(value)
                self._refuses(bad, f"that are {value}")
        else:
            self._refuses(good.float(), "that are floats")
            self._refuses(good + 10**6, "that are out of range")

    def _refuses(self, action: Tensor, what: str) -> None:
        try:
            self.env.step(action)
        except ValueError:
            return
        except Exception as error:
            kind = type(error).__name__
            raise ContractError(f"bad actions: {what} raise {kind}, expected ValueError") from error
        raise ContractError(f"bad actions: {what} are accepted, expected ValueError")

    def _check_autoreset(self, mode: AutoresetMode) -> None:
        env, name = self.env, f"autoreset {mode.name}"
        with _mode(env, mode):
            self._start()
            ended = torch.zeros(env.num_envs, dtype=torch.bool, device=env.device)
            for t in range(self.steps):
                if mode is AutoresetMode.DISABLED and bool(ended.any()):
                    if env.device.type == "cpu":
                        self._refuses_ended(t)
                    env.reset(options={"reset_mask": ended})
                obs, reward, terminated, truncated, info = env.step(self.actions(t))
                _require(
                    torch.equal(obs, info["final_obs"]),
                    name,
                    f"step {t}: final_obs is not the observation",
                )
                if mode is AutoresetMode.NEXT_STEP:
                    idle = bool((reward[ended] == 0).all()) and bool(
                        (env.elapsed[ended] == 0).all()
                    )
                    _require(
                        idle and not bool((terminated | truncated)[ended].any()),
                        name,
                        f"step {t}: a row that had ended must begin, with reward and flags 0",
                    )
                ended = terminated | truncated

    def _refuses_ended(self, t: int) -> None:
        try:
            self.env.step(self.actions(t))
        except ValueError:
            return
        raise ContractError(f"autoreset DISABLED: step {t} goes on with a row that has ended")


class _Actions:
    """Random actions, the same at every call, and the same for a row whatever N is."""

    def __init__(self, env: BatchedEnv, steps: int, rows: int) -> None:
        space = env.single_action_space
        space.seed(SEED)
        drawn = np.asarray([[space.sample() for _ in range(rows)] for _ in range(steps)])
        self.env, self.drawn = env, torch.as_tensor(drawn, device=env.device)
        generator = torch.Generator().manual_seed(SEED)
        self.uniform = torch.rand(steps, rows, 1, 1, generator=generator).to(env.device)

    def __call__(self, t: int) -> Tensor:
        """Actions [N, ...] of step `t`, among those available now."""
        available = self.env.context().get("avail_actions")
        if available is None:
            return self.drawn[t].clone()
        score = torch.arange(available.shape[-1], device=available.device) * 0.618
        score = (score + self.uniform[t][: len(available)]) % 1  # some order of the actions
        return (score + 1).masked_fill(~available, 0).argmax(-1)


def _check_other_sizes(make: Callable[..., BatchedEnv], env: BatchedEnv, steps: int) -> None:
    """A row of N + 3 environments is that of N, and a state goes to an environment of another."""
    n = env.num_envs
    small, large, other = _Checker(env, steps), make(num_envs=n + 3, seed=SEED), None
    try:
        big = _Checker(large, steps)
        small.actions = _Actions(env, 2 * steps, n + 3)
        small.actions.drawn = small.actions.drawn[:, :n]
        big.actions = _Actions(large, 2 * steps, n + 3)
        rows = torch.arange(n, device=env.device)
        few = [small._start(), *small._play()]
        many = [{k: v[:n] for k, v in r.items()} for r in [big._start(), *big._play()]]
        _require_same_runs(
            few, many, "rows", f"a row of {n + 3} environments is not that of {n}", rows
        )
        if env.captures_state:
            other = make(num_envs=n, seed=SEED + 1)
            other.reset()
            other.load_state_dict(env.state_dict())
            fresh = _Checker(other, steps)
            fresh.actions = small.actions
            fresh.actions.env = other
            restored = fresh._play()
            fresh.actions.env = env
            _require_same_runs(
                small._play(), restored, "state", "another environment does not go on from it"
            )
    finally:
        large.close()
        if other is not None:
            other.close()


# ---- records


def _record(copy: bool = True, **returned: Any) -> Record:
    """Tensors by name, nested dicts flattened."""
    record: Record = {}
    for name, value in returned.items():
        if isinstance(value, dict):
            inner = _record(copy, **{str(k): v for k, v in value.items()})
            record |= {f"{name}.{key}": tensor for key, tensor in inner.items()}
        elif isinstance(value, Tensor):
            record[name] = value.clone() if copy else value
    return record


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from _tensors(value)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from _tensors(value)


def _others(env: BatchedEnv, row: int) -> Tensor:
    rows = torch.arange(env.num_envs, device=env.device)
    return rows[rows != row]


def _require_same_runs(
    a: list[Record], b: list[Record], promise: str, what: str, rows: Tensor | None = None
) -> None:
    for t, (one, two) in enumerate(zip(a, b, strict=True)):
        _require_same(one, two, promise, what, f" ({{}} of step {t})", rows)


def _require_same(
    a: Record, b: Record, promise: str, what: str, where: str = " ({})", rows: Tensor | None = None
) -> None:
    for name in a.keys() | b.keys():
        same = name in a and name in b
        if same:
            one, two = a[name], b[name]
            if rows is not None and one.dim() and len(one) >= int(rows.max()) + 1:
                one, two = one[rows], two[rows]
            equal = (one == two) | (one != one) & (two != two) if one.shape == two.shape else None
            same = equal is not None and bool(equal.all())
        if not same:
            raise ContractError(f"{promise}: {what}{where.format(name)}")


@contextmanager
def _mode(env: BatchedEnv, mode: AutoresetMode) -> Iterator[None]:
    env.autoreset = mode
    try:
        yield
    finally:
        env.reset(seed=SEED)
        env.autoreset = AutoresetMode.SAME_STEP


def _require(condition: bool, promise: str, what: str) -> None:
    if not condition:
        raise ContractError(f"{promise}: {what}")
