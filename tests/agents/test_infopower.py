"""InfoPower: what each term is, that empowerment cannot leak, and the contract of an agent."""

import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from pixel_toy import Square
from torch.nn import functional
from trees import assert_same

import agents
import envs
import train
from agents import AGENTS, ConfigError, InfoPower
from agents.core.checkpoint import CheckpointError, load_checkpoint
from agents.core.config import build, read_yaml
from agents.core.run import Run

TINY = {
    "num_envs": 4,
    "depth": 4, "deter": 16, "stoch": 8, "units": 16, "batch_size": 4, "batch_length": 6,
    "horizon": 3, "imagination_starts": 8, "prefill": 40, "replay_capacity": 2000,
    "collect_steps": 5, "gradient_steps": 2, "total_timesteps": 120, "log_interval": 1,
    "checkpoint_interval": 1, "eval_episodes": 4,
}  # fmt: skip


def tiny(env=None, **settings) -> InfoPower:
    return InfoPower(Square() if env is None else env, **{**TINY, **settings})


def filled(env, **settings) -> InfoPower:
    """An agent whose memory holds random actions, before it has learnt anything."""
    agent = InfoPower(env, **{**TINY, "prefill": 10**6, **settings})
    agent._obs, _ = env.reset(seed=0)
    agent._state = agent.initial_state(env.num_envs)
    for _ in range(agent.config.replay_capacity // env.num_envs // agent.rollout_steps):
        agent.collect()
    return agent


# ---- the leak


LEAK = {
    "depth": 8, "deter": 32, "units": 32, "batch_size": 16, "batch_length": 8,
    "replay_capacity": 6400, "model_lr": 2e-3, "observation_weight": 1.0,
}  # fmt: skip


def empowerment_of_noise(code: str, steps: int = 220, **settings) -> float:
    """Estimate [nats] on fresh data where images are noise, after training on such data."""
    agent = filled(Square(16, noise=True), code=code, **LEAK, **settings)
    for _ in range(steps):
        agent._update_model(agent.sample())
    agent.replay.clear()
    for _ in range(12):
        agent.collect()
    with torch.no_grad():
        values = [agent.terms(agent.sample())[1]["empowerment"] for _ in range(20)]
    return torch.stack(values).mean().item()


def test_empowerment_does_not_leak_through_the_recurrent_state():
    assert empowerment_of_noise("observation") <= 0.1


def test_empowerment_of_several_steps_does_not_leak():
    assert empowerment_of_noise("observation", inverse_steps=3) <= 0.1


def test_published_empowerment_leaks():
    """The published inverse model sees (h, z), where h was fed the action: it fails the test."""
    assert empowerment_of_noise("recurrent") > 1.0


def test_empowerment_is_found_where_there_is_some():
    agent = filled(Square(16), **LEAK)
    for _ in range(220):
        _, metrics = agent._update_model(agent.sample())
    assert metrics["information/empowerment"] > 0.5


def test_empowerment_does_not_encode_what_actions_are_chosen_by():
    """Actions copy the brightness of the picture before, and nothing depends on them.

    A code that tells the brightness makes them predictable from their start, which is no control:
    with the gradient through the start R² is 0.9.
    """
    agent = tiny(**LEAK | {"observation_weight": 0.0}, constraint="none", empowerment_weight=10.0)
    generator = torch.Generator().manual_seed(0)

    def batch() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        level = 0.5 * torch.randn(16, 8, 2, generator=generator)
        image = torch.randint(0, 256, (16, 8, 3, 48, 48), generator=generator).float()
        image += 12 * level.repeat_interleave(24, -1)[:, :, None, None]
        action = functional.pad(level[:, :-1], (0, 0, 1, 0)).clamp(-1, 1)
        first = (torch.arange(8) == 0).expand(16, 8)
        nothing = torch.zeros(16, 8)
        return {
            "obs": image.clamp(0, 255).to(torch.uint8), "action": action, "reward": nothing,
            "terminated": nothing, "first": first,
        }, level  # fmt: skip

    for _ in range(120):
        agent._update_model(batch()[0])
    with torch.no_grad():
        pairs = [(agent.terms(b)[0].code.flatten(0, 1), y.flatten(0, 1)) for b, y in
                 (batch() for _ in range(6))]  # fmt: skip
    x, y = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    x = functional.pad(x, (0, 1), value=1.0)
    half = len(x) // 2
    error = y[half:] - x[half:] @ torch.linalg.lstsq(x[:half], y[:half]).solution
    assert 1 - error.square().sum() / (y[half:] - y[half:].mean(0)).square().sum() < 0.2


def test_empowerment_reward_is_paid_to_a_sharp_policy():
    """Where an action is seen, about 1 nat: also if a policy varies less than the memory does."""
    agent = filled(Square(16), **LEAK, empowerment_steps=10**9)
    for _ in range(220):
        features, _ = agent._update_model(agent.sample())
    last = agent.policy.network[-1]
    with torch.no_grad():
        last.bias[2:] = -10.0  # σ = 0.1
    metrics = agent._update_behaviour(features)
    assert metrics["policy/bonus"] > 0.3 * agent.config.empowerment_reward


def test_mean_of_several_actions_shows_where_one_hardly_moves():
    """A tenth of the picture's half per step: 0.5 nats of one step, less of one among others."""
    agent = filled(Square(16, speed=0.1), **{**LEAK, "batch_length": 12}, inverse_steps=4)
    for _ in range(320):
        _, metrics = agent._update_model(agent.sample())
    assert metrics["information/empowerment"] > 0.6


def test_codes_do_not_collapse():
    """A ball and a target of few pixels are told apart soon (chance: 0, at most ln 128 = 4.9).

    At full weight the forward model's fit, which reaches the codes through h, holds it at 0.
    """
    env = envs.make("pixels/point", 64, "cpu", 0, size=48, action_repeat=8, duration=200)
    sizes = {"depth": 8, "deter": 64, "stoch": 16, "units": 64, "num_envs": 64, "batch_size": 16}
    agent = filled(env, **sizes, batch_length=8, replay_capacity=6400, model_lr=1e-3)
    for _ in range(150):
        _, metrics = agent._update_model(agent.sample())
    assert metrics["information/observation"] > 1


# ---- the objective


def test_forward_models_fit_changes_memory_but_no_codes():
    agent = filled(Square())
    agent.terms(agent.sample())[2]["forward"].backward()
    rssm, encoder = agent.world.rssm, agent.world.encoder
    assert all(p.grad is None for p in [*encoder.parameters(), *rssm.posterior_head.parameters()])
    assert rssm.cell.weight_hh.grad.abs().sum() > 0
    assert rssm.prior_head[0].weight.grad.abs().sum() > 0


def test_rows_are_what_an_action_led_to():
    """obs, reward and end belong to the action of the row, also at the end of an episode."""

    class Recorded(Square):
        def step(self, actions):
            out = super().step(actions)
            seen.append(
                (actions.clone(), out[4]["final_obs"].clone(), out[1], out[4]["_final_obs"])
            )
            return out

    seen = []
    agent = filled(Recorded(4), replay_capacity=4 * 50)
    rows = agent.replay.steps()
    action, obs, reward, done = (torch.stack(x) for x in zip(*seen, strict=True))
    assert torch.allclose(rows["action"], action, atol=1e-6)
    assert torch.equal(rows["obs"], obs)
    assert torch.equal(rows["reward"], reward)
    assert rows["first"][0].all()
    assert torch.equal(rows["first"][1:] > 0, done[:-1])
    assert done.sum() == 8


def test_actions_of_other_bounds_are_scaled():
    env = Square()
    env.single_action_space = gym.spaces.Box(np.float32([0, -3]), np.float32([2, 1]))
    agent = tiny(env)
    action, state = agent.act(env.reset(seed=0)[0], agent.initial_state(4), False)
    middle, half = torch.tensor([1.0, -1.0]), torch.tensor([1.0, 2.0])
    assert torch.allclose(action, middle + half * state["action"])


def terms(**values) -> dict[str, torch.Tensor]:
    nothing = {"observation": 0.0, "empowerment": 0.0, "reward": 0.0, "forward": 0.0}
    return {k: torch.tensor(v) for k, v in (nothing | values).items()}


def test_multipliers_rise_under_violation_and_fall_otherwise():
    agent = tiny(reward_target=0.5, empowerment_target=1.0)  # of each of two dimensions
    before = agent._weights(terms(empowerment=2.0, reward=0.5, forward=3.0))  # each at its target
    assert before == {
        "empowerment": pytest.approx(0.3),
        "reward": 1,
        "forward": pytest.approx(0.03),
    }
    for _ in range(10):
        bad = agent._weights(terms(empowerment=0.5, reward=0.1, forward=9.0))
    assert all(bad[name] > before[name] for name in ("empowerment", "reward", "forward"))
    for _ in range(100):
        good = agent._weights(terms(empowerment=3.0, reward=2.0, forward=0.5))
    assert all(0 < good[name] < before[name] for name in ("empowerment", "reward", "forward"))


def test_terms_without_target_or_weight_have_no_multiplier():
    agent = tiny(empowerment_weight=0.0)
    assert set(agent.multipliers) == {"forward"}
    assert agent._weights(terms())["empowerment"] == 0
    assert not tiny(constraint="none").multipliers


def test_joint_constraint_has_the_papers_single_multiplier():
    """λ follows c_0 - Σ C_t with C = -forward + empowerment + reward (defect 3 of the paper)."""
    agent = tiny(constraint="joint", joint_target=2.0)
    met = agent._weights(terms(empowerment=3.0, reward=2.0, forward=3.0))
    assert met == {"empowerment": 1, "reward": 1, "forward": 1}
    worse = agent._weights(terms(empowerment=0.0, reward=0.0, forward=3.0))
    assert worse["empowerment"] == worse["forward"] > 1
    agent = tiny(constraint="joint", empowerment_weight=0.0)
    assert agent._weights(terms(empowerment=9.0))["empowerment"] == 0


def test_joint_multiplier_follows_the_size_of_a_violation_of_nothing():
    """By default c_0 = 0, to which no violation is relative: 1 nat stands for it."""
    agent = tiny(constraint="joint", multiplier_rate=0.1)
    excesses = (0.001, 0.5, 1.0, 5.0, -0.5)
    logs = [agent._weights(terms(forward=nats))["forward"].log().item() for nats in excesses]
    assert np.diff([0.0, *logs]) == pytest.approx([0.0001, 0.05, 0.1, 0.1, -0.05], abs=1e-6)


@pytest.mark.parametrize("free", [True, False])
def test_free_nats_are_free(free):
    """Below the target the representation's gradient does not depend on the weight of the KL."""
    gradients = []
    for weight in (0.1, 5.0):
        agent = filled(Square(), constraint="none", forward_target=1e3 if free else 1e-3,
                       forward_weight=weight)  # fmt: skip
        agent._descend = lambda part, loss: loss.backward()
        seen, values, fits = agent.terms(agent.sample())
        fits = {name: loss.detach() for name, loss in fits.items()}  # these reach the codes, too
        agent.terms = lambda batch, out=(seen, values, fits): out
        agent._update_model({})
        head = agent.world.rssm.posterior_head
        gradients.append(torch.cat([p.grad.flatten() for p in head.parameters()]))
    assert torch.allclose(*gradients) is free


@pytest.mark.parametrize("term", ["observation", "empowerment", "reward", "forward"])
def test_each_term_goes_where_the_objective_says(term):
    """Informations grow, the forward information shrinks, each by the representation alone."""
    names = ("observation", "empowerment", "reward", "forward")
    weights = {f"{name}_weight": float(name == term) for name in names}
    agent = filled(Square(), constraint="none", forward_target=1e-3, **weights)
    batch, every = agent.sample(), agent.terms

    def terms(batch):
        agent.generator.manual_seed(0)
        seen, values, fits = every(batch)
        return seen, values, {name: loss.detach() for name, loss in fits.items()}

    agent.terms = terms
    before = terms(batch)[1][term]
    for _ in range(5):
        agent._update_model(batch)
    change = terms(batch)[1][term] - before
    assert -change > 0.01 if term == "forward" else change > 0.01


@pytest.mark.parametrize("negatives", ["batch", "sequence"])
@pytest.mark.parametrize("bound", ["infonce", "nwj", "jsd"])
def test_observation_information_is_that_of_mi(bound, negatives):
    agent = filled(Square(), observation=bound, negatives=negatives)
    seen = agent.world.observe(batch := agent.sample(), agent._noise(4, 6, 8))
    got = agent._observation_information(seen, batch["obs"])
    x, y = seen.code, seen.embedding
    if negatives == "batch":
        x, y = x.flatten(0, 1), y.flatten(0, 1)
    scores = agent.contrast.critic.pairwise(x, y)
    assert scores.shape == ((24, 24) if negatives == "batch" else (4, 6, 6))
    assert torch.allclose(got, getattr(agents.infopower.mi.functional, bound)(scores), atol=1e-5)


def test_empowerment_reward_is_clipped_and_annealed():
    agent = filled(Square(), empowerment_reward=1.0, empowerment_clip=0.5, entropy=0.0, lam=0.0,
                   horizon=1, gamma=0.0)  # fmt: skip
    features = agent._update_model(agent.sample())[0]
    returns = {}
    for clip, now in ((0.0, 0), (1e-3, 0), (1e-3, 10**9)):
        agent.config.empowerment_clip, agent.num_timesteps = clip, now
        agent.generator.manual_seed(0)
        kept = {k: [p.detach().clone() for p in m.parameters()] for k, m in
                (("policy", agent.policy), ("value", agent.value))}  # fmt: skip
        metrics = agent._update_behaviour(features)
        for name, values in kept.items():
            for p, v in zip(getattr(agent, name).parameters(), values, strict=True):
                p.data.copy_(v)
        returns[clip, now] = (metrics["policy/return"] - metrics["policy/reward"]).item()
    assert returns[0.0, 0] == pytest.approx(0, abs=1e-6)
    assert 0 <= returns[1e-3, 0] <= 1e-3 + 1e-6
    assert returns[1e-3, 10**9] == pytest.approx(0, abs=1e-6)


def test_termination_ends_imagined_returns():
    agent = filled(Square(ends=True), replay_capacity=4000)
    assert agent.replay.steps()["terminated"].sum() > 10
    for _ in range(5):
        features, metrics = agent._update_model(agent.sample())
    assert torch.isfinite(metrics["model/continues"])
    with torch.no_grad():
        for p in agent.world.continues.parameters():
            p.zero_()
        agent.world.continues[-1].bias.fill_(-30.0)  # every successor is terminal
    metrics = agent._update_behaviour(features)
    assert (
        metrics["policy/return"] - metrics["policy/reward"] <= agent.config.empowerment_clip * 0.1
    )


# ---- the contract


def test_same_seed_same_training_other_seed_other():
    first, second = (tiny(seed=3).learn() for _ in range(2))
    assert_same(first.state_dict(), second.state_dict())
    other = tiny(seed=4).learn()
    assert not torch.equal(first.value[0].weight, other.value[0].weight)


@pytest.mark.parametrize("stop", [20, 60, 100])
def test_save_load_continues_bit_for_bit(tmp_path, stop):
    whole = tiny().learn()
    half = tiny().learn(total_timesteps=stop)
    half.save(tmp_path / "a.ckpt")
    resumed = agents.load(tmp_path / "a.ckpt", env=Square()).learn()
    assert_same(whole.state_dict(), resumed.state_dict())


def test_predicting_does_not_change_training():
    plain, disturbed = tiny().learn(), tiny()
    images = np.zeros((2, 3, 48, 48), np.uint8)
    disturbed.learn(callback=lambda agent, row: agent.predict(images) is None)
    disturbed = tiny()

    def disturb(agent, row):
        torch.rand(3)
        agent.evaluate(Square(), 4)
        agent.predict(images)

    assert_same(plain.state_dict(), disturbed.learn(callback=disturb).state_dict())


def test_predict_carries_what_it_saw():
    agent = tiny().learn()
    image = np.zeros((3, 48, 48), np.uint8)
    action, state = agent.predict(image, deterministic=True)
    assert action.shape == (2,)
    again, _ = agent.predict(image, deterministic=True)
    later, _ = agent.predict(image, state=state, deterministic=True)
    assert np.array_equal(action, again)
    assert not np.array_equal(action, later)


def test_in_other_environments_the_memory_fills_again(tmp_path):
    agent = InfoPower("pixels/point", **TINY).learn()
    agent.save(tmp_path / "a.ckpt")
    fewer = InfoPower.load(tmp_path / "a.ckpt", num_envs=2)
    updates = []
    fewer.learn(10**9, callback=lambda agent, row: (updates.append(row), len(updates) < 8)[1])
    assert any(name.startswith("information") for name in updates[-1])


def test_random_until_prefill():
    agent = tiny(prefill=10**6).learn()
    assert agent.policy.network[0].weight.grad is None
    actions = agent.predict(np.zeros((400, 3, 48, 48), np.uint8), deterministic=True)[0]
    assert np.abs(actions).max() > 0.98
    assert abs(actions.mean()) < 0.1


CONFIGS = sorted(Path(train.__file__).parent.glob("configs/**/*.yaml"))
OURS = {p.relative_to(p.parents[1]).with_suffix("").as_posix(): p for p in CONFIGS
        if (read_yaml(p).get("agent") or p.stem) == "infopower"}  # fmt: skip


@pytest.mark.parametrize("name", OURS)
def test_every_configuration_trains(name):
    settings = read_yaml(OURS[name])
    settings.pop("agent", None)
    tests = {k: v for k, v in TINY.items() if not (k == "prefill" and name.endswith("random"))}
    tests |= {"env": "pixels/point", "env_kwargs": {"background": "ghost"}, "compile": False}
    agent = InfoPower(config=build(InfoPower.Config, [settings], {**tests, "bfloat16": False}))
    rows = []
    agent.learn(callback=lambda agent, row: rows.append(row))
    assert agent.num_timesteps == 120
    assert all(np.isfinite(list(row.values())).all() for row in rows)


def test_paper_scale_is_a_name_of_the_command_line():
    layers, agent = train._layers("infopower/paper")
    config = build(AGENTS[agent].Config, layers, {})
    assert (config.batch_size, config.batch_length, config.observation) == (50, 50, "nwj")


def test_few_random_steps_are_no_obstacle_to_loading_with_more_environments(tmp_path):
    tiny(Square(1), num_envs=1, prefill=10).save(tmp_path / "one.ckpt")
    agent = InfoPower.load(tmp_path / "one.ckpt", env=Square(4), num_envs=4)
    assert agent.num_envs == 4


def test_random_actions_are_never_the_best(tmp_path):
    """A checkpoint from before learning acts at random for ever."""
    agent = tiny(Square(4), prefill=80, eval_interval=1)
    evaluated = []

    def worse_and_worse():
        evaluated.append(agent.num_timesteps)
        return {"return_mean": -float(len(evaluated))}

    agent.evaluate = worse_and_worse
    with Run(tmp_path / "run", "infopower", {}) as agent.run:
        agent.learn(160)
    assert evaluated[0] < 80 <= evaluated[-1]
    assert load_checkpoint(tmp_path / "run" / "best.ckpt")["num_timesteps"] == 80


def test_another_backdrop_begins_anew(tmp_path):
    settings = {**TINY, "num_envs": 2, "env_kwargs": {"background": "noise", "size": 16}}
    InfoPower("pixels/point", **settings).learn(80).save(tmp_path / "a.ckpt")
    agent = InfoPower.load(tmp_path / "a.ckpt", env_kwargs={"background": "none"})
    assert agent.env.backdrop.kind == "none"
    agent.learn(40)
    with pytest.raises(CheckpointError, match="backdrop"):  # an object has to go on
        InfoPower.load(tmp_path / "a.ckpt", env=envs.make("pixels/point", 2, size=16))


def test_images_are_bytes_and_evaluations_of_their_size():
    agent = tiny(Square(4))
    with pytest.raises(ValueError, match=r"images: expected uint8, got torch\.float32"):
        agent.predict(torch.rand(2, 3, 48, 48))
    with pytest.raises(ConfigError, match=r"expected observation_space \(3, 48, 48\)"):
        agent.evaluate(envs.make("pixels/point", 2, size=32))


def test_wrong_environments_and_settings_are_named():
    with pytest.raises(ConfigError, match=r"InfoPower needs images uint8 \[C, H, W\]"):
        InfoPower("half-cheetah", num_envs=2)
    env = Square()
    env.single_action_space = gym.spaces.Discrete(3)
    with pytest.raises(ConfigError, match=r"InfoPower needs a continuous action"):
        tiny(env)
    wide = Square()
    wide.single_action_space = gym.spaces.Box(-np.inf, np.inf, (2,))
    with pytest.raises(ConfigError, match="needs bounded actions"):
        tiny(wide)
    flat = Square()
    flat.single_action_space = gym.spaces.Box(np.zeros(2, "float32"), np.array([0, 1], "float32"))
    with pytest.raises(ConfigError, match="needs bounded actions, low < high"):
        tiny(flat)
    small = Square()
    small.single_observation_space = gym.spaces.Box(0, 255, (3, 8, 8), np.uint8)
    with pytest.raises(ConfigError, match="needs images of at least 16 x 16"):
        tiny(small)
    with pytest.raises(ConfigError, match=r"replay_capacity=20: expected at least 24, batch_leng"):
        tiny(Square(4), replay_capacity=20)
    with pytest.raises(ConfigError, match=r"forward_weight=0\.001: expected 0, or 0\.01 \.\. 10"):
        tiny(forward_weight=0.001)
    with pytest.raises(ConfigError, match=r"forward_weight=0\.0: expected above 0, for code=rec"):
        tiny(code="recurrent", forward_weight=0.0)
    with pytest.raises(ConfigError, match="prefill=-5: expected at least 0"):
        tiny(prefill=-5)
    with pytest.raises(ConfigError, match="code"):
        tiny(code="pixels")
    with pytest.raises(ConfigError, match="batch_length=3: expected more than inverse_steps"):
        tiny(batch_length=3, inverse_steps=3)
    assert AGENTS["infopower"] is InfoPower


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_trains_on_the_same_code_path():
    agent = InfoPower("pixels/point", **{**TINY, "num_envs": 4, "device": "cuda"}).learn()
    assert agent.replay.device.type == "cuda"


@pytest.mark.full
def test_compiled_cell_trains_like_the_plain_one():
    plain, compiled = tiny(), tiny(compile=True)
    for agent in (plain, compiled):
        agent.learn()
    for x, y in zip(plain.policy.parameters(), compiled.policy.parameters(), strict=True):
        assert torch.allclose(x, y, atol=1e-2)


@pytest.mark.full
def test_learns_to_push_the_square_to_the_middle():
    """From pixels alone; a random policy's return is about 4.5, that of the best one below 19."""
    agent = InfoPower(
        Square(16), num_envs=16, depth=8, deter=32, stoch=8, units=64, batch_size=16,
        batch_length=8, horizon=6, imagination_starts=64, prefill=1600, replay_capacity=8000,
        collect_steps=5, gradient_steps=5, model_lr=2e-3, policy_lr=1e-3, value_lr=1e-3, gamma=0.9,
        observation_weight=1.0, empowerment_steps=6000,
    )  # fmt: skip
    before = agent.evaluate(Square(64), 64)["return_mean"]
    agent.learn(total_timesteps=6400)
    assert agent.evaluate(Square(64), 64)["return_mean"] > before + 6


class Images(gym.Env):
    """Images [H, W, C] of a gymnasium environment, in which nothing happens."""

    def __init__(self, dtype=np.uint8, shape=(48, 40, 3)):
        self.observation_space = gym.spaces.Box(0, 255 if dtype == np.uint8 else 1, shape, dtype)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, True, {}


def test_predicts_from_images_as_the_own_environment_gives_them():
    env = Images(shape=(48, 48, 3))
    agent = tiny(env, prefill=0)
    image = env.reset(seed=1)[0]
    expected, _ = agent.predict(image.transpose(2, 0, 1), deterministic=True)
    action, _ = agent.predict(image, deterministic=True)
    np.testing.assert_array_equal(action, expected)
    batch = torch.from_numpy(np.stack([image] * 3))
    actions, _ = agent.predict(batch, deterministic=True)
    assert actions.shape == (3, 2)
    np.testing.assert_allclose(actions, np.stack([expected] * 3), atol=1e-5)
    with pytest.raises(ValueError, match=r"expected shape \(3, 48, 48\).*got \(48, 40, 3\)"):
        agent.predict(image[:, :40])
    with pytest.raises(ValueError, match=r"expected shape \(3, 48, 48\)"):
        tiny().predict(image)  # its own environment has no other layout
    with pytest.raises(ConfigError, match=r"env=Images: .*expected images of uint8, 0 to 255, got"):
        tiny(Images(np.float32))


def test_a_memory_of_another_environment_is_forgotten(tmp_path):
    world = {"size": 32, "background": "noise"}
    agent = tiny("pixels/arm", env_kwargs=world, prefill=10**6).learn()
    agent.save(tmp_path / "a.ckpt")
    stored = len(agent.replay)
    assert stored
    assert len(InfoPower.load(tmp_path / "a.ckpt", env="pixels/arm").replay) == stored
    point = InfoPower.load(tmp_path / "a.ckpt", env="pixels/point")
    assert not len(point.replay)
    still = InfoPower.load(tmp_path / "a.ckpt", env_kwargs={**world, "background": "static"})
    assert not len(still.replay)
    still.learn(total_timesteps=stored + 20)
    assert len(still.replay) == 20  # of the new one alone


def test_is_evaluated_in_a_changed_environment_from_the_command_line(tmp_path, capsys):
    checkpoint, result = tmp_path / "a.ckpt", tmp_path / "a.json"
    world = {"size": 32, "background": "noise", "duration": 4}
    agent = tiny("pixels/arm", env_kwargs=world)
    agent.save(checkpoint)
    command = ["eval", str(checkpoint), "device=cpu", "episodes=4", f"json={result}"]

    def evaluated(*changes: str) -> dict:
        assert train.main([*command, *changes]) == 0
        return json.loads(result.read_text())

    env = agent.make_eval_env(4, background="none", duration=6)
    assert evaluated() == agent.evaluate(episodes=4)
    changed = evaluated("env_kwargs.background=none", "env_kwargs.duration=6")
    assert changed == agent.evaluate(env, 4)
    assert changed["length_mean"] != evaluated()["length_mean"]
    for change, message in (
        ("env_kwargs.splitt=held-out", "no argument 'splitt'; did you mean 'split'?"),
        ("env_kwargs.split=unseen", "split='unseen'"),
        ("split=held-out", "unknown 'split=held-out', expected run=, "),
    ):
        capsys.readouterr()
        assert train.main([*command, change]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.strip().splitlines()) == 1
