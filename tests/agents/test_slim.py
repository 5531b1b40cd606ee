"""SLIM's own mathematics: advantages, invariance to reward scale, switches, metrics, hierarchy."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import agents
import envs
from agents import SLIM, ConfigError
from agents.core.evaluate import Episodes, play
from agents.core.hierarchy import SkillEnv, SkillPlanner
from agents.core.nets import ReturnScale
from agents.core.returns import gae
from agents.core.skills import RandomPolicy, direction_error, linear_r2, skill_metrics


def test_gae_by_hand():
    reward = torch.tensor([[[1.0]], [[2.0]], [[3.0]]])
    value = torch.tensor([[[0.5]], [[1.0]], [[1.5]]])
    next_value = torch.tensor([[[1.0]], [[4.0]], [[2.0]]])
    terminated = torch.tensor([[0.0], [0.0], [1.0]])
    done = torch.tensor([[0.0], [1.0], [1.0]])  # step 1 is truncated: bootstraps, but is cut
    got = gae(reward, value, next_value, terminated, done, 0.9, 0.5)
    third = 3 - 1.5
    second = 2 + 0.9 * 4 - 1
    first = 1 + 0.9 * 1 - 0.5 + 0.45 * second
    assert got.flatten().tolist() == pytest.approx([first, second, third])


def parameters(agent: SLIM) -> Tensor:
    return torch.cat([p.detach().flatten() for p in agent.policy.parameters()])


@pytest.mark.parametrize(("critics", "invariant"), [("multi", True), ("single", False)])
@pytest.mark.parametrize("term", ["reach", "safety"])
def test_multiple_critics_ignore_a_rewards_scale(small, critics, invariant, term):
    """The claim of the method. A power of two scales without rounding, so equality is exact."""
    trained = []
    for scale in (1 / 1024, 1024.0):
        small["env_kwargs"] |= {"reward_scale": {term: scale}, "start": "hard"}
        trained.append(parameters(SLIM(**small, critics=critics).learn(total_timesteps=400)))
    if invariant:
        assert torch.allclose(*trained, atol=1e-5)
    else:
        assert (trained[0] - trained[1]).abs().max() > 1e-3


def test_raw_advantages_are_not_invariant(small):
    trained = []
    for scale in (1 / 1024, 1024.0):
        small["env_kwargs"] |= {"reward_scale": {"reach": scale}}
        agent = SLIM(**small, normalize_advantages=False)
        trained.append(parameters(agent.learn(total_timesteps=400)))
    assert (trained[0] - trained[1]).abs().max() > 1e-3


def test_zero_weight_leaves_a_reward_out(small):
    trained = []
    for scale in (1 / 1024, 1024.0):
        small["env_kwargs"] |= {"reward_scale": {"reach": scale}}
        agent = SLIM(**small, critics="single", weights={"reach": 0.0})
        trained.append(parameters(agent.learn(total_timesteps=400)))
    assert torch.allclose(*trained, atol=1e-6)


def test_rewards_without_weight_have_no_critic(small):
    agent = SLIM(**small, default_weight=0.0)
    assert agent.reward_names == ("discovery",)
    assert agent.critic[-1].out_features == 1
    with pytest.raises(ConfigError, match="at least one above 0"):
        SLIM(**small, default_weight=0.0, weights={"discovery": 0.0})
    with pytest.raises(ConfigError, match=r"weights\.safety=0"):
        SLIM(**small, default_weight=0.0, violation_budget=1.0)


def test_budget_counts_violations_whatever_the_rewards_scale(small):
    seen = []
    for scale in (1.0, 0.125):
        small["env_kwargs"] |= {"reward_scale": {"safety": scale}}
        agent = SLIM(**small, violation_budget=5.0)
        agent.env.task._workspace[0].add_(1.0)  # every position is now outside the workspace
        agent.learn(80, callback=lambda agent, row: seen.append(row))
    name = "safety/violations_per_episode"
    assert seen[0][name] == seen[1][name] >= 20


def test_ppo_starts_from_the_policy_that_acted(small):
    """At the first gradient step the ratio is 1 and the estimated divergence 0."""
    agent = SLIM(**{**small, "epochs": 1, "minibatches": 1})
    agent.learn(80)  # the normaliser has now moved away from the identity
    agent.collect()
    assert agent.update()["policy/kl"].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("discovery", "skill", "size"),
    [
        ("lipschitz", "sphere", 2),
        ("lipschitz", "sphere", 3),
        ("lipschitz", "discrete", 4),
        ("gaussian", "sphere", 2),
        ("categorical", "discrete", 6),
        ("temporal", "sphere", 2),
    ],
)
def test_every_discovery_reward_trains(small, discovery, skill, size):
    agent = SLIM(**small, discovery=discovery, skill=skill, skill_size=size)
    metrics = agent.learn().evaluate()
    assert np.isfinite(list(metrics.values())).all()
    skills = agent.initial_state(64)["skill"]
    assert torch.allclose(skills.norm(dim=1), torch.ones(64))
    if skill == "discrete":
        assert set(skills.flatten().tolist()) == {0.0, 1.0}


def test_categorical_needs_discrete_skills(small):
    with pytest.raises(ConfigError, match=r"discovery.*skill=discrete"):
        SLIM(**small, discovery="categorical")


def test_multiplier_follows_the_violations(small):
    # A fresh policy meets a huge budget and no tiny one.
    for budget, rises in ((1000.0, False), (1e-3, True)):
        agent = SLIM(**small, violation_budget=budget)
        before = agent.multiplier.value.item()
        agent.env.task._workspace[0].add_(1.0)  # every position is now outside the workspace
        agent.learn()
        assert (agent.multiplier.value.item() > before) is rises


def test_return_scale_rises_at_once_and_falls_slowly():
    scale = ReturnScale(1, rate=0.1)
    scale.update(torch.tensor([[-1.0], [1.0]]))
    one = scale.std.item()
    scale.update(torch.tensor([[-100.0], [100.0]]))
    assert scale.std.item() == pytest.approx(100 * one)
    scale.update(torch.zeros(2, 1))
    assert scale.std.item() == pytest.approx(90 * one)
    assert scale.decode(scale.encode(torch.tensor([7.0]))).item() == pytest.approx(7)


# ---- metrics


def episodes(moved: Tensor, skill: Tensor, off: Tensor | None = None) -> Episodes:
    n = len(moved)
    last = {} if off is None else {"off_table": off[:, None].float()}
    return Episodes(
        torch.zeros(n), torch.ones(n), torch.zeros(n, 2), moved, {"skill": skill}, {}, last
    )


def circle(n: int) -> Tensor:
    angle = torch.linspace(0, 2 * math.pi, n + 1)[:-1]
    angle = angle[torch.randperm(n, generator=torch.Generator().manual_seed(0))]
    return torch.stack([angle.cos(), angle.sin()], 1)


def test_metrics_of_perfect_skills():
    skill = circle(512)
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    metrics = skill_metrics(episodes(0.3 * skill @ turn, skill), torch.tensor([0, 1]), "sphere")
    assert metrics["r2"] == pytest.approx(1, abs=1e-6)
    assert metrics["direction_error"] == pytest.approx(0, abs=0.1)
    assert metrics["moved"] == 1
    assert metrics["displacement"] == pytest.approx(0.3)


def test_metrics_of_useless_skills():
    generator = torch.Generator().manual_seed(1)
    skill, moved = circle(512), 0.1 * torch.randn(512, 2, generator=generator)
    assert abs(linear_r2(moved, skill)) < 0.1
    assert direction_error(moved, skill) == pytest.approx(90, abs=10)
    still = torch.zeros(512, 2) + 1e-7 * moved
    assert skill_metrics(episodes(still, skill), torch.tensor([0, 1]), "sphere")["coverage"] == 1
    still = torch.zeros(512, 2)
    assert linear_r2(still, skill) <= 0.01
    assert direction_error(still, skill) == 90


def test_coverage_counts_bins_on_the_table():
    moved = torch.tensor([[0.01, 0.01], [0.04, 0.04], [0.06, 0.01], [-0.01, 0.01], [0.9, 0.9]])
    off = torch.tensor([False, False, False, False, True])
    metrics = skill_metrics(episodes(moved, circle(5), off), torch.tensor([0, 1]), "sphere")
    assert metrics["coverage"] == 3
    assert metrics["off_table"] == pytest.approx(0.2)


def test_play_counts_whole_episodes_of_different_lengths(small):
    class Ends(envs.BatchedEnv):
        """Environment i terminates after i + 1 steps; reward 1."""

        def __init__(self):
            import gymnasium as gym

            box = gym.spaces.Box(-1.0, 1.0, (22,))
            super().__init__(4, box, gym.spaces.Box(-1.0, 1.0, (5,)))
            self.max_episode_steps, self.count = 3, torch.zeros(4)

        def _begin(self, mask):
            self.count.masked_fill_(mask, 0)

        def _advance(self, action):
            self.count += 1
            ended = self.count == torch.arange(1, 5)
            return torch.ones(4), ended, {"cost": self.count.clone()}

        def _observe(self):
            return self.count[:, None].expand(4, 22).clone()

    got = play(SLIM(**small), Ends(), seed=0)
    assert got.lengths.tolist() == [1, 2, 3, 3]  # the last one is truncated
    assert got.returns.tolist() == [1, 2, 3, 3]
    assert got.last_obs[:, 0].tolist() == [1, 2, 3, 3]
    assert got.total["cost"].tolist() == [1, 3, 6, 6]
    assert got.last["cost"].tolist() == [1, 2, 3, 3]


def test_random_policy_fills_the_action_space(small):
    agent = SLIM(**small)
    action, _ = RandomPolicy(agent).act(torch.zeros(1000, 22), {}, True)
    assert action.min() < -0.99
    assert action.max() > 0.99
    assert action.mean(0).abs().max() < 0.1


# ---- hierarchy


def test_skill_env_holds_a_skill(small):
    agent = SLIM(**small)
    env = SkillEnv(envs.make("tabletop", num_envs=3, task="push", horizon=20), agent, hold=5)
    below = envs.make("tabletop", num_envs=3, task="push", horizon=20)
    skill = torch.tensor([[3.0, 0.0], [0.0, -2.0], [1.0, 1.0]])
    env.reset(seed=7)
    obs, _ = below.reset(seed=7)
    unit = skill / skill.norm(dim=1, keepdim=True)
    for macro in range(4):
        got, reward, _, truncated, info = env.step(skill)
        total = torch.zeros(3)
        for _ in range(5):
            action, _ = agent.act(obs[:, :22], {"skill": unit}, True)
            obs, r, _, _, low = below.step(action)
            total += r
        assert torch.allclose(total, reward)
        assert torch.allclose(info["final_obs"], low["final_obs"])
        assert truncated.all().item() is (macro == 3)
    assert torch.allclose(got, obs)


def test_skills_can_be_learned_on_top_of_skills(small):
    env = SkillEnv(envs.make("tabletop", num_envs=4, horizon=20), SLIM(**small), hold=5)
    settings = {k: v for k, v in small.items() if k not in ("env_kwargs", "num_envs")}
    agent = SLIM(env, **settings, features=[11, 12, 13]).learn(80)
    assert agent.reward_names == ("reward", "discovery")


def test_skill_env_refuses_what_does_not_fit(small):
    agent = SLIM(**small)
    with pytest.raises(ValueError, match="hold=7: expected a divisor"):
        SkillEnv(envs.make("tabletop", horizon=20), agent, hold=7)


def test_skill_env_rests_where_asked_to(small):
    below = envs.make("tabletop", num_envs=3, horizon=20)
    env = SkillEnv(below, SLIM(**small), hold=5, rest=True)
    start, _ = env.reset(seed=1)
    action = torch.tensor([[0.6, 0.0], [0.3, -0.3], [0.0, 0.0]])
    obs, *_ = env.step(action)
    moved = (obs[:, :3] - start[:, :3]).norm(dim=1)  # of the tool [m]
    assert moved[0] > 1e-3
    assert (moved[1:] < 1e-3).all()
    skills = env.skills(action)
    assert torch.equal(skills, torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]))


def test_discrete_skills_have_a_category_for_rest(small):
    agent = SLIM(**small, skill="discrete", skill_size=3, discovery="categorical")
    env = SkillEnv(envs.make("tabletop", num_envs=2, horizon=20), agent, hold=5, rest=True)
    assert env.single_action_space.n == 4
    assert torch.equal(
        env.skills(torch.tensor([2, 3])), torch.eye(3)[[2, 0]] * torch.tensor([[1.0], [0.0]])
    )
    env.reset(seed=1)
    env.step(torch.tensor([2, 3]))


def test_sb3_ppo_learns_on_top_of_skills(small):
    from stable_baselines3 import PPO

    from envs.adapt import to_sb3

    agent = SLIM(**small)
    before = parameters(agent)
    env = SkillEnv(envs.make("tabletop", num_envs=4, task="push", horizon=20), agent, hold=5)
    model = PPO("MlpPolicy", to_sb3(env), n_steps=8, batch_size=16, n_epochs=1, device="cpu")
    model.learn(64)
    assert model.num_timesteps == 64
    assert torch.equal(parameters(agent), before)


class PointMass(envs.BatchedEnv):
    """The skill is a velocity: the ideal case, in which planning must reach any goal."""

    def __init__(self, num_envs: int = 32) -> None:
        import gymnasium as gym

        space = gym.spaces.Box(-np.inf, np.inf, (2,))
        super().__init__(num_envs, space, gym.spaces.Box(-1.0, 1.0, (2,)))
        self.max_episode_steps, self.position = 20, torch.zeros(num_envs, 2)

    def _begin(self, mask):
        self.position[mask] = 0

    def _advance(self, action):
        self.position = self.position + 0.05 * action
        return torch.zeros(self.num_envs), torch.zeros(self.num_envs, dtype=torch.bool), {}

    def _observe(self):
        return self.position.clone()

    def _state(self):
        return {"position": self.position}


class Velocity(SLIM):
    """A policy that moves along its skill."""

    def act(self, obs, state, deterministic):
        return state["skill"], state


def test_planning_reaches_goals_when_skills_are_velocities(small):
    small.pop("env_kwargs")
    agent = Velocity(PointMass(), **small)
    planner = SkillPlanner(agent, PointMass(), hold=5, episodes=4, updates=600)
    assert planner.error < 0.05
    env = SkillEnv(PointMass(), agent, hold=5)
    obs, _ = env.reset(seed=0)
    goal = 0.7 * circle(32)

    def cost(predicted: Tensor) -> Tensor:
        return (predicted - goal[:, None]).norm(dim=-1)

    for _ in range(3):
        obs, *_, info = env.step(planner.plan(obs, cost))
    assert (info["final_obs"] - goal).norm(dim=1).max() < 0.2


def test_registry_names_agree():
    assert all(agent.name == name for name, agent in agents.AGENTS.items())


@pytest.mark.parametrize("discovery", ["lipschitz", "gaussian", "temporal"])
def test_learns_to_move_along_the_skill(discovery):
    """The identity task of skill discovery: actions are velocities, so skills become directions.

    Speed is bounded for each axis, so that moving far means moving to one of four corners. Even the
    best skills for distance then miss their direction by 22.5 degrees and have R² = 8 / π² = 0.81.
    """
    settings = {"horizon": 20, "hidden": [32, 32], "lr": 1e-3, "discovery_updates": 4}
    agent = SLIM(PointMass(64), discovery=discovery, feature_scale=1.0, **settings)
    before = agent.evaluate(PointMass(256), episodes=256)
    after = agent.learn(64 * 20 * 30).evaluate(PointMass(256), episodes=256)
    assert before["displacement"] < 0.1
    assert after["r2"] > 0.5
    assert after["direction_error"] < 45  # half of chance
    if discovery != "gaussian":  # which asks for readable, not for far
        assert after["displacement"] > 0.5  # of 1 m that is possible
