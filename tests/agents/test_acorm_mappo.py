"""ACORM on MAPPO: resuming, masks, advantages and memories across ends of episodes, learning."""

import numpy as np
import pytest
import torch
from test_acorm import Cue
from toy import Team
from trees import assert_same

import agents
from agents import ACORMMAPPO, ConfigError

TINY = {
    "num_envs": 4, "horizon": 10, "embedding_size": 16, "role_size": 8, "hidden": 16,
    "critic_hidden": 16, "clusters": 2, "epochs": 2, "minibatches": 2, "contrastive_interval": 2,
    "pretrain": 1,
    "log_interval": 1, "eval_episodes": 8, "total_timesteps": 240,
}  # fmt: skip


def make(env=None, **settings):
    return ACORMMAPPO(Team(4) if env is None else env, **TINY | settings)


def collected(**settings):
    agent = make(**settings)
    agent._obs, agent._state = agent.env.reset(seed=0)[0], agent.initial_state(4)
    agent.collect()
    return agent


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"roles": False, "attention": False},
        {"small_attention": True, "cluster_across": "batch", "contrastive_embedding": True},
        {"defects": ["key-gradient", "dead-agents"]},
    ],
)
def test_save_load_continues_bit_for_bit(tmp_path, settings):
    settings = {**TINY, **settings, "env": "particles/spread"}
    settings["env_kwargs"] = {"actions": "discrete", "horizon": 15}
    whole = ACORMMAPPO(**settings).learn()
    half = ACORMMAPPO(**settings).learn(total_timesteps=120)
    half.save(tmp_path / "a.ckpt")
    resumed = agents.load(tmp_path / "a.ckpt").learn()
    assert_same(whole.state_dict(), resumed.state_dict())


def test_moves_to_another_number_of_environments(tmp_path):
    agent = make().learn()
    agent.save(tmp_path / "a.ckpt")
    loaded = agents.load(tmp_path / "a.ckpt", env=Team(2), num_envs=2)
    assert torch.equal(agent.actor[0].weight, loaded.actor[0].weight)
    assert loaded.learn(total_timesteps=280).num_timesteps >= 280


def test_evaluating_and_predicting_do_not_change_training():
    plain, disturbed = make().learn(), make()

    def disturb(agent, row):
        agent.evaluate(Team(8), 8)
        masks = np.ones((2, 3, 4), bool)
        agent.predict(np.zeros((2, 3, 1), np.float32), action_masks=masks)

    disturbed.learn(callback=disturb)
    assert_same(plain.state_dict(), disturbed.state_dict())


@pytest.mark.parametrize("deterministic", [True, False])
def test_never_takes_what_is_not_available(deterministic):
    agent, env = make(), Team(64)
    (obs, info), state = env.reset(seed=0), agent.initial_state(64)
    for _ in range(12):
        action, state = agent.act(obs, agent.perceive(state, info), deterministic)
        assert info["avail_actions"].gather(2, action[..., None]).all()
        obs, _, _, _, info = env.step(action)


def test_values_see_the_memory_of_their_own_episode_only():
    agent = collected(horizon=20)
    batch = agent.memory.steps()
    before = {"embedding": batch["embedding"][0], **agent.before.values}
    starts = batch["starts"].bool()
    assert starts[0].all() and starts[1:].any()
    whole = agent.critic.remember(batch["obs"], batch["state"], before, starts)
    row = int(starts[1:].any(0).nonzero()[0, 0])
    t = int(starts[1:, row].nonzero()[0, 0]) + 1
    fresh = {k: torch.zeros_like(v[:1]) for k, v in before.items()}
    alone = agent.critic.remember(
        batch["obs"][t : t + 1, row : row + 1], batch["state"][t : t + 1, row : row + 1], fresh
    )
    for name in whole:
        torch.testing.assert_close(whole[name][t, row], alone[name][0, 0])
    # What acting remembered is what learning computes.
    hidden = agent.roles.body(batch["obs"], before["embedding"], starts)
    torch.testing.assert_close(hidden[:-1][~starts[1:]], batch["embedding"][1:][~starts[1:]])


def test_the_next_value_is_that_of_the_true_successor():
    agent = collected(horizon=20)
    batch = agent.memory.steps()
    before = {"embedding": batch["embedding"][0], **agent.before.values}
    starts = batch["starts"].bool()
    memory = agent.critic.remember(batch["obs"], batch["state"], before, starts)
    hidden = agent.roles.body(batch["obs"], before["embedding"], starts)
    role = agent.roles.encoder(agent.roles.output(hidden))
    value = agent.critic(memory, batch["state"], role)
    following = agent._next_value(batch, memory, hidden)
    inner = ~starts[1:]
    torch.testing.assert_close(following[:-1][inner], value[1:][inner])
    assert not torch.allclose(following[:-1][~inner], value[1:][~inner])


def test_the_critic_remembers_from_rollout_to_rollout():
    agent = make()
    agent.learn(total_timesteps=40)
    ended = agent._state["fresh"]
    for value in agent.before.values.values():
        assert (value[ended] == 0).all() and (value[~ended] != 0).any()


def test_the_dead_teach_the_critic_alone():
    """Advantages before a death bootstrap from the values after it."""
    agent = collected()
    batch = agent.memory.steps()
    batch |= {name: batch[name].bool() for name in ("available", "alive", "starts")}
    before = {"embedding": batch["embedding"][0], **agent.before.values}
    batch |= agent._advantages(batch, before)
    assert (~batch["alive"]).any()
    right = agent._losses(batch, before)
    batch["advantage"] = torch.where(batch["alive"], batch["advantage"], 100.0)
    batch["returns"] = torch.where(batch["alive"], batch["returns"], 100.0)
    wrong = agent._losses(batch, before)
    for name, value in right.items():
        if name != "critic/loss":
            torch.testing.assert_close(value, wrong[name])
    assert wrong["critic/loss"] > right["critic/loss"] + 1
    assert right["policy/kl"].abs() < 1e-6  # nothing has moved yet


def test_one_living_agent_is_enough_to_learn_from(monkeypatch):
    agent = collected(pretrain=0)
    batch = agent.memory.steps()
    batch["alive"] = torch.zeros_like(batch["alive"])
    batch["alive"][3, 1, 0] = 1
    monkeypatch.setattr(agent.memory, "steps", lambda: batch)
    assert all(value.isfinite() for value in agent.update().values())
    assert all(p.isfinite().all() for p in agent.actor.parameters())


def test_a_pass_takes_as_many_gradient_steps_as_it_is_told(monkeypatch):
    agent = ACORMMAPPO(Team(5), **TINY | {"num_envs": 5, "minibatches": 4, "pretrain": 0})
    rows, losses = [], agent._losses

    def counted(batch, before):
        rows.append(batch["reward"].shape[1])
        return losses(batch, before)

    monkeypatch.setattr(agent, "_losses", counted)
    agent.learn(total_timesteps=50)
    assert rows == [2, 1, 1, 1] * 2


def test_roles_get_no_gradient_from_the_critic():
    agent = collected()
    batch = agent.memory.steps()
    batch |= {name: batch[name].bool() for name in ("available", "alive", "starts")}
    before = {"embedding": batch["embedding"][0], **agent.before.values}
    batch |= agent._advantages(batch, before)
    agent._losses(batch, before)["critic/loss"].backward()
    assert all(p.grad is None for p in agent.roles.parameters())
    assert all(p.grad is not None for p in agent.critic.head.parameters())


def moved(agent, update):
    """Names of the networks that `update` changes."""
    roles = agent.roles
    networks = {
        "body": roles.body, "output": roles.output, "decoder": roles.decoder,
        "encoder": roles.encoder, "key": roles.key_encoder, "contrast": roles.contrast,
        "actor": agent.actor, "critic": agent.critic,
    }  # fmt: skip
    before = {k: [p.detach().clone() for p in m.parameters()] for k, m in networks.items()}
    update()
    pairs = {k: zip(before[k], m.parameters(), strict=True) for k, m in networks.items()}
    return {k for k, both in pairs.items() if any(not torch.equal(a, b) for a, b in both)}


@pytest.mark.parametrize("contrastive", [0, 100])
def test_pretraining_trains_the_embedding_and_roles_and_then_everything_learns(contrastive):
    agent = collected(pretrain=1, contrastive_interval=contrastive)
    roles = {"encoder", "key", "contrast"} if contrastive else set()
    assert moved(agent, agent.update) == {"body", "output", "decoder"} | roles
    agent.num_updates = 1
    agent.collect()
    learnt = {"body", "output", "encoder", "key", "actor", "critic"}  # keys follow every update
    assert moved(agent, agent.update) == learnt
    without = collected(pretrain=1, roles=False, attention=False)
    assert {"actor", "critic"} <= moved(without, without.update)


def test_the_embedding_predicts_the_next_observation_where_there_is_one():
    agent, told = collected(horizon=20), []
    batch = agent.memory.steps()
    batch["starts"] = batch["starts"].bool()
    before = {"embedding": batch["embedding"][0]}
    agent.roles.decoding_loss = lambda embedding, following, known: (
        told.extend([following, known]) or embedding.square().mean()
    )
    agent._pretrain(batch, before)
    following, known = told
    assert torch.equal(known[:-1], ~batch["starts"][1:]) and not known.all()
    assert torch.equal(following[:-1][known[:-1]], batch["obs"][1:][known[:-1]])


@pytest.mark.parametrize("defects", [[], ["key-gradient"]])
def test_key_gradient(defects):
    agent = collected(defects=defects, key_rate=1e-9)
    batch = agent.memory.steps()
    batch |= {name: batch[name].bool() for name in ("alive", "starts")}
    before = [p.detach().clone() for p in agent.roles.key_encoder.parameters()]
    agent._contrast(batch, {"embedding": batch["embedding"][0]})
    pairs = zip(before, agent.roles.key_encoder.parameters(), strict=True)
    assert (max((a - b).abs().max().item() for a, b in pairs) > 1e-5) is bool(defects)


@pytest.mark.parametrize("defects", [[], ["dead-agents"]])
def test_dead_agents(defects):
    agent, seen = collected(defects=defects), []
    batch = agent.memory.steps()
    batch |= {name: batch[name].bool() for name in ("alive", "starts")}
    loss = agent.roles.contrastive_loss
    agent.roles.contrastive_loss = lambda embedding, counts, *rest: (
        seen.append(counts) or loss(embedding, counts, *rest)
    )
    agent._contrast(batch, {"embedding": batch["embedding"][0]})
    assert not batch["alive"].all()
    expected = torch.ones_like(batch["alive"]) if defects else batch["alive"]
    assert torch.equal(seen[0], expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pretrain": -1}, "pretrain=-1: expected at least 0"),
        ({"defects": ["lagged-action"]}, "defects"),
        ({"roles": False}, "attention=True: expected False without roles"),
        ({"minibatches": 9}, "minibatches=9: expected at most num_envs=4"),
    ],
)
def test_refuses_with_one_clear_line(settings, message):
    with pytest.raises(ConfigError, match=message):
        make(**settings)


def test_learns_what_it_must_remember():
    agent = ACORMMAPPO(
        Cue(64), num_envs=64, horizon=6, embedding_size=16, role_size=8, hidden=32, clusters=2,
        critic_hidden=32, lr=5e-3, epochs=4, total_timesteps=64 * 6 * 42, contrastive_interval=4,
        pretrain=2,
    )  # fmt: skip
    before = agent.evaluate(Cue(256), 256)["return_mean"]
    agent.learn()
    assert before < 0.8
    assert agent.evaluate(Cue(256), 256)["return_mean"] > 0.95
