"""CORRO: every loss by hand on small cases, the contract of agents, and offline evaluation."""

import copy
import csv
import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from trees import assert_same

import agents
import envs
import train
from agents import CORRO, ConfigError
from agents.core import diagnose, offline
from agents.core.context import (
    CVAE,
    AttentionAggregator,
    Coordinates,
    MeanAggregator,
    RecurrentAggregator,
    Relabelling,
    RewardNoise,
    TaskDecoder,
    answer_error,
    focal_distance,
)
from agents.core.heads import HEADS, SAC, TD3BC, Batch, Critics, SquashedGaussian
from agents.core.offline import OfflineConfig, compare_rankings, stratified_iqm, summarise
from agents.core.tasks import TaskReplay, draw_tasks
from envs.data import TaskData, load, save

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "device": "cpu", "total_timesteps": 60, "block": 10, "encoder_hidden": [8, 8], "hidden": [8, 8],
    "code_size": 3, "task_batch": 3, "rows": 4, "queries": 2, "num_negatives": 4,
    "log_interval": 1, "checkpoint_interval": 1, "eval_episodes": 4,
}  # fmt: skip


def scripted(tier: str, tasks: int = 6, episodes: int = 6) -> TaskData:
    """Point-robots that walk to their own goal, or (ood) to the next task's, with noise."""
    env = envs.make("point-robot", 1, num_tasks=tasks)
    generator = torch.Generator().manual_seed(len(tier))
    acted = torch.arange(tasks)[:, None].expand(-1, episodes)
    acted = (acted + 1) % tasks if tier == "ood" else acted
    goal, position = env.tasks[acted], torch.zeros(tasks, episodes, 2)  # type: ignore
    states, actions, rewards = [position], [], []
    for _ in range(10):
        noise = 2 * torch.rand(position.shape, generator=generator) - 1
        share = 1.0 if tier == "random" else 0.3
        action = ((goal - position) / 0.1).clamp(-1, 1) * (1 - share) + share * noise
        position = position + 0.1 * action
        states.append(position)
        actions.append(action)
        rewards.append(-(position - env.tasks[:, None]).norm(dim=-1))  # type: ignore
    return TaskData.build(
        torch.stack(states, 2), torch.stack(actions, 2), torch.stack(rewards, 2),
        tasks=env.tasks, behaviour=acted.clone(), training=torch.arange(tasks) < 4,  # type: ignore
        references=torch.tensor([[-10.0, -4.0]]).repeat(tasks, 1), family="point-robot", tier=tier,
    )  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp("data")
    for tier in ("mixed", "ood"):
        save(scripted(tier), root)
    return str(root)


# ---- parts


def test_focal_distance_by_hand():
    codes = torch.tensor([[[0.0], [1.0]], [[3.0], [3.0]]])
    # own pairs: 1 and 0, both ways; others: 9, 9, 4, 4, both ways
    attract, repel = 0.5, (2 / 9.1 + 2 / 4.1) / 4
    assert focal_distance(codes).item() == pytest.approx(attract + repel)


def test_aggregators_ignore_masked_steps_and_their_order():
    codes = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True, True, True, False, False], [False] * 5])
    for kind in (MeanAggregator, AttentionAggregator, RecurrentAggregator):
        pool = kind(3)
        whole = pool(codes, mask)
        changed = codes.clone()
        changed[:, 3:] = 100
        assert torch.allclose(pool(changed, mask), whole)
        assert torch.equal(whole[1], torch.zeros(3))
        if kind is not RecurrentAggregator:
            order = codes[:, [2, 0, 1, 3, 4]]
            assert torch.allclose(pool(order, mask), whole, atol=1e-6)
    assert torch.allclose(MeanAggregator(3)(codes, mask)[0], codes[0, :3].mean(0))


def test_attention_by_hand():
    pool = AttentionAggregator(1)
    torch.nn.init.constant_(pool.score.weight, math.log(3))
    codes = torch.tensor([[[1.0], [0.0]]])  # weights 3 to 1
    assert pool(codes, torch.ones(1, 2, dtype=torch.bool)).item() == pytest.approx(0.75)


def test_cvae_loss_by_hand():
    cvae, generator = CVAE(1, 2, beta=0.5, hidden=4, latent=1), torch.Generator()
    for parameter in cvae.parameters():
        torch.nn.init.zeros_(parameter)
    cvae.encoder[-1].bias.data[:] = torch.tensor([2.0, 0.0])  # μ = 2, σ = 1: KL = 2
    loss, metrics = cvae.loss(
        torch.zeros(1, 1), torch.tensor([[3.0, 1.0]]), torch.zeros(1), generator
    )
    assert metrics["generator/kl"].item() == pytest.approx(2.0)
    assert loss.item() == pytest.approx(9 + 1 + 0.5 * 2)


def test_cvae_learns_from_raw_velocities():
    """Of walker-param: an untrained network answers 100 rad/s with σ = e^30."""
    torch.manual_seed(0)
    cvae, generator = CVAE(24, 19, beta=0.2), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(cvae.parameters(), 3e-3)
    for _ in range(50):
        chosen, answer = 100 * torch.randn(256, 24), 100 * torch.randn(256, 19)
        loss, _ = cvae.loss(chosen, answer, torch.zeros(256), generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert loss.isfinite()
    assert all(p.isfinite().all() for p in cvae.parameters())


def test_negatives_keep_what_they_should():
    generator = torch.Generator().manual_seed(0)
    chosen, answer, task = torch.randn(5, 3), torch.randn(5, 2), torch.arange(5) % 4
    noisy = RewardNoise(0.5).sample(chosen, answer, task, 4000, generator)
    assert torch.equal(noisy[..., 1], answer[:, None, 1].expand(-1, 4000))
    assert noisy[..., 0].std(1).mean().item() == pytest.approx(0.5, rel=0.05)
    relabel = Relabelling(3, 2, 4)
    every = relabel(chosen)
    drawn = relabel.sample(chosen, answer, task, 50, generator)
    distance = (drawn[:, :, None] - every.permute(1, 0, 2)[:, None]).abs().sum(-1)
    assert distance.amin(-1).max() < 1e-6
    loss, _ = relabel.loss(chosen, every[2], torch.full((5,), 2), generator)
    assert loss.item() == pytest.approx(0, abs=1e-9)


def decoder_of_four_tasks() -> TaskDecoder:
    decoder = TaskDecoder(3, 2, 4, 2, [8])
    decoder.codes.data.copy_(torch.randn(4, 2))
    return decoder


def test_decoder_negatives_are_never_the_own_tasks_answer():
    decoder, generator = decoder_of_four_tasks(), torch.Generator().manual_seed(0)
    chosen, answer, task = torch.randn(6, 3), torch.randn(6, 2), torch.tensor([0, 1, 2, 3, 0, 1])
    drawn = decoder.sample(chosen, answer, task, 64, generator)
    assert (drawn - answer[:, None]).abs().sum(-1).min() > 1e-4
    others = [
        decoder.answer(chosen[:, None], answer[:, None], task, 0 * task + i) for i in range(4)
    ]
    distance = (drawn[:, :, None] - torch.cat(others, 1)[:, None]).abs().sum(-1)
    assert distance.amin(-1).max() < 1e-5  # nothing but what some task answers


def test_counterfactuals_keep_what_the_model_does_not_know():
    """Whatever error the model makes, a task's own answer comes back, and so does the way there."""
    decoder = decoder_of_four_tasks()
    chosen, answer = torch.randn(6, 5, 3), torch.randn(6, 5, 2)
    owner, task = torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([1, 2, 3, 0, 2, 3])
    assert torch.allclose(decoder.answer(chosen, answer, owner, owner), answer, atol=1e-6)
    there = decoder.answer(chosen, answer, owner, task)
    assert (there - answer).abs().sum(-1).min() > 1e-4
    assert torch.allclose(decoder.answer(chosen, there, task, owner), answer, atol=1e-5)
    model = (decoder.decoder(chosen, decoder.codes[k]) for k in (task, owner))
    assert torch.allclose(there, answer + next(model) - next(model), atol=1e-6)


@pytest.mark.parametrize("normalize", [True, False])
def test_coordinates_come_back(normalize):
    generator = torch.Generator().manual_seed(0)
    obs, action = (torch.randn(3, 7, d, generator=generator) * 2 + 1 for d in (4, 2))
    reward, next_obs = torch.randn(3, 7, generator=generator), obs + 0.1 * torch.rand(3, 7, 4)
    coordinates = Coordinates(4, 2, normalize)
    if normalize:
        coordinates.fit(torch.ones(3, 7, dtype=torch.bool), obs, action, reward, next_obs)
    chosen, answer = coordinates(obs, action, reward, next_obs)
    assert torch.allclose(chosen[..., :4], coordinates.observe(obs), atol=1e-5)
    again = coordinates.consequences(chosen, answer)
    assert torch.allclose(again[0], coordinates.reward(reward), atol=1e-5)
    assert torch.allclose(again[1], coordinates.observe(next_obs), atol=1e-4)


def test_replay_draws_what_exists_and_nothing_else():
    mask = torch.zeros(2, 3, 4, dtype=torch.bool)
    mask[0, 0, :2] = mask[0, 2, :3] = mask[1, 1, :1] = True
    value = torch.arange(24.0).view(2, 3, 4, 1)
    replay, generator = TaskReplay({"x": value}, mask), torch.Generator().manual_seed(0)
    task = torch.tensor([0, 1])
    drawn = replay.steps(replay.draw_steps(task, 500, generator))["x"][..., 0]
    assert set(drawn[0].tolist()) == {0, 1, 8, 9, 10}
    assert set(drawn[1].tolist()) == {16}
    episode = replay.draw_episodes(task, 100, generator)
    assert set(episode[0].tolist()) == {0, 2} and set(episode[1].tolist()) == {4}
    fields, seen = replay.whole(episode)
    assert torch.equal(seen[1, 0], torch.tensor([True, False, False, False]))
    assert fields["x"].shape == (2, 100, 4, 1)
    tasks = draw_tasks((50, 3), 5, generator)
    assert all(len(set(row)) == 3 for row in tasks.tolist())
    with pytest.raises(ValueError, match="task 1: expected at least one step"):
        TaskReplay({"x": value}, mask & (torch.arange(2) == 0)[:, None, None])


# ---- heads


def constant(critics: Critics, value: float) -> None:
    for parameter in critics.parameters():
        torch.nn.init.zeros_(parameter)
    torch.nn.init.constant_(critics.biases[-1], value)


def batch(size: int = 3) -> Batch:
    zeros = torch.zeros(size, 2)
    return Batch(
        zeros, torch.zeros(size, 1), torch.ones(size), zeros, torch.tensor([0.0, 0.0, 1.0])
    )


def test_sac_losses_by_hand():
    head, generator = SAC(2, 1, [4], gamma=0.5, temperature=0.0), torch.Generator().manual_seed(0)
    constant(head.critics, 3.0)
    constant(head.targets, 4.0)
    # targets: 1 + 0.5 · 4 = 3 where it goes on, 1 where it ends; two critics of 3
    loss, _ = head.critic_loss(batch(), generator)
    assert loss.item() == pytest.approx(2 * (0 + 0 + 4) / 3, abs=1e-4)
    actor, _ = head.actor_loss(batch(), generator)
    assert actor.item() == pytest.approx(-3.0, abs=1e-4)
    head.follow()
    assert head.targets.biases[-1][0].item() == pytest.approx(4 - 0.005)


def test_td3bc_and_iql_by_hand():
    generator = torch.Generator().manual_seed(0)
    head = TD3BC(2, 1, [4], weight=2.0)
    constant(head.critics, 5.0)
    action = head.policy.mode(batch().x)
    loss, _ = head.actor_loss(batch()._replace(action=action + 0.5), generator)
    assert loss.item() == pytest.approx(2 * 0.25 - 1, abs=1e-5)  # Q / mean|Q| = 1
    iql = HEADS["iql"](2, 1, [4], gamma=0.5, weight=0.0)
    constant(iql.critics, 1.0)
    constant(iql.targets, 1.0)
    for parameter in iql.value.parameters():
        torch.nn.init.zeros_(parameter)
    # Q: targets are r = 1, as V = 0; V: every error is 1 and positive, weight 0.8
    assert iql.critic_loss(batch(), generator)[0].item() == pytest.approx(0.8, abs=1e-5)
    expected = -iql.policy.log_prob(batch().x, batch().action).mean().item()
    assert iql.actor_loss(batch(), generator)[0].item() == pytest.approx(expected)


def test_brac_adds_the_divergence():
    head, generator = HEADS["brac"](2, 1, [4], temperature=0.0, weight=1.0), torch.Generator()
    head.behaviour.load_state_dict(head.policy.state_dict())
    constant(head.critics, 2.0)
    loss, metrics = head.actor_loss(batch(), generator.manual_seed(0))
    assert metrics["kl"].abs().item() < 1e-2
    assert loss.item() == pytest.approx(-2.0, abs=1e-2)


def test_squashed_gaussian_is_a_density():
    policy = SquashedGaussian(1, [4], 1)
    grid = torch.linspace(-0.9985, 0.9985, 4001)[:, None]
    total = policy.log_prob(torch.zeros(4001, 1), grid).exp().sum() * (grid[1] - grid[0])
    assert total.item() == pytest.approx(1, abs=0.01)
    action, log_prob = policy.sample(torch.zeros(64, 1), torch.Generator().manual_seed(0))
    assert torch.allclose(policy.log_prob(torch.zeros(64, 1), action), log_prob, atol=1e-2)


# ---- agent


def test_contrastive_loss_at_chance_and_solved(dataset):
    agent = CORRO(dataset=dataset, **SMALL)
    agent.learn(total_timesteps=10)
    task, steps = torch.arange(3), torch.zeros(3, 4, dtype=torch.int64)
    fields = agent.replay.steps(steps)

    class Same(torch.nn.Module):
        def forward(self, chosen, answer):
            return torch.ones(*chosen.shape[:-1], 3) / 3**0.5

    agent.net["encoder"] = Same()
    loss = agent._contrastive_loss(task, fields["chosen"], fields["answer"])
    assert loss.item() == pytest.approx(0, abs=1e-5)  # no code, no information

    class Tells(torch.nn.Module):
        calls = 0

        def forward(self, chosen, answer):  # of queries and keys, and of what was made up
            self.calls += 1
            sign = 1.0 if self.calls < 2 else -1.0
            return torch.tensor([sign, 0.0, 0.0]).expand(*chosen.shape[:-1], 3)

    agent.net["encoder"] = Tells()
    loss = agent._contrastive_loss(task, fields["chosen"], fields["answer"])
    count, temperature = agent.config.num_negatives, agent.config.temperature
    solved = math.log(1 + count) - math.log1p(count * math.exp(-2 / temperature))
    assert solved > 0.1
    assert loss.item() == pytest.approx(-solved, abs=1e-5)


def test_the_generator_stays_as_it_was_trained(dataset):
    """Encoders that train it further, on its own answers, undo what it learnt off the data."""
    agent = CORRO(dataset=dataset, **SMALL).learn(total_timesteps=24)
    assert agent.learner == "generator"  # 0.8 of 30
    kept = copy.deepcopy(agent.generate.state_dict())
    encoder = copy.deepcopy(agent.net["encoder"].state_dict())
    agent.learn()
    assert_same(agent.generate.state_dict(), kept)
    assert not torch.equal(
        agent.net["encoder"].state_dict()["network.0.weight"], encoder["network.0.weight"]
    )


def test_policies_learn_from_neighbours_as_the_decoder_answers(dataset):
    agent = CORRO(dataset=dataset, **SMALL)
    agent.learn(total_timesteps=10)
    task, rows = torch.tensor([0, 2]), torch.arange(32).view(2, 16) + torch.tensor([[0], [120]])
    steps = agent.replay.steps(rows)
    mixed = agent._relabelled(task, steps)
    for name in ("chosen", "action"):  # one of 16 is the task's own
        assert torch.equal(mixed[name][:, :1], steps[name][:, :1])
        assert torch.equal(mixed[name][:, 1:], steps[name].flip(0)[:, 1:])
    owner, others = task.flip(0), steps["answer"].flip(0)[:, 1:]
    answer = agent.generate.answer(mixed["chosen"][:, 1:], others, owner, task)
    reward, following = agent.coordinates.consequences(mixed["chosen"][:, 1:], answer)
    assert torch.allclose(mixed["reward"][:, 1:, 0], reward)
    assert torch.allclose(mixed["next"][:, 1:], following)
    assert torch.equal(mixed["reward"][:, :1], steps["reward"][:, :1])


def test_same_seed_same_training_other_seed_other(dataset):
    first, second = (CORRO(dataset=dataset, **SMALL, seed=3).learn() for _ in range(2))
    assert_same(first.state_dict(), second.state_dict())
    other = CORRO(dataset=dataset, **SMALL, seed=4).learn()
    assert not torch.equal(
        first.net["encoder"].network[0].weight, other.net["encoder"].network[0].weight
    )


def test_the_code_of_no_context_is_a_mean_also_where_the_critics_train_the_encoder(dataset):
    agent = CORRO(dataset=dataset, **SMALL, **VARIANTS["supervised"]).learn(total_timesteps=500)
    data = agent.data
    context = (data.observations, data.actions, data.rewards, data.next_observations)
    context = tuple(x.flatten(0, 1) for x in context)
    task = torch.zeros(len(context[0]), data.tasks.shape[1])
    codes = agent.context_state(context, data.mask.flatten(0, 1), task)["code"]
    apart = (agent.net.prior - codes.mean(0)).norm()
    assert apart < 0.3 * codes.norm(dim=-1).mean()  # 1 where it stays 0


VARIANTS = {
    "ours": {},
    "published": {
        "negatives": "cvae", "reconstruction": 0.0, "counterfactual": False, "normalize": False,
        "critic_gradient": "aggregator", "resample_tasks": False, "entropy": 0.2,
    },
    "relabel": {"negatives": "relabel", "reconstruction": 0.0, "counterfactual": False},
    "transitions": {"negatives": "transitions", "reconstruction": 0.0, "counterfactual": False},
    "csro": {
        "contrastive": 0.0, "metric": 1.0, "leak": 1.0, "counterfactual": False,
        "reconstruction": 0.0,
    },
    "sup": {
        "contrastive": 0.0, "classification": 1.0, "counterfactual": False,
        "aggregator": "recurrent",
    },
    "supervised": {"critic_gradient": "encoder", "counterfactual": False, "head": "iql"},
    "oracle": {"code": "oracle", "head": "brac"},
    "none": {"code": "none", "head": "td3bc"},
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("stop", [10, 40])
def test_save_load_continues_bit_for_bit(dataset, tmp_path, variant, stop):
    settings = {**SMALL, **VARIANTS[variant], "dataset": dataset}
    whole = CORRO(**settings).learn()
    CORRO(**settings).learn(total_timesteps=stop).save(tmp_path / "a.ckpt")
    resumed = agents.load(tmp_path / "a.ckpt", device="cpu").learn()
    assert_same(whole.state_dict(), resumed.state_dict())
    assert math.isfinite(whole.evaluate(episodes=4)["return_mean"])


def test_evaluating_does_not_change_training(dataset):
    plain = CORRO(dataset=dataset, **SMALL).learn()
    disturbed = CORRO(dataset=dataset, **SMALL)
    disturbed.learn(callback=lambda agent, row: bool(agent.evaluate(episodes=4)))
    assert_same(plain.state_dict(), disturbed.state_dict())


def test_no_test_task_is_seen(dataset, monkeypatch):
    """Training is the same whatever the test tasks' data hold."""
    kept = CORRO(dataset=dataset, **SMALL).learn()
    data = load(dataset)
    poisoned = replace(data, rewards=torch.where(data.training[:, None, None], data.rewards, 1e6))
    monkeypatch.setattr("agents.core.tasks.load", lambda *_, **__: poisoned)
    assert_same(
        kept.state_dict()["parts"], CORRO(dataset=dataset, **SMALL).learn().state_dict()["parts"]
    )


def test_a_checkpoint_acts_without_its_data(dataset, tmp_path):
    CORRO(dataset=dataset, **SMALL).learn().save(tmp_path / "a.ckpt")
    agent = agents.load(tmp_path / "a.ckpt", device="cpu", dataset="gone")
    action, state = agent.predict(np.zeros((5, 2), np.float32), deterministic=True)
    assert action.shape == (5, 2)
    assert state["code"].shape == (5, 3)


def test_errors_name_the_culprit(dataset):
    with pytest.raises(ConfigError, match="dataset: expected the directory"):
        CORRO(**SMALL).learn()
    with pytest.raises(ConfigError, match=r"negatives.*expected decoder, for counterfactual"):
        CORRO(negatives="cvae", **SMALL)
    with pytest.raises(ConfigError, match=r"generator_share.*above 0, for counterfactual"):
        CORRO(generator_share=0.0, **SMALL)
    with pytest.raises(ConfigError, match=r"encoder_share.*in \[0, 1\]"):
        CORRO(encoder_share=2.0, **SMALL)
    with pytest.raises(ConfigError, match="expected data of infomax/point-robot-square-v0, got po"):
        CORRO(env="point-robot/square", dataset=dataset, **SMALL).learn()
    for wrong in ({"entropy": -0.2}, {"head_weight": -5.0}, {"generator_option": -1.0}):
        ((name, value),) = wrong.items()
        with pytest.raises(ConfigError, match=f"{name}={value}: expected"):
            CORRO(dataset=dataset, **SMALL, **wrong)
    endless = envs.make("point-robot", 1)
    endless.max_episode_steps = sys.maxsize
    with pytest.raises(ConfigError, match="gamma=None: expected a number, as the environment has"):
        CORRO(endless, dataset=dataset, **SMALL)
    with pytest.raises(ConfigError, match="expected observations and actions of shapes"):
        CORRO(env="half-cheetah", dataset=dataset, **SMALL, env_kwargs={"num_threads": 1}).learn()


@pytest.mark.full
def test_the_decoder_learns_counterfactual_rewards(tmp_path):
    """The property the method rests on; the published CVAE fails it by an order of magnitude.

    Of behaviour that goes everywhere: where each task keeps to itself, nothing tells them apart.
    """
    save(scripted("random", episodes=40), tmp_path)
    settings = {**SMALL, "code_size": 8, "encoder_hidden": [64, 64], "task_batch": 4, "rows": 64}
    settings |= {"total_timesteps": 6000, "block": 100, "tier": "random"}
    agent = CORRO(dataset=str(tmp_path), **settings)
    agent.learn(total_timesteps=3000)
    assert spread(agent) > 0.7


def spread(agent: CORRO) -> float:
    """Deviation over tasks of generated rewards at fixed (s, a), as a share of the true one."""
    data = agent.data
    rows = torch.randint(
        agent.replay.num_steps[0], (64,), generator=torch.Generator().manual_seed(0)
    )
    step, every = agent.replay.steps(rows), torch.arange(data.num_tasks)  # all of the first task
    rows_of = (step[name].expand(len(every), -1, -1) for name in ("chosen", "answer"))
    answer = agent.generate.answer(*rows_of, 0 * every, every)
    reward = answer[..., 0] * agent.coordinates.answer.variance[0].sqrt()
    successor = data.next_observations.flatten(0, 2)[rows]
    truth = -(successor - data.tasks[:, None]).norm(dim=-1)
    return (reward.std(0) / truth.std(0)).mean().item()


# ---- offline evaluation


def test_rankings_by_hand():
    truth = np.array([[1.0, 5.0], [2.0, 3.0], [4.0, 1.0]])
    perfect = compare_rankings(truth, truth)
    assert perfect == {"rank_correlation": 1.0, "regret@1": 0.0, "absolute_error": 0.0}
    wrong = compare_rankings(-truth, truth)
    assert wrong["rank_correlation"] == -1.0
    assert wrong["regret@1"] == 1.0
    assert compare_rankings(-truth, truth, k=2)["regret@2"] == pytest.approx((2 / 3 + 2 / 4) / 2)


def test_iqm_by_hand_and_its_interval():
    scores = np.array([[0.0, 10.0], [1.0, 11.0], [2.0, 12.0], [3.0, 113.0]])
    centre, low, high = stratified_iqm(scores)  # of 8 the middle 4: 2, 3, 10, 11
    assert centre == pytest.approx((2 + 3 + 10 + 11) / 4)
    assert low < centre < high
    assert stratified_iqm(np.ones((3, 4))) == (1.0, 1.0, 1.0)


def test_summary_normalises_by_task():
    data = scripted("mixed", 2)
    data.references = torch.tensor([[-10.0, 0.0], [-20.0, 0.0]])
    metrics = summarise(torch.tensor([[[-5.0, -5.0], [-5.0, -15.0]]]), data)
    assert metrics["return_mean"] == -7.5
    assert metrics["score_mean"] == pytest.approx((50 + 50) / 2)


class Walker:
    """Walks to the goal its context points to: where the reward was highest."""

    device = torch.device("cpu")
    env = envs.make("point-robot", 1)

    def context_state(self, context, mask, task):
        _, _, reward, next_obs = context
        best = reward.masked_fill(~mask, -100).argmax(1)
        seen = next_obs[torch.arange(len(best)), best]
        return {"code": torch.where(mask.any(1, keepdim=True), seen, torch.zeros_like(seen))}

    def initial_state(self, num_envs):
        return {"code": torch.zeros(num_envs, 2)}

    def act(self, obs, state, deterministic):
        return ((state["code"] - obs) / 0.1).clamp(-1, 1), state


@pytest.mark.parametrize("context", ["iid", "ood-behaviour", "random", "online", "zero-shot"])
def test_protocols(dataset, context):
    config = OfflineConfig(dataset, context=context, episodes=3, k=2)
    data = offline.choose(load(dataset), "test")
    outcome = offline.play_tasks(Walker(), data, config)
    again = offline.play_tasks(Walker(), data, config)
    assert outcome.returns.shape == (2, 3)
    assert torch.equal(outcome.returns, again.returns)
    mean = outcome.returns.mean().item()
    if context == "iid":  # walks where own behaviour ended, near the goal
        assert mean > -6
    if context == "zero-shot":  # stays at the origin, 1 m from every goal
        assert mean == pytest.approx(-10, abs=1e-4)


def test_ood_contexts_belong_to_the_task_they_were_drawn_for(dataset):
    data = offline.choose(load(dataset), "test")
    config = OfflineConfig(dataset, context="ood-behaviour", episodes=2)
    generator = torch.Generator().manual_seed(0)
    context, mask = offline.draw_contexts(Walker(), data, config, generator, "cpu")
    goal = data.tasks.repeat_interleave(2, 0)[:, None]
    assert mask.all()
    assert torch.allclose(context[2], -(context[3] - goal).norm(dim=-1), atol=1e-5)


def test_fitted_q_knows_what_standing_still_and_walking_earn():
    data = scripted("random", 4, 64)  # noise alone reaches everywhere around the start
    short = {name: getattr(data, name)[:, :, :3] for name in ("actions", "rewards")}
    data = TaskData.build(data.states[:, :, :4], **short, tasks=data.tasks)

    class Still(Walker):
        def act(self, obs, state, deterministic):
            return torch.zeros_like(obs), state

    walk, still = (
        diagnose.fitted_q(policy, data, {"code": data.tasks.repeat_interleave(2, 0)}, 400, 3)
        for policy in (Walker(), Still())
    )
    assert torch.allclose(still, torch.tensor(-3.0), atol=0.3)  # 3 steps, 1 m from the goal
    assert (walk > still + 0.2).all()


def test_card_and_information(dataset):
    data = load(dataset)
    rows = diagnose.card(data)
    assert [row["episodes"] for row in rows] == [6] * 6
    assert rows[0]["return_max"] == pytest.approx(data.returns[0].max().item())
    values = diagnose.task_information(data, samples=60)
    assert values["data/I(task;s,a)"] > 0.2  # everybody walks to his own goal
    assert 0 < values["data/overlap"] < 1
    codes = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    label = (codes[:, 0] > 0).long()
    told = diagnose.code_information(codes, label, torch.arange(400) % 2)
    assert told["code/I(z;task)"] > 0.4
    assert told["code/I(z;behaviour)"] < 0.1


def test_command_line(dataset, tmp_path, capsys):
    run = tmp_path / "run"
    small = [f"{k}={v}" for k, v in SMALL.items()]
    assert train.main(["corro", "env=point-robot", f"dataset={dataset}", f"run={run}", *small]) == 0
    done = json.loads((run / "done.json").read_text())
    assert {"return_mean", "score_mean", "ood/return_mean"} <= done.keys()
    checkpoint, out = str(run / "last.ckpt"), tmp_path / "out"
    code = train.main([
        "eval", checkpoint, checkpoint, f"dataset={dataset}", "context=ood-behaviour", "episodes=2",
        "fqe=5", "diagnostics=true", f"out={out}", f"json={tmp_path / 'a.json'}", "device=cpu",
    ])  # fmt: skip
    assert code == 0, capsys.readouterr().err
    results = json.loads((tmp_path / "a.json").read_text())
    assert {
        "return_mean",
        "iqm_low",
        "fqe/return_mean",
        "code/I(z;behaviour)",
    } <= results.keys()
    assert "fqe/rank_correlation" not in results  # of a checkpoint with itself
    assert {p.name for p in out.iterdir()} == {"card.csv", "tasks.csv", "tasks.png", "codes.png"}
    assert train.main(["eval", checkpoint, "dataset=nowhere"]) == 2
    assert "expected a directory, a file or a local Minari id" in capsys.readouterr().err


def test_an_agent_without_contexts_and_an_sb3_policy_are_evaluated(dataset):
    from stable_baselines3 import PPO

    from envs.adapt import to_sb3

    config = OfflineConfig(dataset, episodes=2)
    data = offline.choose(load(dataset), "test")
    model = PPO(
        "MlpPolicy", to_sb3(envs.make("point-robot", 2)), n_steps=8, batch_size=16, device="cpu"
    )
    metrics = offline.evaluate_tasks(offline.Predictor(model), data, config)
    assert -30 < metrics["return_mean"] < 0


@pytest.mark.parametrize("discrete", [False, True])
def test_an_sb3_policy_is_evaluated_on_data_of_another_library(tmp_path, discrete):
    """Foreign data name no family: one task, in the environment that the policy was trained in."""
    import gymnasium as gym
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage
    from stable_baselines3 import PPO

    env = gym.make("CartPole-v1" if discrete else "Pendulum-v1")
    observations, actions = env.observation_space, env.action_space
    buffers = []
    for _ in range(4):
        steps = {"actions": np.stack([actions.sample() for _ in range(6)]), "rewards": np.ones(6)}
        ends = {"terminations": np.zeros(6, bool), "truncations": np.arange(6) == 5}
        states = np.clip(np.stack([observations.sample() for _ in range(7)]), -1, 1)
        buffers.append(EpisodeBuffer(observations=states, **steps, **ends))  # type: ignore
    directory = tmp_path / "data" / "data"
    directory.mkdir(parents=True)
    storage = MinariStorage.new(directory, observations, actions)
    storage.update_metadata({"dataset_id": "x/y-v0", "minari_version": "0.5"})
    storage.update_episodes(buffers)
    model = PPO("MlpPolicy", env, n_steps=8, batch_size=8, device="cpu")
    config = OfflineConfig(str(tmp_path / "data"), episodes=2, fqe=3, diagnostics=True)
    policy = offline.Predictor(model, f"gym/{env.spec.id}")  # type: ignore[union-attr]
    metrics = offline.evaluate_checkpoints([policy], ["ppo"], config)
    assert 8 <= metrics["return_mean"] < 501 if discrete else -2000 < metrics["return_mean"] < 0
    assert math.isfinite(metrics["fqe/return_mean"])
    assert all(math.isfinite(value) for value in metrics.values())
    with pytest.raises(ConfigError, match="env of the Predictor"):
        offline.evaluate_checkpoints([offline.Predictor(model)], ["ppo"], config)
    other = PPO("MlpPolicy", "MountainCar-v0", n_steps=8, batch_size=8, device="cpu")
    with pytest.raises(ConfigError, match=r"dataset=.*expected observations of shape \(2,\)"):
        offline.evaluate_checkpoints([offline.Predictor(other)], ["ppo"], config)


def test_nothing_to_rank_is_no_rank():
    one = np.array([[1.0, 2.0, 3.0]])
    assert compare_rankings(one, one + 1) == {"absolute_error": 1.0}
    truth = np.concatenate([one - 1, one + 1])
    assert compare_rankings(one.repeat(2, 0), truth) == {"absolute_error": 1.0}  # all the same


def test_a_reward_counts_as_much_as_all_of_the_change_of_state():
    answer = torch.zeros(5, 28)
    reward, change = answer.clone(), answer.clone()
    reward[:, 0], change[:, 1:] = 1, 1
    assert answer_error(reward, answer) == answer_error(change, answer) == 0.5
    assert answer_error(reward + change, answer[:1]) == 1


def test_the_benchmark_keeps_rows_of_runs_that_are_not_here(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import corro as benchmark

    monkeypatch.setattr(benchmark, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(benchmark, "RUNS", tmp_path / "runs")
    options = {
        "family": "ant-dir", "tier": "mixed", "methods": "corro,focal", "steps": 20, "seeds": 1,
        "width": 8, "rows": 4,
    }  # fmt: skip
    table = tmp_path / "results" / "ant-dir-mixed.csv"

    def collected(value: float, **changed: object) -> list[list[str]]:
        run = options | {"method": "focal", "seed": 0} | changed
        folder = benchmark.directory(run)
        folder.mkdir(parents=True)
        (folder / "done.json").write_text(json.dumps({"test_iid": value}))
        benchmark.collect(options | changed)
        shutil.rmtree(folder)
        rows = csv.DictReader(table.read_text().splitlines())
        return [[row[k] for k in ("method", "steps", "test_iid")] for row in rows]

    assert collected(0.123456) == [["focal", "20", "0.12346"]]
    assert collected(2.0, method="corro") == [["focal", "20", "0.12346"], ["corro", "20", "2"]]
    assert collected(3.0, steps=40)[-1] == ["focal", "40", "3"]  # another run
    again = collected(4.0)  # the same run
    assert again == [["focal", "20", "4"], ["corro", "20", "2"], ["focal", "40", "3"]]
