"""dm_control, PettingZoo and EnvPool as batched environments; ids of foreign environments."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from dm_control import suite
from gymnasium import spaces
from pettingzoo import ParallelEnv

import envs
from envs.adapt import from_dm_control, from_envpool, from_gymnasium, from_pettingzoo
from envs.wrappers import DmControlEnv, TeamEnv

ROOT = Path(__file__).resolve().parents[2]


# ---- dm_control


def flat(timestep: Any) -> np.ndarray:
    values = timestep.observation.values()
    return np.concatenate([np.ravel(value) for value in values]).astype(np.float32)


def test_from_dm_control_is_dm_control() -> None:
    env = from_dm_control("cartpole", "swingup", 2, seed=5, workers=0)
    copies = [suite.load("cartpole", "swingup", {"random": 5 + i}) for i in range(2)]
    steps = [copy.reset() for copy in copies]
    np.testing.assert_array_equal(env.reset()[0], [flat(step) for step in steps])
    assert env.max_episode_steps == 1000
    env.env_steps = 0  # type: ignore[attr-defined]
    for copy in [*copies, *(inner.env for inner in env.envs)]:  # type: ignore[attr-defined]
        copy._step_limit = 30  # short episodes
    generator = torch.Generator().manual_seed(0)
    ended = 0
    for _ in range(70):
        action = torch.rand(2, 1, generator=generator) * 2 - 1
        obs, reward, terminated, truncated, info = env.step(action)
        steps = [copy.step(a) for copy, a in zip(copies, action.numpy(), strict=True)]
        np.testing.assert_array_equal(info["final_obs"], [flat(step) for step in steps])
        np.testing.assert_array_equal(reward, np.float32([step.reward for step in steps]))
        assert truncated.tolist() == [step.last() for step in steps]
        assert not terminated.any()
        if steps[0].last():
            np.testing.assert_array_equal(obs, [flat(copy.reset()) for copy in copies])
            ended += 1
        assert info["discount"].tolist() == [1.0, 1.0]
    assert ended == 2


def test_from_dm_control_says_what_ended_the_episode() -> None:
    env = from_dm_control(lambda: suite.load("cheetah", "run"), seed=1)
    task = env.envs[0].env.task  # type: ignore[attr-defined]
    env.reset()
    task.get_termination = lambda physics: 0.0
    _, _, terminated, truncated, info = env.step(torch.zeros(1, 6))
    assert (terminated.item(), truncated.item(), info["discount"].item()) == (True, False, 0.0)


def test_from_dm_control_takes_an_instance_and_keeps_images() -> None:
    class Camera:
        """The least that a `dm_env.Environment` with an image is."""

        random_state = np.random.RandomState(0)

        def observation_spec(self) -> Any:
            from dm_env import specs

            return {"pixels": specs.BoundedArray((8, 6, 3), np.uint8, 0, 255)}

        def action_spec(self) -> Any:
            from dm_env import specs

            return specs.DiscreteArray(3)

        def reset(self) -> Any:
            import dm_env

            return dm_env.restart(
                {"pixels": self.random_state.randint(0, 256, (8, 6, 3), np.uint8)}
            )

        def step(self, action: Any) -> Any:
            import dm_env

            return dm_env.transition(1.0, {"pixels": np.full((8, 6, 3), action, np.uint8)})

        def close(self) -> None:
            pass

    env = from_dm_control(Camera())  # type: ignore[arg-type]
    first, _ = env.reset(seed=4)
    assert (first.dtype, first.shape) == (torch.uint8, (1, 3, 8, 6))
    assert torch.equal(env.reset(seed=4)[0], first)
    assert not torch.equal(env.reset(seed=5)[0], first)
    assert (env.step(torch.tensor([2]))[0] == 2).all()
    Camera.random_state = None  # type: ignore[assignment]
    with pytest.raises(ValueError, match="Camera: expected a RandomState to seed"):
        from_dm_control(Camera())  # type: ignore[arg-type]


def test_unknown_dm_control_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown domain 'cheeta'; did you mean 'cheetah'"):
        from_dm_control("cheeta", "run")
    with pytest.raises(ValueError, match="unknown task of walker 'wlk'; did you mean 'walk'"):
        from_dm_control("walker", "wlk")


# ---- PettingZoo


class Countdown(ParallelEnv):
    """Agent i leaves after 2 + i steps, by termination or (`cut`) truncation of the last one."""

    metadata = {"name": "countdown"}  # noqa: RUF012

    def __init__(self, cut: bool = False, agents: int = 3) -> None:
        self.possible_agents = [f"a{i}" for i in range(agents)]
        self.cut = cut
        box = spaces.Box(1, 9, (2,), np.float64)
        mask = spaces.Box(0, 1, (4,), np.int8)
        self._spaces = {
            agent: spaces.Dict(observation=box, action_mask=mask) for agent in self.possible_agents
        }

    def observation_space(self, agent: Any) -> Any:
        return self._spaces[agent]

    def action_space(self, agent: Any) -> Any:
        return spaces.Discrete(4)

    def state(self) -> np.ndarray:
        return np.array([[self.time, len(self.agents)]])

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        if seed is not None:
            self.random = np.random.default_rng(seed)
        self.agents, self.time = list(self.possible_agents), 0
        return self._obs(self.agents), {agent: {} for agent in self.agents}

    def step(self, actions: Any) -> Any:
        assert set(actions) == set(self.agents)
        assert all(type(action) is int for action in actions.values())
        self.time += 1
        acting = self.agents
        leaving = {agent: self.time >= 2 + int(agent[1:]) for agent in acting}
        self.agents = [agent for agent in acting if not leaving[agent]]
        cut = {agent: self.cut and leaving[agent] for agent in acting}
        terminated = {agent: leaving[agent] and not cut[agent] for agent in acting}
        rewards = {agent: float(action) for agent, action in actions.items()}
        return self._obs(acting), rewards, terminated, cut, {agent: {} for agent in acting}

    def _obs(self, agents: list[str]) -> Any:
        noise = self.random.random()
        return {
            agent: {
                "observation": np.array([1 + self.time, 1 + noise]),
                "action_mask": np.arange(4) != self.time % 4,
            }
            for agent in agents
        }


@pytest.mark.parametrize("cut", [False, True])
def test_agents_that_leave(cut: bool) -> None:
    env = from_pettingzoo(lambda: Countdown(cut), 2, seed=3)
    assert env.num_agents == 3
    assert env.single_observation_space.shape == (3, 2)
    assert env.action_space.shape == (2, 3)
    obs, info = env.reset()
    assert info["alive"].tolist() == [[True] * 3] * 2
    assert info["state"].tolist() == [[0, 3]] * 2
    action = torch.tensor([[0, 1, 2], [3, 2, 1]])
    for step in range(1, 5):
        obs, reward, terminated, truncated, info = env.step(action)
        each = action * torch.tensor([step < 3, step < 4, step < 5])  # those who were there
        assert torch.equal(info["reward_per_agent"], each.float())
        assert torch.equal(reward, each.sum(-1).float())
        over = step == 4
        assert terminated.tolist() == [over and not cut] * 2
        assert truncated.tolist() == [over and cut] * 2
        final = info["final_info"]
        alive = [step < 2, step < 3, step < 4]
        assert final["alive"].tolist() == [alive] * 2
        assert final["state"].tolist() == [[step, sum(alive)]] * 2
        if not over:
            rest = info["avail_actions"][0, 0]
            assert rest.tolist() == (
                [k != 1 for k in range(4)] if step == 1 else [True, *[False] * 3]
            )
            assert info["alive"].tolist() == [alive] * 2
            gone = ~torch.tensor(alive)
            assert (obs[:, gone] == 0).all()
            assert (obs[:, ~gone, 0] == 1 + step).all()
    assert (info["final_obs"][:, 2, 0] == 5).all()  # the successor of the last agent's action
    assert (info["final_obs"][:, :2] == 0).all()
    assert (obs[..., 0] == 1).all()
    assert info["alive"].all()
    assert info["avail_actions"][0].tolist() == [[False, True, True, True]] * 3
    assert env.context().keys() == {"alive", "avail_actions", "state"}


def test_from_pettingzoo_keeps_the_contract() -> None:
    envs.check(lambda **kwargs: from_pettingzoo(Countdown, **kwargs), steps=12)
    envs.check(lambda **kwargs: from_pettingzoo(Countdown, workers=2, **kwargs), steps=12)


@pytest.mark.parametrize("continuous", [False, True])
def test_mpe_is_mpe(continuous: bool) -> None:
    from mpe2 import simple_spread_v3

    kwargs = {"continuous_actions": continuous}
    env = envs.make("pettingzoo/mpe/simple_spread_v3", 2, seed=3, workers=0, **kwargs)
    assert env.max_episode_steps == 25
    copies = [simple_spread_v3.parallel_env(**kwargs) for _ in range(2)]
    theirs = [copy.reset(seed=3 + i)[0] for i, copy in enumerate(copies)]
    obs, info = env.reset()
    for step in range(30):
        expected = np.stack([np.stack(list(each.values())) for each in theirs])
        np.testing.assert_array_equal(obs, expected)
        np.testing.assert_array_equal(info["state"], [copy.state() for copy in copies])
        action = torch.from_numpy(env.action_space.sample())
        obs, reward, terminated, truncated, info = env.step(action)
        results = [
            copy.step(dict(zip(copy.agents, a, strict=True)))
            for copy, a in zip(copies, action.numpy(), strict=True)
        ]
        rewards = np.array([list(result[1].values()) for result in results])
        np.testing.assert_allclose(info["reward_per_agent"], rewards, rtol=1e-6)
        np.testing.assert_allclose(reward, rewards.sum(1), rtol=1e-6)
        assert truncated.all() == (step == 24)
        assert not terminated.any()
        theirs = [result[0] for result in results]
        if step == 24:
            theirs = [copy.reset()[0] for copy in copies]


def test_reward_is_the_sum_or_the_mean() -> None:
    action = torch.tensor([[3, 2, 1]])
    for reward, expected in (("sum", 6.0), ("mean", 2.0)):
        env = from_pettingzoo(Countdown(), reward=reward)
        env.reset()
        assert env.step(action)[1].item() == expected
    with pytest.raises(ValueError, match="reward='max': expected 'sum' or 'mean'"):
        from_pettingzoo(Countdown(), reward="max")


def test_agents_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match=r"observation_space: expected the same for all agents.*"):
        envs.make("pettingzoo/mpe/simple_adversary_v3")


# ---- ids


def test_ids_of_other_libraries() -> None:
    env = envs.make("gym/Pendulum-v1", 2, g=1.0, workers=0)
    assert env.envs[0].unwrapped.g == 1.0  # type: ignore[attr-defined]
    assert env.spec.id == "Pendulum-v1"
    with pytest.raises(
        ValueError, match="unknown gymnasium environment 'Pendulm-v1'; did you mean"
    ):
        envs.make("gym/Pendulm-v1")
    with pytest.raises(ValueError, match="did you mean 'mpe/simple_spread_v3'"):
        envs.make("pettingzoo/mpe/simple_spred_v3")
    with pytest.raises(ValueError, match="unknown environment 'gyn/CartPole-v1'"):
        envs.make("gyn/CartPole-v1")
    with pytest.raises(ValueError, match="unknown environment 'gym'; did you mean 'gym/'"):
        envs.make("gym")
    with pytest.raises(TypeError, match="gravity"):
        envs.make("gym/Pendulum-v1", gravity=1.0)
    with pytest.raises(ValueError, match="environment 'tabletop' has no argument 'strat'; did you"):
        envs.make("tabletop", strat="easy")


def test_make_sets_the_autoreset_mode() -> None:
    for mode in ("next-step", "disabled", "same-step"):
        env = envs.make("gym/CartPole-v1", 2, autoreset=mode)
        assert env.metadata["autoreset_mode"].name == mode.upper().replace("-", "_")


def test_environments_registered_in_a_script_reach_the_workers() -> None:
    gym.register("Mine-v0", lambda: gym.make("CartPole-v1").unwrapped, max_episode_steps=7)
    try:
        env = from_gymnasium("Mine-v0", 2, workers=1)
        assert env.max_episode_steps == 7
        env.reset()
        env.close()
    finally:
        del gym.registry["Mine-v0"]


def test_command_line_lists_the_prefixes() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "list"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    for prefix in ("gym/<id>", "pettingzoo/<id>", "envpool/<id>"):
        assert prefix in done.stdout, done.stderr


# ---- EnvPool


def test_envpool_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(ValueError, match="envpool/Pendulum-v1: needs the package envpool"):
        envs.make("envpool/Pendulum-v1")


@pytest.mark.parametrize("id", ["CartPole-v1", "Pendulum-v1"])
def test_envpool_keeps_the_contract(id: str) -> None:
    pytest.importorskip("envpool", reason="EnvPool is not installed")
    envs.check(f"envpool/{id}", steps=40, num_threads=1)


@pytest.mark.parametrize("mode", ["same-step", "next-step"])
def test_envpool_is_envpool(mode: str) -> None:
    envpool: Any = pytest.importorskip("envpool", reason="EnvPool is not installed")
    env = from_envpool("CartPole-v1", 4, seed=2, num_threads=1)
    env.autoreset = mode
    pool = envpool.make_gymnasium("CartPole-v1", num_envs=4, seed=[2, 3, 4, 5], num_threads=1)
    theirs, _ = pool.reset()
    obs, _ = env.reset()
    ended, resets = np.zeros(4, bool), 0
    for _ in range(60):
        np.testing.assert_array_equal(obs, theirs)
        action = env.action_space.sample()
        if mode == "same-step" and ended.any():  # EnvPool begins one step later: let it
            break
        obs, reward, terminated, truncated, info = env.step(torch.from_numpy(action))
        theirs, their_reward, their_terminated, their_truncated, _ = pool.step(action)
        np.testing.assert_array_equal(info["final_obs"], theirs)
        np.testing.assert_array_equal(reward, their_reward)
        np.testing.assert_array_equal(terminated, their_terminated)
        np.testing.assert_array_equal(truncated, their_truncated)
        ended = their_terminated | their_truncated
        resets += int(ended.sum())
        if mode == "same-step":
            theirs = np.where(ended[:, None], obs, theirs)
    assert resets


def test_classes_are_light_for_workers() -> None:
    """What workers receive by value must not drag torch along."""
    import cloudpickle

    from envs import wrappers

    cloudpickle.register_pickle_by_value(wrappers)
    try:
        text = cloudpickle.dumps((DmControlEnv, TeamEnv))
    finally:
        cloudpickle.unregister_pickle_by_value(wrappers)
    assert b"torch" not in text
