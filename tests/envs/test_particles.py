"""Particle worlds: mpe2's physics and `simple_spread`, the other scenarios by hand."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from pettingzoo.test import parallel_api_test, parallel_seed_test
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import envs
from envs.adapt import to_pettingzoo
from envs.particles import Particles, formation

SCENARIOS = [name for name in envs.ENVS if name.startswith("particles/")]


def make(name: str, num_envs: int = 1, **kwargs: Any) -> Particles:
    env = envs.make(f"particles/{name}", num_envs=num_envs, **kwargs)
    assert isinstance(env, Particles)
    return env


def put(env: Particles, position: Any, marks: Any = None) -> None:
    """Place all bodies [B, 2] (and marks [L, 2]) of every environment, at rest."""
    bodies = len(env.bodies)
    env.table.zero_()
    env.table[: 2 * bodies] = torch.tensor(position, dtype=env.dtype).t().reshape(-1, 1)
    if marks is not None:
        env.table[4 * bodies : -1] = torch.tensor(marks, dtype=env.dtype).t().reshape(-1, 1)


def actions(env: Particles, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if env.single_action_space.__class__.__name__ == "Box":
        return torch.rand(env.num_envs, env.num_agents or 0, 2, generator=generator) * 2 - 1
    return torch.randint(5, (env.num_envs, env.num_agents or 0), generator=generator)


# ---- against mpe2


def spread_pair(agents: int, discrete: bool, **kwargs: Any):
    """mpe2's simple_spread and ours in the same state."""
    from mpe2 import simple_spread_v3

    theirs = simple_spread_v3.parallel_env(
        N=agents, max_cycles=100, continuous_actions=not discrete
    )
    theirs.reset(seed=agents)
    kind = "discrete" if discrete else "continuous"
    ours = make("spread", agents=agents, horizon=100, actions=kind, **kwargs)
    ours.reset(seed=0)
    world = theirs.unwrapped.world
    for agent in world.agents:  # nearer to each other: contacts
        agent.state.p_pos *= 0.4
    position = [agent.state.p_pos for agent in world.agents]
    put(ours, np.array(position), np.array([mark.state.p_pos for mark in world.landmarks]))
    return theirs, world, ours


def columns(agents: int) -> list[int]:
    """Where mpe2's velocity, position, marks and others are in our observation."""
    marks = range(4 * agents, 6 * agents)
    return [2, 3, 0, 1, *marks, *range(4, 4 + 2 * (agents - 1))]


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize(
    ("precision", "steps", "tolerance"), [("double", 60, 1e-6), ("single", 25, 1e-4)]
)
def test_steps_with_contacts_are_those_of_mpe2(discrete, precision, steps, tolerance):
    agents = 3
    theirs, world, ours = spread_pair(agents, discrete, precision=precision)
    generator = np.random.default_rng(0)
    contacts, goal = 0, np.zeros(2)
    for step in range(steps):
        centre = np.array([a.state.p_pos for a in world.agents])
        if discrete:  # one axis at a time
            axis = generator.integers(2, size=agents)
            away = centre[np.arange(agents), axis] > 0
            action = np.where(generator.random(agents) < 0.8, 2 - away + 2 * axis, 0)
            given = torch.as_tensor(action)[None]
            foreign = {f"agent_{i}": int(a) for i, a in enumerate(action)}
        else:  # to the middle, and something random, so that they meet again and again
            action = np.clip(goal - centre + generator.uniform(-0.5, 0.5, (agents, 2)), -1, 1)
            action = action.astype(np.float32)
            given = torch.as_tensor(action)[None]
            foreign = {
                f"agent_{i}": np.array(
                    [0, max(-x, 0), max(x, 0), max(-y, 0), max(y, 0)], np.float32
                )
                for i, (x, y) in enumerate(action)
            }
        obs, reward, *_ = theirs.step(foreign)
        mine, team, *_, info = ours.step(given)
        position = np.array([a.state.p_pos for a in world.agents])
        assert np.abs(mine[0, :, :2].numpy() - position).max() < tolerance, step
        expected = np.stack([obs[f"agent_{i}"] for i in range(agents)])
        shown = mine[0][:, columns(agents)].numpy()
        # velocities, too: errors of a position in a contact are amplified a thousandfold in force
        assert np.abs(expected[:, : shown.shape[1]] - shown).max() < 30 * tolerance, step
        assert (expected[:, shown.shape[1] :] == 0).all()  # communication
        paid = np.array([reward[f"agent_{i}"] for i in range(agents)])
        assert np.abs(info["reward_per_agent"][0].numpy() - paid).max() < 10 * tolerance, step
        assert team.item() == pytest.approx(paid.mean(), abs=10 * tolerance)
        apart = np.linalg.norm(position[:, None] - position, axis=-1) + np.eye(agents)
        contacts += int((apart < 0.3).any())
    assert contacts > steps / 8


def test_precision_is_that_of_rounding():
    """In double the positions, not only their single-precision observation, are mpe2's."""
    theirs, world, ours = spread_pair(5, True, precision="double")
    generator = np.random.default_rng(1)
    for _ in range(60):
        action = generator.integers(5, size=5)
        theirs.step({f"agent_{i}": int(a) for i, a in enumerate(action)})
        ours.step(torch.as_tensor(action)[None])
    position = np.array([a.state.p_pos for a in world.agents])
    assert np.abs(ours._split(ours.table)[0][:, :, 0].numpy().T - position).max() < 1e-9


def test_bodies_of_other_mass_speed_and_obstacles_are_those_of_mpe2():
    """mpe2's world with mass, a speed limit and an immovable obstacle, against `tag`'s bodies."""
    from mpe2._mpe_utils.core import Agent, Landmark, World

    env = make("tag", arena=0, precision="double", horizon=100)
    world = World()
    world.agents = [Agent() for _ in range(4)]
    world.landmarks = [Landmark() for _ in range(2)]
    start = np.array([[0, 0], [0.2, 0], [0, 0.2], [0.3, 0.3], [0.6, 0.6], [-0.5, 0.1]])
    put(env, start)
    for entity, body, position in zip(world.entities, env.bodies, start, strict=True):
        entity.size, entity.max_speed = body.size, body.max_speed
        entity.state.p_pos, entity.state.p_vel = position.copy(), np.zeros(2)
        if isinstance(entity, Agent):
            entity.silent = True
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        action = torch.rand(1, 3, 2, generator=generator) * 2 - 1
        position, velocity, _ = env._split(env.table)
        evader = env.script(position, velocity)
        forces = [*(action[0].double() * 3.0).numpy(), evader[0][:, 0, 0].numpy()]
        for agent, force in zip(world.agents, forces, strict=True):
            agent.action.u, agent.action.c = force, np.zeros(0)
        world.step()
        env.step(action)
    expected = np.array([entity.state.p_pos for entity in world.entities])
    assert np.abs(env._split(env.table)[0][:, :, 0].numpy().T - expected).max() < 1e-6
    assert (start[-2:] == env._split(env.table)[0][:, -2:, 0].numpy().T).all()


# ---- the contract


@pytest.mark.parametrize("agents", [2, 3, 5, 10])
@pytest.mark.parametrize("name", SCENARIOS)
def test_scenarios_have_the_shapes_they_declare(name, agents):
    env = envs.make(name, num_envs=4, agents=agents, horizon=3)
    obs, info = env.reset(seed=0)
    assert env.num_agents == agents
    for _ in range(4):
        assert obs.shape == (4, *env.single_observation_space.shape)  # type: ignore[misc]
        assert obs.is_contiguous()
        assert obs.dtype == info["state"].dtype == torch.float32
        obs, reward, terminated, truncated, info = env.step(actions(env))  # type: ignore[arg-type]
        assert reward.shape == terminated.shape == truncated.shape == (4,)
        assert reward.dtype == torch.float32
        assert obs.isfinite().all()
    assert ("success" in info) == (name != "particles/free")


@pytest.mark.parametrize("name", SCENARIOS)
def test_observations_are_what_they_say(name):
    """By plain loops: own position and velocity, others, their velocities, bodies, marks."""
    env = envs.make(name, num_envs=2, agents=3)
    assert isinstance(env, Particles)
    env.reset(seed=1)
    for seed in range(3):
        obs, *_ = env.step(actions(env, seed))
    position, velocity, marks = (part[..., 1].t() for part in env._split(env.table))
    for i in range(3):
        rest = [j for j in range(3) if j != i]
        expected = [position[i], velocity[i]]
        expected += [position[j] - position[i] for j in rest] + [velocity[j] for j in rest]
        for k in range(3, len(env.bodies)):
            expected.append(position[k] - position[i])
            if math.isfinite(env.bodies[k].mass):
                expected.append(velocity[k])
        expected += [marks[m] - position[i] for m in env.mark_order(i)]
        assert torch.equal(obs[1, i], torch.cat(expected))
    assert velocity[:3].abs().min() > 0


@pytest.mark.parametrize("name", SCENARIOS)
def test_restores_in_mid_episode_and_does_not_depend_on_num_envs(name):
    env, small = envs.make(name, num_envs=6, horizon=9), envs.make(name, num_envs=2, horizon=9)
    env.reset(seed=3), small.reset(seed=3)
    for seed in range(13):
        action = actions(env, seed)  # type: ignore[arg-type]
        obs, *_ = env.step(action)
        assert torch.equal(small.step(action[:2])[0], obs[:2])
    state = env.state_dict()
    future = [env.step(actions(env, s)) for s in range(12)]  # type: ignore[arg-type]
    other = envs.make(name, num_envs=6, horizon=9, seed=8)
    other.reset()
    other.load_state_dict(state)
    assert torch.equal(other._observe(), obs)
    for seed, (expected, reward, *_) in enumerate(future):
        again = other.step(actions(env, seed))  # type: ignore[arg-type]
        assert torch.equal(again[0], expected)
        assert torch.equal(again[1], reward)


class Count(TorchDispatchMode):
    """Counts operations that compute, i.e. other than views."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_step_takes_at_most_sixty_operations_for_any_number_of_agents(name):
    counts = set()
    for agents in (2, 5, 10):
        env = envs.make(name, num_envs=8, agents=agents)
        env.reset(seed=0)
        action = actions(env)  # type: ignore[arg-type]
        with Count() as counter:
            env.step(action)
        counts.add(counter.count)
    assert len(counts) == 1
    assert max(counts) <= 60


def test_compiled_is_eager():
    eager, compiled = (make("spread", 16, compile=flag) for flag in (False, True))
    eager.reset(seed=0), compiled.reset(seed=0)
    for seed in range(30):
        action = actions(eager, seed)
        first, second = eager.step(action), compiled.step(action)
        assert torch.allclose(first[0], second[0], atol=2e-5)
        assert torch.allclose(first[1], second[1], atol=1e-4)
        assert torch.equal(first[3], second[3])


def test_discrete_actions_are_unit_forces():
    box, discrete = make("free", 5, agents=2), make("free", 5, agents=2, actions="discrete")
    box.reset(seed=0), discrete.reset(seed=0)
    force = torch.tensor([[0.0, 0.0], [-1, 0], [1, 0], [0, -1], [0, 1]])
    first = box.step(force[:, None].expand(5, 2, 2))[0]
    assert torch.equal(first, discrete.step(torch.arange(5)[:, None].expand(5, 2))[0])


def test_hidden_things_are_zeros():
    env = make("spread", visibility=0.5, agents=3)
    env.reset(seed=0)
    put(env, [[0, 0], [0.4, 0], [0, 0.9]], [[0.1, 0.1], [1, 1], [0, 0.45]])
    obs = env._see(env.table)
    assert torch.allclose(obs[0, 0, 4:8], torch.tensor([0.4, 0.0, 0.0, 0.0]))
    assert torch.allclose(obs[0, 0, 12:], torch.tensor([0.1, 0.1, 0.0, 0.0, 0.0, 0.45]))
    assert torch.allclose(obs[0, 2, :2], torch.tensor([0.0, 0.9]))  # itself it sees
    blind = make("free", visibility=0)
    obs, _ = blind.reset(seed=0)
    assert (obs[..., 4:] == 0).all()
    assert blind.other_columns == []
    assert make("free").other_columns == list(range(4, 12))


def test_walls_hold_and_two_bodies_in_one_corner_are_finite():
    env = make("free", agents=2, horizon=200)
    env.reset(seed=0)
    for _ in range(60):
        obs, *_ = env.step(torch.ones(1, 2, 2))
    assert obs.isfinite().all()
    assert obs[..., :2].max() <= 1.5
    put(env, [[1.5, 1.5], [1.5, 1.5]])
    obs, *_ = env.step(torch.ones(1, 2, 2))
    assert obs.isfinite().all()


# ---- scenarios


def test_formation_does_not_care_who_stands_where():
    for shape in ("line", "circle", "v"):
        env = make("formation", agents=4, shape=shape)
        env.reset(seed=0)
        target = formation(shape, 4)
        centred = target - target.mean(0)
        angle = torch.tensor(0.7)
        turn = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])
        place, values = torch.tensor([0.3, -0.2]), []
        for order in itertools.permutations(range(4)):
            put(env, (centred[list(order)] @ turn + place).tolist(), [place.tolist()])
            _, reward, *_, info = env.step(torch.zeros(1, 4, 2))
            values.append(reward.item())
            assert info["success"].all()
        assert max(values) == pytest.approx(0, abs=1e-5)
        assert min(values) == pytest.approx(0, abs=1e-5)
        put(env, (centred * 1.5 + place).tolist(), [place.tolist()])
        reward, info = (env.step(torch.zeros(1, 4, 2))[i] for i in (1, 4))
        assert reward.item() < -0.1
        assert not info["success"].any()


def test_evader_flees_and_touching_pays():
    env = make("tag", agents=2, arena=0)
    env.reset(seed=0)
    put(env, [[0.4, 0], [0.5, 0.2], [0, 0], [5, 5], [-5, 5]])
    position, velocity, _ = env._split(env.table)
    force = env.script(position, velocity)
    assert force[0][0, 0, 0] < -3
    assert (force[1] == 0).all()
    put(env, [[0.12, 0], [0.0, 0.12], [0, 0], [5, 5], [-5, 5]])
    _, reward, *_, info = env.step(torch.zeros(1, 2, 2))
    assert reward.item() == 20
    assert info["success"].all()


def test_assigned_is_sparse_and_ends():
    env = make("assigned", agents=2)
    env.reset(seed=0)
    put(env, [[0, 0], [1, 1]], [[0.1, 0], [1, 1.5]])
    _, reward, terminated, *_ = env.step(torch.zeros(1, 2, 2))
    assert reward.item() == 0
    put(env, [[0, 0], [1, 1]], [[1, 1], [0, 0]])  # each on the other's
    assert not env.step(torch.zeros(1, 2, 2))[2].any()
    put(env, [[0, 0], [1, 1]], [[0.1, 0], [1, 1.1]])
    _, reward, terminated, *_ = env.step(torch.zeros(1, 2, 2))
    assert reward.item() == 1
    assert terminated.all()


def test_rendezvous_and_push_ball():
    env = make("rendezvous", agents=3)
    env.reset(seed=0)
    put(env, [[0, 0], [0.6, 0], [0.3, 0]])
    _, reward, *_, info = env.step(torch.zeros(1, 3, 2))
    assert reward.item() == pytest.approx(-0.2, abs=1e-5)
    assert not info["success"].any()
    ball = make("push-ball", agents=2, horizon=100)
    ball.reset(seed=0)
    put(ball, [[-0.4, 0.02], [-0.4, -0.3], [0, 0]], [[0.6, 0]])
    push = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    for _ in range(12):
        _, reward, *_ = ball.step(push)
    position = ball._split(ball.table)[0][..., 0].t()
    assert position[-1, 0] > 0.02  # 4 kg move slowly
    near = (position[:2] - position[-1]).norm(dim=1).mean()
    expected = -(position[-1] - torch.tensor([0.6, 0])).norm() - 0.1 * near
    assert reward.item() == pytest.approx(expected.item(), abs=1e-6)


def test_rendering_shows_agents_where_they_are():
    env = make("spread", 2, agents=2)
    env.reset(seed=0)
    put(env, [[0.8, 0.8], [-0.8, -0.8]], [[0.8, -0.8], [5, 5]])
    image = env.render(65)
    assert image.shape == (2, 3, 65, 65)
    assert image.dtype == torch.uint8
    assert (image[0, :, 32, 32] == 255).all()
    first, second, mark = image[0, :, 16, 48], image[0, :, 48, 16], image[0, :, 48, 48]
    assert (first != 255).any() and (second != 255).any()
    assert not torch.equal(first, second)
    assert (mark == 178).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"agents": 1}, "agents=1: expected at least 2"),
        ({"actions": "joystick"}, "actions='joystick': expected one of continuous, discrete"),
        ({"precision": "half"}, "expected one of single, double"),
        ({"visibility": -1.0}, "visibility=-1.0: expected at least 0"),
        ({"horizon": 0}, "horizon=0: expected a positive number"),
        ({"shape": "line"}, "expected only with particles/formation"),
        ({"agnets": 3}, "did you mean 'agents'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        make("free", **arguments)


# ---- everybody's interfaces


@pytest.mark.parametrize("name", SCENARIOS)
def test_keeps_every_promise_of_a_batched_environment(name):
    envs.check(name, horizon=12)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("actions", ["continuous", "discrete"])
@pytest.mark.parametrize("name", ["spread", "tag", "assigned"])
def test_pettingzoos_checkers_pass(name, actions):
    parallel_api_test(to_pettingzoo(make(name, actions=actions)), num_cycles=60)
    parallel_seed_test(lambda: to_pettingzoo(make(name, actions=actions)), num_cycles=30)
