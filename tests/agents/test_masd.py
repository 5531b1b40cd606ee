"""MASD's own: rewards by hand, contradictions, every switch, transfer, evaluation, learning."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from trees import assert_same

import agents
import envs
import mi
from agents import MASD, ConfigError, SkillEnv
from agents.core import coordination
from agents.core.evaluate import play
from agents.core.team import MASAC

TINY = {
    "num_envs": 8, "horizon": 10, "hidden": [16, 16], "epochs": 2, "minibatches": 2,
    "discriminator_updates": 2, "adversary_updates": 3, "discriminator_batch": 32, "updates": 2,
    "batch_size": 32, "capacity": 30, "log_interval": 1, "total_timesteps": 400,
    "eval_episodes": 32, "env_kwargs": {"horizon": 20},
}  # fmt: skip


@pytest.fixture
def tiny():
    return {**TINY, "env_kwargs": dict(TINY["env_kwargs"])}


# ---- the contract, as of every agent


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"backbone": "sac"},
        {"env_kwargs": {"actions": "discrete", "horizon": 20}},
        {"inputs": "trajectory", "penalty_weight": 0.0},
        {"objective": "factored", "skill_size": 2},
    ],
)
def test_save_load_continues_bit_for_bit(tiny, tmp_path, settings):
    whole = MASD(**tiny | settings).learn()
    half = MASD(**tiny | settings).learn(total_timesteps=240)
    half.save(tmp_path / "a.ckpt")
    resumed = agents.load(tmp_path / "a.ckpt").learn()
    assert_same(whole.state_dict(), resumed.state_dict())


def test_predicting_and_evaluating_do_not_change_training(tiny):
    plain, disturbed = MASD(**tiny).learn(), MASD(**tiny)

    def disturb(agent, row):
        torch.rand(3)
        agent.evaluate(episodes=16)
        agent.rollout_skills(16)
        agent.predict(np.zeros((2, 3, 12), np.float32))

    disturbed.learn(callback=disturb)
    assert_same(plain.state_dict(), disturbed.state_dict())


def test_predict_kinds_and_shapes(tiny):
    agent = MASD(**tiny)
    one, many = np.zeros((3, 12), np.float32), np.zeros((4, 3, 12), np.float32)
    action, state = agent.predict(one, deterministic=True)
    assert isinstance(action, np.ndarray)
    assert action.shape == (3, 2)
    action, state = agent.predict(torch.from_numpy(many))
    assert isinstance(action, Tensor)
    assert action.shape == (4, 3, 2)
    assert state["time"].tolist() == [1.0] * 4
    _, new = agent.predict(many, state=state, episode_start=np.array([True, False, False, False]))
    assert new["time"].tolist() == [1.0, 2, 2, 2]
    assert torch.equal(new["skill"][1:], state["skill"][1:])
    discrete = MASD(**tiny | {"env_kwargs": {"actions": "discrete"}})
    assert discrete.predict(many)[0].shape == (4, 3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_trains_on_the_same_code_path(tiny, tmp_path):
    agent = MASD(**tiny, device="cuda").learn()
    assert agent.env.device.type == "cuda"
    agent.save(tmp_path / "a.ckpt")
    assert agents.load(tmp_path / "a.ckpt", device="cpu").evaluate()["joint"] < 3


def test_moves_between_devices_by_its_parts_alone(tiny, tmp_path):
    agent = MASD(**tiny, backbone="sac").learn()
    agent.save(tmp_path / "a.ckpt")
    loaded = agents.load(tmp_path / "a.ckpt", device="cpu", num_envs=4)
    obs = agent.env.reset(seed=0)[0]
    state = agent.initial_state(8)
    assert torch.equal(agent.act(obs, state, True)[0], loaded.act(obs, state, True)[0])
    assert loaded.learn(total_timesteps=480).num_timesteps >= 480


# ---- the objective


def known(synergy: mi.Synergy, single: float, team: float) -> mi.Synergy:
    """Decoders whose log-probability of skill 0 is the number of members times a constant."""
    for module, value in ((synergy.cooperative, team), (synergy.adversary, single)):
        if module is None:
            continue
        layer = nn.Linear(module.objective.decoder[0].in_features, 2)
        with torch.no_grad():
            layer.weight.zero_()
            layer.bias.zero_()
            layer.weight[0, -3:] = value
        module.objective.decoder = layer
    return synergy


def test_largest_penalty_is_that_of_a_group_and_not_of_noise():
    """Where no group tells anything, the maximum over samples would still charge for chance."""
    synergy = mi.Synergy("team", 3, 1, 1, 2, aggregate="max")
    x, skill = torch.randn(4000, 3, 1), functional.one_hot(torch.arange(4000) % 2, 2)[:, None]
    reward, gain, penalties = synergy.reward(x, x, skill.float(), synergy.opposing, 1.0)
    assert torch.equal(gain - reward, penalties[:, [int(penalties.mean(0).argmax())]])


@pytest.mark.parametrize("aggregate", ["mean", "max", "sum"])
def test_reward_by_hand(aggregate):
    """Reward = log q(z|s) + log K - λ agg (log q(z|s_C) + log K) over all groups of 1 and 2."""
    synergy = known(mi.Synergy("team", 3, 2, 2, 2, largest=2, aggregate=aggregate), 1.0, 2.0)
    x, skill = torch.randn(5, 3, 2), torch.tensor([1.0, 0.0]).expand(5, 1, 2)
    members = synergy.draw(8, torch.Generator())
    assert members.tolist()[:4] == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]]
    reward, gain, penalties = synergy.reward(x, x, skill, members, 0.5)

    def value(logit: float) -> float:
        return -math.log1p(math.exp(-logit)) + math.log(2)

    assert gain.flatten().tolist() == pytest.approx([value(6.0)] * 5)
    assert penalties[0].tolist() == pytest.approx([value(1.0)] * 3 + [value(2.0)] * 3)
    agg = {"mean": (value(1.0) + value(2.0)) / 2, "max": value(2.0)}
    agg["sum"] = 6 * agg["mean"]
    assert reward.flatten().tolist() == pytest.approx([value(6.0) - 0.5 * agg[aggregate]] * 5)


def test_factored_agents_answer_for_their_own_skill():
    synergy = mi.Synergy("factored", 3, 2, 2, 4, weight=0.1)
    x = torch.randn(6, 3, 2)
    skill = functional.one_hot(torch.randint(4, (6, 3)), 4).float()
    reward, gain, penalties = synergy.reward(x, x, skill, synergy.draw(8, torch.Generator()), 0.1)
    assert reward.shape == gain.shape == penalties.shape == (6, 3)
    moved = x.clone()
    moved[:, 2] += 1  # agent 0's gain does not look at agent 2, its penalty does
    _, gain2, penalties2 = synergy.reward(moved, moved, skill, synergy.opposing, 0.1)
    assert torch.equal(gain2[:, 0], gain[:, 0])
    assert not torch.equal(penalties2[:, 0], penalties[:, 0])
    assert torch.equal(penalties2[:, 2], penalties[:, 2])


def test_groups_are_sampled_where_they_are_many():
    synergy = mi.Synergy("team", 10, 2, 2, 4, largest=3)
    assert len(synergy.opposing) == 10 + 45 + 120
    drawn = synergy.draw(8, torch.Generator().manual_seed(0))
    assert drawn.shape == (8, 10)
    assert len(torch.unique(drawn, dim=0)) == 8
    assert drawn.sum(1).max() <= 3


def exclusive_or(samples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two agents, one bit each; the skill is whether they agree: 1 bit together, none apart."""
    bits = torch.randint(2, (samples, 2), generator=torch.Generator().manual_seed(seed))
    skill = functional.one_hot(bits.sum(1) % 2, 2).float()
    return bits[..., None].float(), skill[:, None]


def test_synergy_of_exclusive_or_is_log_2():
    torch.manual_seed(0)
    synergy = mi.Synergy("team", 2, 1, 1, 2)
    optimizer = torch.optim.Adam(synergy.parameters(), 3e-3)
    for step in range(150):
        x, skill = exclusive_or(256, step)
        loss = synergy.cooperative_loss(x, skill) + synergy.adversary_loss(
            x, skill, synergy.opposing
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, skill = exclusive_or(4000, 999)
    reward, gain, penalties = synergy.reward(x, x, skill, synergy.opposing, 1.0)
    assert gain.mean().item() == pytest.approx(math.log(2), abs=0.02)
    assert penalties.mean(0).tolist() == pytest.approx([0, 0], abs=0.02)
    assert reward.mean().item() == pytest.approx(math.log(2), abs=0.03)


def test_contradictions_are_refused_and_explained(tiny):
    with pytest.raises(ConfigError, match=r"observed: the actors do not see the other agents.*ind"):
        MASD(**tiny, observed=[0, 1, 2, 3])
    with pytest.raises(ConfigError, match=r"visibility: the actors do not see"):
        MASD(**tiny | {"env_kwargs": {"visibility": 0}})
    with pytest.raises(ConfigError, match=r"eval_episodes=8: expected at least 10"):
        MASD(**tiny | {"eval_episodes": 8})
    with pytest.raises(ConfigError, match=r"subset_size=3: expected less than the 3 agents"):
        MASD(**tiny, subset_size=3)
    MASD(**tiny, observed=[0, 1, 2, 3], penalty_weight=0.0)  # no adversary, no contradiction
    with pytest.raises(ConfigError, match="backbone=sac: expected continuous actions"):
        MASD(**tiny | {"env_kwargs": {"actions": "discrete"}}, backbone="sac")
    with pytest.raises(ConfigError, match="masd needs several agents"):
        MASD(**tiny | {"env": "tabletop", "env_kwargs": {}})
    with pytest.raises(ConfigError, match=r"fixed_skill=9: expected one of"):
        MASD(**tiny, fixed_skill=9)
    with pytest.raises(ConfigError, match=r"features=\[40\]: expected columns in 0..11"):
        MASD(**tiny, features=[40])


@pytest.mark.parametrize(
    "settings",
    [
        {"penalty": "club", "aggregate": "max", "subset_size": 2, "subset_samples": 2},
        {"skill": "sphere", "skill_size": 2},
        {"skill": "sphere", "skill_size": 3, "penalty": "club", "backbone": "sac"},
        {"inputs": "relative", "aggregate": "sum"},
        {"inputs": "velocities", "warmup": 0.5},
        {"inputs": "trajectory", "backbone": "sac"},
        {"objective": "independent"},
        {"objective": "independent", "backbone": "sac"},
        {"task_weight": 1.0, "env": "particles/spread"},
        {"env_kwargs": {"agents": 2}},
        {"env_kwargs": {"agents": 5, "visibility": 0.5}},
    ],
)
def test_every_switch_trains(tiny, settings):
    rows = []
    MASD(**tiny | settings).learn(callback=lambda agent, row: rows.append(row))
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    results = MASD(**tiny | settings).evaluate()
    known = {"joint", "single_max", "coordination", "relative", "coverage", "return_mean"}
    assert known <= results.keys()


def test_the_adversary_knows_the_time_and_the_team_does_not(tiny):
    agent = MASD(**tiny)
    agent.learn(total_timesteps=160)
    time, skill = torch.arange(5.0), torch.eye(8)[:5]
    batch = {"next_obs": torch.randn(5, 3, 12), "time": time, "skill": skill}
    team_x, x, _ = agent._features(batch)
    assert team_x.shape == (5, 3, 2)
    assert torch.equal(x[..., 2], (time / 20)[:, None].expand(5, 3))


def test_warmup_raises_the_weight_from_nothing(tiny):
    first, second = (MASD(**tiny, warmup=w).learn(80) for w in (0.0, 1.0))
    plain = MASD(**tiny, penalty_weight=0.2).learn(80)  # 80 of 400 steps: a fifth of λ
    assert_same(second.learner.policy.state_dict(), plain.learner.policy.state_dict())
    weight = "mean.0.weight"
    assert not torch.equal(
        first.learner.policy.state_dict()[weight], plain.learner.policy.state_dict()[weight]
    )


def test_off_policy_rewards_are_those_of_the_current_discriminators(tiny):
    agent = MASD(**tiny, backbone="sac").learn(160)
    assert isinstance(agent.learner, MASAC)
    batch = agent.memory.sample(16, torch.Generator().manual_seed(0))
    members = agent.synergy.opposing
    before = agent._experience(batch, members)[0]["reward"]
    with torch.no_grad():
        agent.synergy.cooperative.objective.decoder[-1].bias[0] += 1
    after = agent._experience(batch, members)[0]["reward"]
    assert not torch.equal(before, after)


def test_discrete_foreign_environments_train(tiny):
    """mpe2's own environment through our agent."""
    settings = {**tiny, "env": "pettingzoo/mpe/simple_spread_v3", "env_kwargs": {}, "num_envs": 2}
    agent = MASD(**settings, features=[2, 3])
    agent.learn(total_timesteps=60)
    assert agent.actions == 5
    assert agent.num_timesteps >= 60


# ---- use


def test_rollout_skills_gives_final_positions(tiny):
    agent = MASD(**tiny)
    final, skill = agent.rollout_skills(40)
    assert final.shape == (40, 3, 2)
    assert skill.shape == (40,)
    assert skill.dtype == torch.int64
    assert set(skill.tolist()) <= set(range(8))
    again, _ = agent.rollout_skills(40)
    assert torch.equal(final, again)
    factored = MASD(**tiny, objective="factored", skill_size=2)
    assert factored.rollout_skills(200)[1].max() == 7


def test_fine_tuning_starts_as_the_pretrained_policy_acts(tiny, tmp_path):
    source = MASD(**tiny).learn()
    source.save(tmp_path / "skills.ckpt")
    settings = {
        "task_weight": 1.0,
        "skill_weight": 0.0,
        "fixed_skill": 3,
        "env": "particles/spread",
    }
    agent = MASD(**tiny | settings, pretrained=str(tmp_path / "skills.ckpt"))
    agent.start_from(agent.config.pretrained)
    obs = torch.randn(6, 3, 18)
    state = agent.initial_state(6)
    assert state["skill"].argmax(1).tolist() == [3] * 6
    expected, _ = source.act(obs[..., :12], state, True)
    assert torch.allclose(agent.act(obs, state, True)[0], expected, atol=1e-6)
    agent.learn()
    assert not torch.allclose(agent.act(obs, state, True)[0], expected, atol=1e-4)
    (tmp_path / "skills.ckpt").rename(tmp_path / "gone.ckpt")
    agent.save(tmp_path / "tuned.ckpt")
    agents.load(tmp_path / "tuned.ckpt").learn(total_timesteps=480)  # needs it no more
    with pytest.raises(ConfigError, match=r"pretrained=.*does not fit"):
        MASD(**tiny, skill_size=4, pretrained=str(tmp_path / "gone.ckpt")).learn()


def test_skills_are_actions_for_a_selector(tiny):
    agent = MASD(**tiny)
    env = SkillEnv(envs.make("particles/spread", num_envs=4, horizon=20), agent, hold=5)
    assert env.single_action_space == gym.spaces.Discrete(8)
    obs, _ = env.reset(seed=0)
    assert obs.shape == (4, 3, 18)
    for step in range(8):
        obs, reward, _, truncated, _ = env.step(torch.tensor([0, 3, 5, 7]))
        assert truncated.all() == (step % 4 == 3)
    assert (reward < 0).all()


class Scripted:
    """Skills that are known: `joint` ones only the pair tells, `apart` ones every agent tells."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def episodes(self, agent: MASD, count: int):
        played = play(agent, agent.make_eval_env(count), 0)
        skill = played.state["skill"].argmax(1)
        noise = torch.rand(count, 3, 2, generator=torch.Generator().manual_seed(0))
        place = noise.clone()
        if self.kind == "joint":  # the sum of the first two names the skill, each alone is uniform
            place[:, 1, 0] = (skill / 8 + 0.05 - place[:, 0, 0]) % 1
        else:
            place[:, :, 0] = skill[:, None] + 0.1 * noise[..., 0]
        played.last_obs[..., :2] = place
        return played


def test_metrics_tell_coordination_from_degeneracy(tiny):
    agent = MASD(**tiny)
    together = coordination.metrics(agent, Scripted("joint").episodes(agent, 1200))
    apart = coordination.metrics(agent, Scripted("apart").episodes(agent, 1200))
    # All of log 8 is there: two columns name the skill, the four others only hide it.
    assert together["joint"] > math.log(8) / 3
    assert together["single_max"] < 0.1
    assert together["coordination"] > math.log(8) / 3
    assert together["pair_max"] > math.log(8) / 2
    assert apart["joint"] == pytest.approx(math.log(8), abs=0.05)
    assert apart["joint_knn"] > 1.2  # biased to 0 in six dimensions
    assert apart["coordination"] < 0.05


def test_interventions_and_report(tiny, tmp_path):
    results = MASD(**tiny).report(tmp_path)
    assert {"intervened", "exchanged", "random/joint", "coordination"} <= results.keys()
    assert (tmp_path / "plots" / "skills.png").stat().st_size > 1000
    assert (tmp_path / "video" / "skills.mp4").stat().st_size > 1000


def test_exchange_pairs_episodes_of_one_skill():
    label = torch.randint(4, (200,), generator=torch.Generator().manual_seed(0))
    partner = coordination.exchange(label, torch.Generator().manual_seed(1))
    assert torch.equal(label[partner], label)
    assert not (partner == torch.arange(200)).any()
    assert len(partner.unique()) == 200


def test_intervened_agents_act_at_random_and_the_others_do_not(tiny):
    agent = MASD(**tiny)
    policy = coordination.Intervened(agent, [1])
    obs, state = torch.randn(400, 3, 12), agent.initial_state(400)
    with torch.no_grad():
        expected = agent.act(obs, state, True)[0]
        action, _ = policy.act(obs, state, True)
    assert torch.equal(action[:, [0, 2]], expected[:, [0, 2]])
    assert action[:, 1].std() == pytest.approx(3**-0.5, abs=0.05)


# ---- learning

LEARNING = {
    "num_envs": 64, "hidden": [32, 32], "lr": 1e-3, "skill_size": 4, "horizon": 10,
    "discriminator_batch": 512, "entropy": 0.001, "total_timesteps": 25_600, "epochs": 6,
    "env_kwargs": {"agents": 2, "horizon": 10, "accel": 8.0, "size": 0.05}, "eval_episodes": 512,
}  # fmt: skip


def test_learns_skills_that_can_be_read():
    """Joint DIAYN in seconds: the team's final state tells much of the skill."""
    agent = MASD(**LEARNING, penalty_weight=0.0, device="cpu")
    assert agent.evaluate()["joint"] < 0.1
    assert agent.learn().evaluate()["joint"] > math.log(4) / 2


@pytest.mark.full
@pytest.mark.parametrize("seed", [0, 1])
def test_headline(seed):
    """λ = 1, three agents, eight skills, 1 M steps: the team tells all, nobody tells much."""
    agent = MASD(total_timesteps=960_000, seed=seed, device="cpu").learn()
    results = agent.evaluate()
    assert results["joint"] >= 1.95
    assert results["single_max"] <= 0.25
