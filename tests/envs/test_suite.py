"""The suite's tasks against dm_control's own, bit for bit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
import torch

os.environ.setdefault("MUJOCO_GL", "disable")  # before dm_control looks for OpenGL

from dm_control import suite
from dm_control.utils import rewards

import envs
from envs.mujoco import MujocoEnv
from envs.suite import Quadruped, tolerance

IDS = [id for id in envs.ENVS if id.startswith("dmc/")]


def make(id: str, num_envs: int, seed: int = 1) -> Any:
    env = envs.make(id, num_envs=num_envs, seed=seed, num_threads=1)
    assert isinstance(env, MujocoEnv)
    return env


def load(id: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(folder)  # MuJoCo logs there that a model is deprecated
    domain, task = id.removeprefix("dmc/").split("-")
    return suite.load(domain, task, task_kwargs={"random": 0})


def flat(observation: dict[str, Any]) -> np.ndarray:
    return np.concatenate([np.ravel(value) for value in observation.values()]).astype(np.float32)


def inject(env: Any, row: int, peer: Any) -> np.ndarray:
    """Put dm_control into the state of a row and return what it then observes."""
    physics = peer.physics
    with physics.reset_context():
        for name in ("qpos", "qvel", "act", "qacc_warmstart"):
            getattr(physics.data, name)[:] = env.sim.field(name)[row].numpy()
        radius = getattr(env.task, "radius", None)
        if radius is not None:  # the target is a geom of reacher's and a site of finger's
            kind = "geom" if env.task.domain == "reacher" else "site"
            getattr(physics.named.model, f"{kind}_pos")["target"] = env.sim.mocap_pos[row, 0]
            getattr(physics.named.model, f"{kind}_size")["target", 0] = radius
        elif env.task.domain == "finger":
            physics.named.model.dof_damping["hinge"] = 0.03
    return flat(peer.task.get_observation(physics))


@pytest.mark.parametrize("id", IDS)
def test_steps_equal_dm_control_bit_for_bit(
    id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env, peer = make(id, 3), load(id, tmp_path, monkeypatch)
    obs, _ = env.reset(seed=3)
    peer.reset()
    assert np.array_equal(obs[1].numpy(), inject(env, 1, peer))
    spec, rng = peer.action_spec(), np.random.default_rng(0)
    steps = 300 if id in ("dmc/cheetah-run", "dmc/walker-walk") else 60
    for _ in range(steps):
        action = rng.uniform(spec.minimum, spec.maximum, (3, *spec.shape)).astype(np.float32)
        obs, reward, terminated, truncated, _ = env.step(torch.from_numpy(action))
        step = peer.step(action[1].astype(np.float64))
        assert np.array_equal(obs[1].numpy(), flat(step.observation))
        assert np.array_equal(env.sim.qpos[1].numpy(), peer.physics.data.qpos)
        assert reward[1].item() == np.float32(step.reward)
        assert not terminated.any() and not truncated.any()
    assert env.max_episode_steps == peer._step_limit
    assert env.dt == pytest.approx(peer.control_timestep())


# Where dm_control gives these states a reward, so that the comparison is not one of zeros.
REWARDED = {
    "dmc/reacher-easy": lambda env: env.sim.mocap_pos[:, 0, :2].copy_(env.task.finger),
    "dmc/finger-spin": lambda env: env.sim.qvel[:, 2].fill_(-30),
    "dmc/finger-turn_hard": lambda env: env.sim.mocap_pos[:, 0].copy_(env.task.tip),
    "dmc/ball_in_cup-catch": lambda env: env.sim.qpos[:, 2:].copy_(torch.tensor([0, 0.33])),
    "dmc/hopper-stand": lambda env: env.sim.qpos.copy_(torch.tensor(env.sim.model.qpos0)),
    "dmc/hopper-hop": lambda env: (
        env.sim.qpos.copy_(torch.tensor(env.sim.model.qpos0)),
        env.sim.qvel[:, 0].fill_(3),
    ),
    "dmc/pendulum-swingup": lambda env: env.sim.qpos.zero_(),
    "dmc/cartpole-swingup_sparse": lambda env: env.sim.qpos.zero_(),
    "dmc/walker-run": lambda env: (env.sim.qpos.zero_(), env.sim.qvel[:, 1].fill_(6)),
}


@pytest.mark.parametrize("id", REWARDED)
def test_reward_where_there_is_one(
    id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env, peer = make(id, 1), load(id, tmp_path, monkeypatch)
    env.reset(seed=0)
    REWARDED[id](env)
    peer.reset()
    inject(env, 0, peer)
    zero = np.zeros(peer.action_spec().shape)
    _, reward, _, _, _ = env.step(torch.zeros(1, *zero.shape))
    assert reward.item() == np.float32(peer.step(zero).reward)
    assert reward > 0.1


def test_tolerance_is_the_published_one() -> None:
    x = np.linspace(-3, 6, 181)
    for bounds in ((0, 0), (1, 2), (2, np.inf), (-np.inf, 0)):
        for margin in (0, 0.5, 2):
            for sigmoid, value in (("gaussian", 0.1), ("linear", 0), ("linear", 0.5),
                                   ("quadratic", 0), ("quadratic", 0.3)):  # fmt: skip
                expected = rewards.tolerance(x, bounds, margin, sigmoid, value)
                got = tolerance(torch.from_numpy(x), *bounds, margin, sigmoid, value)  # type: ignore[arg-type]
                np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=1e-15)


# ---- starts


def contacts(env: Any, qpos: np.ndarray) -> bool:
    data = mujoco.MjData(env.sim.model)
    data.qpos[:] = qpos
    mujoco.mj_forward(env.sim.model, data)
    return data.ncon > 0


@pytest.mark.parametrize("id", ["dmc/finger-turn_easy", "dmc/ball_in_cup-catch"])
def test_starts_are_free_of_contact(id: str) -> None:
    env = make(id, 1000)
    env.reset(seed=0)
    assert not any(contacts(env, qpos) for qpos in env.sim.qpos.numpy())


def test_clearance_of_the_finger_is_where_mujoco_sees_contact() -> None:
    env = make("dmc/finger-spin", 1000)
    env.reset(seed=0)
    joints = env.task.sample_joints(env.rng)
    touching = [contacts(env, qpos) for qpos in joints.numpy()]
    assert (env.task.clearance(joints) < 0).tolist() == touching
    assert 50 < sum(touching) < 200


def test_quadruped_starts_as_low_as_it_can() -> None:
    env = make("dmc/quadruped-walk", 300)
    assert isinstance(env.task, Quadruped)
    env.reset(seed=0)
    for qpos in env.sim.qpos.numpy():
        assert not contacts(env, qpos)
        qpos[2] -= 0.01
        assert contacts(env, qpos)


def test_cheetah_settles_as_in_dm_control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env, peer = make("dmc/cheetah-run", 4), load("dmc/cheetah-run", tmp_path, monkeypatch)
    joints = torch.rand(4, 9).double()
    joints[:, :3] = 0
    env.task.sample_joints = lambda rng: joints
    env.reset(seed=0)
    for row in range(4):
        with peer.physics.reset_context():
            peer.physics.data.qpos[:] = joints[row].numpy()
            peer.physics.step(nstep=200)
        np.testing.assert_allclose(env.sim.qpos[row], peer.physics.data.qpos, atol=1e-9)
    assert not env.sim.time.any()


def test_starts_of_reacher_and_pendulum_cover_the_circle() -> None:
    env = make("dmc/reacher-hard", 2000)
    env.reset(seed=0)
    radius = env.sim.mocap_pos[:, 0, :2].norm(dim=1)
    assert 0.05 <= radius.min() < 0.052 and 0.198 < radius.max() <= 0.2
    assert env.sim.qpos[:, 0].abs().max() > 3.1  # shoulder: no limits
    limit = np.deg2rad(160)
    assert limit - 0.05 < env.sim.qpos[:, 1].abs().max() <= limit
    assert env.sim.mocap_pos[:, 0, :2].mean(0).abs().max() < 0.01


def test_episodes_are_truncated_after_1000_steps() -> None:
    env = make("dmc/pendulum-swingup", 2)
    env.reset(seed=0)
    env.elapsed[0] = 999
    _, _, terminated, truncated, _ = env.step(torch.zeros(2, 1))
    assert truncated.tolist() == [True, False]
    assert not terminated.any()
