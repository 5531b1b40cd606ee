"""`envs.check` passes on every environment here, and names the promise that a broken one breaks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor
from toy import PointMass, Team

import envs
from envs.base import BatchedEnv

ALL = torch.ones(4, dtype=torch.bool)


@pytest.mark.parametrize("id", [id for id in envs.ENVS if not id.startswith("pixels/dmc/")])
def test_every_registered_environment_passes(id: str) -> None:
    envs.check(id, steps=16, num_envs=3)


@pytest.mark.parametrize("id", ["gym/CartPole-v1", "gym/MountainCarContinuous-v0"])
def test_foreign_environments_pass(id: str) -> None:
    envs.check(id, steps=40)


def test_workers_pass() -> None:
    envs.check("gym/CartPole-v1", steps=40, workers=2)


@pytest.mark.parametrize("make", [PointMass, Team])
def test_instances_and_functions_pass(make: Callable[..., BatchedEnv]) -> None:
    envs.check(make)
    envs.check(make(3))
    envs.check(make(1))


# ---- environments that break one promise each


class WrongDtype(PointMass):
    def _observe(self) -> Tensor:
        return self.position.double()


class WrongShape(PointMass):
    def _observe(self) -> Tensor:
        return self.position[:, :1].clone()


class NotFinite(PointMass):
    def _observe(self) -> Tensor:
        return torch.where(self.elapsed[:, None] > 3, torch.nan, self.position)


class OutOfBounds(PointMass):
    def _observe(self) -> Tensor:
        return self.position * 2


class RewardColumn(PointMass):
    def _advance(self, action: Tensor) -> Any:
        reward, *rest = super()._advance(action)
        return reward[:, None], *rest


class RewardDouble(PointMass):
    def _advance(self, action: Tensor) -> Any:
        reward, *rest = super()._advance(action)
        return reward.double(), *rest


class RewardInfinite(PointMass):
    def _advance(self, action: Tensor) -> Any:
        reward, *rest = super()._advance(action)
        return 1 / (reward * 0), *rest


class NumpyReward(PointMass):
    def step(self, actions: Tensor) -> Any:
        obs, reward, *rest = super().step(actions)
        return obs, reward.numpy(), *rest


class NoFinalObs(PointMass):
    def step(self, actions: Tensor) -> Any:
        *rest, info = super().step(actions)
        del info["final_obs"]
        return *rest, info


class FinalObsOfNextEpisode(PointMass):
    """The mistake of resetting before looking."""

    def step(self, actions: Tensor) -> Any:
        obs, reward, terminated, truncated, info = super().step(actions)
        wrong = torch.where(info["_final_obs"][:, None], info["final_obs"], obs + 0.01)
        return obs, reward, terminated, truncated, {**info, "final_obs": wrong.clamp(-1, 1)}


class NoLimit(PointMass):
    def step(self, actions: Tensor) -> Any:
        obs, reward, terminated, truncated, info = super().step(actions)
        info["_final_obs"] = terminated
        info["final_obs"] = torch.where(terminated[:, None], info["final_obs"], obs)
        return obs, reward, terminated, torch.zeros_like(truncated), info


class EarlyLimit(PointMass):
    def step(self, actions: Tensor) -> Any:
        self.elapsed += self.elapsed > 15
        return super().step(actions)


class BothFlags(PointMass):
    def step(self, actions: Tensor) -> Any:
        obs, reward, terminated, truncated, info = super().step(actions)
        return obs, reward, terminated | truncated, truncated, info


class LiveObservation(PointMass):
    def _advance(self, action: Tensor) -> Any:
        kept = self.position
        reward, *rest = super()._advance(action)
        self.position = kept.copy_(self.position)
        return reward, *rest

    def _observe(self) -> Tensor:
        return self.position


class SharedInfo(PointMass):
    def _advance(self, action: Tensor) -> Any:
        reward, terminated, info = super()._advance(action)
        if not hasattr(self, "buffer"):
            self.buffer = action.clone()
        return reward, terminated, {**info, "velocity": self.buffer.copy_(action)}


class ReadsWhatItReturned(PointMass):
    def _begin(self, mask: Tensor) -> None:
        super()._begin(mask)
        self.reward = torch.where(mask, 0, getattr(self, "reward", 0))

    def _advance(self, action: Tensor) -> Any:
        self.reward, *rest = super()._advance(action + self.reward[:, None])
        return self.reward, *rest

    def _state(self) -> Any:
        return {**super()._state(), "reward": self.reward}


class WritesTheAction(PointMass):
    def step(self, actions: Tensor) -> Any:
        return super().step(actions.mul_(0.5))


class GlobalGenerator(PointMass):
    def _begin(self, mask: Tensor) -> None:
        self.position = torch.where(mask[:, None], torch.rand(self.num_envs, 2), self.position)


class BatchNormalised(PointMass):
    def _advance(self, action: Tensor) -> Any:
        reward, *rest = super()._advance(action)
        return reward - reward.mean(), *rest


class NoiseInObserve(PointMass):
    """Drawn as often as some row is reset: every row depends on all."""

    def _observe(self) -> Tensor:
        return (self.position + self.rng.uniform(2) * 0.1).clamp(-1, 1)


class DependsOnNumEnvs(PointMass):
    def _begin(self, mask: Tensor) -> None:
        super()._begin(mask)
        self.position = torch.where(mask[:, None], self.position / self.num_envs, self.position)


class Hidden(PointMass):
    """Has something that the state lacks."""

    def _begin(self, mask: Tensor) -> None:
        super()._begin(mask)
        start = self.rng.uniform(2)
        self.wind = torch.where(mask[:, None], start, getattr(self, "wind", start))

    def _advance(self, action: Tensor) -> Any:
        self.wind = self.wind * 0.9
        return super()._advance(action + self.wind)


class LiveState(PointMass):
    def state_dict(self) -> Any:
        return {**super().state_dict(), "elapsed": self.elapsed}


class SavingMatters(PointMass):
    def state_dict(self) -> Any:
        self.position = self.position * 0.9
        return super().state_dict()


class ResetsAll(PointMass):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return super().reset(seed=seed)


class RestartsAllClocks(PointMass):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        returned = super().reset(seed=seed, options=options)
        self.elapsed.zero_()
        return returned


class TakesAnything(PointMass):
    def _check(self, actions: Any) -> Tensor:
        return torch.as_tensor(actions).nan_to_num(0.0)[:4].reshape(-1, 2)[: self.num_envs]


class TakesNaN(PointMass):
    def _look(self, action: Tensor) -> None:
        pass

    def _advance(self, action: Tensor) -> Any:
        return super()._advance(action.nan_to_num())


class OneMode(PointMass):
    """A step of its own that only knows SAME_STEP."""

    def step(self, actions: Tensor) -> Any:
        self._same_step = True
        return super().step(actions)


class OwnReset(PointMass):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        obs, _ = super().reset(seed=seed, options=options)
        return obs


class NoDeath(Team):
    def context(self) -> dict[str, Tensor]:
        return {**super().context(), "alive": self.health[..., None] > 0}


class FloatMask(Team):
    def context(self) -> dict[str, Tensor]:
        return {name: value.float() for name, value in super().context().items()}


class StateOfAll(Team):
    def context(self) -> dict[str, Tensor]:
        return {**super().context(), "state": self.health.flatten()}


class NoFinalContext(Team):
    def step(self, actions: Tensor) -> Any:
        *rest, info = super().step(actions)
        info.pop("final_info")
        return *rest, info


class SilentReset(Team):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return super().reset(seed=seed, options=options)[0], {}


class LoneAgents(Team):
    num_agents = 5


class DoubleSpace(BatchedEnv):
    max_episode_steps = 5

    def __init__(self) -> None:
        box = gym.spaces.Box(-1, 1, (2,), np.float64)
        super().__init__(4, box, box)


class Endless(PointMass):
    max_episode_steps = 0


BROKEN: list[tuple[Callable[..., Any], str]] = [
    (WrongDtype, r"types: reset: observation is torch.float64, expected torch.float32"),
    (WrongShape, r"shapes: reset: observation has shape \(4, 1\), expected \(4, 2\)"),
    (NotFinite, r"values: step \d+: final_obs is not finite|values: step 3: observation"),
    (OutOfBounds, r"values: .* lies outside the observation space at \(row, ...\) \[\d, \d\]"),
    (RewardColumn, r"shapes: step 0: reward has shape \(4, 1\), expected \(4,\)"),
    (RewardDouble, r"types: step 0: reward is torch.float64"),
    (RewardInfinite, r"values: step 0: reward is not finite"),
    (NumpyReward, r"types: step 0: reward is a ndarray"),
    (NoFinalObs, r"final_obs: step 0: info lacks 'final_obs'"),
    (FinalObsOfNextEpisode, r"final_obs: step 0: differs from the observation of a row that goes"),
    (NoLimit, r"episodes: step \d+: a row runs beyond max_episode_steps=20"),
    (EarlyLimit, r"episodes: step \d+: (truncated after \d+ steps, max|elapsed is)"),
    (BothFlags, r"episodes: step \d+: a row both terminated and was truncated"),
    (LiveObservation, r"freshness: step \d+ has changed what step \d+ returned \(.*obs\)"),
    (SharedInfo, r"freshness: step \d+ has changed what step \d+ returned \(info.velocity\)"),
    (ReadsWhatItReturned, r"freshness: writing to returned tensors changes the environment"),
    (WritesTheAction, r"freshness: step 0 has changed the action it got"),
    (GlobalGenerator, r"(freshness|determinism): "),
    (BatchNormalised, r"rows: another row changes with the actions of row 0 \(reward of step 0\)"),
    (NoiseInObserve, r"(final_obs: .* differs from|rows: another row changes)"),
    (DependsOnNumEnvs, r"rows: a row of 7 environments is not that of 4 \(obs of step 0\)"),
    (Hidden, r"state: what follows load_state_dict is not what followed"),
    (LiveState, r"state: stepping changes a state_dict taken before"),
    (SavingMatters, r"state: taking a state_dict changes the future"),
    (ResetsAll, r"masked reset: the observation of a row outside the mask changes"),
    (RestartsAllClocks, r"masked reset: changes the future of other rows"),
    (TakesAnything, r"bad actions: of the wrong shape are accepted"),
    (TakesNaN, r"bad actions: that are nan are accepted"),
    (OneMode, r"autoreset NEXT_STEP: step \d+: final_obs is not the observation"),
    (OwnReset, r"step: reset: expected obs, info"),
    (NoDeath, r"agents: 'alive': expected 2 axes"),
    (FloatMask, r"agents: 'a\w+': expected bool"),
    (StateOfAll, r"agents: 'state': expected 4 rows"),
    (NoFinalContext, r"agents: step 0: info lacks 'final_info'"),
    (SilentReset, r"agents: reset's info: lacks '\w+' of `context\(\)`"),
    (LoneAgents, r"agents: observation space: expected 5 agents first"),
    (lambda **_: DoubleSpace(), r"spaces: observations: float32 or uint8, got float64"),
    (Endless, r"spaces: max_episode_steps=0"),
    (lambda **_: gym.make_vec("CartPole-v1", 4), r"spaces: expected a BatchedEnv"),
]


@pytest.mark.parametrize(("make", "message"), BROKEN, ids=[m.__name__ for m, _ in BROKEN])
def test_a_broken_promise_is_named(make: Callable[..., Any], message: str) -> None:
    with pytest.raises(envs.ContractError, match=message):
        envs.check(make, steps=40)


def test_the_instance_that_was_passed_stays_open_in_its_own_mode() -> None:
    env = PointMass(3)
    envs.check(env)
    assert not env.closed
    assert env.autoreset.name == "SAME_STEP"
    env.reset()
    env.step(torch.zeros(3, 2))
