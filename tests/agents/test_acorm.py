"""ACORM's own: every switch and every defect, targets by hand, masks, resuming, learning."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn
from toy import Team
from trees import assert_same

import agents
from agents import ACORM, ConfigError
from agents.acorm import Defect
from agents.core.log import NonFiniteError
from envs.base import BatchedEnv

TINY = {
    "num_envs": 4, "horizon": 10, "batch_size": 4, "updates": 2, "capacity": 240,
    "pretrain_embedding": 2, "pretrain_roles": 2, "contrastive_interval": 2,
    "embedding_size": 16, "role_size": 8, "hidden": 8, "hyper_hidden": 8, "clusters": 2,
    "epsilon_steps": 300, "log_interval": 1, "eval_episodes": 8, "total_timesteps": 560,
}  # fmt: skip
PLAIN = {"roles": False, "attention": "none"}


def make(env=None, **settings):
    return ACORM(Team(4) if env is None else env, **TINY | settings)


def filled(steps=160, **settings):
    """An agent with episodes in memory that has not learnt anything."""
    agent = make(updates=1, **settings)
    agent._obs, agent._state = agent.env.reset(seed=0)[0], agent.initial_state(4)
    while agent.num_timesteps < steps:
        agent.collect()
    return agent


class Cue(BatchedEnv):
    """Two agents see a cue in 0, 1 at the first of three steps, and must name it at the last."""

    max_episode_steps, num_agents = 3, 2

    def __init__(self, num_envs, device="cpu", seed=0):
        box = gym.spaces.Box(-1, 1, (2, 2), np.float32)
        super().__init__(num_envs, box, gym.spaces.MultiDiscrete([2, 2]), device, seed)
        self.cue = torch.zeros(num_envs, 2, dtype=torch.int64)

    def _begin(self, mask):
        self.cue = torch.where(mask[:, None], self.rng.uniform(2) < 0.5, self.cue).long()

    def _advance(self, action):
        last = self.elapsed == 2
        return (action == self.cue).float().mean(-1) * last, last, {}

    def _observe(self):
        shown = (self.elapsed == 0)[:, None] * (2.0 * self.cue - 1)
        return torch.stack([shown, (self.elapsed[:, None] / 2).expand(-1, 2)], -1)

    def _state(self):
        return {"cue": self.cue}


# ---- the contract, as of every agent


@pytest.mark.parametrize(
    "settings",
    [
        {},
        PLAIN | {"mixer": "vdn", "agent_id": True},
        PLAIN | {"mixer": "iql", "td_lambda": 0.6},
        {"joint_embedding": True, "attention": "small", "mixer_reads": "history"},
        {"role_norm": True, "cluster_across": "batch", "per_agent_epsilon": True},
        {"defects": list(Defect.__args__)},
    ],
)
def test_save_load_continues_bit_for_bit(tmp_path, settings):
    settings = {**TINY, **settings, "env": "particles/spread"}
    settings["env_kwargs"] = {"actions": "discrete", "horizon": 10}
    whole = ACORM(**settings).learn()
    assert whole.progress.steps >= 10
    half = ACORM(**settings).learn(total_timesteps=320)
    half.save(tmp_path / "a.ckpt")
    resumed = agents.load(tmp_path / "a.ckpt").learn()
    assert_same(whole.state_dict(), resumed.state_dict())


def test_episodes_that_a_reset_cuts_do_not_go_on():
    settings = TINY | {"env": "particles/spread", "horizon": 7}
    settings["env_kwargs"] = {"actions": "discrete", "horizon": 10}
    agent = ACORM(**settings).learn(total_timesteps=7 * 16)
    tree = agent.state_dict()
    assert (agent.memory.steps()["ended"][-1] == 0).all()
    for device, ended in (("cpu", 0), ("elsewhere", 2)):  # whose environments do not move
        other = ACORM(**settings)
        other.load_state_dict(tree | {"device": device})
        assert (other.memory.steps()["ended"][-1] == ended).all()


class Odd(Cue):
    """Pays in float64 and shows its state as integers."""

    def _advance(self, action):
        reward, *rest = super()._advance(action)
        return reward.double(), *rest

    def context(self):
        return {"state": self.cue}


def test_rewards_and_states_of_other_types_come_back(tmp_path):
    agent = make(Odd(4)).learn(total_timesteps=80)
    agent.save(tmp_path / "a.ckpt")
    other = ACORM.load(tmp_path / "a.ckpt", env=Odd(4))
    assert_same(other.learn().state_dict(), agent.learn().state_dict())


def test_one_seed_one_training_and_evaluating_does_not_change_it():
    plain, disturbed = make().learn(), make()

    def disturb(agent, row):
        torch.rand(3)
        agent.evaluate(Team(8), 8)
        masks = np.ones((2, 3, 4), bool)
        agent.predict(np.zeros((2, 3, 1), np.float32), action_masks=masks)

    disturbed.learn(callback=disturb)
    assert_same(plain.state_dict(), disturbed.state_dict())
    other = make(seed=1).learn()
    first, second = (a.networks["utility"].head.weight for a in (plain, other))
    assert not torch.equal(first, second)


def test_predict_needs_masks_and_obeys_them():
    agent = make()
    obs, masks = np.zeros((5, 3, 1), np.float32), np.zeros((5, 3, 4), bool)
    masks[..., 2] = True
    for deterministic in (True, False):
        action, state = agent.predict(obs, deterministic=deterministic, action_masks=masks)
        assert isinstance(action, np.ndarray) and (action == 2).all()
    action, state = agent.predict(obs[0], action_masks=masks[0])
    assert action.tolist() == [2, 2, 2]
    assert state["last"].tolist() == [[2, 2, 2]]
    with pytest.raises(ValueError, match="action_masks: this environment needs them"):
        agent.predict(obs)
    with pytest.raises(ValueError, match=r"action_masks: expected shape \(5, 3, 4\), got \(3, 4\)"):
        agent.predict(obs, action_masks=masks[0])
    free = make("particles/spread", env_kwargs={"actions": "discrete"})
    assert free.predict(np.zeros((3, 18), np.float32))[0].shape == (3,)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_trains_on_the_same_code_path():
    agent = ACORM(Team(4, "cuda"), **TINY, device="cuda").learn()
    assert agent.num_timesteps >= 560


def test_moves_to_another_number_of_environments(tmp_path):
    agent = make().learn()
    agent.save(tmp_path / "a.ckpt")
    loaded = agents.load(tmp_path / "a.ckpt", env=Team(2), num_envs=2)
    assert torch.equal(
        agent.networks["utility"].head.weight, loaded.networks["utility"].head.weight
    )
    assert loaded.learn(total_timesteps=640).num_timesteps >= 640


# ---- acting


@pytest.mark.parametrize("deterministic", [True, False])
def test_never_takes_what_is_not_available(deterministic):
    agent, env = make(), Team(64)
    (obs, info), state = env.reset(seed=0), agent.initial_state(64)
    gone = 0
    for _ in range(12):
        action, state = agent.act(obs, agent.perceive(state, info), deterministic)
        assert info["avail_actions"].gather(2, action[..., None]).all()
        gone += int((~info["alive"]).sum())
        obs, _, _, _, info = env.step(action)
    assert gone > 0 or deterministic


@pytest.mark.parametrize("each", [False, True])
def test_the_whole_team_explores_or_each_agent(each):
    agent = make(per_agent_epsilon=each, epsilon=[0.5, 0.5])
    best = torch.full((4096, 3), 3)
    action = agent._explore(best, torch.ones(4096, 3, 4, dtype=torch.bool))
    together = (action == 3).all(-1).float().mean().item()
    expected = 0.625**3 if each else 0.5 + 0.5 / 4**3
    assert together == pytest.approx(expected, abs=4 * 0.5 / 64)


def test_exploration_falls_linearly():
    agent = make(epsilon=[1.0, 0.0], epsilon_steps=100)
    best, all_of_them = torch.full((4096, 3), 3), torch.ones(4096, 3, 4, dtype=torch.bool)
    for steps, share in ((0, 1.0), (50, 0.5), (100, 0.0), (500, 0.0)):
        agent.num_timesteps = steps
        moved = (agent._explore(best, all_of_them) != 3).any(-1).float().mean().item()
        assert moved == pytest.approx(share * (1 - 1 / 64), abs=0.035)


def test_what_is_learnt_from_is_what_was_acted_on():
    # The memory of acting, carried step by step, and learning over whole episodes agree.
    agent = filled(steps=120, epsilon=[0.0, 0.0])
    batch = agent._sample()
    embedding, _ = agent.roles.embed(batch["seen"])
    role = agent.roles.encoder(embedding)
    q, _ = agent._utility(agent.networks, batch["seen"], embedding, role)
    best = q.masked_fill(~batch["available"], -1e9).argmax(-1)
    agree = (best == batch["action"])[batch["mask"]].float().mean()
    assert agree > 0.99  # observations are remembered in half precision
    assert agree > (q.argmax(-1) == 0)[batch["mask"]].float().mean()


# ---- targets


class Table(nn.Module):
    """Q of every action is the observation (the health) times a constant of the action."""

    def __init__(self, values):
        super().__init__()
        self.values = torch.tensor(values)

    def forward(self, x, hidden=None):
        return x[..., :1] * self.values, hidden


def test_the_target_is_double_q_learning_by_hand():
    agent = make(**PLAIN, mixer="vdn", gamma=0.5)
    agent.networks["utility"] = Table([0.0, 1.0, 2.0, 3.0])
    agent.targets["utility"] = Table([4.0, 5.0, 7.0, 6.0])
    obs = torch.tensor([[[1.0], [1.0]], [[2.0], [1.0]]])[:, None]  # [T=2, B=1, A=2, 1]
    available = torch.ones(2, 1, 2, 4, dtype=torch.bool)
    available[1, 0, 1] = torch.tensor([True, False, True, False])
    action = torch.tensor([[[1, 3]], [[0, 2]]])
    batch = {
        "obs": obs, "seen": obs, "state": torch.zeros(2, 1, 1), "action": action,
        "available": available, "reward": torch.tensor([[1.0], [10.0]]),
        "going": torch.tensor([[1.0], [0.0]]), "cut": torch.zeros(2, 1, dtype=torch.bool),
        "learnt": torch.ones(2, 1, dtype=torch.bool),
    }  # fmt: skip
    q, _ = agent.networks["utility"](obs)
    target = agent._target(batch, q, None, None)
    # At t = 1 the online network prefers 3 and, of 0 and 2, 2; the target network values them.
    assert target.flatten().tolist() == [1 + 0.5 * (2 * 6 + 7), 10.0]
    loss, _ = agent._td_loss(batch)
    total = torch.tensor([1.0 + 3.0, 0.0 + 2.0])
    assert loss.item() == pytest.approx((total - target.flatten()).square().mean().item())
    batch["learnt"][1] = False
    assert agent._td_loss(batch)[0].item() == pytest.approx((4 - 10.5) ** 2)
    agent.config.reward_scale = 3.0
    assert agent._target(batch, q, None, None).flatten().tolist() == [3 + 0.5 * (2 * 6 + 7), 30.0]


@pytest.mark.parametrize("name", ["mixer", "attention"])
def test_targets_are_mixed_by_the_slow_networks(name):
    agent = filled()
    batch = agent._sample()
    with torch.no_grad():
        embedding, _ = agent.roles.embed(batch["seen"])
        role = agent.roles.encoder(embedding)
        q, _ = agent._utility(agent.networks, batch["seen"], embedding, role)
        before = agent._target(batch, q, embedding, role)
        for networks, moves in ((agent.networks, False), (agent.targets, True)):
            for parameter in networks[name].parameters():
                parameter.add_(0.1)
            after = agent._target(batch, q, embedding, role)
            assert torch.equal(before, after) is not moves


def ends(mask):
    return mask & ~torch.cat([mask[1:], torch.zeros_like(mask[:1])])


def test_an_end_is_learnt_and_a_cut_is_not():
    class Short(Team):
        max_episode_steps = 4

    agent = ACORM(Short(4), **TINY | {"batch_size": 8})
    agent._obs, agent._state = agent.env.reset(seed=0)[0], agent.initial_state(4)
    for _ in range(4):
        agent.collect()
    batch = agent._sample()
    last = ends(batch["mask"])
    assert batch["cut"].any()
    assert torch.equal(batch["learnt"], batch["mask"] & ~(last & batch["cut"]))
    ended = filled()._sample()
    terminated = ends(ended["mask"]) & (ended["going"] == 0)
    assert terminated.any() and ended["learnt"][terminated].all()


def test_iql_learns_what_follows_a_death():
    """The last step of the living bootstraps from the value of the dead, which must be learnt."""
    agent = filled(**PLAIN, mixer="iql")
    batch = agent._sample()
    dead = batch["mask"][..., None] & ~batch["alive"]
    assert dead.any()
    none = batch | {"alive": torch.zeros_like(batch["alive"])}
    assert agent._td_loss(none)[0] == agent._td_loss(batch)[0] > 0


# ---- every switch does what it says


def unchanged(module, before):
    return all(torch.equal(a, b) for a, b in zip(module.parameters(), before, strict=True))


def copies(module):
    return [p.detach().clone() for p in module.parameters()]


def test_training_begins_with_the_embedding_then_roles_then_values():
    agent = filled(pretrain_embedding=1, pretrain_roles=1, contrastive_interval=2)
    body, encoder, utility = agent.roles.body, agent.roles.encoder, agent.networks["utility"]
    names = []
    for moved in ({"body"}, {"encoder"}, {"body", "encoder", "utility"}):
        before = {"body": copies(body), "encoder": copies(encoder), "utility": copies(utility)}
        names.append(set(agent._learn(agent._sample())))
        modules = {"body": body, "encoder": encoder, "utility": utility}
        assert {n for n, m in modules.items() if not unchanged(m, before[n])} == moved
    assert names[:2] == [{"embedding/loss"}, {"roles/information"}]
    assert names[2] == {"value/loss", "value/mean"}
    assert "roles/information" in agent._learn(agent._sample())  # every second step


def test_the_embedding_predicts_the_next_observation_where_there_is_one():
    agent = filled()
    batch, told = agent._sample(), []
    agent.roles.decoding_loss = lambda embedding, following, known: (
        told.extend([following, known]) or embedding.square().mean()
    )
    agent._pretrain(batch)
    following, known = told
    assert torch.equal(known[:-1], batch["mask"][1:]) and not known[-1].any()
    assert torch.equal(following[:-1][known[:-1]], batch["obs"][1:][known[:-1]])
    assert not torch.equal(following[known], batch["obs"][known])


def test_without_contrast_there_is_none():
    agent = filled(contrastive_interval=0, pretrain_embedding=0)
    before = copies(agent.roles.key_encoder)
    for _ in range(3):
        assert "roles/information" not in agent._learn(agent._sample())
    assert unchanged(agent.roles.key_encoder, before)


def test_the_key_encoder_follows_the_contrastive_step():
    agent = filled(key_rate=0.25)
    before = copies(agent.roles.key_encoder)
    agent._contrast(agent._sample())
    triples = zip(agent.roles.key_encoder.parameters(), before,
                  agent.roles.encoder.parameters(), strict=True)  # fmt: skip
    for key, old, encoder in triples:
        assert torch.allclose(key, old + 0.25 * (encoder - old), atol=1e-7)
        assert not torch.equal(key, old)


@pytest.mark.parametrize("trained", [False, True])
def test_the_contrastive_loss_may_train_the_embedding(trained):
    agent = filled(contrastive_embedding=trained)
    before = copies(agent.roles.body)
    agent._contrast(agent._sample())
    assert unchanged(agent.roles.body, before) is not trained


def test_the_learning_rate_decays_and_targets_follow():
    agent = filled(pretrain_embedding=0, pretrain_roles=0, target_interval=3, target_rate=1.0)
    agent.progress.steps = 1000
    agent._learn(agent._sample())
    assert agent.optimizers["value"].param_groups[0]["lr"] == pytest.approx(6e-4 * 0.98**2)
    assert not unchanged(agent.targets["mixer"], copies(agent.networks["mixer"]))
    agent._learn(agent._sample())
    assert unchanged(agent.targets["mixer"], copies(agent.networks["mixer"]))  # step 1002


def test_the_joint_embedding_has_no_second_memory():
    assert "hidden" in make().initial_state(1)
    assert "hidden" not in make(joint_embedding=True).initial_state(1)


def test_td_lambda_looks_further_ahead():
    near, far = (filled(**PLAIN, mixer="vdn", td_lambda=v) for v in (0.0, 0.9))
    for agent in (near, far):
        agent.targets["utility"] = Table([0.0] * 4)  # nothing follows, as far as it knows
    batch = near._sample()
    q = torch.zeros(*batch["action"].shape, 4)
    near, far = (a._target(batch, q, None, None)[..., 0] for a in (near, far))
    torch.testing.assert_close(near, batch["reward"])
    inner = batch["learnt"] & (batch["going"] == 1)
    assert (far[inner] <= near[inner]).all() and (far < near)[inner].any()  # rewards are negative


def test_agents_are_told_who_they_are():
    agent = make(**PLAIN, mixer="vdn", agent_id=True)
    q, _ = agent._utility(agent.networks, torch.zeros(1, 1, 3, 5), None, None)
    assert not torch.allclose(q[0, 0, 0], q[0, 0, 1])
    agent = make(**PLAIN, mixer="vdn")
    q, _ = agent._utility(agent.networks, torch.zeros(1, 1, 3, 5), None, None)
    assert torch.equal(q[0, 0, 0], q[0, 0, 1])


# ---- and so does every defect


def test_lagged_action():
    right, wrong = filled(), filled(defects=["lagged-action"])
    right, wrong = right._sample(), wrong._sample()
    one_hot = torch.nn.functional.one_hot(right["action"], 4).float()
    assert torch.equal(right["seen"][1:, ..., 1:], one_hot[:-1])
    assert torch.equal(wrong["seen"][2:, ..., 1:], one_hot[:-2])


def test_blind_target():
    for defects, sees in (([], True), (["blind-target"], False)):
        agent = filled(defects=defects)
        batch = agent._sample()
        changed = batch | {"seen": batch["seen"].clone()}
        changed["seen"][0] += 1
        embedding, _ = agent.roles.embed(batch["seen"])
        role = agent.roles.encoder(embedding)
        q, _ = agent._utility(agent.networks, batch["seen"], embedding, role)
        targets = [agent._target(b, q, embedding, role)[0] for b in (batch, changed)]
        assert torch.equal(*targets) is not sees


def test_shared_target():
    for defects in ([], ["shared-target"]):
        agent = filled(defects=defects, pretrain_embedding=0, pretrain_roles=0)
        agent._learn(agent._sample())
        online, target = (n["attention"] for n in (agent.networks, agent.targets))
        assert unchanged(target.history, copies(online.history)) is bool(defects)
        assert not unchanged(target.query, copies(online.query))


def test_key_gradient():
    for defects in ([], ["key-gradient"]):
        agent = filled(defects=defects, key_rate=1e-9)
        before = copies(agent.roles.key_encoder)
        agent._contrast(agent._sample())
        moved = max(
            (a - b).abs().max().item()
            for a, b in zip(before, agent.roles.key_encoder.parameters(), strict=True)
        )
        assert (moved > 1e-4) is bool(defects)


def test_rare_contrast():
    agent = filled(defects=["rare-contrast"])
    batch = agent._sample()
    batch["mask"][-1, -1] = False
    assert agent._contrast(batch) == {}
    batch["mask"][-1, -1] = True
    assert agent._contrast(batch)


def test_dead_agents():
    for defects in ([], ["dead-agents"]):
        agent = filled(defects=defects)
        batch = agent._sample()
        dead = batch["mask"][..., None] & ~batch["alive"]
        assert dead.any()
        seen, loss = [], agent.roles.contrastive_loss

        def watch(embedding, counts, *rest, seen=seen, loss=loss):
            seen.append(counts)
            return loss(embedding, counts, *rest)

        agent.roles.contrastive_loss = watch
        agent._contrast(batch)
        assert bool((seen[0] & dead).any()) is bool(defects)
        assert not (seen[0] & ~batch["mask"][..., None]).any()


# ---- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clusters": 0}, "clusters=0: expected at least 1"),
        ({"roles": False}, "roles=False: expected attention=none and no joint_embedding"),
        ({"mixer": "vdn"}, "attention='wide': expected none unless mixer=qmix"),
        ({"epsilon": [0.1, 0.5]}, "epsilon"),
        ({"defects": ["laged-action"]}, "defects"),
        ({"td_lambda": 1.5}, "td_lambda=1.5"),
        ({"reward_scale": 0.0}, "reward_scale=0.0"),
    ],
)
def test_refuses_with_one_clear_line(settings, message):
    with pytest.raises(ConfigError, match=message) as error:
        make(**settings)
    assert "\n" not in str(error.value)


def test_the_memory_holds_an_episode():
    wanted = r"capacity=320: expected at least 7680, batch_size=32 episodes of 60"
    with pytest.raises(ConfigError, match=wanted):
        ACORM("combat/3m", num_envs=64, capacity=320)


def test_the_smallest_memory_learns():
    """A smaller one may never hold a batch of the longest episodes from their first step on."""
    least = 4 * Team(4).max_episode_steps * 2
    with pytest.raises(ConfigError, match=f"capacity={least - 4}: expected at least {least}"):
        make(capacity=least - 4)
    agent = make(capacity=least)
    agent.learn(total_timesteps=8 * least)
    assert agent.memory.full
    assert agent.memory.count_episodes("ended") >= 4


class Loud(Cue):
    """A cue whose observation, or state, is too large for half precision."""

    def __init__(self, num_envs, obs=1.0, state=1.0):
        super().__init__(num_envs)
        self.scale = obs, state

    def _observe(self):
        return super()._observe() * self.scale[0]

    def context(self):
        return {"state": super()._observe().flatten(1) * self.scale[1]}


@pytest.mark.parametrize("name", ["obs", "state"])
def test_what_half_precision_cannot_hold_is_named(name):
    settings = TINY | {"total_timesteps": 80}
    with pytest.raises(
        ConfigError, match=f"precision=float16: '{name}' reaches 70000, expected at most 65504"
    ):
        ACORM(Loud(4, **{name: 7e4}), **settings).learn()
    ACORM(Loud(4, **{name: 6e4}), **settings).learn()
    agent = ACORM(Loud(4, **{name: 7e4}), **settings, precision="float32").learn()
    assert agent.memory.steps()[name].abs().max() == 7e4
    with pytest.raises(NonFiniteError, match=f"{'observation' if name == 'obs' else name}: NaN"):
        ACORM(Loud(4, **{name: float("inf")}), **settings).learn()


def test_needs_a_team_with_discrete_actions():
    with pytest.raises(ConfigError, match="needs the same discrete actions for all"):
        make("particles/spread")
    with pytest.raises(ConfigError, match="needs several agents"):
        make("gym/CartPole-v1")


def test_five_thousand_episodes_of_mmm2_take_two_gigabytes():
    """At the 90 steps they may last on average; it has 180, and the published replay 17.8 GB."""
    agent = make("combat/MMM2", num_envs=2, capacity=1080)
    size = sum(r[0, 0].numel() * r.element_size() for r in agent.memory._rows.values())
    assert size * 5000 * 90 <= 2e9
    obs = agent.env.reset(seed=0)[0]
    assert (obs.half().float() - obs).abs().max() < 5e-4


# ---- learning


@pytest.mark.parametrize("settings", [{}, {"joint_embedding": True, "attention": "small"}])
def test_learns_what_it_must_remember(settings):
    agent = ACORM(
        Cue(16), num_envs=16, horizon=6, updates=2, batch_size=32, capacity=4000, clusters=2,
        embedding_size=32, role_size=16, hidden=32, pretrain_embedding=20, pretrain_roles=10,
        contrastive_interval=10, lr=3e-3, epsilon_steps=6000, target_rate=0.05, gamma=0.9,
        total_timesteps=9600, **settings,
    )  # fmt: skip
    before = agent.evaluate(Cue(256), 256)["return_mean"]
    agent.learn()
    after = agent.evaluate(Cue(256), 256)["return_mean"]
    assert before < 0.8
    assert after > 0.95
