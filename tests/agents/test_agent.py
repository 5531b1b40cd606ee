"""The agent contract, on SLIM in the tabletop and in plain gymnasium environments."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env as check_env_gymnasium
from stable_baselines3.common.env_checker import check_env as check_env_sb3
from stable_baselines3.common.evaluation import evaluate_policy
from trees import assert_same

import agents
import envs
from agents import SLIM, CheckpointError, ConfigError, NonFiniteError
from agents.core.checkpoint import save_checkpoint
from agents.core.run import Run
from envs.adapt import to_gymnasium, to_sb3


def test_learns_and_reports_timesteps(small):
    seen = []
    agent = SLIM(**small).learn(callback=lambda agent, row: seen.append(row))
    assert agent.num_timesteps == 400
    assert [row["timesteps"] for row in seen] == [80, 160, 240, 320, 400]
    assert all(np.isfinite(list(row.values())).all() for row in seen)


def test_callback_stops(small):
    agent = SLIM(**small).learn(callback=lambda agent, row: row["timesteps"] < 160)
    assert agent.num_timesteps == 160


def test_same_seed_same_training_other_seed_other(small):
    first, second = (SLIM(**small, seed=3).learn() for _ in range(2))
    assert_same(first.state_dict(), second.state_dict())
    other = SLIM(**small, seed=4).learn()
    assert not torch.equal(first.policy.raw_std, other.policy.raw_std)


@pytest.mark.parametrize("stop", [160, 240])
def test_save_load_continues_bit_for_bit(small, tmp_path, stop):
    whole = SLIM(**small).learn()
    half = SLIM(**small).learn(total_timesteps=stop)
    half.save(tmp_path / "a.ckpt")
    resumed = agents.load(tmp_path / "a.ckpt").learn()
    assert_same(whole.state_dict(), resumed.state_dict())


def test_predicting_and_evaluating_do_not_change_training(small):
    plain = SLIM(**small).learn()
    disturbed = SLIM(**small)

    def disturb(agent, row):
        torch.rand(3)
        agent.evaluate(episodes=8)
        agent.predict(np.zeros((2, 22), np.float32))

    disturbed.learn(callback=disturb)
    assert_same(plain.state_dict(), disturbed.state_dict())


def test_predict_kinds_and_shapes(small):
    agent = SLIM(**small)
    one, many = np.zeros(22, np.float32), np.zeros((3, 22), np.float32)
    action, state = agent.predict(one, deterministic=True)
    assert isinstance(action, np.ndarray)
    assert action.shape == (5,)
    assert state["skill"].shape == (1, 2)
    action, state = agent.predict(many)
    assert action.shape == (3, 5)
    action, again = agent.predict(torch.from_numpy(many), state=state)
    assert isinstance(action, torch.Tensor)
    assert action.shape == (3, 5)
    assert torch.equal(again["skill"], state["skill"])
    _, new = agent.predict(many, state=state, episode_start=np.array([True, False, False]))
    assert not torch.equal(new["skill"][0], state["skill"][0])
    assert torch.equal(new["skill"][1:], state["skill"][1:])
    assert np.abs(agent.predict(100 * np.ones((9, 22), np.float32))[0]).max() <= 1


def test_predict_refuses_wrong_shapes(small):
    agent = SLIM(**small)
    with pytest.raises(ValueError, match=r"observation: expected shape \(22,\).*got \(3, 21\)"):
        agent.predict(np.zeros((3, 21), np.float32))
    state = agent.initial_state(2)
    for bad, kind in (("x", "str"), (np.array(["x"]), "ndarray of <U1"), (None, "NoneType")):
        with pytest.raises(ValueError, match=f"observation: expected a tensor or .*, got {kind}"):
            agent.predict(bad)
    with pytest.raises(ValueError, match="state: expected 3 rows"):
        agent.predict(np.zeros((3, 22), np.float32), state=state)


def test_sb3_evaluate_policy_runs_unmodified(small):
    agent = SLIM(**small)
    env = to_sb3(envs.make("tabletop", num_envs=4, horizon=20))
    mean, std = evaluate_policy(agent, env, n_eval_episodes=8)  # type: ignore[arg-type]
    assert np.isfinite([mean, std]).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["tabletop", "tabletop/panda"])
def test_environment_checkers_have_nothing_to_say(name):
    env = to_gymnasium(envs.make(name, horizon=20))
    check_env_gymnasium(env, skip_render_check=True)
    check_env_sb3(env)


@pytest.mark.parametrize("name", ["Pendulum-v1"])
def test_trains_in_a_gymnasium_environment(small, name):
    del small["env_kwargs"], small["num_envs"]
    agent = SLIM(gym.make(name), **small).learn(total_timesteps=40)
    assert agent.num_timesteps == 40
    assert agent.reward_names == ("reward", "discovery")


def test_trains_and_evaluates_in_a_foreign_environment_by_id(small):
    small |= {"num_envs": 2, "env_kwargs": {"max_episode_steps": 10, "workers": 1}}
    agent = SLIM("gym/Pendulum-v1", **small).learn(total_timesteps=40)
    assert agent.env.max_episode_steps == 10
    assert agent.evaluate(episodes=2)["length_mean"] == 10
    with pytest.raises(ConfigError, match="autoreset: agents need 'same-step', got NEXT_STEP"):
        SLIM("gym/Pendulum-v1", **small | {"env_kwargs": {"autoreset": "next-step"}})
    with pytest.raises(ConfigError, match="did you mean 'Pendulum-v1'"):
        SLIM("gym/Pendulm-v1", **small)


def test_evaluates_in_a_gymnasium_environment(small):
    agent = SLIM("gym/Pendulum-v1", **{**small, "env_kwargs": {"workers": 0}})
    assert agent.evaluate(gym.make("Pendulum-v1"), episodes=1)["episodes"] == 1
    with pytest.raises(ConfigError, match=r"env: expected a BatchedEnv or a gymnasium .* got str"):
        agent.evaluate("gym/Pendulum-v1")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"env: expected a BatchedEnv or a gymnasium .* got int"):
        SLIM(3, **small)  # type: ignore[arg-type]
    with pytest.raises(
        ConfigError, match=r"env: expected observation_space \(3,\), as in training, got"
    ):
        agent.evaluate(gym.make("MountainCarContinuous-v0"))
    with pytest.raises(ConfigError, match="no argument 'strat'; did you mean 'start'"):
        SLIM(**small).make_eval_env(2, strat="easy")


def test_what_is_not_installed_is_one_line(small, monkeypatch):
    def make(*args, **kwargs):
        raise ImportError("needs the package av")

    monkeypatch.setattr(envs, "make", make)
    with pytest.raises(ConfigError, match="env=tabletop: needs the package av"):
        SLIM("tabletop", **small)


def test_errors_name_the_culprit(small, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'lr'"):
        SLIM(**small, lrr=1)
    with pytest.raises(
        ConfigError, match="unknown environment 'tabeltop'; did you mean 'tabletop'"
    ):
        SLIM("tabeltop", **small)
    with pytest.raises(ConfigError, match=r"weights\.raech: no such reward"):
        SLIM(**small, weights={"raech": 1.0})
    with pytest.raises(ConfigError, match="no argument 'strat'; did you mean 'start'"):
        SLIM(**{**small, "env_kwargs": {"strat": "easy"}})
    with pytest.raises(ConfigError, match=r"gamma.*expected in \[0, 1\)"):
        SLIM(**small, gamma=1.5)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        agents.load(tmp_path / "nothing.ckpt")


def test_checkpoint_of_another_agent_or_size(small, tmp_path):
    agent = SLIM(**small)
    tree = agent.state_dict()
    save_checkpoint(tmp_path / "other.ckpt", {**tree, "agent": "other"})
    with pytest.raises(CheckpointError, match=r"other.ckpt: holds agent 'other', expected 'slim'"):
        SLIM.load(tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match=r"other.ckpt: holds agent 'other', expected one of"):
        agents.load(tmp_path / "other.ckpt")
    agent.save(tmp_path / "small.ckpt")
    with pytest.raises(CheckpointError, match=r"small.ckpt: .*part 'policy' does not fit"):
        SLIM.load(tmp_path / "small.ckpt", hidden=[24, 24])


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("obs",), torch.zeros(3, 22), "obs: expected a tensor of shape"),
        (("state", "skill"), torch.zeros(8, 2).double(), r"state\['skill'\]: expected float32"),
        (("state",), {}, r"state: expected keys \['skill'\], got keys \[\]"),
        (("metrics", "counts"), {"loss": 1}, r"metrics\['counts'\]: expected keys"),
        (("obs",), torch.zeros(8, 22).double(), "obs: expected float32"),
        (
            ("metrics",),
            {"sums": {"loss": torch.zeros(()).double()}, "counts": {"loss": 0}},
            "at least 1",
        ),
        (("env", "rng", "seed"), "0", "seed: expected a 64-bit integer, got '0'"),
        (("env", "elapsed"), torch.zeros(8), "'elapsed': expected torch.int64"),
    ],
)
def test_a_checkpoint_has_the_structure_of_its_agent(small, tmp_path, path, value, message):
    agent = SLIM(**small)
    agent.learn(callback=lambda agent, row: False)
    tree = agent.state_dict()
    agent.restore(tree, "whole.ckpt")
    *above, last = path
    place = tree
    for key in above:
        place = place[key]
    place[last] = value
    with pytest.raises(CheckpointError, match=f"mended.ckpt: does not fit this agent: .*{message}"):
        agent.restore(tree, "mended.ckpt")


def test_a_loaded_agent_learns_with_the_settings_it_is_given(small, tmp_path):
    SLIM(**small).learn(callback=lambda agent, row: False).save(tmp_path / "a.ckpt")
    agent = SLIM.load(tmp_path / "a.ckpt", lr=1.25e-5)
    assert agent.optimizer.param_groups[0]["lr"] == 1.25e-5
    assert agent.optimizer.state


class Broken(envs.BatchedEnv):
    """The tabletop with one NaN in a chosen place after 12 steps."""

    def __init__(self, where: str) -> None:
        self.inner = envs.make("tabletop", num_envs=8, horizon=20)
        super().__init__(8, self.inner.single_observation_space, self.inner.single_action_space)
        self.max_episode_steps, self.where, self.count = 20, where, 0
        self.reward_names, self.skill_columns = self.inner.reward_names, self.inner.skill_columns

    def _begin(self, mask):
        self.inner._restart(mask)

    def _observe(self):
        obs = self.inner._observe()
        if self.where == "observation" and self.count > 12:
            obs[5, 3] = torch.nan
        return obs

    def _advance(self, action):
        reward, terminated, info = self.inner._advance(action)
        self.count += 1
        if self.count > 12 and self.where == "reward":
            reward[5] = torch.inf
        if self.count > 12 and self.where == "reward_terms":
            info["reward_terms"][5, 0] = torch.nan
        return reward, terminated, info

    def _state(self):
        return {}


@pytest.mark.parametrize("where", ["observation", "reward", "reward_terms"])
def test_non_finite_environment_is_named(small, where):
    agent = SLIM(Broken(where), **small)
    with pytest.raises(NonFiniteError, match=f"^{where}: NaN or infinity in environment 5"):
        agent.learn()


def test_a_non_finite_beginning_of_the_next_step_is_not_saved(small, tmp_path, monkeypatch):
    """Where an episode begins with a NaN: `final_obs` is finite, and the update never sees it."""
    agent = SLIM(**small)
    step, count = agent.env.step, iter(range(1, 100))

    def begins(action):
        obs, *rest = step(action)
        if next(count) == agent.rollout_steps:
            obs = obs.clone()
            obs[5, 3] = torch.nan
        return obs, *rest

    monkeypatch.setattr(agent.env, "step", begins)
    with Run(tmp_path / "run", "slim", {}) as agent.run:
        with pytest.raises(NonFiniteError, match=r"^observation: NaN or infinity in environment 5"):
            agent.learn()
        assert agent.num_updates == 1
        assert not agent.run.last.exists()


def test_a_buffer_that_is_not_finite_is_neither_saved_nor_loaded(small, tmp_path):
    agent = SLIM(**small)
    buffers = ((n, b) for n, p in agent.parts.items() if hasattr(p, "buffers") for b in p.buffers())
    name, buffer = next((n, b) for n, b in buffers if b.is_floating_point() and b.numel())
    buffer.view(-1)[0] = torch.nan
    with pytest.raises(NonFiniteError, match=f"^{name}: NaN or infinity"):
        agent.save(tmp_path / "a.ckpt")
    save_checkpoint(tmp_path / "a.ckpt", agent.state_dict())
    with pytest.raises(CheckpointError, match=f"{name}: NaN or infinity"):
        SLIM.load(tmp_path / "a.ckpt")


def test_non_finite_loss_is_named(small):
    agent = SLIM(**small)
    with torch.no_grad():
        agent.critic[0].weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"^critic/.*: NaN"):
        agent.learn()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_trains_on_the_same_code_path(small):
    small["env_kwargs"] = {"horizon": 20, "start": "easy"}
    agent = SLIM(**small, device="cuda").learn()
    assert agent.num_timesteps == 400
    assert agent.env.device.type == "cuda"
