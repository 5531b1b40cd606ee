"""The view of a multi-agent environment as a PettingZoo `ParallelEnv`."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from pettingzoo.test import parallel_api_test, parallel_seed_test
from torch import Tensor
from toy import PointMass, Team

import envs
from envs.adapt import from_pettingzoo, to_pettingzoo


class Drones(Team):
    """Continuous actions, nobody dies, nothing is shared: the plainest of teams."""

    def __init__(self, num_envs: int = 1, seed: int = 0) -> None:
        super().__init__(num_envs, seed=seed)
        self.__class__ = Drones
        super(Team, self).__init__(
            num_envs, self.single_observation_space, gym.spaces.Box(-1, 1, (3, 2)), seed=seed
        )

    def _advance(self, action: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
        self.health = (self.health - 0.02 * action.abs().sum(-1)).clamp(min=0.01)
        return action.sum((1, 2)), (self.health > 2).any(-1), {}

    def context(self) -> dict[str, Tensor]:
        return {}


@pytest.mark.parametrize("make", [Team, Drones])
def test_pettingzoo_checkers_pass_without_a_warning(make: Any, capsys: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parallel_api_test(to_pettingzoo(make(1)), num_cycles=200)
        parallel_seed_test(lambda: to_pettingzoo(make(1)), num_cycles=50)
    assert "Passed Parallel API test" in capsys.readouterr().out


def test_mpe_survives_the_round_trip_through_the_checkers() -> None:
    def make() -> Any:
        return to_pettingzoo(envs.make("pettingzoo/mpe/simple_spread_v3"))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parallel_api_test(make(), num_cycles=60)
        parallel_seed_test(make, num_cycles=30)


def test_view_equals_the_batched_environment() -> None:
    env, view = Team(1, seed=2), to_pettingzoo(Team(1, seed=2))
    batch, _ = env.reset()
    obs, infos = view.reset()
    names = ["agent_0", "agent_1", "agent_2"]
    assert view.possible_agents == names
    died, finished = 0, 0
    for step in range(60):
        context = env.context()
        alive = context["alive"][0].tolist()
        assert view.agents == [name for name, here in zip(names, alive, strict=True) if here]
        np.testing.assert_array_equal(view.state(), context["state"][0])
        for i, name in enumerate(names):
            if name in view.agents:
                np.testing.assert_array_equal(obs[name]["observation"], batch[0, i])
                mask = context["avail_actions"][0, i]
                np.testing.assert_array_equal(obs[name]["action_mask"], mask)
                assert obs[name] in view.observation_space(name)
        actions = {name: (step + i) % 4 for i, name in enumerate(names) if name in view.agents}
        joint = torch.tensor([[actions.get(name, 0) for name in names]])
        batch, _, terminated, truncated, info = env.step(joint)
        acting, after = view.agents, info["final_info"]["alive"][0]
        obs, rewards, terminations, truncations, infos = view.step(actions)
        for i, name in enumerate(names):
            assert (name in obs) == (name in rewards) == (name in infos) == (name in acting)
            if name in acting:
                final = info["final_obs"][0, i]
                np.testing.assert_array_equal(obs[name]["observation"], final)
                assert rewards[name] == info["reward_per_agent"][0, i].item()
                assert terminations[name] == (bool(terminated) or not after[i])
                assert truncations[name] == (bool(truncated) and bool(after[i]))
                died += not after[i]
        if terminated or truncated:
            assert view.agents == []
            assert view.step({}) == ({}, {}, {}, {}, {})
            obs, _ = view.reset()  # hands out what autoreset has begun
            finished += 1
    assert finished > 2
    assert died > 2


def test_view_resets_with_a_seed_and_returns_its_own_memory() -> None:
    view = to_pettingzoo(Drones(seed=4))
    first, _ = view.reset(seed=9)
    kept = {name: value.copy() for name, value in first.items()}
    actions = {agent: np.full(2, 0.5, np.float32) for agent in view.agents}
    obs, rewards, *_ = view.step(actions)
    assert rewards == dict.fromkeys(view.agents, 3.0)  # the team's, where there is no other
    for value in obs.values():
        value[:] = 7
    again, _ = view.reset(seed=9)
    for name, value in again.items():
        np.testing.assert_array_equal(value, kept[name])
    np.testing.assert_array_equal(first["agent_0"], kept["agent_0"])
    with pytest.raises(NotImplementedError, match="Drones reports no state"):
        view.state()


def test_view_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="to_pettingzoo: expected num_envs=1, got num_envs=2"):
        to_pettingzoo(Team(2))
    with pytest.raises(ValueError, match="to_pettingzoo: expected an environment with num_agents"):
        to_pettingzoo(PointMass(1))
    env = Team(1)
    env.autoreset = "disabled"
    with pytest.raises(ValueError, match="expected autoreset='same-step', got DISABLED"):
        to_pettingzoo(env)
    view = to_pettingzoo(Team(1))
    view.reset()
    with pytest.raises(ValueError, match=r"step: expected actions of \['agent_0', .*got \['x'\]"):
        view.step({"x": 1})


def test_there_and_back_is_the_same_environment() -> None:
    env = Team(1, seed=2)
    back = from_pettingzoo(to_pettingzoo(Team(1, seed=2)))
    assert back.single_action_space == env.single_action_space
    assert back.single_observation_space == env.single_observation_space
    obs, info = env.reset(seed=5)
    theirs, their_info = back.reset(seed=5)
    for step in range(12):
        assert torch.equal(obs * info["alive"][..., None], theirs)
        assert torch.equal(info["alive"], their_info["alive"])
        assert torch.equal(info["avail_actions"], their_info["avail_actions"])
        action = torch.tensor([[step % 4, 1, 2]])
        obs, reward, terminated, truncated, info = env.step(action * info["alive"])
        theirs, their_reward, their_terminated, their_truncated, their_info = back.step(action)
        assert (terminated, truncated) == (their_terminated, their_truncated)
        assert torch.allclose(reward, their_reward)
