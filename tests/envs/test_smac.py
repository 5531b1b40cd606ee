"""The adapters to SMAC and SMACv2: what they say without the game, and what they ask of one."""

from __future__ import annotations

import sys
import types
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import envs


class Game:
    """Behaves like SMAC's `StarCraft2Env` with two agents: the second dies, then time is up."""

    made: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, continuing_episode: bool = False, **kwargs: Any) -> None:
        self.made.append(kwargs)
        self.continuing = continuing_episode
        self.time, self.given = 0, []

    def get_env_info(self) -> dict[str, int]:
        return {
            "n_agents": 2, "n_actions": 7, "obs_shape": 3, "state_shape": 4, "episode_limit": 4,
        }  # fmt: skip

    def reset(self) -> None:
        self.time = 0

    def get_obs(self) -> list[np.ndarray]:
        return [np.full(3, self.time + i, np.float32) for i in range(2)]

    def get_state(self) -> np.ndarray:
        return np.full(4, self.time, np.float32)

    def get_avail_actions(self) -> list[list[int]]:
        dead = self.time > 1
        return [[0, 1, 1, 1, 0, 0, 1], [1, 0, 0, 0, 0, 0, 0] if dead else [0, 1, 0, 0, 1, 0, 0]]

    def step(self, actions: list[int]) -> tuple[float, bool, dict[str, Any]]:
        self.given.append(actions)
        for action, mask in zip(actions, self.get_avail_actions(), strict=True):
            assert mask[action]  # as SMAC asserts
        self.time += 1
        info = {"battle_won": False}
        if self.time == 4 and self.continuing:
            info["episode_limit"] = True
        return 0.5 * self.time, self.time == 4, info

    def close(self) -> None:
        pass


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """A stand-in for both packages and a folder for the game."""
    for package, name in (("smac", "StarCraft2Env"), ("smacv2", "StarCraftCapabilityEnvWrapper")):
        module = types.ModuleType(f"{package}.env")
        setattr(module, name, Game)
        monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
        monkeypatch.setitem(sys.modules, f"{package}.env", module)
    monkeypatch.setenv("SC2PATH", str(tmp_path))
    monkeypatch.setattr(Game, "made", [])


@pytest.mark.parametrize("id", ["smac/3m", "smacv2/terran_5_vs_5"])
def test_says_what_to_install(id: str, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("SC2PATH", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=rf"^{id}: needs the package .*StarCraft II 4.10.*SC2PATH"):
        envs.make(id)
    monkeypatch.setenv("SC2PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"needs the package .*github.com/oxwhirl.*No module"):
        envs.make(id)


def test_drives_a_game(installed) -> None:
    env = envs.make("smac/2s3z", num_envs=2, workers=0, difficulty="7")
    assert Game.made[0] == {"map_name": "2s3z", "difficulty": "7"}
    obs, info = env.reset(seed=3)
    assert [made.get("seed") for made in Game.made[-2:]] == [3, 4]
    assert obs.shape == (2, 2, 3)
    assert info["state"].shape == (2, 4)
    assert info["avail_actions"][0].tolist() == [
        [False, True, True, True, False, False, True],
        [False, True, False, False, True, False, False],
    ]
    for step in range(1, 5):
        obs, reward, terminated, truncated, info = env.step(torch.full((2, 2), 6))
        assert reward.tolist() == [0.5 * step] * 2
        assert not terminated.any()
        assert bool(truncated.all()) == (step == 4)
        assert not info["battle_won"].any()
    assert (info["final_obs"][0, 0] == 4).all()
    assert info["final_info"]["alive"].tolist() == [[True, False]] * 2
    # what is not available becomes stop, or nothing
    assert env.envs[0].game.given == [[6, 1], [6, 1], [6, 0], [6, 0]]
    assert (obs[0, 0] == 0).all()


@pytest.mark.parametrize("id", ["smac/3m", "smacv2/terran_5_vs_5"])
def test_the_time_limit_truncates_unless_the_game_is_told_otherwise(id: str, installed) -> None:
    for given in ({}, {"continuing_episode": True}, {"continuing_episode": False}):
        env = envs.make(id, workers=0, **given)
        env.reset(seed=0)
        for _ in range(4):
            *_, terminated, truncated, _ = env.step(torch.ones(1, 2, dtype=torch.int64))
        late = given.get("continuing_episode", True)
        assert (terminated.item(), truncated.item()) == (not late, late)


def test_random_teams_are_asked_for_as_smacv2_wants_them(installed) -> None:
    envs.make("smacv2/terran_5_vs_5")
    asked = Game.made[0]
    assert asked["map_name"] == "10gen_terran"
    teams = asked["capability_config"]["team_gen"]
    assert teams["unit_types"] == ["marine", "marauder", "medivac"]
    assert teams["exception_unit_types"] == ["medivac"]
    assert sum(teams["weights"]) == pytest.approx(1)
    with pytest.raises(ValueError, match="smacv2/3m: expected one of protoss_5_vs_5"):
        envs.make("smacv2/3m")
