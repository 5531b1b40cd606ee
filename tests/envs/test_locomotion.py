"""The locomotion tasks against Gymnasium's own, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import envs
from envs.mujoco import MujocoEnv

PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "half-cheetah": ("HalfCheetah-v5", {}),
    "hopper": ("Hopper-v5", {}),
    "walker2d": ("Walker2d-v5", {}),
    "ant": ("Ant-v5", {"include_cfrc_ext_in_observation": False, "contact_cost_weight": 0}),
}


LOOKS = ("tex", "mat", "light", "cam_", "geom_rgba", "geom_user", "numeric", "bvh")
"""Model fields that no force depends on."""


@pytest.fixture(params=PEERS)
def pair(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[MujocoEnv, Any]:
    monkeypatch.chdir(tmp_path)  # MuJoCo logs there that Gymnasium's model is deprecated
    name, arguments = PEERS[request.param]
    env = envs.make(request.param, num_envs=3, seed=1, num_threads=1)
    assert isinstance(env, MujocoEnv)
    return env, gym.make(name, **arguments).unwrapped


def test_300_steps_equal_gymnasium_bit_for_bit(pair: tuple[MujocoEnv, Any]) -> None:
    env, peer = pair
    env.reset(seed=3)
    low, high = peer.action_space.low, peer.action_space.high
    assert np.array_equal(low, env.single_action_space.low)  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)
    start = True
    for _ in range(300):
        if start:  # the same state in both: Gymnasium draws other random numbers
            peer.reset()
            peer.set_state(env.sim.qpos[1].numpy().copy(), env.sim.qvel[1].numpy().copy())
        action = rng.uniform(low, high, (3, len(low))).astype(np.float32)
        _, reward, terminated, truncated, info = env.step(torch.from_numpy(action))
        obs, expected, start, _, peer_info = peer.step(action[1].astype(np.float64))
        assert np.array_equal(info["final_obs"][1].numpy(), obs.astype(np.float32))
        assert reward[1].item() == np.float32(expected)
        assert terminated[1].item() == start
        velocity = info["velocity"][1].flatten()[0]
        assert velocity.item() == np.float32(peer_info["x_velocity"])
        assert not truncated.any()
    assert env.max_episode_steps == gym.spec(PEERS_BY_TYPE[type(peer).__name__]).max_episode_steps


PEERS_BY_TYPE = {name.split("-")[0] + "Env": name for name, _ in PEERS.values()}


def test_model_is_gymnasiums(pair: tuple[MujocoEnv, Any]) -> None:
    ours, theirs = pair[0].sim.model, pair[1].model
    for name in dir(theirs):
        value = getattr(theirs, name)
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
            continue
        if not name.startswith(LOOKS):
            assert np.array_equal(value, getattr(ours, name)), name
    assert ours.ntex == 0


@pytest.mark.parametrize("id", PEERS)
def test_starts_have_gymnasiums_distribution(id: str) -> None:
    env = envs.make(id, num_envs=4000)
    assert isinstance(env, MujocoEnv)
    env.reset(seed=0)
    offset = (env.sim.qpos - torch.tensor(env.sim.model.qpos0)).abs()
    scale = 5e-3 if id in ("hopper", "walker2d") else 0.1
    assert scale * 0.99 < offset.max() <= scale
    expected = scale / 3**0.5 if scale < 0.1 else scale  # uniform or normal velocities
    torch.testing.assert_close(
        env.sim.qvel.std(0), torch.full((env.sim.model.nv,), expected).double(), rtol=0.06, atol=0
    )
    assert (env.sim.qvel.abs().max() <= scale) == (scale < 0.1)


def test_fallen_hopper_terminates_and_starts_again() -> None:
    env = envs.make("hopper", num_envs=3)
    assert isinstance(env, MujocoEnv)
    env.reset(seed=0)
    env.sim.qpos[1, 2] = 0.3  # tilted by more than 0.2 rad
    obs, reward, terminated, _, info = env.step(torch.zeros(3, 3))
    assert terminated.tolist() == [False, True, False]
    assert (reward < 0.5).tolist() == [False, True, False]  # no reward for being healthy
    assert info["final_obs"][1, 1] > 0.29
    assert obs[1, 1].abs() < 0.01
