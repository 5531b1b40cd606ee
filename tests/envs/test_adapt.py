"""The bridges to gymnasium and Stable-Baselines3."""

from __future__ import annotations

import runpy
import sys
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from toy import PointMass, Team

from envs import adapt, make
from envs.adapt import (
    GymnasiumBatch,
    GymnasiumView,
    from_gymnasium,
    to_gymnasium,
    to_gymnasium_vector,
    to_sb3,
)


def random_actions(space: gym.Space[Any], steps: int) -> list[Any]:
    space.seed(0)
    return [space.sample() for _ in range(steps)]


def test_module_does_not_import_stable_baselines3(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stable_baselines3", "envs._sb3"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it raises
    runpy.run_path(str(adapt.__file__))


# ---- to_gymnasium


@pytest.mark.parametrize("render_mode", [None, "rgb_array"])
def test_checkers_of_both_libraries_pass_without_a_warning(render_mode: str | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(to_gymnasium(PointMass(1), render_mode))
        sb3_check_env(to_gymnasium(PointMass(1), render_mode), skip_render_check=False)


def test_foreign_environment_survives_the_round_trip_through_the_checkers() -> None:
    env = to_gymnasium(from_gymnasium("CartPole-v1"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*is -?infinity")  # CartPole's own bounds
        check_env(env)
        sb3_check_env(to_gymnasium(from_gymnasium("CartPole-v1")))


def test_gymnasium_view_wants_one_environment() -> None:
    with pytest.raises(ValueError, match="expected num_envs=1, got num_envs=2"):
        to_gymnasium(PointMass(2))


def test_gymnasium_view_equals_the_batched_environment() -> None:
    env, view = PointMass(1, seed=4), to_gymnasium(PointMass(1, seed=4))
    batch, _ = env.reset()
    obs, _ = view.reset()
    kept: list[tuple[np.ndarray, np.ndarray]] = []
    ended = {"terminated": 0, "truncated": 0}
    for action in random_actions(view.action_space, 200):
        np.testing.assert_array_equal(obs, batch[0])
        batch, reward, terminated, truncated, info = env.step(torch.tensor(action[None]))
        got, *rest, view_info = view.step(action)
        np.testing.assert_array_equal(got, info["final_obs"][0])
        assert rest == [reward.item(), terminated.item(), truncated.item()]
        assert [type(value) for value in rest] == [float, bool, bool]
        assert view_info.keys() == {"success", "velocity", "nested"}
        assert view_info["success"] is terminated.item()
        np.testing.assert_array_equal(view_info["velocity"], action)
        assert view_info["nested"] == {"distance": -reward.item()}
        kept.append((got, got.copy()))
        obs = got
        if terminated or truncated:  # the reset hands out what autoreset has begun
            obs, _ = view.reset()
            ended["terminated" if terminated else "truncated"] += 1
    assert view.env.rng.episode.item() == sum(ended.values())
    assert min(ended.values()) > 0
    for array, copy in kept:
        np.testing.assert_array_equal(array, copy)


def test_gymnasium_view_resets_at_any_moment() -> None:
    view, env = to_gymnasium(PointMass(1, seed=4)), PointMass(1, seed=4)
    episodes = [env.reset()[0][0].numpy() for _ in range(4)]
    np.testing.assert_array_equal(view.reset()[0], episodes[0])
    np.testing.assert_array_equal(view.reset()[0], episodes[1])  # nothing done yet
    view.step(np.zeros(2))
    np.testing.assert_array_equal(view.reset()[0], episodes[2])  # in the middle
    done = False
    while not done:
        *_, terminated, truncated, _ = view.step(np.zeros(2))
        done = terminated or truncated
    np.testing.assert_array_equal(view.reset(seed=4)[0], episodes[0])  # a seed restarts
    np.testing.assert_array_equal(view.reset()[0], episodes[1])


def test_gymnasium_view_has_the_context_of_its_own_episode() -> None:
    """A policy that reads masks needs them of every episode."""
    view, env = to_gymnasium(make("combat/3m", seed=3)), make("combat/3m", seed=3)
    (_, info), (_, expected) = view.reset(), env.reset()
    for _ in range(2):
        assert set(info) == {"state", "avail_actions", "alive"}
        over = False
        while not over:
            for name in info:
                np.testing.assert_array_equal(info[name], expected[name][0])
            action = torch.as_tensor(info["avail_actions"]).int().argmax(-1)
            *_, terminated, truncated, after = view.step(action)
            *_, row = env.step(action[None])
            over = terminated or truncated
            info = {name: after[name] for name in info}
            expected = row["final_info"]
        for name in info:  # of the last state, not of the next start
            np.testing.assert_array_equal(info[name], expected[name][0])
        (_, info), expected = view.reset(), env.context()


def test_gymnasium_view_steps_only_a_running_episode() -> None:
    view = to_gymnasium(PointMass(1))
    with pytest.raises(gym.error.ResetNeeded):
        view.step(np.zeros(2))
    view.reset()
    done = False
    while not done:
        *_, terminated, truncated, _ = view.step(np.zeros(2))
        done = terminated or truncated
    with pytest.raises(gym.error.ResetNeeded):
        view.step(np.zeros(2))


def test_gymnasium_view_refuses_bad_actions() -> None:
    view = to_gymnasium(PointMass(1))
    view.reset()
    with pytest.raises(ValueError, match=r"action: expected shape \(1, 2\), got \(1, 3\)"):
        view.step(np.zeros(3))
    with pytest.raises(ValueError, match="action: non-finite in environment 0"):
        view.step(np.array([0, np.nan]))


class Live(PointMass):
    """Returns its own memory, which a view must not hand on."""

    def _observe(self) -> torch.Tensor:
        return self.position


def test_views_share_memory_with_nobody() -> None:
    env = Live(1)
    view, sb3 = to_gymnasium(env), to_sb3(env)
    action = np.full(2, 0.5, np.float32)
    obs, _ = view.reset()
    before = env.position.clone()
    obs[:] = 9
    assert torch.equal(env.position, before)
    obs, *_, info = view.step(action)
    before = env.position.clone()
    obs[:] = info["velocity"][:] = 9
    assert torch.equal(env.position, before)
    np.testing.assert_array_equal(action, 0.5)
    obs, *_ = sb3.step(action[None])
    assert isinstance(obs, np.ndarray)
    before = env.position.clone()
    obs[:] = 9
    assert torch.equal(env.position, before)


def test_gymnasium_view_renders() -> None:
    view = to_gymnasium(PointMass(1), "rgb_array")
    view.reset()
    image = view.render()
    assert image is not None
    assert (image.shape, image.dtype) == ((16, 24, 3), np.uint8)
    assert (image[..., 1] == 255).all()
    assert (image[..., 0] == 255).sum() == 1
    assert view.metadata["render_fps"] == 10
    with pytest.raises(ValueError, match="render_mode='human'"):
        to_gymnasium(PointMass(1), "human")
    with pytest.raises(ValueError, match="render_mode='rgb_array'"):
        to_gymnasium(from_gymnasium("CartPole-v1"), "rgb_array")


def test_spec_makes_a_wrapped_view_whose_own_spec_survives_copying() -> None:
    env = PointMass(1)
    spec = to_gymnasium(env).spec
    assert spec is not None
    made = spec.make()
    assert made.spec is not None
    assert made.spec.id == "infomax/PointMass"
    assert made.spec.max_episode_steps == 20
    again = made.spec.make().unwrapped
    assert isinstance(again, GymnasiumView)
    assert again.env is env


def test_spec_of_what_make_made_goes_through_json_and_makes_it_again() -> None:
    first = to_gymnasium(make("point-robot", tasks=[[0.6, 0.8]]))
    again = gym.make(EnvSpec.from_json(first.spec.to_json()))  # as Minari stores and recovers it
    assert again.unwrapped.env is not first.env
    assert again.spec.max_episode_steps == first.env.max_episode_steps
    seed = 2**64 - 3  # Minari's collector draws such
    np.testing.assert_array_equal(again.reset(seed=seed)[0], first.reset(seed=seed)[0])
    for action in random_actions(first.action_space, 5):
        (obs, reward, *_), (expected, wanted, *_) = again.step(action), first.step(action)
        np.testing.assert_array_equal(obs, expected)
        assert reward == wanted  # of this task, not of another


# ---- to_sb3


def test_sb3_view_equals_the_batched_environment() -> None:
    env, view = PointMass(6, seed=4), to_sb3(PointMass(6, seed=4))
    np.testing.assert_array_equal(view.reset(), env.reset()[0])
    returns, lengths, finished = np.zeros(6), np.zeros(6, int), 0
    for action in random_actions(env.action_space, 60):
        obs, reward, terminated, truncated, info = env.step(torch.tensor(action))
        got, rewards, dones, infos = view.step(action)
        np.testing.assert_array_equal(got, obs)
        np.testing.assert_array_equal(rewards, reward)
        np.testing.assert_array_equal(dones, terminated | truncated)
        assert (rewards.dtype, dones.dtype) == (np.float32, np.bool_)
        returns += reward.numpy()
        lengths += 1
        for i in range(6):
            if not dones[i]:
                assert infos[i] == {}
                continue
            np.testing.assert_array_equal(infos[i]["terminal_observation"], info["final_obs"][i])
            assert infos[i]["TimeLimit.truncated"] is bool(truncated[i])
            assert infos[i]["is_success"] is bool(terminated[i])
            assert infos[i]["episode"]["r"] == pytest.approx(returns[i])
            assert infos[i]["episode"]["l"] == lengths[i]
            np.testing.assert_array_equal(infos[i]["velocity"], action[i])
            returns[i], lengths[i], finished = 0, 0, finished + 1
    assert finished > 6


def test_sb3_statistics_restart_with_the_environment() -> None:
    view = to_sb3(PointMass(2))
    view.set_attr("radius", 0)  # no episode ends early
    view.reset()
    view.step(np.zeros((2, 2)))
    view.reset()
    steps = [view.step(np.zeros((2, 2))) for _ in range(20)]
    assert not any(dones.any() for _, _, dones, _ in steps[:-1])
    _, _, dones, infos = steps[-1]
    assert dones.all()
    for i, info in enumerate(infos):
        assert info["episode"]["l"] == 20
        assert info["episode"]["r"] == pytest.approx(sum(rewards[i] for _, rewards, _, _ in steps))


def test_sb3_view_seeds() -> None:
    view, env = to_sb3(PointMass(3)), PointMass(3)
    view.seed(11)
    first = view.reset()
    np.testing.assert_array_equal(first, env.reset(seed=11)[0])
    np.testing.assert_array_equal(view.reset(), env.reset()[0])  # a seed is used once


def test_sb3_view_hands_options_on() -> None:
    view = to_sb3(PointMass(2))
    before = view.reset()
    view.set_options({"reset_mask": [True, False]})
    after, later = view.reset(), view.reset()
    assert isinstance(before, np.ndarray)
    assert isinstance(after, np.ndarray)
    assert isinstance(later, np.ndarray)
    assert (before[0] != after[0]).all()
    assert (before[1] == after[1]).all()
    assert (after != later).all()  # options are used once
    view.set_options([{"a": 1}, {"a": 2}])
    with pytest.raises(ValueError, match="same options"):
        view.reset()


def test_sb3_view_attributes_and_methods() -> None:
    env = PointMass(3)
    view = to_sb3(env)
    assert view.get_attr("dt") == [0.1] * 3
    assert view.get_attr("action_space", [0, 2]) == [env.single_action_space] * 2
    assert view.has_attr("radius")
    assert not view.has_attr("mass")
    view.set_attr("radius", 0.5)
    assert env.radius == 0.5
    with pytest.raises(ValueError, match=r"expected all, got \[1\]"):
        view.set_attr("radius", 0.1, indices=1)
    with pytest.raises(ValueError, match=r"expected all, got \[1\]"):
        view.env_method("state_dict", indices=[1])
    state, *others = view.env_method("state_dict")
    assert state.keys() == env.state_dict().keys()
    assert others == [state] * 2
    assert view.env_is_wrapped(Monitor) == [True] * 3
    assert view.env_is_wrapped(gym.wrappers.TimeLimit, [0]) == [False]


def test_sb3_view_renders_a_tiled_image() -> None:
    view = to_sb3(PointMass(4))
    view.reset()
    image = view.render("rgb_array")
    assert image is not None
    assert image.shape == (32, 48, 3)


def test_sb3_trains_and_evaluates_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train, test = to_sb3(PointMass(8)), to_sb3(PointMass(2, seed=1))
        model = PPO("MlpPolicy", train, n_steps=32, batch_size=64, seed=0, device="cpu")
        model.learn(512)
        rewards, lengths = evaluate_policy(
            model, test, n_eval_episodes=6, return_episode_rewards=True
        )
    assert model.num_timesteps == 512
    assert model.ep_info_buffer
    assert model.ep_success_buffer
    assert isinstance(rewards, list)
    assert isinstance(lengths, list)
    assert len(rewards) == 6
    assert all(-30 < reward < 0 for reward in rewards)
    assert all(1 <= length <= 20 for length in lengths)


def test_sb3_learns() -> None:
    """PPO finds the origin; a random policy needs most of the 20 steps and reaches it rarely."""
    train, test = to_sb3(PointMass(16)), to_sb3(PointMass(64, seed=1))
    model = PPO(
        "MlpPolicy", train, n_steps=32, batch_size=128, n_epochs=8, learning_rate=3e-3, gamma=0.9,
        seed=0, device="cpu", policy_kwargs={"net_arch": [32]},
    )  # fmt: skip
    before, _ = evaluate_policy(model, test, n_eval_episodes=64)
    model.learn(8_192)
    after, _ = evaluate_policy(model, test, n_eval_episodes=64)
    assert isinstance(before, float)
    assert isinstance(after, float)
    assert before < -8
    assert after > -4.5


@pytest.mark.parametrize("mode", ["next-step", "disabled"])
def test_views_that_reset_by_themselves_want_same_step(mode: str) -> None:
    env = PointMass(1)
    env.autoreset = mode
    for view in (to_gymnasium, to_sb3):
        with pytest.raises(ValueError, match="expected autoreset='same-step', got"):
            view(env)
    with pytest.raises(ValueError, match="to_sb3: SB3 has one agent"):
        to_sb3(Team(1))


# ---- to_gymnasium_vector


def flatten(info: Any, rows: np.ndarray, prefix: str = "") -> dict[str, Any]:
    """Entries of a vector info where their mask holds."""
    flat: dict[str, Any] = {}
    for name, value in info.items():
        if name.startswith("_"):
            continue
        mask = info[f"_{name}"]
        if isinstance(value, dict):
            flat |= flatten(value, rows, f"{prefix}{name}.")
        elif mask.any():
            flat[prefix + name] = [np.asarray(v).tolist() for v in value[mask]], mask.tolist()
    return flat


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_vector_view_is_gymnasiums_vector_environment(mode: AutoresetMode) -> None:
    env = PointMass(3, seed=4)
    env.autoreset = mode
    view = to_gymnasium_vector(env)

    def single(row: int) -> gym.Env[Any, Any]:
        one = PointMass(1, seed=4)
        one.rng._env.fill_(row + 1)
        return to_gymnasium(one)

    makers = [lambda row=row: single(row) for row in range(3)]
    reference = SyncVectorEnv(makers, autoreset_mode=mode)
    for name in ("observation_space", "action_space", "single_action_space"):
        assert getattr(view, name) == getattr(reference, name)
    assert view.metadata["autoreset_mode"] is mode
    obs, _ = view.reset()
    np.testing.assert_array_equal(obs, reference.reset()[0])
    done, ended = np.zeros(3, bool), 0
    for action in random_actions(view.action_space, 70):
        if mode is AutoresetMode.DISABLED and done.any():
            obs, info = view.reset(options={"reset_mask": done})
            np.testing.assert_array_equal(obs, reference.reset(options={"reset_mask": done})[0])
        *ours, info = view.step(action)
        *theirs, their_info = reference.step(action)
        for a, b in zip(ours, theirs, strict=True):
            assert isinstance(a, np.ndarray)
            np.testing.assert_allclose(a, b, rtol=1e-6)
        if mode is AutoresetMode.NEXT_STEP:  # a single environment's reset reports nothing
            info = {k: v for k, v in info.items() if not done.any()}
            their_info = {k: v for k, v in their_info.items() if not done.any()}
        mine, other = flatten(info, done), flatten(their_info, done)
        assert mine.keys() == other.keys()
        for name in mine:
            assert mine[name][1] == other[name][1]
            np.testing.assert_allclose(mine[name][0], other[name][0], rtol=1e-6)
        done = theirs[2] | theirs[3]
        ended += int(done.sum())
    assert ended > 6


def test_vector_view_works_with_gymnasiums_wrappers_and_renders() -> None:
    env = gym.wrappers.vector.RecordEpisodeStatistics(
        to_gymnasium_vector(PointMass(2), "rgb_array")
    )
    env.reset(seed=0)
    lengths: list[int] = []
    for action in random_actions(env.action_space, 50):
        *_, info = env.step(action)
        if "episode" in info:
            lengths += info["episode"]["l"][info["_episode"]].tolist()
    assert lengths
    assert max(lengths) <= 20
    images = env.render()
    assert isinstance(images, tuple)
    assert [image.shape for image in images] == [(16, 24, 3)] * 2
    with pytest.raises(ValueError, match="render_mode='human'"):
        to_gymnasium_vector(PointMass(1), "human")


def test_vector_view_has_the_context_of_both_episodes() -> None:
    view = to_gymnasium_vector(Team(2))
    _, info = view.reset()
    assert info["alive"].all() and info["_alive"].all()
    for _ in range(15):
        *_, info = view.step(np.zeros((2, 3), np.int64))
    assert info["_final_info"].all()
    final = info["final_info"]
    assert (final["state"] != info["state"]).any()
    assert "reward_per_agent" in final


# ---- from_gymnasium


@pytest.mark.parametrize(("id", "steps"), [("CartPole-v1", 150), ("Pendulum-v1", 410)])
def test_from_gymnasium_equals_sync_vector_env(id: str, steps: int) -> None:
    env = from_gymnasium(id, 3, seed=7)
    makers = [lambda: gym.make(id)] * 3
    reference = SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)
    obs, _ = env.reset()
    np.testing.assert_array_equal(obs, reference.reset(seed=7)[0])
    ended, elapsed = 0, np.zeros(3, int)
    for action in random_actions(reference.action_space, steps):
        obs, reward, terminated, truncated, info = env.step(torch.tensor(action))
        theirs, their_reward, their_terminated, their_truncated, their_info = reference.step(action)
        np.testing.assert_array_equal(obs, theirs)
        np.testing.assert_array_equal(reward, their_reward.astype(np.float32))
        np.testing.assert_array_equal(terminated, their_terminated)
        np.testing.assert_array_equal(truncated, their_truncated)
        done = info["_final_obs"].numpy()
        np.testing.assert_array_equal(done, their_terminated | their_truncated)
        final = theirs.copy()
        for i in np.flatnonzero(done):
            final[i] = their_info["final_obs"][i]
            ended += 1
        np.testing.assert_array_equal(info["final_obs"], final)
        elapsed = np.where(done, 0, elapsed + 1)
        np.testing.assert_array_equal(env.elapsed, elapsed)
        assert env.last_obs is obs
        assert (obs.dtype, reward.dtype) == (torch.float32, torch.float32)
    assert ended >= 3
    assert env.max_episode_steps == (500 if id == "CartPole-v1" else 200)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_from_gymnasium_equals_sync_vector_env_in_its_other_modes(
    mode: AutoresetMode, workers: int
) -> None:
    env = from_gymnasium("CartPole-v1", 3, seed=7, workers=workers)
    env.autoreset = mode
    makers = [lambda: gym.make("CartPole-v1")] * 3
    reference = SyncVectorEnv(makers, autoreset_mode=mode)
    np.testing.assert_array_equal(env.reset()[0], reference.reset(seed=7)[0])
    done, ended = np.zeros(3, bool), 0
    for action in random_actions(reference.action_space, 120):
        if mode is AutoresetMode.DISABLED and done.any():
            with pytest.raises(ValueError, match="has ended; reset it"):
                env.step(torch.tensor(action))
            np.testing.assert_array_equal(
                env.reset(options={"reset_mask": torch.tensor(done)})[0],
                reference.reset(options={"reset_mask": done})[0],
            )
        *values, info = env.step(torch.tensor(action))
        *theirs, _ = reference.step(action)
        for a, b in zip(values, theirs, strict=True):
            np.testing.assert_array_equal(a, b)
        done = theirs[2] | theirs[3]
        np.testing.assert_array_equal(info["final_obs"], values[0])
        np.testing.assert_array_equal(info["_final_obs"], done)
        ended += int(done.sum())
    assert ended > 6
    env.close()


def trace(env: GymnasiumBatch, steps: int) -> list[torch.Tensor]:
    values = [env.last_obs]
    for action in random_actions(env.action_space, steps):
        obs, reward, terminated, truncated, info = env.step(torch.tensor(action))
        values += [obs, reward, terminated, truncated, info["final_obs"], env.elapsed]
    return values


@pytest.mark.parametrize("id", ["CartPole-v1", "Pendulum-v1"])
def test_from_gymnasium_resumed_run_is_the_same_run(id: str) -> None:
    env = from_gymnasium(id, 3, seed=7)
    env.reset()
    trace(env, 30)
    before = env.last_obs.clone()
    state = env.state_dict()
    assert not torch.equal(env.last_obs, before)
    going_on = trace(env, 50)
    other = from_gymnasium(id, 3, seed=8)
    other.load_state_dict(state)
    resumed = trace(other, 50)
    assert all(torch.equal(a, b) for a, b in zip(going_on, resumed, strict=True))
    assert env.state_dict() == other.state_dict()  # and so is the next checkpoint
    assert env.state_dict()["reset_seed"] != state["reset_seed"]
    assert all(torch.equal(a, b) for a, b in zip(trace(env, 20), trace(other, 20), strict=True))


def test_from_gymnasium_state_depends_on_the_seed() -> None:
    a, b = from_gymnasium("CartPole-v1", seed=1), from_gymnasium("CartPole-v1", seed=2)
    assert a.state_dict()["reset_seed"] != b.state_dict()["reset_seed"]
    assert from_gymnasium("CartPole-v1", seed=1).state_dict() == a.state_dict()
    assert not GymnasiumBatch.captures_state


def test_from_gymnasium_refuses_the_state_of_another_environment() -> None:
    env = from_gymnasium("CartPole-v1", 2)
    with pytest.raises(ValueError, match="expected num_envs=2, got 3"):
        env.load_state_dict(from_gymnasium("CartPole-v1", 3).state_dict())
    with pytest.raises(ValueError, match="environment state: expected"):
        env.load_state_dict(PointMass(2).state_dict())


def test_from_gymnasium_resets_with_seed_and_mask() -> None:
    env = from_gymnasium("CartPole-v1", 3, seed=7)
    first, _ = env.reset()
    second, _ = env.reset()
    assert not torch.equal(first, second)
    after, _ = env.reset(seed=7, options={"reset_mask": torch.tensor([True, False, True])})
    assert torch.equal(after[[0, 2]], first[[0, 2]])
    assert torch.equal(after[1], second[1])
    with pytest.raises(ValueError, match="reset_mask"):
        env.reset(options={"reset_mask": torch.ones(2)})
    with pytest.raises(ValueError, match="seed"):
        env.reset(seed=[1, 2, 3])


def test_from_gymnasium_takes_an_instance_or_a_function() -> None:
    instance = gym.make("CartPole-v1")
    assert from_gymnasium(instance).envs == [instance]
    assert len({id(env) for env in from_gymnasium(lambda: gym.make("CartPole-v1"), 3).envs}) == 3
    with pytest.raises(ValueError, match="num_envs=2"):
        from_gymnasium(instance, 2)
    with pytest.raises(ValueError, match="same environment twice"):
        from_gymnasium(lambda: instance, 2)
    with pytest.raises(ValueError, match="num_envs=0"):
        from_gymnasium("CartPole-v1", 0)


def test_from_gymnasium_refuses_bad_actions() -> None:
    env = from_gymnasium("Pendulum-v1", 2)
    env.reset()
    with pytest.raises(ValueError, match=r"action: expected shape \(2, 1\), got \(2,\)"):
        env.step(torch.zeros(2))
    with pytest.raises(ValueError, match="action: non-finite in environment 1"):
        env.step(torch.tensor([[0.0], [torch.inf]]))


class Scripted(gym.Env[Any, Any]):
    """Returns what it is told to."""

    action_space = gym.spaces.Discrete(2)

    def __init__(self, space: gym.Space[Any], obs: Any = None, **info: Any) -> None:
        self.observation_space, self.obs, self.info = space, obs, info

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.options = options
        return self.obs, {}

    def step(self, action: Any) -> Any:
        return self.obs, 1, True, True, self.info


def vector(size: int) -> gym.spaces.Box:
    return gym.spaces.Box(-np.inf, np.inf, (size,), np.float64)


def test_wrong_observation_shape_names_the_environment() -> None:
    made = iter([Scripted(vector(2), np.zeros(2)), Scripted(vector(2), np.zeros(1))])
    env = from_gymnasium(lambda: next(made), 2)
    with pytest.raises(ValueError, match=r"environment 1: expected .*\(2,\), got \(1,\)"):
        env.reset()


def test_copies_must_share_their_spaces() -> None:
    made = iter([Scripted(vector(2)), Scripted(vector(3))])
    with pytest.raises(ValueError, match="environment 1: expected observation_space"):
        from_gymnasium(lambda: next(made), 2)


@pytest.mark.parametrize(
    "space", [gym.spaces.Dict(a=vector(2)), gym.spaces.Discrete(3), gym.spaces.Box(0, 1, (4, 4))]
)
def test_unsupported_observations_name_the_wrapper(space: gym.Space[Any]) -> None:
    with pytest.raises(ValueError, match="FlattenObservation"):
        from_gymnasium(Scripted(space))
    flat = gym.wrappers.FlattenObservation(Scripted(space, space.sample()))
    obs, _ = from_gymnasium(flat).reset()
    assert obs.shape == (1, gym.spaces.flatdim(space))


def test_unsupported_actions_are_refused() -> None:
    env = Scripted(vector(2))
    env.action_space = gym.spaces.MultiBinary(3)  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"action_space: expected .* got MultiBinary"):
        from_gymnasium(env)


@pytest.mark.parametrize("shape", [(12, 10, 3), (3, 12, 10)])
def test_images_are_channels_first(shape: tuple[int, ...]) -> None:
    space = gym.spaces.Box(0, 255, shape, np.uint8)
    image = space.sample()
    env = from_gymnasium(Scripted(space, image))
    obs, _ = env.reset()
    assert obs.dtype == torch.uint8
    assert env.single_observation_space.shape == (3, 12, 10)
    np.testing.assert_array_equal(obs[0], image if shape[0] == 3 else image.transpose(2, 0, 1))
    assert obs[0].numpy() in env.single_observation_space
    assert torch.equal(env.step(torch.tensor([1]))[4]["final_obs"], obs)


def test_infos_are_stacked_only_where_every_row_has_a_number() -> None:
    infos = [
        {"x": 1.5, "flag": True, "count": np.int64(2), "some": 1, "text": "a", "mixed": 1},
        {"x": 2.5, "flag": False, "count": np.int64(3), "text": "b", "mixed": None},
    ]
    made = iter(Scripted(vector(2), np.zeros(2), **info) for info in infos)
    env = from_gymnasium(lambda: next(made), 2)
    env.reset()
    _, reward, terminated, truncated, info = env.step(torch.tensor([0, 1]))
    assert info.keys() == {"x", "flag", "count", "final_obs", "_final_obs"}
    assert torch.equal(info["x"], torch.tensor([1.5, 2.5]))
    assert torch.equal(info["flag"], torch.tensor([True, False]))
    assert torch.equal(info["count"], torch.tensor([2, 3]))
    assert torch.equal(reward, torch.ones(2))
    assert terminated.all()
    assert not truncated.any()  # as in BatchedEnv, one or the other


def test_options_reach_the_copies_without_the_mask() -> None:
    copy = Scripted(vector(2), np.zeros(2))
    env = from_gymnasium(copy)
    env.reset(options={"level": 3, "reset_mask": torch.tensor([True])})
    assert copy.options == {"level": 3}
    env.reset()
    assert copy.options is None


def test_returned_tensors_are_the_callers() -> None:
    env = from_gymnasium("CartPole-v1", 2)
    obs, _ = env.reset()
    kept = obs.clone()
    action = torch.tensor([0, 1])
    first = env.step(action)
    values = [value.clone() for value in first[:4]]
    env.step(action)
    assert torch.equal(obs, kept)
    assert all(torch.equal(a, b) for a, b in zip(first[:4], values, strict=True))


def test_close_closes_every_copy() -> None:
    closed: list[int] = []

    class Closing(Scripted):
        def close(self) -> None:
            closed.append(1)

    from_gymnasium(lambda: Closing(vector(2)), 3).close()
    assert len(closed) == 3
