"""Combat by the rules of JaxMARL's SMAX 0.2.0 (Rutherford et al. 2023), step for step.

SMAX's data are unlike StarCraft II's: see `envs.units`. Two differences from SMAX, neither of them
in the rules: weapons' random delays are drawn once per step instead of per tick (only a zergling's
can be drawn twice in a step), and an enemy in sight is drawn by another generator.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from envs.combat import (
    DT,
    FIELD,
    SUBSTEPS,
    Battle,
    Combat,
    Policy,
    Scripts,
    norm,
    scattered_starts,
    separate,
    total,
)
from envs.units import SMAX, SMAX_MAPS

MOVES = torch.tensor([[0, 1, 0, -1, 0], [1, 0, -1, 0, 0]], dtype=torch.float32)
"""Directions of actions 0 .. 4: north, east, south, west, stop; 5 + k attacks enemy k."""
STOP, FIRST_ATTACK = 4, 5
LIMIT = 100
OTHER, OWN = 7 + len(SMAX), 4 + len(SMAX)
"""Features of another unit and of one's own."""


class Stats(NamedTuple):
    """Unit data, [V, 1] where rosters are fixed, otherwise [V, N]."""

    health: Tensor
    damage: Tensor
    cooldown: Tensor
    range: Tensor
    radius: Tensor
    speed: Tensor
    sight: Tensor


class SMAXCombat(Combat):
    """See `envs.combat.make_combat`.

    Enemies count everybody from the last unit to the first: their observations, and their attacks,
    5 + k on ally A - 1 - k (`observe(side=1)`). An attack on who is dead or out of range does
    nothing.
    """

    units = SMAX

    def __init__(
        self,
        map: str,
        num_envs: int,
        device: torch.device | str,
        seed: int,
        opponent: str | Policy | None,
        reward: str,
        compile: bool,
    ) -> None:
        rosters = SMAX_MAPS[map]
        self.sparse, self.random_teams = reward == "sparse", isinstance(rosters, int)
        if isinstance(rosters, int):
            rosters = ["marine"] * rosters, ["marine"] * rosters  # until they are drawn

        agents, enemies = len(rosters[0]), len(rosters[1])
        size = OTHER * (agents + enemies - 1) + OWN
        actions = FIRST_ATTACK + enemies, FIRST_ATTACK + agents
        super().__init__(
            num_envs, device, seed, rosters, LIMIT, (size, size), actions,
            "heuristic" if opponent is None else opponent, compile,
        )  # fmt: skip

    def _constants(self) -> None:
        device, names, total = self.device, list(SMAX), self.num_units
        columns = [[float(getattr(unit, f)) for unit in SMAX.values()] for f in Stats._fields]
        self._table = Stats(*(torch.tensor(c, device=device) for c in columns))
        kinds = [[names.index(name)] for team in self.teams for name in team]
        self._kind = torch.tensor(kinds, device=device)
        self._types = torch.arange(len(names), device=device)[:, None, None]
        self._moves = MOVES.to(device)
        places = torch.tensor([[FIELD / 4, FIELD * 3 / 4], [FIELD / 2] * 2], device=device)
        self._places = places[:, (~self._ally[:, 0]).long(), None]
        last = [self.num_actions[0] - 1.0, self.num_actions[1] - 1.0]
        self._last_action = torch.tensor(last, device=device)[(~self._ally).long()]  # [V, 1]
        agents, enemies = self.num_agents, self.num_enemies
        forward = [i * total + j for i in range(agents) for j in range(total) if j != i]
        backward = [
            i * total + j for i in range(enemies) for j in reversed(range(total)) if j != agents + i
        ]
        self._order = [torch.tensor(rows, device=device) for rows in (forward, backward)]
        self._sides = slice(0, self.num_agents), slice(self.num_agents, total)
        self.start_draws = 4 * total + 6 if self.random_teams else 2 * total
        self.step_draws = 2 * total

    def _stats(self, kind: Tensor) -> Stats:
        return Stats(*(column[kind] for column in self._table))

    def _state(self) -> dict[str, Any]:
        unused = "shield", "energy", "quiet"  # and so one of `sc2`, which has them, is none of ours
        return {name: value for name, value in super()._state().items() if name not in unused}

    # ---- an episode's start

    def _start(self, draws: Tensor) -> Battle:
        total, fresh = self.num_units, self._blank()
        place, kind = draws[: 2 * total].view(2, total, -1), self._kind
        position = self._places + 4 * place - 2
        if self.random_teams:
            drawn, group, rest = draws[2 * total :].split([total, total, 6])
            allies = (drawn[: self.num_agents] * len(SMAX)).long()
            kind = torch.cat([allies, allies])
            position = scattered_starts(place, group, rest, self.num_agents, True, edge=0)
        s = self._stats(kind)
        everybody = torch.ones_like(fresh.health, dtype=torch.bool)
        position = separate(position, everybody, s.radius[:, None] + s.radius)
        return fresh._replace(
            position=position,
            health=s.health.expand_as(fresh.health),
            goal=FIELD - position,
            target=fresh.target - 1,
            action=fresh.action + STOP,
            kind=kind,
        )

    # ---- one step

    def _step(
        self, battle: Battle, action: Tensor, draws: Tensor, scripts: Scripts
    ) -> tuple[Battle, Tensor, Tensor, Tensor]:
        s = self._stats(battle.kind)
        delay, choice = draws.chunk(2)
        action = self._decide(battle, s, action, choice, scripts)
        attack = action - FIRST_ATTACK
        attack = torch.where(self._ally, self.num_agents + attack, self.num_agents - 1 - attack)
        target = torch.where(action >= FIRST_ATTACK, attack, -1)
        velocity = self._moves[:, action.clamp_max(STOP)] * s.speed * DT
        before, battle = battle.health, battle._replace(action=action, target=target)
        noise = (3 * delay - 1) * DT
        for _ in range(SUBSTEPS):
            battle = self._tick(battle, s, velocity, noise)
        alive = battle.health > 0
        allies, enemies = (alive[side].any(0) for side in self._sides)
        won = allies & ~enemies
        if self.sparse:
            reward = won.float() - (enemies & ~allies).float()
        else:
            lost = total(((battle.health - before) / s.health)[self._sides[1]], 0)
            reward = lost.abs() / self.num_enemies + won
        return battle, reward, ~(allies & enemies), won

    def _tick(self, battle: Battle, s: Stats, velocity: Tensor, noise: Tensor) -> Battle:
        """1/16 s later. Everybody acts upon what was at its beginning."""
        position, alive = battle.position, battle.health > 0
        aim = battle.target.clamp_min(0)
        far = norm(position - position.gather(1, aim.expand(2, *aim.shape)))
        fires = (far < s.range) & alive & alive.gather(0, aim) & (battle.cooldown <= 0)
        fires = fires & (battle.target >= 0)
        hits = fires[:, None] & (aim[:, None] == self._index)
        health = (battle.health - torch.where(hits, s.damage[:, None], 0.0).sum(0)).clamp_min(0)
        moved = torch.where(alive, (position + velocity).clamp(0, FIELD), position)
        wall = ((moved <= 0) | (moved >= FIELD)).any(0)
        health = torch.where(wall, 0.0, health)
        cooldown = torch.where(fires, s.cooldown + noise, battle.cooldown - DT)
        alive = health > 0
        pushed = separate(moved, alive, s.radius[:, None] + s.radius)
        return battle._replace(
            position=torch.where(alive, pushed, moved), health=health, cooldown=cooldown
        )

    # ---- scripts

    def _decide(
        self,
        battle: Battle,
        s: Stats,
        action: Tensor,
        choice: Tensor,
        scripts: Scripts,
    ) -> Tensor:
        """Actions [V, N], where there is a script its own."""
        rows = []
        for side, script in enumerate(scripts):
            own = self._sides[side]
            rows.append(self._script(script, battle, s, choice, side) if script else action[own])
        return torch.cat(rows)

    def _script(self, script: str, battle: Battle, s: Stats, choice: Tensor, side: int) -> Tensor:
        """Actions [own, N] of a script; see `envs.combat.make_combat`."""
        own, foe = self._sides[side], self._sides[1 - side]
        alive, position = battle.health > 0, battle.position
        apart = position[:, None, foe] - position[:, own, None]  # [2, own, foe, N]
        distance = norm(apart)
        foes = alive[own, None] & alive[foe]
        seen = foes & (distance < s.sight[own, None])
        inside = seen & (distance < s.range[own, None])
        can = inside.any(1)
        first = foe.start
        if script == "weakest":
            victim = _least(battle.health[foe].expand_as(distance), inside)
            towards, known = _least(distance, foes), foes.any(1)
        else:
            last = battle.target[own] - first
            keep = inside.gather(1, last.clamp_min(0)[:, None])[:, 0] & (last >= 0)
            victim = torch.where(keep, last, _least(distance, inside))
            known = seen.any(1)
            if script == "attack-move":
                towards = _least(distance, seen)
            else:  # the one of a random rank among those in sight
                rank = (choice[own] * seen.sum(1)).floor()
                towards = (seen.cumsum(1) <= rank[:, None]).sum(1).clamp_max(distance.shape[1] - 1)
        way = apart.gather(2, towards[None, :, None].expand(2, -1, 1, -1))[:, :, 0]
        way = torch.where(known, way, (battle.goal - position)[:, own])
        move = (
            way[0] * self._moves[0, :4, None, None] + way[1] * self._moves[1, :4, None, None]
        ).argmax(0)
        if side:  # counts the allies from the last
            victim = self.num_agents - 1 - victim
        return torch.where(can, victim + FIRST_ATTACK, move)

    # ---- observations

    def _see(self, battle: Battle, side: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        s = self._stats(battle.kind)
        own, foe = self._sides[side], self._sides[1 - side]
        position, alive, n = battle.position, battle.health > 0, battle.health.shape[1]
        apart = position[:, None] - position[:, own, None]  # [2, own, V, N]
        distance = norm(apart)
        here = alive[own, None] & alive
        seen = here & (distance < s.sight[own, None])
        types = (battle.kind == self._types).float().expand(-1, -1, n)
        life = battle.health / s.health
        ready = (battle.cooldown / s.cooldown).clamp(0, 1)
        attack = torch.where(battle.action >= FIRST_ATTACK, battle.action, 0) / self._last_action
        moved = self._moves[:, battle.action.clamp_max(STOP)]
        looks = torch.cat([moved, attack[None], ready[None], types])
        count = distance.shape[0]

        def wide(x: Tensor) -> Tensor:  # [F, V, N] -> [F, own, V, N]
            return x[:, None].expand(-1, count, -1, -1)

        others = torch.cat([wide(life[None]), apart / s.sight[own, None], wide(looks)])
        others = torch.where(seen, others, 0.0).permute(3, 1, 2, 0)  # [N, own, V, F]
        others = others.flatten(1, 2).index_select(1, self._order[side]).view(n, count, -1)
        mine = torch.cat([life[None], position / FIELD, ready[None], types])
        mine = torch.where(alive, mine, 0.0)[:, own].permute(2, 1, 0)
        alive_own = alive[own].t().contiguous()
        whole = torch.cat([life[None], position, battle.cooldown[None], types])
        whole = torch.where(alive, whole, 0.0).permute(2, 1, 0).flatten(1)
        enemy = (~self._ally).float().expand(-1, n).t()
        kind = battle.kind.float().expand(-1, n).t()
        state = torch.cat([whole, enemy, kind], 1)
        inside = here[:, foe] & (distance[:, foe] < s.range[own, None])
        if side:
            inside = inside.flip(1)
        moves = alive[own, None].expand(-1, 4, -1)
        available = torch.cat([moves, torch.ones_like(moves[:, :1]), inside], 1)
        obs = torch.cat([others, mine], 2)
        return obs, state, available.permute(2, 0, 1).contiguous(), alive_own


def _least(value: Tensor, among: Tensor) -> Tensor:
    """Index of the least of `value` [own, foe, N] where `among`, [own, N]."""
    return torch.where(among, value, 1e9).argmin(1)
