"""`BatchedEnv` and `CounterRNG`."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from scipy import stats
from torch import Tensor
from toy import PointMass

import envs
import train
from envs.adapt import to_gymnasium
from envs.base import BatchedEnv, CounterRNG

EVERYONE = torch.ones(4, dtype=torch.bool)


def begun(num_envs: int, seed: int = 0) -> CounterRNG:
    rng = CounterRNG(num_envs, seed=seed)
    rng.begin(torch.ones(num_envs, dtype=torch.bool))
    return rng


def actions(num_envs: int, steps: int, seed: int = 0) -> Tensor:
    """Uniform in [-1, 1], [steps, num_envs, 2]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(steps, num_envs, 2, generator=generator) * 2 - 1


# ---- CounterRNG


def draw_layouts() -> dict[str, CounterRNG]:
    return {"environments": begun(100_000, seed=1), "draws": begun(1, seed=1)}


@pytest.mark.parametrize("axis", ["environments", "draws"])
def test_uniform_is_uniform_along_either_axis(axis: str) -> None:
    rng = draw_layouts()[axis]
    x = rng.uniform(100_000 // len(rng.episode), low=-1.0, high=3.0).flatten()
    assert x.dtype == torch.float32
    assert x.shape == (100_000,)
    assert -1 <= x.min() < -0.999
    assert 2.999 < x.max() < 3
    assert abs(x.mean() - 1) < 0.02
    assert abs(x.var() - 16 / 12) < 0.02
    assert stats.kstest((x.double() + 1) / 4, "uniform").pvalue > 0.01


@pytest.mark.parametrize("axis", ["environments", "draws"])
def test_normal_is_normal_along_either_axis(axis: str) -> None:
    rng = draw_layouts()[axis]
    x = rng.normal(100_000 // len(rng.episode)).flatten()
    assert x.isfinite().all()
    assert abs(x.mean()) < 0.015
    assert abs(x.std() - 1) < 0.01
    assert stats.kstest(x.double(), "norm").pvalue > 0.01


def test_draws_of_neighbours_are_uncorrelated() -> None:
    """Environments, episodes, seeds and draws that follow each other share nothing."""
    x = begun(2000).uniform(50)
    rng = begun(2000)
    rng.begin(torch.ones(2000, dtype=torch.bool))
    columns = {
        "environment": (x[:-1], x[1:]),
        "draw": (x[:, :-1], x[:, 1:]),
        "episode": (x, rng.uniform(50)),
        "seed": (x, begun(2000, seed=1).uniform(50)),
    }
    for name, (a, b) in columns.items():
        correlation = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]
        assert abs(correlation) < 0.015, name
        assert (a == b).float().mean() < 1e-3, name


def test_environment_does_not_depend_on_num_envs() -> None:
    small, large = begun(3, seed=7), begun(50, seed=7)
    assert torch.equal(small.uniform(4), large.uniform(4)[:3])
    assert torch.equal(small.normal(2), large.normal(2)[:3])


def test_environment_does_not_depend_on_reset_order() -> None:
    first, second = torch.tensor([True, False]), torch.tensor([False, True])
    together, apart = CounterRNG(2), CounterRNG(2)
    together.begin(first | second)
    both = together.uniform(3)
    apart.begin(second)
    late = apart.uniform(3)
    apart.begin(first)
    early = apart.uniform(3)
    assert torch.equal(both, torch.stack([early[0], late[1]]))


def test_rng_state_continues() -> None:
    rng, other = begun(4, seed=3), CounterRNG(4, seed=99)
    other.load_state_dict(rng.state_dict())
    for each in (rng, other):
        each.begin(EVERYONE)
    assert torch.equal(rng.uniform(5), other.uniform(5))


def test_steps_draw_numbers_of_their_own_whatever_other_rows_do() -> None:
    """A draw within a step depends on the step, not on which rows were reset before it."""
    busy, calm = begun(2), begun(2)
    for rng in (busy, calm):
        rng.elapsed[:] = torch.tensor([4, 7])
    busy.uniform(5)
    busy.begin(torch.tensor([False, True]))
    for rng in (busy, calm):
        rng.advance()
    drawn = busy.uniform(50)
    assert torch.equal(drawn[0], calm.uniform(50)[0])
    busy.elapsed += 1
    busy.advance()
    later = busy.uniform(50)
    busy.elapsed[:] = 0
    start = begun(2).uniform(50)
    for other in (later, start):
        assert (drawn[:, None] == other[:, :, None]).float().mean() < 1e-3


# ---- BatchedEnv


def test_reset_mask_resets_only_the_masked_rows() -> None:
    env = PointMass(4)
    env.reset()
    before, *_ = env.step(torch.zeros(4, 2))
    mask = torch.tensor([False, True, False, True])
    after, _ = env.reset(options={"reset_mask": mask})
    assert torch.equal(after[~mask], before[~mask])
    assert (after[mask] != before[mask]).all()
    assert env.elapsed.tolist() == [1, 0, 1, 0]
    assert env.rng.episode.tolist() == [0, 1, 0, 1]


def test_reset_mask_of_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"reset_mask: expected shape \(4,\), got \(3,\)"):
        PointMass(4).reset(options={"reset_mask": torch.ones(3)})


def test_reset_with_a_seed_restarts() -> None:
    env = PointMass(4, seed=5)
    first, _ = env.reset()
    second, _ = env.reset()
    again, _ = env.reset(seed=5)
    assert torch.equal(first, again)
    assert torch.equal(second, env.reset()[0])
    assert not torch.equal(first, second)
    assert not torch.equal(first, env.reset(seed=6)[0])


def test_rollout_does_not_depend_on_num_envs() -> None:
    small, large = PointMass(2, seed=1), PointMass(16, seed=1)
    assert torch.equal(small.reset()[0], large.reset()[0][:2])
    for action in actions(16, 60):
        few, many = small.step(action[:2]), large.step(action)
        for a, b in zip(few[:4], many[:4], strict=True):
            assert torch.equal(a, b[:2])
    assert small.rng.episode.min() > 0


def test_final_obs_is_the_successor_of_every_row() -> None:
    env = PointMass(8, seed=2)
    obs, _ = env.reset()
    ended = {"terminated": 0, "truncated": 0}
    for action in actions(8, 80):
        successor = (obs + env.dt * action).clamp(-1, 1)
        obs, reward, terminated, truncated, info = env.step(action)
        done = info["_final_obs"]
        assert torch.equal(info["final_obs"], successor)
        assert torch.allclose(reward, -successor.norm(dim=-1))
        assert torch.equal(terminated, successor.norm(dim=-1) < env.radius)
        assert torch.equal(done, terminated | truncated)
        assert torch.equal(obs[~done], successor[~done])
        assert (obs[done] != successor[done]).all()
        ended["terminated"] += int(terminated.sum())
        ended["truncated"] += int(truncated.sum())
        assert (env.elapsed[done] == 0).all()
    assert min(ended.values()) > 0


def test_truncates_at_the_limit() -> None:
    env = PointMass(3)
    env.reset()
    env.position[:] = 1
    for step in range(1, 21):
        *_, terminated, truncated, _ = env.step(torch.zeros(3, 2))
        assert not terminated.any()
        assert truncated.all() == (step == 20)


def test_terminating_on_the_last_step_is_no_truncation() -> None:
    env = PointMass(1)
    env.reset()
    env.position[:], env.elapsed[:] = 0, 19
    *_, terminated, truncated, info = env.step(torch.zeros(1, 2))
    assert terminated
    assert not truncated
    assert info["_final_obs"]


def test_state_continues_exactly() -> None:
    env = PointMass(5, seed=3)
    env.reset()
    for action in actions(5, 33):
        env.step(action)
    state = env.state_dict()
    future = [env.step(action) for action in actions(5, 50, seed=1)]
    other = PointMass(5, seed=99)
    other.load_state_dict(state)
    for action, expected in zip(actions(5, 50, seed=1), future, strict=True):
        for a, b in zip(other.step(action)[:4], expected[:4], strict=True):
            assert torch.equal(a, b)


def test_a_seed_may_be_any_kind_of_integer() -> None:
    env = PointMass(3)
    env.reset(seed=np.int64(3))  # type: ignore[arg-type]
    env.load_state_dict(env.state_dict())
    with pytest.raises(ValueError, match=r"seed=1\.5: expected an integer in 0"):
        env.reset(seed=1.5)  # type: ignore[arg-type]


def test_state_of_another_environment_is_refused() -> None:
    state = PointMass(3).state_dict()
    with pytest.raises(ValueError, match=r"'position'.*\(4, 2\), got .*\(3, 2\)"):
        PointMass(4).load_state_dict(state)
    env = PointMass(3)
    wrong = env.state_dict()
    wrong["rng"]["seed"], wrong["elapsed"] = "0", wrong["elapsed"] + 7
    with pytest.raises(ValueError, match="seed: expected a 64-bit integer"):
        env.load_state_dict(wrong)
    assert not env.elapsed.any()  # nothing has changed
    state["state"] = {"speed": torch.zeros(3)}
    with pytest.raises(ValueError, match=r"expected .*'position'\], got .*'speed'\]"):
        PointMass(3).load_state_dict(state)


def test_bad_actions_are_refused() -> None:
    env = PointMass(3)
    env.reset()
    with pytest.raises(ValueError, match=r"action: expected shape \(3, 2\), got \(3, 1\)"):
        env.step(torch.zeros(3, 1))
    action = torch.zeros(3, 2)
    action[1, 0] = torch.nan
    with pytest.raises(ValueError, match="action: non-finite in environment 1"):
        env.step(action)


def test_num_envs_must_be_positive() -> None:
    with pytest.raises(ValueError, match="num_envs=0"):
        PointMass(0)


def test_actions_beyond_the_box_are_clipped() -> None:
    wild, tame = PointMass(3, seed=1), PointMass(3, seed=1)
    for env, size in ((wild, 50.0), (tame, 1.0)):
        env.reset()
        env.last = env.step(torch.full((3, 2), size))[0]  # type: ignore[attr-defined]
    assert torch.equal(wild.last, tame.last)  # type: ignore[attr-defined]


def test_actions_that_are_not_among_the_discrete_ones_are_refused() -> None:
    box = gym.spaces.Box(-1, 1, (2,), np.float32)
    for space, bad in (
        (gym.spaces.Discrete(3, start=1), torch.tensor([1, 0])),
        (gym.spaces.Discrete(3, start=1), torch.tensor([1, 4])),
        (gym.spaces.MultiDiscrete([2, 3]), torch.tensor([[1, 2], [1, 3]])),
    ):
        env = BatchedEnv(2, box, space)
        with pytest.raises(ValueError, match="action: out of range in environment 1"):
            env._check(bad)
        with pytest.raises(ValueError, match="expected integers"):
            env._check(bad.float())
        good = torch.from_numpy(env.action_space.sample())
        assert torch.equal(env._check(good), good)
    with pytest.raises(ValueError, match="action_space: expected Box, Discrete or MultiDiscrete"):
        BatchedEnv(2, box, gym.spaces.MultiBinary(3))


def test_huge_finite_actions_are_finite() -> None:
    env = PointMass(3)
    env.reset()
    env.step(torch.full((3, 2), 3e38))  # their sum is not


# ---- autoreset, against gymnasium's own vector environment


def synchronous(num_envs: int, mode: AutoresetMode) -> SyncVectorEnv:
    """Gymnasium's loop over single environments that draw the numbers of rows 0 .. N - 1."""

    def single(row: int) -> gym.Env:
        env = PointMass(1, seed=3)
        env.rng._env.fill_(row + 1)
        return to_gymnasium(env)

    return SyncVectorEnv(
        [lambda row=row: single(row) for row in range(num_envs)], autoreset_mode=mode
    )


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_autoreset_is_gymnasiums(mode: AutoresetMode) -> None:
    env, reference = PointMass(5, seed=3), synchronous(5, mode)
    env.autoreset = mode.name.lower().replace("_", "-")
    assert env.metadata["autoreset_mode"] is reference.metadata["autoreset_mode"] is mode
    np.testing.assert_array_equal(env.reset()[0], reference.reset()[0])
    done, ended, resets = np.zeros(5, bool), 0, 0
    for action in actions(5, 90):
        if mode is AutoresetMode.DISABLED and done.any():
            np.testing.assert_array_equal(
                env.reset(options={"reset_mask": torch.tensor(done)})[0],
                reference.reset(options={"reset_mask": done})[0],
            )
        obs, reward, terminated, truncated, info = env.step(action)
        theirs = reference.step(action.numpy())
        np.testing.assert_array_equal(obs, theirs[0])
        np.testing.assert_array_equal(reward, theirs[1].astype(np.float32))
        np.testing.assert_array_equal(terminated, theirs[2])
        np.testing.assert_array_equal(truncated, theirs[3])
        if mode is AutoresetMode.NEXT_STEP:
            assert (info["velocity"][done] == 0).all() and not info["success"][done].any()
            resets += int(done.sum())
        done = theirs[2] | theirs[3]
        np.testing.assert_array_equal(info["_final_obs"], done)
        final = obs.numpy().copy()
        if mode is AutoresetMode.SAME_STEP and done.any():
            final[done] = np.stack(theirs[4]["final_obs"][done])
        np.testing.assert_array_equal(info["final_obs"], final)
        ended += int(done.sum())
    assert ended > 5
    assert resets > 5 or mode is not AutoresetMode.NEXT_STEP


def test_autoreset_disabled_steps_only_running_episodes() -> None:
    env = PointMass(3)
    env.autoreset = AutoresetMode.DISABLED
    env.reset()
    env.position[1] = 0
    assert env.step(torch.zeros(3, 2))[2].tolist() == [False, True, False]
    with pytest.raises(ValueError, match="step: environment 1 has ended; reset it"):
        env.step(torch.zeros(3, 2))
    env.reset(options={"reset_mask": torch.tensor([False, True, False])})
    env.position[1] = 1
    env.step(torch.zeros(3, 2))
    env.position[1] = 0
    env.step(torch.zeros(3, 2))
    env.autoreset = AutoresetMode.SAME_STEP  # the row that had ended begins
    assert env.rng.episode.tolist() == [0, 2, 0]
    assert env.elapsed.tolist() == [3, 0, 3]


@pytest.mark.parametrize("mode", ["next-step", "disabled"])
def test_state_holds_which_rows_have_ended(mode: str) -> None:
    env, other = PointMass(4, seed=1), PointMass(4)
    env.autoreset = other.autoreset = mode
    env.reset()
    env.position[2] = 0
    env.step(torch.zeros(4, 2))
    other.load_state_dict(env.state_dict())
    for each in (env, other):
        if mode == "disabled":
            with pytest.raises(ValueError, match="environment 2 has ended"):
                each.step(torch.zeros(4, 2))
    if mode == "next-step":
        assert torch.equal(env.step(torch.ones(4, 2))[0], other.step(torch.ones(4, 2))[0])
        assert other.elapsed.tolist() == [2, 2, 0, 2]


def test_unknown_autoreset_is_refused() -> None:
    with pytest.raises(ValueError, match="autoreset='later': expected one of next-step, same-step"):
        PointMass(1).autoreset = "later"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("mode", ["same-step", "next-step", "disabled"])
def test_step_never_waits_for_the_gpu(mode: str) -> None:
    env = PointMass(64, device="cuda")
    env.autoreset = mode
    env.reset(seed=0)
    action = torch.rand(64, 2, device="cuda")
    env.step(action)  # whatever is loaded or allocated for the first time
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(45):
            env.step(action)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert env.rng.episode.min() > 0 or mode == "disabled"


@pytest.mark.parametrize("mode", ["same-step", "next-step", "disabled"])
def test_step_never_looks_at_values_away_from_the_cpu(mode: str) -> None:
    """Tensors on 'meta' have no values: any branch on one, copy to the host or index raises."""
    env = PointMass(8, device="meta")
    env.autoreset = mode
    env.reset(seed=0)
    for _ in range(3):
        obs, *_, info = env.step(torch.empty(8, 2, device="meta"))
        assert obs.device.type == info["final_obs"].device.type == "meta"
    with pytest.raises(RuntimeError, match="meta"):
        bool(info["_final_obs"].any())


def test_what_is_no_device_or_action_is_named(monkeypatch):
    with pytest.raises(ValueError, match="device='gpu': expected cpu, cuda or cuda:<index>"):
        envs.make("pixels/arm", device="gpu")
    with pytest.raises(ValueError, match="device='gpu': expected cpu, cuda or cuda:<index>"):
        BatchedEnv(1, gym.spaces.Box(-1, 1, (2,)), gym.spaces.Box(-1, 1, (2,)), device="gpu")
    env = envs.make("point-robot")
    env.reset(seed=0)
    with pytest.raises(
        ValueError, match="action: expected a tensor or an array of numbers, got st"
    ):
        env.step("x")  # type: ignore[arg-type]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"device='cuda': torch .* sees no CUDA device"):
        envs.make("point-robot", device="cuda")


def test_groups_of_environments(capsys):
    for prefix in ("pixels/dmc", "pixels", "dmc", "pixels/dmc/"):
        assert train.main(["list", prefix]) == 0
        listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
        assert listed == [id for id in envs.ENVS if id.startswith(prefix.rstrip("/") + "/")]
        assert listed
    assert train.main(["list", "tabletop"]) == 0  # an id, and the beginning of another
    assert "start:" in capsys.readouterr().out
    assert train.main(["list", "pixels/dm"]) == 2
    assert "unknown environment 'pixels/dm'" in capsys.readouterr().err
    with pytest.raises(
        ValueError, match=r"acrobot-swingup'.*\? pixels/dmc/ has cartpole-balance, "
    ):
        envs.make("pixels/dmc/acrobot-swingup")
    with pytest.raises(ValueError, match="'dmc' is a group of environments; dmc/ has "):
        envs.make("dmc")
