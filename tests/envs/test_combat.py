"""Combat: SMAX step for step, SMAC's shapes, duels by hand, symmetry, contracts."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pettingzoo.test import parallel_api_test, parallel_seed_test
from torch import Tensor
from trees import assert_same

import envs
from agents.core.evaluate import play
from envs.adapt import from_pettingzoo, to_pettingzoo
from envs.base import SimulationError
from envs.combat import DT, SCRIPTS, Combat, Record
from envs.combat_sc2 import SC2Combat, ground_of
from envs.combat_smax import SMAXCombat
from envs.units import MAPS, RANDOM, SC2, SMAX, SMAX_MAPS, Map

GOLDEN = Path(__file__).parent / "golden"


def make(name: str, num_envs: int = 1, **kwargs: Any) -> Combat:
    env = envs.make(f"combat/{name}", num_envs=num_envs, **kwargs)
    assert isinstance(env, Combat)
    return env


def duel(ally: str, enemy: str, gap: float = 1.0, monkeypatch: Any = None) -> SC2Combat:
    """One against one at a distance of `gap` from edge to edge, nothing random."""
    monkeypatch.setitem(MAPS, "duel", Map({ally: 1}, {enemy: 1}, 200))
    env = envs.make("combat/3m")  # the argument checker knows ids; the map is ours
    from envs.combat import make_combat

    env = make_combat("duel")
    assert isinstance(env, SC2Combat)
    env.reset(seed=0)
    far = SC2[ally].radius + SC2[enemy].radius + gap
    env.battle.position.copy_(torch.tensor([[16.0, 16 + far], [16.0, 16.0]])[..., None])
    return env


def tick(env: SC2Combat, count: int, scripts: tuple[str | None, str | None]) -> list[Any]:
    """States after each of `count` ticks, without delays of weapons."""
    pairs, stats = env._fixed
    still = torch.zeros(2, env.num_units, env.num_envs)
    history = []
    for i in range(count):
        env.battle = env._tick(env.battle, stats, pairs, still, still[0], scripts, first=i % 8 == 0)
        history.append(env.battle)
    return history


def available(info: dict[str, Tensor], seed: int) -> Tensor:
    """Random actions among the available, the same for a row whatever N is."""
    mask = info["avail_actions"]
    draws = torch.rand(512, *mask.shape[1:], generator=torch.Generator().manual_seed(seed))
    return (draws[: len(mask)] + 1).masked_fill(~mask, 0).argmax(-1)


# ---- SMAX, step for step


def golden(name: str) -> tuple[SMAXCombat, dict[str, Tensor]]:
    """An environment in the states of a golden file, and the file."""
    with np.load(GOLDEN / f"smax_{name}.npz") as file:
        data = {key: torch.as_tensor(file[key]) for key in file.files}
    env = make(name, len(data["action"]), rules="smax", device="cpu")
    assert isinstance(env, SMAXCombat)
    env.reset(seed=0)
    env.battle = env.battle._replace(
        position=data["position"].permute(2, 1, 0).contiguous(),
        health=data["health"].t().contiguous(),
        cooldown=data["cooldown"].t().contiguous(),
        action=data["last"].long().t().contiguous(),
        kind=data["kind"].long().t().contiguous() if env.random_teams else env.battle.kind,
    )
    return env, data


SMAX_GOLDEN = ("3m", "2s3z", "5m_vs_6m", "6h_vs_8z", "smacv2_5_units")


@pytest.mark.parametrize("name", SMAX_GOLDEN)
def test_a_step_is_that_of_smax(name: str) -> None:
    env, data = golden(name)
    draws = torch.full((env.step_draws, env.num_envs), 1 / 3)  # weapons are neither early nor late
    before = env.battle
    after, reward, over, _ = env._step(before, data["action"].long().t(), draws, (None, None))
    assert (after.position.permute(2, 1, 0) - data["next_position"]).abs().max() <= 1e-5
    assert (after.health.t() - data["next_health"]).abs().max() <= 1e-5
    assert torch.equal(after.health.t() > 0, data["next_alive"])
    assert (reward - data["reward"][:, 0]).abs().max() <= 1e-5
    assert torch.equal(over, data["over"].bool())
    # Equal where nobody fired; where one did, SMAX's is one tick early to two ticks late.
    late = data["next_cooldown"] - after.cooldown.t()
    assert late.min() >= -DT - 1e-5
    assert late.max() <= 2 * DT + 1e-5
    idle = (data["action"] < 5) | (data["health"] <= 0)
    assert late[idle].abs().max() <= 1e-5
    assert (late[~idle].abs() > 1e-3).any()
    assert (data["next_health"] < data["health"]).sum() > 10  # there was fighting
    assert ((data["next_position"] - data["position"]).norm(dim=-1) > 0.1).sum() > 20


@pytest.mark.parametrize("name", SMAX_GOLDEN)
def test_observations_states_and_masks_are_those_of_smax(name: str) -> None:
    env, data = golden(name)
    for side in (0, 1):
        obs, context = env.observe(side)
        rows = slice(0, env.num_agents) if side == 0 else slice(env.num_agents, None)
        assert (obs - data["obs_before"][:, rows]).abs().max() < 1e-5
        mask = data["available_before"][:, rows, : env.num_actions[side]]
        assert torch.equal(context["avail_actions"], mask.bool())
        assert (context["state"] - data["state_before"]).abs().max() < 1e-5
        assert torch.equal(context["alive"], data["health"][:, rows] > 0)


@pytest.mark.parametrize("name", SMAX_GOLDEN)
def test_the_heuristic_is_that_of_smax(name: str) -> None:
    """Where it attacks; where it walks, SMAX draws whom to, unless it sees at most one."""
    env, data = golden(name)
    env.battle = env.battle._replace(goal=32 - env.battle.position)
    choice = torch.rand(env.num_units, env.num_envs)
    s = env._stats(env.battle.kind)
    both = ("heuristic", "heuristic")
    ours = env._decide(env.battle, s, env.battle.action, choice, both).t()
    theirs, alive = data["heuristic"], data["health"] > 0
    attacks = (theirs >= 5) & alive
    assert torch.equal(ours[attacks], theirs[attacks])
    assert attacks.sum() > 20
    assert ((ours >= 5) == (theirs >= 5))[alive].all()
    foe = env._foe[..., 0]
    sight = s.sight.expand(env.num_units, env.num_envs).t()
    apart = torch.cdist(data["position"], data["position"])
    seen = (apart < sight[..., None]) & alive[:, None] & foe
    sure = (seen.sum(2) <= 1) & alive & ~attacks
    assert torch.equal(ours[sure], theirs[sure])
    assert sure.sum() > 3


SMAX_RATES = {
    ("3m", "closest"): (0.500, 14.03, 1.413),
    ("3m", "weakest"): (0.604, 14.22, 1.540),
    ("2s3z", "closest"): (0.472, 71.10, 1.382),
    ("2s3z", "weakest"): (0.804, 72.67, 1.787),
    ("5m_vs_6m", "closest"): (0.001, 12.47, 0.571),
    ("5m_vs_6m", "weakest"): (0.004, 12.87, 0.589),
    ("3s5z", "closest"): (0.426, 82.56, 1.349),
    ("3s5z", "weakest"): (0.809, 79.83, 1.797),
    ("8m", "closest"): (0.512, 17.42, 1.427),
    ("8m", "weakest"): (0.521, 18.11, 1.438),
    ("3m", "random"): (0.000, 17.92, 0.181),
    ("2s3z", "random"): (0.000, 53.56, 0.208),
    ("5m_vs_6m", "random"): (0.000, 18.26, 0.141),
    ("3s5z", "random"): (0.000, 53.87, 0.198),
}
"""SMAX 0.2.0, 1024 episodes each: won, length, return; `random` is no script of ours."""


def random_episodes(env: Combat, seed: int) -> Record:
    """One episode per environment of random actions among the available."""
    _, info = env.reset(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    record, running = Record(*torch.zeros(3, env.num_envs)), torch.ones(env.num_envs)
    while running.any():
        mask = info["avail_actions"].float()
        action = torch.multinomial(mask.flatten(0, 1), 1, generator=generator).view(mask.shape[:2])
        _, reward, terminated, truncated, info = env.step(action)
        won = record.won + info["battle_won"] * running
        record = Record(won, record.length + running, record.returned + reward * running)
        running = running * ~(terminated | truncated)
    return record


@pytest.mark.parametrize(
    ("name", "script"),
    [
        pytest.param(*key, marks=() if key[0] in ("3m", "5m_vs_6m") else pytest.mark.full)
        for key in SMAX_RATES
    ],
)
def test_scripts_win_as_often_as_in_smax(name: str, script: str) -> None:
    won, length, returned = SMAX_RATES[name, script]
    env = make(name, 1024, rules="smax")
    record = random_episodes(env, 1) if script == "random" else env.scripted(script, seed=1)
    rate = record.won.mean().item()
    # 3 standard errors of the difference of two samples, at most 0.066
    assert abs(rate - won) <= 3 * math.sqrt(2 * max(won * (1 - won), 0.004) / 1024)
    assert record.length.mean().item() == pytest.approx(length, rel=0.02)
    assert record.returned.mean().item() == pytest.approx(returned, rel=0.03)


# ---- shapes are SMAC's

SHAPES = {  # agents, enemies, limit, observation, state, actions
    "3m": (3, 3, 60, 30, 48, 9), "8m": (8, 8, 120, 80, 168, 14),
    "25m": (25, 25, 150, 250, 950, 31), "5m_vs_6m": (5, 6, 70, 55, 98, 12),
    "8m_vs_9m": (8, 9, 120, 85, 179, 15), "10m_vs_11m": (10, 11, 150, 105, 243, 17),
    "27m_vs_30m": (27, 30, 180, 285, 1170, 36), "MMM": (10, 10, 150, 160, 290, 16),
    "MMM2": (10, 12, 180, 176, 322, 18), "2s3z": (5, 5, 120, 80, 120, 11),
    "3s5z": (8, 8, 150, 128, 216, 14), "1c3s5z": (9, 9, 180, 162, 270, 15),
    "3s5z_vs_3s6z": (8, 9, 170, 136, 230, 15), "3s_vs_5z": (3, 5, 250, 48, 68, 11),
    "6h_vs_8z": (6, 8, 150, 78, 140, 14), "corridor": (6, 24, 400, 156, 282, 30),
    "bane_vs_bane": (24, 24, 200, 336, 984, 30), "2c_vs_64zg": (2, 64, 400, 332, 342, 70),
    "2s_vs_1sc": (2, 1, 300, 17, 27, 7), "so_many_baneling": (7, 32, 100, 202, 397, 38),
}  # fmt: skip


def test_every_map_of_smac_is_there() -> None:
    assert set(SHAPES) == set(MAPS)


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_those_of_smac(name: str) -> None:
    agents, enemies, limit, size, state, actions = SHAPES[name]
    env = make(name, 2)
    obs, info = env.reset(seed=0)
    assert (env.num_agents, env.num_enemies, env.max_episode_steps) == (agents, enemies, limit)
    assert obs.shape == (2, agents, size) == (2, *(env.single_observation_space.shape or ()))
    assert info["state"].shape == (2, state)
    assert info["avail_actions"].shape == (2, agents, actions)
    for seed in range(3):
        obs, reward, *_, info = env.step(available(info, seed))
    assert obs.isfinite().all()
    assert reward.shape == info["battle_won"].shape == (2,)
    theirs, context = env.observe(1)
    assert theirs.shape[:2] == (2, enemies)
    assert context["avail_actions"].shape == (2, enemies, 6 + agents)


def test_masks_observations_and_state_by_hand() -> None:
    env = make("2s3z")
    env.reset(seed=0)
    battle = env.battle
    battle.position[:, :, 0] = torch.tensor([[10.0 + i, 16.0] for i in range(10)]).t()
    battle.health[1] = 0  # a dead ally
    battle.health[0] = 40
    battle.shield[0] = 20
    battle.health[6] = 0  # a dead enemy
    battle.position[1, 2] = 23.5  # at the northern edge
    env._seen = {}
    obs, context = env.observe(0)
    mask = context["avail_actions"][0]
    assert mask[1].tolist() == [True] + [False] * 10
    assert not obs[0, 1].any()
    assert mask[0, :6].tolist() == [False, True, True, True, True, True]
    assert not mask[2, 2]  # 1 m further north is no ground
    assert mask[0, 6:].tolist() == [True, False, False, False, False]  # within 6 m, alive
    assert mask[4, 6:].tolist() == [True, False, True, True, True]
    for x, near in ((15.9, True), (16.1, False)):  # 6 m between the centres
        battle.position[0, 5] = x
        assert env.observe(0)[1]["avail_actions"][0, 0, 6] == near
    battle.position[0, 5] = 15
    enemy = obs[0, 4, 4:12]  # of the last zealot: the first enemy, 1 m to the east
    expected = [
        1,
        1 / 9,
        1 / 9,
        0,
        1,
        1,
        1,
        0,
    ]  # attackable, distance, x, y, health, shield, stalker
    assert torch.allclose(enemy, torch.tensor(expected))
    assert not obs[0, 4, 12:20].any()  # dead
    friend = obs[0, 4, 4 + 40 :][:8]
    expected = [1, 4 / 9, -4 / 9, 0, 0.5, 0.25, 1, 0]
    assert torch.allclose(friend, torch.tensor(expected), atol=1e-6)
    assert torch.allclose(obs[0, 0, -4:], torch.tensor([0.5, 0.25, 1.0, 0.0]))
    state = context["state"][0]
    assert torch.allclose(state[:7], torch.tensor([0.5, 0, -6 / 32, 0, 0.25, 1, 0]))
    assert not state[7:14].any()
    assert torch.allclose(state[35:41], torch.tensor([1, -1 / 32, 0, 1, 1, 0]))
    assert not state[65:].any()  # no action so far
    *_, info = env.step(torch.tensor([[1, 0, 3, 1, 6]]))
    last = info["state"][0, 65:].view(5, 11)
    assert last.argmax(1).tolist() == [1, 0, 3, 1, 6]
    assert (last.sum(1) == 1).all()


def test_a_move_beside_a_wall_goes_its_way() -> None:
    """Two metres north of there is rock, one metre is not: the way round used to lead to (0, 0)."""
    env = make("corridor")
    env.reset(seed=0)
    position = env.battle.position.clone()
    position[:, 0, 0] = torch.tensor([23.23, 29.9])
    env.battle = env.battle._replace(position=position)
    assert not env._open(position[:, :1] + torch.tensor([0.0, 2.0])[:, None, None]).item()
    action = torch.ones(1, 6, dtype=torch.int64)
    action[0, 0] = 2  # north
    env._proceed(action, (None, "attack-move"))
    way = env.battle.position[:, 0, 0] - position[:, 0, 0]
    assert way[1] > 0.3 and way[0].abs() < 0.3


@pytest.mark.parametrize(
    ("name", "start", "action", "wall"),
    [
        ("3m", (16.0, 22.95), 2, (16.0, 24.0)),
        ("3m", (16.0, 9.05), 3, (16.0, 8.0)),
        ("3m", (30.95, 16.0), 4, (32.0, 16.0)),
        ("3m", (1.05, 16.0), 5, (0.0, 16.0)),
        ("2c_vs_64zg", (30.95, 10.5), 4, (32.0, 10.5)),  # its last cell is free, too
    ],
)
def test_a_unit_at_a_wall_can_walk_along_it(
    name: str, start: tuple[float, float], action: int, wall: tuple[float, float]
) -> None:
    env = make(name)
    env.reset(seed=0)
    env.battle.position[:, 0, 0] = torch.tensor(start)
    actions = torch.ones(1, env.num_agents, dtype=torch.int64)
    actions[0, 0] = action
    *_, info = env.step(actions)
    assert env.battle.position[:, 0, 0].tolist() == pytest.approx(wall)
    allowed = info["avail_actions"][0, 0, 2:6].tolist()
    assert allowed == [move != action for move in (2, 3, 4, 5)]


def test_an_unknown_opponent_is_refused_at_once() -> None:
    env = make("3m")
    with pytest.raises(ValueError, match="opponent='wekest': expected one of closest"):
        env.opponent = "wekest"
    assert env.opponent == "attack-move"


def test_pettingzoo_says_who_has_won_and_how_long_it_takes() -> None:
    view = to_pettingzoo(make("3m"))
    assert view.max_cycles == 60
    view.reset(seed=0)
    infos: dict[str, Any] = {}
    while view.agents:
        *_, infos = view.step(dict.fromkeys(view.agents, 1))  # stop, or nothing of the dead
    assert [info["battle_won"] for info in infos.values()] == [False] * len(infos) != []


def test_moves_and_unavailable_actions() -> None:
    env = make("3m")
    env.reset(seed=0)
    env.battle.position[1, :3, 0] = torch.tensor([12.0, 16.0, 20.0])  # not in each other's way
    before = env.battle.position.clone()
    env.step(torch.tensor([[2, 4, 1]]))
    moved = (env.battle.position - before)[..., 0]
    assert torch.allclose(moved[:, 0], torch.tensor([0.0, 1.125]), atol=0.02)
    assert torch.allclose(moved[:, 1], torch.tensor([1.125, 0.0]), atol=0.02)
    assert moved[:, 2].abs().max() < 0.02
    before = env.battle.position.clone()
    env.step(torch.tensor([[0, 6, 1]]))  # alive; 14 m away
    assert torch.equal(env.battle.position[:, :3], before[:, :3])
    assert env.battle.action[:3, 0].tolist() == [1, 1, 1]


# ---- duels


def test_marine_against_marine(monkeypatch) -> None:
    env = duel("marine", "marine", monkeypatch=monkeypatch)
    history = tick(env, 200, ("closest", "closest"))
    health = [battle.health[1, 0].item() for battle in history]
    shots = [i for i, (a, b) in enumerate(zip([45.0, *health], health, strict=False)) if b < a]
    assert len(shots) == 8  # 45 / 6
    assert health[shots[-2]] == pytest.approx(3)
    assert shots[0] == 0
    gaps = np.diff(shots)
    assert (gaps == 14).all()  # 0.861 s are 13.8 ticks
    assert 12 <= (shots[-1] + 1) / 8 <= 13  # steps
    assert history[-1].health[0, 0] == 0  # both die at once


def test_marine_against_zealot(monkeypatch) -> None:
    """6 on the shield, 5 on the health behind armour 1, mixed in between."""
    env = duel("marine", "zealot", gap=4.9, monkeypatch=monkeypatch)
    env.battle.shield[1] = 9
    history = tick(env, 30, ("closest", None))
    assert history[0].shield[1, 0] == 3
    assert history[0].health[1, 0] == 100
    assert history[14].shield[1, 0] == 0
    assert history[14].health[1, 0] == pytest.approx(100 - 2.5)  # half of the hit, behind armour
    assert history[28].health[1, 0] == pytest.approx(100 - 7.5)


def test_who_has_lost_its_target_stands(monkeypatch) -> None:
    env = duel("stalker", "marine", gap=3, monkeypatch=monkeypatch)
    env.battle.health[1] = 1
    after, *_ = env._step(env.battle, torch.tensor([[6], [0]]), torch.rand(2, 1), (None, None))
    assert after.health[1, 0] == 0
    assert torch.equal(after.position[:, 0], env.battle.position[:, 0])


def test_bonus_damage_several_hits_and_least_damage(monkeypatch) -> None:
    env = duel("stalker", "marauder", monkeypatch=monkeypatch)
    assert tick(env, 1, ("closest", None))[0].health[1, 0] == 125 - (13 + 5 - 1)
    env = duel("zealot", "marauder", gap=0.05, monkeypatch=monkeypatch)
    assert tick(env, 1, ("closest", None))[0].health[1, 0] == 125 - 2 * (8 - 1)
    env = duel("stalker", "zealot", gap=1, monkeypatch=monkeypatch)
    env.battle.shield[1] = 0
    assert tick(env, 1, ("closest", None))[0].health[1, 0] == 100 - 12
    env = duel("zealot", "stalker", gap=0.05, monkeypatch=monkeypatch)
    assert tick(env, 1, ("closest", None))[0].shield[1, 0] == 80 - 2 * 8
    weak = envs.units.Unit(10, 1, 1.0, 5, 0.4, 2.0, 9)
    monkeypatch.setitem(SC2, "weak", weak)
    env = duel("weak", "spine_crawler", monkeypatch=monkeypatch)  # armour 2
    assert tick(env, 1, ("closest", None))[0].health[1, 0] == pytest.approx(
        299.5 + SC2["spine_crawler"].regeneration * DT
    )


def test_weapons_reach_as_far_as_their_range(monkeypatch) -> None:
    """A marine's 5 m, from edge to edge: it goes nearer first, and stands while it shoots."""
    env = duel("marine", "spine_crawler", gap=5.3, monkeypatch=monkeypatch)
    edge = SC2["marine"].radius + SC2["spine_crawler"].radius
    history = tick(env, 8, ("closest", None))
    gaps = [(b.position[0, 1, 0] - b.position[0, 0, 0]).item() - edge for b in history]
    first = next(i for i, b in enumerate(history) if b.health[1, 0] < 300)
    assert first == 3  # ticks of 0.14 m before
    assert gaps[1] > 5 >= gaps[2] > 4.85
    assert gaps[2:] == pytest.approx([gaps[2]] * 6, abs=1e-5)


def test_attack_moving_units_strike_back_and_otherwise_see_5_m(monkeypatch) -> None:
    for script, gap, target in (("closest", 5.5, 0), (None, 5.5, -1), (None, 4.9, 0)):
        env = duel("stalker", "zealot", gap=gap, monkeypatch=monkeypatch)
        assert tick(env, 2, (script, "attack-move"))[1].target[1, 0] == target


def test_attack_moving_units_prefer_healers_and_who_aims_back(monkeypatch) -> None:
    from envs.combat import make_combat

    def first_target(allies: dict[str, int], target: int) -> float:
        """Of a zealot at 2 and 4 m of two allies, the second of whom aims at it."""
        monkeypatch.setitem(MAPS, "two", Map(allies, {"zealot": 1}, 50))
        env = make_combat("two")
        assert isinstance(env, SC2Combat)
        env.reset(seed=0)
        env.battle.position.copy_(torch.tensor([[18.0, 20, 16], [16, 16, 16]])[..., None])
        env.battle.target.copy_(torch.tensor([-1, 2, target])[:, None])
        return tick(env, 1, (None, "attack-move"))[0].target[2, 0].item()

    assert first_target({"stalker": 2}, -1) == 0  # the nearer
    assert first_target({"stalker": 2}, 1) == 1  # out of reach, but aims back: kept
    assert first_target({"stalker": 2}, 0) == 0
    healer = dataclasses.replace(SC2["medivac"], flies=False)
    monkeypatch.setitem(SC2, "medivac", healer)
    assert first_target({"stalker": 1, "medivac": 1}, -1) == 1


def test_who_dies_with_its_enemy_has_not_won(monkeypatch) -> None:
    env = duel("marine", "marine", monkeypatch=monkeypatch)
    env.battle.health[:] = 6
    env.battle.target[1] = 0
    _, reward, terminated, _, info = env.step(torch.tensor([[6]]))
    assert terminated and not info["battle_won"]
    assert reward.item() == pytest.approx(20 * (6 + 10) / (45 + 10 + 200))
    env.reset()
    env.battle.health[1] = 6
    env.battle.position.copy_(torch.tensor([[16.0, 18], [16, 16]])[..., None])
    _, _, terminated, _, info = env.step(torch.tensor([[6]]))
    assert terminated and info["battle_won"]


@pytest.mark.parametrize(("draw", "late"), [(0.0, -1), (1.0, 2)])
def test_weapons_are_ready_one_tick_early_to_two_late(draw, late, monkeypatch) -> None:
    env = duel("stalker", "stalker", monkeypatch=monkeypatch)
    action = torch.tensor([[6], [1]])
    after, *_ = env._step(env.battle, action, torch.full((2, 1), draw), (None, None))
    expected = SC2["stalker"].cooldown + (late - 8) * DT  # it fired in the first of 8 ticks
    assert after.cooldown[0, 0] == pytest.approx(expected, abs=1e-5)


def test_shields_and_health_regenerate(monkeypatch) -> None:
    env = duel("zealot", "zergling", gap=20, monkeypatch=monkeypatch)
    env.battle.shield[0], env.battle.quiet[0], env.battle.health[1] = 10, 10, 20
    history = tick(env, 176, (None, None))
    assert history[158].shield[0, 0] == 10
    assert history[175].shield[0, 0] == pytest.approx(10 + 2 * 17 / 16, abs=0.2)
    assert history[159].health[1, 0] == pytest.approx(20 + 0.2734 * 10, abs=1e-3)
    assert history[-1].health[0, 0] == 100


def test_only_some_shoot_up(monkeypatch) -> None:
    env = duel("marauder", "medivac", monkeypatch=monkeypatch)
    assert tick(env, 1, ("closest", None))[0].target[0, 0] == -1
    env = duel("marine", "medivac", monkeypatch=monkeypatch)
    assert tick(env, 1, ("closest", None))[0].health[1, 0] == 150 - 5


def test_medivacs_heal_for_energy() -> None:
    env = make("MMM")
    env.reset(seed=0)
    medivac, marine = 9, 3
    env.battle.health[marine] = 20
    near = env.battle.position[:, marine] + 1
    env.battle.position[:, medivac] = near
    env.step(torch.tensor([[1] * 9 + [6 + marine]]))
    assert env.battle.health[marine, 0] == pytest.approx(20 + 9 * 0.5, abs=1e-3)
    assert env.battle.energy[medivac, 0] == pytest.approx(50 - 1.5 + 0.5625 / 2, abs=1e-3)
    env.battle.health[marine] = 44
    env.step(torch.tensor([[1] * 9 + [6 + marine]]))
    assert env.battle.health[marine, 0] == 45  # no more than it had
    env.battle.health[marine] = 24
    env.step(torch.tensor([[1] * 9 + [6 + marine]]))
    env.battle.energy[medivac] = 4  # goes on, although it could not begin
    env.step(torch.tensor([[1] * 9 + [6 + marine]]))
    assert env.battle.health[marine, 0] > 32
    env.step(torch.tensor([[1] * 10]))
    health = env.battle.health[marine].clone()
    env.battle.energy[medivac] = 4
    env.step(torch.tensor([[1] * 9 + [6 + marine]]))
    assert env.battle.health[marine, 0] == health


def test_banelings_burst_and_colossi_hit_in_a_line(monkeypatch) -> None:
    monkeypatch.setitem(MAPS, "burst", Map({"baneling": 1}, {"marine": 3}, 50))
    from envs.combat import make_combat

    env = make_combat("burst")
    assert isinstance(env, SC2Combat)
    env.reset(seed=0)
    place = torch.tensor([[16.0, 16], [16.8, 16], [16, 18.4], [16, 19.0]]).t()
    env.battle.position.copy_(place[..., None])
    health = tick(env, 1, ("closest", None))[0].health[:, 0]
    assert health.tolist() == [0, 10, 10, 45]  # 16 + 19 against light, within 2.2 m of the edge
    monkeypatch.setitem(MAPS, "beam", Map({"colossus": 1}, {"marine": 4}, 50))
    env = make_combat("beam")
    assert isinstance(env, SC2Combat)
    env.reset(seed=0)
    place = torch.tensor([[16.0, 16], [20, 16], [20, 17.7], [21, 16], [20, 18]]).t()
    env.battle.position.copy_(place[..., None])
    health = tick(env, 1, ("closest", None))[0].health[:, 0]
    assert health[1:].tolist() == [15, 15, 45, 45]  # twice 10 + 5


def test_a_team_of_healers_has_lost() -> None:
    env = make("MMM")
    _, info = env.reset(seed=0)
    env.battle.health[:9] = 0
    _, _, terminated, _, info = env.step(available(env.context(), 0))
    assert terminated.all()
    assert not info["battle_won"].any()


def test_the_reward_of_a_victory_without_regeneration_is_twenty() -> None:
    env = make("3m", 64)
    record = env.scripted("weakest", seed=0)
    won = record.won > 0
    assert 0 < won.float().mean() < 1
    assert torch.allclose(record.returned[won], torch.tensor(20.0), atol=1e-3)
    assert record.returned[~won].max() <= 20 - 20 * 200 / 365 + 1e-4
    sparse = make("3m", 64, reward="sparse").scripted("weakest", seed=0)
    assert set(sparse.returned.tolist()) <= {-1.0, 0.0, 1.0}
    assert torch.equal(sparse.returned > 0, won)
    assert (sparse.returned < 0).any()


def test_what_allies_lose_counts_unless_rewards_are_only_positive(monkeypatch) -> None:
    from envs.combat import make_combat

    monkeypatch.setitem(MAPS, "twins", Map({"zealot": 2}, {"zealot": 2}, 50))

    def reward(**arguments: Any) -> float:
        env = make_combat("twins", **arguments)
        env.reset(seed=0)
        env.battle.quiet.zero_()
        env.battle.shield.copy_(torch.tensor([0.0, 49.5, 0.0, 40.0])[:, None])
        env.battle.health.copy_(torch.tensor([8.0, 100, 9, 100])[:, None])
        env.battle.position.copy_(torch.tensor([[10.0, 2, 11.05, 30], [16, 16, 16, 16]])[..., None])
        env.battle.target.copy_(torch.tensor([-1, -1, 0, -1])[:, None])
        _, paid, *_ = env.step(torch.tensor([[6, 1]]))  # the first of each side kill each other
        return paid.item() * (300 + 20 + 200) / 20

    gain, loss = 9 + 10 - 1.0, 8 + 10 - 0.5  # with what the others' shields regenerate
    assert reward() == pytest.approx(gain, abs=1e-3)
    assert reward(reward_only_positive=False) == pytest.approx(gain - 0.5 * loss, abs=1e-3)
    full = reward(reward_only_positive=False, reward_negative_scale=2.0)
    assert full == pytest.approx(gain - 2 * loss, abs=1e-3)


def test_a_draw_is_no_defeat(monkeypatch) -> None:
    for health, expected in ((6.0, 0.0), (45.0, -1.0)):  # of the enemy, whose ally has 6
        monkeypatch.setitem(MAPS, "draw", Map({"marine": 1}, {"marine": 1}, 50))
        env = envs.combat.make_combat("draw", reward="sparse")
        env.reset(seed=0)
        env.battle.position.copy_(torch.tensor([[16.0, 18], [16, 16]])[..., None])
        env.battle.health.copy_(torch.tensor([[6.0], [health]]))
        env.battle.target[1] = 0
        _, reward, terminated, *_ = env.step(torch.tensor([[6]]))
        assert terminated and reward.item() == expected


# ---- symmetry, terrain, teams


@pytest.mark.parametrize("name", ["3m", "2s3z", pytest.param("MMM", marks=pytest.mark.full)])
def test_equal_teams_with_equal_scripts_win_equally_often(name: str) -> None:
    env = make(name, 1024, jitter=0.5, reward="sparse")
    returned = env.scripted("attack-move", seed=0).returned
    won, lost = (returned > 0).sum().item(), (returned < 0).sum().item()
    n = won + lost  # where both sides die at once nobody wins
    assert n > 900
    assert abs(won / n - 0.5) <= 3 * math.sqrt(0.25 / n)


@pytest.mark.parametrize("name", ["3m", "corridor", "2c_vs_64zg"])
def test_jitter_moves_the_starts_and_leaves_them_on_the_ground(name: str) -> None:
    env, still = make(name, 64, jitter=2.0), make(name, 64)
    assert isinstance(env, SC2Combat)
    for each in (env, still):
        each.reset(seed=0)
    moved = (env.battle.position - still.battle.position).abs().amax(0)
    assert env._open(env.battle.position).all()
    assert 1.9 < moved.max() <= 2
    assert (moved > 0).float().mean() > 0.7
    assert bool((moved == 0).any()) is (name != "3m")  # those who would be off the ground


def test_self_play_is_symmetric_and_sees_the_enemies_side() -> None:
    """A policy on both sides, by observations alone, wins as often as it loses."""

    def policy(obs: Tensor, context: dict[str, Tensor]) -> Tensor:
        mask, state = context["avail_actions"], context["state"]
        attack = mask[..., 6:]
        # own units and enemies have 4 and 3 columns: towards the mean of the enemies
        own, foe = state[:, 2:12:4], state[:, 13:21:3]
        ahead = torch.where(own.sum(1) < foe.sum(1), 4, 5)[:, None].expand(mask.shape[:2])
        can = mask.gather(2, ahead[..., None])[..., 0]
        move = torch.where(can, ahead, mask[..., 1].long())
        return torch.where(attack.any(-1), 6 + attack.to(torch.uint8).argmax(-1), move)

    wrong = make("3m", 2, opponent=lambda obs, info: torch.full((2, 3), 9))
    wrong.reset(seed=0)
    for bad in (None, torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, 3)):
        wrong.opponent = wrong.opponent if bad is None else lambda obs, info, bad=bad: bad
        with pytest.raises(ValueError, match=r"opponent: expected integers \(2, 3\) in 0 \.\. 8"):
            wrong.step(torch.ones(2, 3, dtype=torch.int64))
    wrong.check()
    wrong._outside.fill_(True)  # what a GPU notes, where looking at every step would wait
    with pytest.raises(SimulationError, match="opponent"):
        wrong.check()
    wrong.opponent = "closest"
    wrong._outside.fill_(True)
    idle = SimpleNamespace(
        initial_state=lambda n: {}, act=lambda obs, state, best: (torch.ones(2, 3).long(), state)
    )
    with pytest.raises(SimulationError, match="opponent"):  # an evaluation asks at its end
        play(idle, wrong, seed=0)  # type: ignore[arg-type]
    n = 256
    env = make("3m", n, opponent=policy, jitter=0.5, reward="sparse")
    obs, info = env.reset(seed=0)
    won, lost, alive = torch.zeros(n), torch.zeros(n), torch.ones(n)
    for _ in range(60):
        obs, reward, terminated, truncated, info = env.step(policy(obs, info))
        won += alive * (reward > 0)
        lost += alive * (reward < 0)
        alive *= ~(terminated | truncated)
    assert won.sum() > 80
    assert lost.sum() > 80
    assert abs(won.sum() - lost.sum()) <= 3 * math.sqrt(n)
    with pytest.raises(ValueError, match="expected a scripted opponent"):
        env.scripted_win_rate("closest")


def test_units_go_around_obstacles() -> None:
    env = make("corridor")
    env.reset(seed=0)
    env.battle.health[1:6] = 0
    env.battle.position[:, 0] = torch.tensor([[2.0], [2.0]])
    env.battle.health[0] = 1e6
    ground = ground_of("corridor")
    assert ground.free is not None
    from envs.combat_sc2 import _cell

    for _ in range(40):
        env.step(torch.tensor([[1, 0, 0, 0, 0, 0]]))
        assert ground.free[_cell(env.battle.position)].all()
    near = (env.battle.position[:, 6:] - env.battle.position[:, :1]).norm(dim=0)
    assert (near < 6).sum() > 12


@pytest.mark.parametrize("name", RANDOM)
def test_random_teams_are_drawn_from_their_race(name: str) -> None:
    env = make(name, 256)
    obs, info = env.reset(seed=0)
    kinds = env.battle.kind
    agents = env.num_agents or 0
    assert torch.equal(kinds[:agents], kinds[agents : 2 * agents])  # enemies are the same, and more
    share = torch.bincount(kinds[:agents].flatten(), minlength=3) / kinds[:agents].numel()
    assert torch.allclose(share, torch.tensor([0.45, 0.45, 0.1]), atol=0.06)
    assert (env.battle.position > 0).all() and (env.battle.position < 32).all()
    assert not torch.equal(kinds[:, 0], kinds[:, 1])
    *_, info = env.step(available(info, 0))
    assert obs.isfinite().all()


@pytest.mark.parametrize("name", ["zerg_5_vs_5", "terran_20_vs_23"])
def test_no_two_units_of_random_teams_start_at_one_point(name: str) -> None:
    env = make(name, 1000)
    env.reset(seed=0)
    position = env.battle.position
    assert env._open(position).all()
    assert position.min() >= 1 and position.max() <= 31
    assert position.min() < 1.1 and position.max() > 30.9
    same = (position[:, :, None] == position[:, None]).all(0)
    assert same.sum() == 1000 * env.num_units  # each with itself


# ---- contracts


@pytest.mark.parametrize("rules", ["sc2", "smax"])
def test_a_row_does_not_depend_on_the_others_and_seeds_repeat(rules: str) -> None:
    many, few = make("2s3z", 9, rules=rules), make("2s3z", 2, rules=rules)
    again = make("2s3z", 9, rules=rules)
    obs, info = many.reset(seed=3)
    first, info_few = few.reset(seed=3)
    same, info_again = again.reset(seed=3)
    for seed in range(25):
        assert torch.equal(obs[:2], first)
        assert torch.equal(obs, same)
        obs, *_, info = many.step(available(info, seed))
        first, *_, info_few = few.step(available(info_few, seed))
        same, *_, info_again = again.step(available(info_again, seed))
    assert not torch.equal(obs[0], obs[1])


NAMES = ["3m", "MMM2", "protoss_5_vs_5", "smacv2_5_units"]


@pytest.mark.parametrize("name", NAMES)
def test_keeps_every_promise_of_a_batched_environment(name: str) -> None:
    envs.check(f"combat/{name}", steps=16, num_envs=3)


@pytest.mark.full
@pytest.mark.parametrize("id", [id for id in envs.ENVS if id.startswith("combat/")])
def test_every_map_keeps_every_promise(id: str) -> None:
    envs.check(id, steps=16, num_envs=3)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("name", "rules"), [("3m", "sc2"), ("3m", "smax")])
def test_pettingzoos_checkers_pass(name: str, rules: str) -> None:
    parallel_api_test(to_pettingzoo(make(name, rules=rules)), num_cycles=60)
    parallel_seed_test(lambda: to_pettingzoo(make(name, rules=rules)), num_cycles=30)


def test_there_and_back_through_pettingzoo() -> None:
    back = from_pettingzoo(lambda: to_pettingzoo(make("3m")))
    obs, info = back.reset(seed=0)
    assert obs.shape == (1, 3, 30)
    assert info["avail_actions"].shape == (1, 3, 9)
    obs, *_, info = back.step(available(info, 0))
    assert obs.isfinite().all()
    back.close()


@pytest.mark.parametrize(
    ("name", "entry", "unit", "value", "bounds"),
    [
        ("3m", "target", 0, 99, "-1 .. 5"),
        ("3m", "target", 0, -2, "-1 .. 5"),
        ("5m_vs_6m", "action", 4, 12, "-1 .. 11"),
        ("5m_vs_6m", "action", 5, 11, "-1 .. 10"),  # an enemy has one action less
        ("zerg_5_vs_5", "kind", 3, 9, "0 .. 2"),
        ("smacv2_5_units", "kind", 3, 9, "0 .. 5"),
        ("smacv2_5_units", "target", 9, 10, "-1 .. 9"),
    ],
)
def test_states_of_units_or_actions_that_there_are_not_are_refused(
    name: str, entry: str, unit: int, value: int, bounds: str
) -> None:
    env = make(name, 2)
    _, info = env.reset(seed=0)
    saved = env.state_dict()
    env.step(available(info, 0))
    before = env.state_dict()
    saved["state"][entry][unit, 1] = value
    with pytest.raises(ValueError, match=rf"state '{entry}': expected {bounds}, got {value}$"):
        env.load_state_dict(saved)
    assert_same(env.state_dict(), before)
    saved["state"][entry][unit, 1] = int(bounds.split()[-1])
    env.load_state_dict(saved)


@pytest.mark.parametrize("rules", ["sc2", "smax"])
def test_a_state_by_other_rules_is_refused(rules: str) -> None:
    env, other = make("3m", rules=rules), make("3m", rules="smax" if rules == "sc2" else "sc2")
    for each in (env, other):
        each.reset(seed=0)
    with pytest.raises(ValueError, match=r"environment state: expected .*'target'.*, got .*"):
        env.load_state_dict(other.state_dict())


def test_scripted_episodes_leave_the_environment_as_it_was() -> None:
    env = make("3m", 8)
    _, info = env.reset(seed=0)
    env.step(available(info, 0))
    before = env._observe()
    rates = {script: env.scripted_win_rate(script, seed=5) for script in SCRIPTS}
    assert torch.equal(env._observe(), before)
    assert rates == {script: env.scripted_win_rate(script, seed=5) for script in SCRIPTS}
    assert env.elapsed.tolist() == [1] * 8


def test_a_scripted_episode_that_is_interrupted_leaves_no_trace(monkeypatch) -> None:
    env, other = make("3m", 4), make("3m", 4)
    (_, info), _ = env.reset(seed=0), other.reset(seed=0)
    proceed, calls = env._proceed, iter(range(3))

    def interrupted(*arguments: Any) -> Any:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return proceed(*arguments)

    monkeypatch.setattr(env, "_proceed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        env.scripted("closest", seed=7)
    monkeypatch.undo()
    for seed in range(3):
        first, second = (e.step(available(info, seed)) for e in (env, other))
        assert all(torch.equal(a, b) for a, b in zip(first[:4], second[:4], strict=True))
        info = first[4]


@pytest.fixture
def traced(monkeypatch) -> None:
    """Compiled functions run as they were traced, without a minute of a C++ compiler."""
    compile = torch.compile

    def plain(graph: Any, inputs: Any, **options: Any) -> Any:
        return graph.forward

    def trace(function: Any, options: dict[str, Any], **settings: Any) -> Any:
        options = {"guard_filter_fn": options["guard_filter_fn"]}
        return compile(function, backend=plain, options=options, **settings)

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", trace)


def test_a_process_compiles_more_configurations_than_dynamo_would(traced) -> None:
    from torch._dynamo import config

    with config.patch(recompile_limit=2):  # 8 take longer
        for num_envs in range(1, 5):
            env = make("3m", num_envs, rules="smax", compile=True)
            env._begin(env._everyone)
            assert (env.battle.health > 0).all()
        assert config.recompile_limit == 256
    with config.patch(recompile_limit=1000):
        make("3m", rules="smax", compile=True)
        assert config.recompile_limit == 1000  # a user's own


def test_fused_steps_and_all_others_draw_the_same_random_numbers(traced) -> None:
    """No state is loaded in between: where a compiled environment is behind, weapons show it."""
    both = [make("3m", 2, rules="smax", compile=flag) for flag in (False, True)]
    mask = both[0].reset(seed=0)[1]["avail_actions"]
    both[1].reset(seed=0)

    def steps(count: int) -> None:
        """Of a fight; where it takes four, the time of both rows is up on the way."""
        nonlocal mask
        for env in both:
            env.battle.position[0, 3:] = env.battle.position[0, :3] + 4
            env.elapsed.copy_(env.max_episode_steps - torch.tensor([2, 3]))
        for seed in range(count):
            action = available({"avail_actions": mask}, seed)
            first, second = (env.step(action) for env in both)
            for a, b in zip(first[:4], second[:4], strict=True):
                assert torch.allclose(a.float(), b.float(), atol=1e-3)
            mask = first[4]["avail_actions"]
            ended = (first[2] | first[3]).tolist()
            assert ended == [seed == 1, seed == 2]

    def attack(obs: Tensor, context: dict[str, Tensor]) -> Tensor:
        return 7 - context["avail_actions"].flip(-1).long().argmax(-1)

    for opponent in ("heuristic", attack, "weakest"):
        for env in both:
            env.opponent = opponent
        steps(4)
    returned = [env.scripted("weakest", seed=3).returned for env in both]
    assert torch.allclose(*returned, atol=1e-3)
    steps(4)
    for env in both:
        env.autoreset = "disabled"
    steps(2)
    reset = [env.reset(options={"reset_mask": torch.tensor([True, False])}) for env in both]
    assert torch.allclose(reset[0][0], reset[1][0], atol=1e-3)
    for env in both:
        env.autoreset = "same-step"
    steps(4)


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "rules", "num_envs"),
    [("3m", "smax", 1), ("2s3z", "sc2", 16), ("2s3z", "smax", 16), ("MMM", "sc2", 16)],
)
def test_compiled_is_eager(name: str, rules: str, num_envs: int) -> None:
    eager, compiled = (make(name, num_envs, rules=rules, compile=flag) for flag in (False, True))
    (_, info), _ = eager.reset(seed=0), compiled.reset(seed=0)
    eager.elapsed += eager.max_episode_steps - 20  # all of them begin again on the way
    ended = 0
    for seed in range(40):
        action = available(info, seed)
        compiled.load_state_dict(eager.state_dict())  # rounding errors grow from step to step
        first, second = eager.step(action), compiled.step(action)
        for a, b in zip(first[:4], second[:4], strict=True):  # what begins again is in the first
            assert torch.allclose(a.float(), b.float(), atol=1e-4)
        info, other = first[4], second[4]
        assert info.keys() == other.keys()
        for name in ("battle_won", "_final_obs", "avail_actions", "alive"):
            assert torch.equal(info[name], other[name]), name
        assert torch.equal(
            info["final_info"]["avail_actions"], other["final_info"]["avail_actions"]
        )
        for a, b in ((info, other), (info["final_info"], other["final_info"])):
            assert torch.allclose(a["state"], b["state"], atol=1e-4)
        assert torch.allclose(info["final_obs"], other["final_obs"], atol=1e-4)
        assert torch.equal(eager.elapsed, compiled.elapsed)
        assert torch.equal(eager.rng.episode, compiled.rng.episode)
        ended += int((first[2] | first[3]).sum())
    assert ended


@pytest.mark.full
@pytest.mark.parametrize("way", ["disabled", "policy"])
def test_compiled_steps_that_are_not_fused_whole(way: str) -> None:
    """A user who resets, and enemies that a policy commands, need the host between the parts."""
    eager, compiled = (make("3m", 4, rules="smax", compile=flag) for flag in (False, True))
    for env in (eager, compiled):
        if way == "policy":
            env.opponent = lambda obs, context: context["avail_actions"].long().argmax(-1)
        else:
            env.autoreset = "disabled"
    (_, info), _ = eager.reset(seed=0), compiled.reset(seed=0)
    for seed in range(10):
        action = available(info, seed)
        compiled.load_state_dict(eager.state_dict())
        first, second = eager.step(action), compiled.step(action)
        for a, b in zip(first[:4], second[:4], strict=True):
            assert torch.allclose(a.float(), b.float(), atol=1e-4)
        info = first[4]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("rules", ["sc2", "smax"])
def test_cuda_is_cpu(rules: str) -> None:
    host, device = make("2s3z", 8, rules=rules), make("2s3z", 8, rules=rules, device="cuda")
    _, info = host.reset(seed=0)
    device.reset(seed=0)
    for seed in range(50):
        action = available(info, seed)
        obs, reward, *_, info = host.step(action)
        other, paid, *_ = device.step(action.cuda())
        assert torch.allclose(obs, other.cpu(), atol=1e-4)
        assert torch.allclose(reward, paid.cpu(), atol=1e-4)


def test_rendering_shows_units_where_they_are() -> None:
    env = make("3m", 2)
    env.reset(seed=0)
    env.battle.position[:, :, 0] = torch.tensor(
        [
            [4.25, 16.25],
            [8.25, 16.25],
            [12.25, 16.25],
            [20.25, 16.25],
            [24.25, 16.25],
            [28.25, 16.25],
        ]
    ).t()
    env.battle.health[5] = 0
    env.battle.health[4] = 22.5
    image = env.render(64)
    assert image.shape == (2, 3, 64, 64)
    assert image.dtype == torch.uint8
    pixel = {x: image[0, :, 31, 2 * x].tolist() for x in (4, 8, 20, 24, 28, 16)}
    assert pixel[4] == pixel[8] == [60, 110, 225]
    assert pixel[20] == pixel[24] == [220, 70, 60]
    assert pixel[28] == pixel[16] == [235, 235, 235]  # dead; nobody
    assert image[0, :, 60, 0].tolist() == [120, 120, 120]  # no ground
    large = env.render(512)[0].permute(1, 2, 0)
    green = (large == torch.tensor([30, 160, 60])).all(-1)
    whole, half = green[:, 310:340].sum(), green[:, 374:404].sum()
    assert half * 2 == pytest.approx(whole.item(), rel=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rules": "chess"}, "rules='chess': expected one of sc2, smax"),
        ({"opponent": "napoleon"}, "opponent='napoleon': expected one of closest, weakest"),
        ({"reward": "gold"}, "reward='gold': expected one of shaped, sparse"),
        ({"jitter": -1.0}, "jitter=-1.0: expected at least 0"),
        ({"rules": "smax", "jitter": 1.0}, "expected 0, the starts of rules='smax' are random"),
        ({"reward_negative_scale": -1.0}, "reward_negative_scale=-1.0: expected at least 0"),
        (
            {"reward_negative_scale": 0.3},
            "reward_negative_scale=0.3: only with reward_only_positive=False",
        ),
        (
            {"rules": "smax", "reward_only_positive": False},
            "reward_only_positive=False: expected True with rules='smax'",
        ),
        (
            {"reward": "sparse", "reward_only_positive": False},
            "reward_only_positive=False: expected True with reward='sparse'",
        ),
        ({"rulse": "smax"}, "did you mean 'rules'"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make("3m", **arguments)


def test_maps_and_scripts_that_are_not_there_are_named() -> None:
    with pytest.raises(ValueError, match="map='MMM': expected one of 3m"):
        make("MMM", rules="smax")
    with pytest.raises(ValueError, match="map='smacv2_5_units': expected one of 3m"):
        make("smacv2_5_units", rules="sc2")
    with pytest.raises(ValueError, match="expected 0, the starts of random teams are random"):
        make("zerg_5_vs_5", jitter=1.0)
    with pytest.raises(ValueError, match="did you mean 'combat/2s3z'"):
        envs.make("combat/2s3x")
    with pytest.raises(ValueError, match="script='rush': expected one of closest"):
        make("3m").scripted("rush")
    assert set(SMAX_MAPS) - set(MAPS) == {f"smacv2_{n}_units" for n in (5, 10, 20)}
    assert len(SMAX) == 6
