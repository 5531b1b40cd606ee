"""`MujocoEnv` and its engines, on the locomotion and suite tasks."""

from __future__ import annotations

import copy
from typing import Any

import mujoco
import numpy as np
import pytest
import torch
from torch import Tensor

import envs
from envs.locomotion import Ant, HalfCheetah
from envs.mujoco import MujocoEnv

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def make(id: str, num_envs: int, seed: int = 1, **kwargs: Any) -> MujocoEnv:
    env = envs.make(id, num_envs=num_envs, seed=seed, **{"num_threads": 1, **kwargs})
    assert isinstance(env, MujocoEnv)
    return env


def actions(env: MujocoEnv, steps: int, seed: int = 0) -> Tensor:
    """Uniform within the bounds, [steps, N, U]."""
    low, high = (torch.as_tensor(bound) for bound in (env.action_space.low, env.action_space.high))
    unit = torch.rand(steps, *low.shape, generator=torch.Generator().manual_seed(seed))
    return (low + (high - low) * unit).to(env.device)


def rollout(env: MujocoEnv, steps: int, seed: int = 0) -> list[Tensor]:
    """Everything `step` returned, [steps, N, ...] each."""
    results = [env.step(action)[:4] for action in actions(env, steps, seed)]
    return [torch.stack(column) for column in zip(*results, strict=True)]


def assert_equal(first: list[Tensor], second: list[Tensor]) -> None:
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def random_params(model: mujoco.MjModel, num_envs: int) -> dict[str, np.ndarray]:
    """Mass, inertia, damping and friction of every simulation, scaled at random."""
    rng = np.random.default_rng(0)
    scale = lambda field: field * rng.uniform(0.6, 1.5, (num_envs, *field.shape))  # noqa: E731
    names = ("body_mass", "body_inertia", "dof_damping", "geom_friction")
    return {name: scale(getattr(model, name)) for name in names}


def test_300_steps_with_own_parameters_equal_own_models() -> None:
    env = make("walker2d", 5)
    env.reset(seed=0)
    env.task.terminated = lambda sim: torch.zeros(sim.num_envs, dtype=torch.bool)
    params = random_params(env.sim.model, 5)
    env.set_params(params)
    peers = []
    for i in range(5):
        model = copy.copy(env.sim.model)
        for name, value in params.items():
            getattr(model, name)[:] = value[i]
        data = mujoco.MjData(model)
        mujoco.mj_setConst(model, data)
        mujoco.mj_resetData(model, data)
        data.qpos[:], data.qvel[:] = env.sim.qpos[i], env.sim.qvel[i]
        peers.append((model, data))
    for action in actions(env, 300):
        env.step(action)
        for i, (model, data) in enumerate(peers):
            data.ctrl[:] = action[i]
            mujoco.mj_step(model, data, 4)
            assert np.array_equal(env.sim.qpos[i], data.qpos)
            assert np.array_equal(env.sim.qvel[i], data.qvel)
    assert (env.sim.qpos[0] - env.sim.qpos[1]).abs().max() > 0.1


@pytest.mark.parametrize("id", ["hopper", "dmc/finger-turn_easy"])
def test_64_environments_equal_64_single_ones(id: str) -> None:
    env = make(id, 64)
    obs, _ = env.reset(seed=3)
    batch = actions(env, 30)
    together = [obs, *(env.step(action)[0] for action in batch)]
    for i in range(0, 64, 7):
        single = make(id, 1)
        single.rng._env, single.rng._stream = torch.tensor([i + 1]), None  # the noise of row i
        alone = [single.reset(seed=3)[0], *(single.step(action[i : i + 1])[0] for action in batch)]
        for a, b in zip(together, alone, strict=True):
            assert torch.equal(a[i], b[0])


@pytest.mark.parametrize("id", ["half-cheetah", "ant", "dmc/cheetah-run", "dmc/hopper-stand"])
def test_masked_reset_touches_nothing_else(id: str) -> None:
    env, undisturbed = make(id, 6), make(id, 6)
    mask = torch.tensor([True, False, False, True, False, False])
    for each in (env, undisturbed):
        each.reset(seed=0)
        rollout(each, 20)
    before, state = env._observe(), {k: v.clone() for k, v in env._state().items()}
    obs, _ = env.reset(options={"reset_mask": mask})
    assert torch.equal(obs[~mask], before[~mask])
    assert (obs[mask] != before[mask]).any(1).all()
    for name, value in env._state().items():
        assert torch.equal(value[~mask], state[name][~mask]), name
    after, expected = rollout(env, 20, seed=1), rollout(undisturbed, 20, seed=1)
    assert_equal([x[:, ~mask] for x in after], [x[:, ~mask] for x in expected])


def test_numbers_do_not_depend_on_threads() -> None:
    results = []
    for threads in (1, 2):
        env = make("hopper", 16, num_threads=threads)
        env.set_params(random_params(env.sim.model, 16))
        env.reset(seed=0)
        results.append(rollout(env, 50))
    assert results[0][2].any()  # some fell and began again
    assert_equal(*results)


# ---- parameters


@pytest.mark.parametrize("id", ["hopper", "ant", "dmc/hopper-hop", "dmc/reacher-easy"])
def test_state_with_parameters_continues_exactly(id: str) -> None:
    env = make(id, 4)
    env.reset(seed=0)
    env.set_params(random_params(env.sim.model, 4), torch.tensor([True, False, True, False]))
    rollout(env, 30)
    state, obs = env.state_dict(), env._observe()
    expected = rollout(env, 60, seed=1)
    fresh, other = make(id, 4, seed=5), make(id, 4, seed=6)
    other.reset(seed=2)
    other.set_params(
        {"opt.gravity": np.zeros((4, 3)), "body_mass": env.sim.model.body_mass + np.ones((4, 1))}
    )
    for each in (fresh, other):
        each.load_state_dict(state)
        assert torch.equal(each._observe(), obs)
        assert_equal(rollout(each, 60, seed=1), expected)


def test_state_without_parameters_takes_them_back() -> None:
    env = make("hopper", 3)
    env.reset(seed=0)
    state = env.state_dict()
    expected = rollout(env, 40)
    env.set_params({"opt.gravity": torch.tensor([0, 0, -3.0]).expand(3, 3)})
    env.load_state_dict(state)
    assert_equal(rollout(env, 40), expected)


def test_parameters_change_only_masked_environments() -> None:
    env, plain = make("half-cheetah", 3), make("half-cheetah", 3)
    mass = torch.tensor(env.sim.model.body_mass)
    for each in (env, plain):
        each.reset(seed=0)
    env.set_params({"body_mass": 2 * mass.expand(3, -1)}, torch.tensor([False, True, False]))
    got, expected = rollout(env, 10)[0], rollout(plain, 10)[0]
    assert torch.equal(got[:, ::2], expected[:, ::2])
    assert (got[:, 1] != expected[:, 1]).any()


def test_parameters_name_what_is_wrong() -> None:
    env = make("hopper", 2)
    env.reset(seed=0)
    mass = np.tile(env.sim.model.body_mass, (2, 1))
    for params, message in (
        ({"body_mas": mass}, "'body_mas' is not a field.*did you mean 'body_mass'"),
        ({"body_parentid": mass}, "'body_parentid' gives the model its structure"),
        ({"body_mass": mass[:1]}, r"body_mass: expected shape \(2, 5\), got \(1, 5\)"),
        ({"body_mass": mass * [[1], [np.nan]]}, "body_mass: not finite in environment 1"),
        ({"opt.gravity": mass}, r"opt.gravity: expected shape \(2, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            env.set_params({"dof_damping": np.zeros((2, 6)), **params})
    with pytest.raises(ValueError, match=r"mask: expected shape \(2,\), got \(3,\)"):
        env.set_params({"body_mass": mass}, torch.ones(3, dtype=torch.bool))
    plain = make("hopper", 2)
    plain.reset(seed=0)
    assert_equal(rollout(env, 20), rollout(plain, 20))  # nothing was changed


# ---- subclassing


def test_a_family_of_tasks_overrides_progress() -> None:
    class Backwards(HalfCheetah):
        def progress(self, velocity: Tensor) -> Tensor:
            return -velocity

    env, reverse = make("half-cheetah", 2), MujocoEnv(Backwards(), 2, seed=1, num_threads=1)
    for each in (env, reverse):
        each.reset(seed=0)
    for action in actions(env, 5):
        _, reward, _, _, info = env.step(action)
        _, opposite, _, _, _ = reverse.step(action)
        torch.testing.assert_close(reward - opposite, 2 * info["velocity"])
    assert Ant().progress(torch.tensor([[1.0, 2.0]])).tolist() == [1.0]


# ---- mujoco_warp


def one_step(id: str, device: str = "cpu") -> list[list[Tensor]]:
    """Positions, successors and rewards after one step from equal states, in C and in Warp."""
    c, w = make(id, 16), make(id, 16, device=device, backend="warp")
    starts = [env.reset(seed=0)[0].cpu() for env in (c, w)]
    torch.testing.assert_close(starts[1], starts[0], atol=1e-4, rtol=0)
    rollout(c, 20)
    for name in ("qpos", "qvel", "act", "qacc_warmstart", "mocap_pos"):
        w.sim.field(name).copy_(c.sim.field(name))
    results = []
    for env in (c, w):
        _, reward, terminated, _, info = env.step(actions(env, 1)[0])
        position = env.sim.qpos.float().cpu()
        results.append([position, info["final_obs"].cpu(), reward.cpu(), terminated.cpu()])
    w.check()
    return results


def assert_one_step_agrees(id: str, device: str = "cpu") -> None:
    expected, got = one_step(id, device)
    assert not expected[3].any()  # positions are those of the successors
    torch.testing.assert_close(got[0], expected[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(got[2], expected[2], atol=1e-4, rtol=0)
    # Velocities amplify the rounding of hard contacts: a few may be off by more.
    error = (got[1] - expected[1]).abs()
    assert (error <= 1e-4 + 1e-5 * expected[1].abs()).float().mean() > 0.99
    torch.testing.assert_close(got[1], expected[1], atol=1e-3, rtol=0)
    assert torch.equal(got[3], expected[3])


def test_one_step_in_warp_agrees_with_c() -> None:
    assert_one_step_agrees("half-cheetah")


@pytest.mark.full
@pytest.mark.parametrize(
    "id",
    [
        *("walker2d", "dmc/walker-walk", "dmc/cheetah-run", "dmc/finger-turn_easy"),
        *("dmc/hopper-hop", "dmc/reacher-easy", "dmc/ball_in_cup-catch", "dmc/pendulum-swingup"),
        "dmc/cartpole-swingup",
    ],
)
def test_one_step_in_warp_agrees_with_c_everywhere(id: str) -> None:
    assert_one_step_agrees(id)


@needs_cuda
@pytest.mark.parametrize("id", ["half-cheetah", "dmc/walker-walk", "dmc/finger-spin"])
def test_cuda_agrees_with_c(id: str) -> None:
    assert_one_step_agrees(id, "cuda")


@needs_cuda
@pytest.mark.parametrize("id", ["half-cheetah", "hopper", "ant", "dmc/finger-turn_easy"])
def test_cuda_steps_without_waiting_for_the_device(id: str) -> None:
    env = make(id, 32, device="cuda")
    env.reset(seed=0)
    env.elapsed[:] = torch.arange(32, device="cuda") + 980
    env._synchronise()
    for action in actions(env, 3):  # captured
        env.step(action)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for action in actions(env, 40):
            env.step(action)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert (env.elapsed < 64).all()  # all have been truncated on the way
    env.check()


@needs_cuda
def test_cuda_clock_ends_episodes_when_they_end() -> None:
    env, other = make("half-cheetah", 4, device="cuda"), make("half-cheetah", 4, device="cuda")
    env.reset(seed=0)
    env.elapsed[:2] = 998
    env._synchronise()
    ends = [env.step(action)[3].tolist() for action in actions(env, 3)]
    assert ends == [[False] * 4, [True, True, False, False], [False] * 4]
    assert env.elapsed.tolist() == [1, 1, 3, 3]
    other.load_state_dict(env.state_dict())
    assert_equal(rollout(env, 5), rollout(other, 5))
