"""The families against Gymnasium's bodies: bit for bit, on injected states and changed models."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import pytest
import torch

import envs
from envs.families import LocomotionFamily

PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "half-cheetah-vel": ("HalfCheetah-v5", {}),
    "half-cheetah-dir": ("HalfCheetah-v5", {}),
    "ant-dir": ("Ant-v5", {"include_cfrc_ext_in_observation": False}),
    "hopper-param": ("Hopper-v5", {"terminate_when_unhealthy": False}),
    "walker-param": ("Walker2d-v5", {"terminate_when_unhealthy": False}),
}
BASES = {"body_mass": 1.5, "body_inertia": 1.5, "dof_damping": 1.3, "geom_friction": 1.5}
CHANGED = {
    "hopper-param": ("body_mass", "body_inertia", "dof_damping", "geom_friction"),
    "walker-param": ("body_mass", "geom_friction"),
}


def make(id: str, num_envs: int = 1, **arguments: Any) -> LocomotionFamily:
    env = envs.make(id, num_envs, num_threads=1, **arguments)
    assert isinstance(env, LocomotionFamily)
    return env


def change(peer: Any, id: str, task: np.ndarray) -> None:
    """Give Gymnasium's model the task's body, independently of how `envs` does it."""
    peer.model.opt.timestep = 0.004
    start = 0
    for name in CHANGED[id]:
        field = getattr(peer.model, name)
        part = task[start : start + field.size].astype(np.float64)
        start += field.size
        field[...] *= np.power(BASES[name], 3 * part).reshape(field.shape)
    assert start == len(task)
    mujoco.mj_setConst(peer.model, peer.data)


def expected_reward(id: str, task: np.ndarray, info: dict[str, Any], action: np.ndarray) -> float:
    velocity, cost = info["x_velocity"], float(np.square(action).sum())
    if id == "half-cheetah-vel":
        return -abs(velocity - task[0]) - 0.05 * cost
    if id == "half-cheetah-dir":
        return velocity * task[0] - 0.05 * cost
    if id == "ant-dir":
        return velocity * task[0] + info["y_velocity"] * task[1]
    return velocity - 1e-3 * cost + (1.0 if id == "walker-param" else 0.0)


@pytest.mark.parametrize("id", PEERS)
def test_150_steps_equal_gymnasium(
    id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo logs there that Gymnasium's model is deprecated
    name, arguments = PEERS[id]
    peer: Any = gym.make(name, **arguments).unwrapped
    env = make(id, 3)
    env.reset(seed=3)
    task = env.parameters[1].numpy()
    if id in CHANGED:
        change(peer, id, task)
    peer.reset()
    peer.set_state(env.sim.qpos[1].numpy().copy(), env.sim.qvel[1].numpy().copy())
    rng = np.random.default_rng(0)
    for _ in range(150):
        action = rng.uniform(-1, 1, (3, *env.single_action_space.shape)).astype(np.float32)  # type: ignore[misc]
        _, reward, terminated, _, info = env.step(torch.from_numpy(action))
        if terminated[1]:  # walker: fallen
            assert peer.step(action[1].astype(np.float64)) and peer.data.qpos[1] <= 0.5
            break
        obs, *_, peer_info = peer.step(action[1].astype(np.float64))
        state = np.concatenate([peer.data.qpos, peer.data.qvel])
        if id.startswith("half-cheetah"):
            mujoco.mj_kinematics(peer.model, peer.data)
            state = np.concatenate([obs, peer.data.body("torso").xpos])
        elif id == "ant-dir":
            state = obs
        assert np.array_equal(info["final_obs"][1].numpy(), state.astype(np.float32))
        expected = expected_reward(id, task, peer_info, action[1].astype(np.float64))
        assert reward[1].item() == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("id", PEERS)
def test_horizon_control_step_and_relabelling(id: str) -> None:
    env = make(id, 4)
    assert env.max_episode_steps == 200
    assert env.dt == pytest.approx(0.016 if id in CHANGED else 0.05)
    env.reset(seed=0)
    other = env.parameters.roll(1, 0)
    for _ in range(5):
        action = torch.rand(4, *env.single_action_space.shape) * 2 - 1  # type: ignore[misc]
        _, reward, _, _, info = env.step(action)
        velocity = info["velocity"].view(4, -1)
        batch = {"actions": action, "next_observations": info["final_obs"], "velocity": velocity}
        torch.testing.assert_close(env.rewards(env.parameters, batch), reward)
    if id not in CHANGED:
        assert not torch.allclose(env.rewards(other, batch), reward, atol=1e-3)


def test_distributions_of_tasks() -> None:
    count = 4000
    velocity = make("half-cheetah-vel", num_tasks=count).tasks
    assert velocity.min() >= 0 and velocity.max() < 3
    assert velocity.mean().item() == pytest.approx(1.5, abs=0.05)
    assert make("half-cheetah-dir").tasks.tolist() == [[1], [-1]]
    direction = make("ant-dir", num_tasks=count).tasks
    torch.testing.assert_close(direction.norm(dim=1), torch.ones(count))
    assert direction.mean(0).abs().max() < 0.05
    angle = torch.atan2(direction[:, 1], direction[:, 0])
    assert angle.std().item() == pytest.approx(2 * math.pi / 12**0.5, abs=0.05)
    for id, size in (("hopper-param", 41), ("walker-param", 32)):
        tasks = make(id, num_tasks=200).tasks
        assert tasks.shape == (200, size)
        assert -1 <= tasks.min() < -0.99 and 0.99 < tasks.max() <= 1
        assert tasks.std().item() == pytest.approx(3**-0.5, abs=0.02)


def test_a_body_is_its_rows_own_and_part_of_the_state() -> None:
    env, other = make("hopper-param", 6), make("hopper-param", 6, task_seed=9)
    env.reset(seed=0)
    action = torch.ones(6, 3) * 0.5
    env.step(action)
    other.load_state_dict(env.state_dict())
    assert torch.equal(other.parameters, env.parameters)
    for _ in range(20):
        obs = env.step(action)[0]
        assert torch.equal(other.step(action)[0], obs)
    assert len(obs.unique(dim=0)) == 6
    few = make("hopper-param", 2, task_ids=[4, 4])
    few.reset(seed=0)
    assert torch.equal(few.parameters[0], few.parameters[1])


def test_fallen_walker_terminates_and_fallen_hopper_does_not() -> None:
    for id in CHANGED:
        env = make(id, 2)
        env.reset(seed=0)
        env.sim.qpos[0, 1:3] = torch.tensor([0.3, 1.5])  # lies on its side
        _, _, terminated, _, _ = env.step(torch.zeros(2, *env.single_action_space.shape))  # type: ignore[misc]
        assert terminated.tolist() == [id == "walker-param", False]
    with pytest.raises(ValueError, match=r"tasks: expected shape \(K, 41\) for body_mass_0"):
        make("hopper-param", tasks=[[1.0]])
