"""Combat by the rules of StarCraft II, as far as SMAC's battles need them (see `envs.combat`)."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
from scipy.sparse import csgraph
from torch import Tensor
from torch.nn.functional import pad

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
from envs.units import MAPS, PROTOSS, RANDOM, SC2, SMAC_COOLDOWN, TEAMS, TERRAIN, Point

SIGHT, SHOOT = 9.0, 6.0
"""SMAC: what agents see and may attack, for all types of unit, between centres [m]."""
SCAN = 5.0
"""How far, from edge to edge, attack-moving units look for targets [m]."""
ENERGY, ENERGY_START, ENERGY_MIN, ENERGY_RATE = 200.0, 50.0, 5.0, 0.5625
"""Of healers: most, at the start, what a healing begins with, and gain per second."""
BURST, BEAM_LENGTH, BEAM_WIDTH = 2.2, 2.8, 0.3
"""Radius of an explosion; size of a beam [m]."""
SHIELD_RATE, SHIELD_DELAY = 2.0, 10.0
"""[hit points / s], [s]"""
MOVES = torch.tensor([[0, 0, 0, 0, 1, -1], [0, 0, 1, -1, 0, 0]], dtype=torch.float32)
"""Directions of SMAC's actions 0 .. 5: nothing (dead), stop, north, south, east, west."""
STOP = 1
STRIDE = 2.0
"""How far a move would go, and twice how far ahead the ground must be free [m]."""
FAR = 1e9


class Stats(NamedTuple):
    """Unit data, [V, 1] where rosters are fixed, otherwise [V, N]; flags are bool."""

    health: Tensor
    shield: Tensor
    armor: Tensor
    damage: Tensor
    hits: Tensor
    bonus_light: Tensor
    bonus_armored: Tensor
    cooldown: Tensor
    range: Tensor
    radius: Tensor
    speed: Tensor
    sight: Tensor
    regeneration: Tensor
    light: Tensor
    armored: Tensor
    flies: Tensor
    shoots_up: Tensor
    climbs: Tensor
    heals: Tensor
    beam: Tensor
    bursts: Tensor


class Pairs(NamedTuple):
    """What unit i can do to unit j, [V, V, 1] or [V, V, N]."""

    may: Tensor
    """i may attack, or heal, j (bool)."""
    raw: Tensor
    """Damage of an attack of i on the shield of j."""
    net: Tensor
    """Damage of an attack of i on the health of j."""
    touching: Tensor
    """Distance of contact of units that are in each other's way, else 0 [m]."""
    between: Tensor
    """Sum of the radii [m]."""


class SC2Combat(Combat):
    """See `envs.combat.make_combat`."""

    units = SC2

    def __init__(
        self,
        map: str,
        num_envs: int,
        device: torch.device | str,
        seed: int,
        opponent: str | Policy | None,
        reward: str,
        negative_scale: float | None,
        jitter: float,
        compile: bool,
    ) -> None:
        self.sparse, self.negative_scale = reward == "sparse", negative_scale
        self.jitter, self.random_teams = jitter, map in RANDOM
        race, battlefield = RANDOM[map] if self.random_teams else ("", MAPS[map])
        self.map, self.race = battlefield, race
        sides = battlefield.allies, battlefield.enemies
        teams = _roster(sides[0]), _roster(sides[1])
        self.types = [list(TEAMS[race]) if race else list(side) for side in sides]
        self.names = list(dict.fromkeys(self.types[0] + self.types[1]))
        # SMAC has type bits only where there is a choice, and shields only where there are any.
        self._bits = [types if len(types) > 1 else [] for types in self.types]
        self._shields = [any(name in PROTOSS for name in types) for types in self.types]
        counts = len(teams[0]), len(teams[1])
        sizes = self._features(0, counts), self._features(1, (counts[1], counts[0]))
        actions = 6 + counts[1], 6 + counts[0]
        super().__init__(
            num_envs, device, seed, teams, battlefield.limit, sizes, actions,
            "attack-move" if opponent is None else opponent, compile,
        )  # fmt: skip

    def _features(self, side: int, counts: tuple[int, int]) -> int:
        """D of an agent of `side`."""
        own = 1 + self._shields[side] + len(self._bits[side])
        foe = 1 + self._shields[1 - side] + len(self._bits[1 - side])
        return 4 + counts[1] * (4 + foe) + (counts[0] - 1) * (4 + own) + own + 2 * self.random_teams

    # ---- constants

    def _constants(self) -> None:
        device, names = self.device, self.names
        columns = [[getattr(SC2[name], field) for name in names] for field in Stats._fields]
        values = [torch.tensor(c, device=device) for c in columns]
        self._table = Stats(*(v if v.dtype == torch.bool else v.float() for v in values))
        self._any = Stats(*(bool(v.any()) for v in self._table))  # type: ignore[arg-type]
        self._rooted = bool((self._table.speed == 0).any())
        top = [SMAC_COOLDOWN.get(name, 1) / 16 for name in names]
        self._top_cooldown = torch.tensor(top, device=device)
        kinds = [[names.index(name)] for team in self.teams for name in team]
        self._kind = torch.tensor(kinds, device=device)
        bits = [[names.index(name) for name in side] for side in self._bits]
        self._bit = [
            torch.tensor(side, dtype=torch.int64, device=device)[:, None, None] for side in bits
        ]
        self._moves = MOVES.to(device)
        agents, enemies, total = self.num_agents, self.num_enemies, self.num_units
        self._sides = slice(0, agents), slice(agents, total)
        self._rest = [
            torch.tensor([i * n + j for i in range(n) for j in range(n) if j != i])
            .long()
            .to(device)
            for n in (agents, enemies)
        ]
        self.step_draws = total
        self.start_draws = 4 * total + 6 if self.random_teams else 2 * total
        grids = [
            _formation(team, start, sign)
            for team, start, sign in (
                (self.map.allies, self.map.ally_start, 1),
                (self.map.enemies, self.map.enemy_start, -1),
            )
        ]
        self._grid = torch.tensor(grids[0] + grids[1], device=device).t().contiguous()[..., None]
        goals = [self.map.enemy_start[-1]] * agents + [self.map.enemy_goal] * enemies
        goal = torch.tensor(goals, dtype=torch.float32, device=device)
        self._goal = goal.t().contiguous()[..., None]
        if self.random_teams:
            weights = torch.tensor(list(TEAMS[self.race].values()), device=device)
            self._cumulated = weights.cumsum(0)[:-1]
        self._ground(self.map.terrain)
        stats = self._stats(self._kind)
        self._fixed = self._pairs(stats), stats

    def _stats(self, kind: Tensor) -> Stats:
        """Unit data of `kind` [V, 1 or N]."""
        return Stats(*(column[kind] for column in self._table))

    def _pairs(self, s: Stats) -> Pairs:
        """What units can do to each other."""
        each = (
            s.damage[:, None]
            + s.bonus_light[:, None] * s.light
            + s.bonus_armored[:, None] * s.armored
        )
        attack = self._foe & ~s.heals[:, None] & (s.shoots_up[:, None] | ~s.flies)
        heal = ~self._foe & s.heals[:, None] & ~s.heals
        plane = s.flies + 2 * s.climbs
        between = s.radius[:, None] + s.radius
        return Pairs(
            attack | heal,
            each * s.hits[:, None],
            (each - s.armor).clamp_min(0.5) * s.hits[:, None],
            between * (plane[:, None] == plane),
            between,
        )

    # ---- an episode's start

    def _start(self, draws: Tensor) -> Battle:
        total, fresh = self.num_units, self._blank()
        noise = draws[: 2 * total].view(2, total, -1)
        kind, position = self._kind, self._grid + self.jitter * (2 * noise - 1)
        position = torch.where(self._open(position), position, self._grid)
        goal = self._goal.expand_as(position)
        if self.random_teams:
            kind = self._draw_teams(draws[2 * total : 3 * total])
            group, rest = draws[3 * total :].split([total, 6])
            position = scattered_starts(noise, group, rest, self.num_agents, False, edge=1)
            goal = FIELD - position  # opposite
        stats = self._stats(kind)
        shape = draws[:total]
        return fresh._replace(
            position=position,
            goal=goal,
            health=stats.health.expand_as(shape),
            shield=stats.shield.expand_as(shape),
            energy=torch.where(stats.heals, ENERGY_START, 0.0).expand_as(shape),
            target=fresh.target - 1,
            action=fresh.action - 1,
            kind=kind,
        )

    def _draw_teams(self, draws: Tensor) -> Tensor:
        """Types [V, N] by SMACv2's weights: enemies have the allies', those who are more their own.

        A team of nothing but the last type would not fight: its first unit becomes the first type.
        """
        kind = (draws >= self._cumulated[:, None, None]).sum(0)
        agents, enemies = self.num_agents, self.num_enemies
        allies, last = kind[:agents], len(self.names) - 1
        hopeless = (allies == last).all(0)
        allies = torch.cat([torch.where(hopeless, 0, allies[:1]), allies[1:]])
        return torch.cat([allies, allies[:enemies], kind[2 * agents :]])[: self.num_units]

    # ---- one step

    def _step(
        self, battle: Battle, action: Tensor, draws: Tensor, scripts: Scripts
    ) -> tuple[Battle, Tensor, Tensor, Tensor]:
        if self.random_teams:
            stats = self._stats(battle.kind)
            pairs = self._pairs(stats)
        else:
            pairs, stats = self._fixed
        before, action = battle, self._permit(battle, stats, action, scripts)
        heading = self._moves[:, torch.where(action < 6, action, STOP)]
        battle = battle._replace(target=self._aims(action, stats, battle.target, scripts))
        noise = (3 * draws - 1) * DT  # of the next cooldown: no weapon fires twice in a step
        for tick in range(SUBSTEPS):
            battle = self._tick(battle, stats, pairs, heading, noise, scripts, tick == 0)
        battle = battle._replace(action=action)
        fights = (battle.health > 0) & ~stats.heals
        allies, enemies = (fights[side].any(0) for side in self._sides)
        won, lost = allies & ~enemies, enemies & ~allies
        return battle, self._reward(before, battle, stats, won, lost), ~(allies & enemies), won

    def _permit(self, battle: Battle, s: Stats, action: Tensor, scripts: Scripts) -> Tensor:
        """What is not available becomes `stop`, or nothing where the unit is dead."""
        permitted = []
        for side, rows in enumerate(self._sides):
            told = action[rows]
            if scripts[side] is None:
                mask = self._available(battle, s, side).permute(1, 2, 0)
                allowed = mask.gather(1, told[:, None])[:, 0]
                told = torch.where(allowed, told, (battle.health[rows] > 0) * STOP)
            permitted.append(told)
        return torch.cat(permitted)

    def _aims(self, action: Tensor, s: Stats, target: Tensor, scripts: Scripts) -> Tensor:
        """Targets [V, N] that actions give; units with a script keep theirs."""
        agents = self.num_agents
        foes = torch.where(self._ally, agents, 0)
        friends = torch.where(self._ally, 0, agents)
        chosen = action - 6 + torch.where(s.heals, friends, foes)
        chosen = torch.where(action >= 6, chosen, -1)
        return self._by_side(*[target if script else chosen for script in scripts])

    def _by_side(self, allies: Tensor, enemies: Tensor) -> Tensor:
        """Rows of `allies` for the allies and rows of `enemies` for the enemies."""
        return allies if allies is enemies else torch.where(self._ally, allies, enemies)

    def _tick(
        self,
        battle: Battle,
        s: Stats,
        pairs: Pairs,
        heading: Tensor,
        noise: Tensor,
        scripts: Scripts,
        first: bool,
    ) -> Battle:
        """1/16 s later. Everybody acts upon what was at its beginning."""
        position, alive = battle.position, battle.health > 0
        distance = norm(position[:, :, None] - position[:, None])
        can = pairs.may & alive[:, None] & alive
        edge = distance - pairs.between
        target = self._retarget(battle, s, can, distance, edge, scripts, first)

        aim, has = target.clamp_min(0), target >= 0
        to_target = position.gather(1, aim.expand(2, *aim.shape)) - position
        room = norm(to_target) - s.radius - s.radius.expand_as(aim).gather(0, aim)
        close = has & (room <= s.range)
        scripted = self._by_side(*[torch.full_like(has, bool(script)) for script in scripts])
        end = torch.where(scripted, battle.goal, position + STRIDE * heading)
        end = torch.where(has, position + to_target, end)
        moved = self._move(position, end, (alive & ~close) * s.speed * DT, s)

        fires = close & (battle.cooldown <= 0) & ~s.heals
        hits = fires[:, None] & (aim[:, None] == self._index)
        hits = self._splash(hits, fires, position, to_target, distance, s)
        health, shield, hurt = self._damage(battle, hits, pairs)
        if self._any.bursts:
            health = torch.where(fires & s.bursts, 0.0, health)
        alive = health > 0
        cooldown = torch.where(fires, s.cooldown + noise, battle.cooldown)
        cooldown = (cooldown - DT).clamp_min(0)  # next tick is one tick later
        energy = battle.energy
        if self._any.heals:
            health, energy, heals = self._heal(battle, health, aim, close, s)
            cooldown = torch.where(s.heals, heals.float(), cooldown)  # a healer's: it is healing
        quiet = torch.where(hurt, SHIELD_DELAY, (battle.quiet - DT).clamp_min(0))
        if self._any.shield:
            charging = alive & (quiet <= 0)
            shield = torch.where(
                charging, torch.minimum(shield + SHIELD_RATE * DT, s.shield), shield
            )
        if self._any.regeneration:
            grown = torch.minimum(health + s.regeneration * DT, s.health)
            health = torch.where(alive, grown, health)
        position = self._separate(moved, position, alive, pairs, s)
        return battle._replace(
            position=position, health=health, shield=shield, cooldown=cooldown, energy=energy,
            quiet=quiet, target=target,
        )  # fmt: skip

    def _retarget(
        self,
        battle: Battle,
        s: Stats,
        can: Tensor,
        distance: Tensor,
        edge: Tensor,
        scripts: Scripts,
        first: bool,
    ) -> Tensor:
        """Targets [V, N]: those kept while they can be attacked, and what scripts choose."""
        aimed = (battle.target[:, None] == self._index) & can
        kept = torch.where(aimed.any(1), battle.target, -1)
        chosen: dict[str | None, Tensor] = {
            script: self._choose(script, battle, s, can, distance, edge, aimed, kept)
            for script in set(scripts)
            if script and (first or script == "attack-move")
        }
        return self._by_side(*(chosen.get(script, kept) for script in scripts))

    def _choose(
        self,
        script: str,
        battle: Battle,
        s: Stats,
        can: Tensor,
        distance: Tensor,
        edge: Tensor,
        aimed: Tensor,
        kept: Tensor,
    ) -> Tensor:
        """Targets [V, N] of a script, -1 where there is none; see `envs.combat.make_combat`."""
        reach = edge <= s.range[:, None]
        score, keep = distance, None
        if script == "weakest":
            score = torch.where(reach, battle.health + battle.shield - 1e4, distance)
        elif script == "heuristic":
            keep = kept >= 0
        elif script == "attack-move":
            back = (aimed.transpose(0, 1)) & can
            keep = (aimed & (reach | back)).any(1)
            struck = back & reach.transpose(0, 1)
            scan = (s.range + 0.5).clamp_min(SCAN)[:, None]
            can = can & ((edge <= scan) | struck)
            score = distance - 1e3 * s.heals
        if self._any.heals:  # who has lost the largest share, else somebody to follow
            share = battle.health / s.health
            score = torch.where(s.heals[:, None] & (share < 1), share - 1e4, score)
            keep = None if keep is None else keep & ~s.heals
        best, nearest = torch.where(can, score, FAR).min(1)
        found = torch.where(best < FAR / 2, nearest, -1)
        return found if keep is None else torch.where(keep, kept, found)

    def _splash(
        self,
        hits: Tensor,
        fires: Tensor,
        position: Tensor,
        to_target: Tensor,
        distance: Tensor,
        s: Stats,
    ) -> Tensor:
        """Whom attacks hit [V, V, N] besides their target."""
        ground = self._foe & ~s.flies
        if self._any.bursts:
            near = ground & (distance - s.radius <= BURST)
            hits = torch.where((fires & s.bursts)[:, None], near, hits)
        if self._any.beam:
            line = to_target / norm(to_target).clamp_min(1e-6)
            off = position[:, None] - (position + to_target)[:, :, None]
            along = (off[0] * line[0][:, None] + off[1] * line[1][:, None]).abs()
            across = (off[0] * line[1][:, None] - off[1] * line[0][:, None]).abs()
            inside = (along <= BEAM_WIDTH / 2 + s.radius) & (across <= BEAM_LENGTH / 2 + s.radius)
            hits = hits | ((fires & s.beam)[:, None] & ground & inside)
        return hits

    def _damage(self, battle: Battle, hits: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor, Tensor]:
        """Health, shields, and who was hit [V, N]; the shield takes what it can, without armour."""
        net = torch.where(hits, pairs.net, 0.0).sum(0)  # of halves: exact in any order
        if not self._any.shield:
            return (battle.health - net).clamp_min(0), battle.shield, net > 0
        raw = torch.where(hits, pairs.raw, 0.0).sum(0)
        taken = torch.minimum(raw, battle.shield)
        share = 1 - taken / raw.clamp_min(1e-6)
        return (battle.health - net * share).clamp_min(0), battle.shield - taken, raw > 0

    def _heal(
        self, battle: Battle, health: Tensor, aim: Tensor, close: Tensor, s: Stats
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Health and energy after healing, and who heals [V, N]."""
        wounded = (health > 0) & (health < s.health)
        begins = (battle.energy >= ENERGY_MIN) | (battle.cooldown > 0)
        amount = torch.minimum(s.damage * DT, 3 * battle.energy)
        heals = s.heals & close & begins & wounded.gather(0, aim) & (amount > 0)
        given = torch.where(heals, amount, 0.0)
        gained = torch.where(aim[:, None] == self._index, given[:, None], 0.0)
        gained = total(gained, 0)
        gained = torch.minimum(gained, (s.health - health).clamp_min(0))
        energy = torch.where(s.heals, battle.energy - given / 3 + ENERGY_RATE * DT, 0.0)
        return health + gained, energy.clamp(0, ENERGY), heals

    def _separate(
        self, moved: Tensor, before: Tensor, alive: Tensor, pairs: Pairs, s: Stats
    ) -> Tensor:
        """Positions without overlap, as far as one push gives it, and on the ground."""
        pushed = separate(moved, alive, pairs.touching)
        if self._rooted:
            pushed = torch.where(s.speed > 0, pushed, before)
        return self._keep_on_ground(pushed, before, s)

    # ---- the ground

    def _ground(self, terrain: str) -> None:
        """Constants of the terrain."""
        ground = ground_of(terrain)
        self._low, self._high = (bound.to(self.device)[:, None, None] for bound in ground.box)
        self._free = None if ground.free is None else ground.free.to(self.device)
        self._roads = None
        if ground.paths is not None:
            self._roads = ground.node.to(self.device), ground.paths.to(self.device)

    def _move(self, position: Tensor, end: Tensor, pace: Tensor, s: Stats) -> Tensor:
        """Positions after `pace` [m] towards `end` [2, V, N], not beyond it; around obstacles."""
        if self._roads is not None:
            node, paths = self._roads
            x, y, straight = paths[node[_cell(position)], node[_cell(end)]].unbind(-1)
            direct = (straight > 0) | s.flies | s.climbs
            end = torch.where(direct, end, torch.stack([x, y]))
        way = end - position
        length = norm(way).clamp_min(1e-6)
        return position + way * (torch.minimum(pace, length) / length)

    def _keep_on_ground(self, position: Tensor, before: Tensor, s: Stats) -> Tensor:
        """Positions within bounds; who walks into an obstacle slides along it."""
        above = s.flies | s.climbs
        low, high = torch.where(above, 0.0, self._low), torch.where(above, FIELD, self._high)
        position = torch.minimum(torch.maximum(position, low), high)
        if self._free is None:
            return position
        x, y = torch.stack([position[0], before[1]]), torch.stack([before[0], position[1]])
        slid = torch.where(self._free[_cell(x)], x, torch.where(self._free[_cell(y)], y, before))
        return torch.where(self._free[_cell(position)] | above, position, slid)

    def _open(self, position: Tensor) -> Tensor:
        """Whether the ground is free at [2, ...]."""
        shape = (2, *[1] * (position.dim() - 1))
        inside = (position >= self._low.view(shape)) & (position <= self._high.view(shape))
        inside = inside[0] & inside[1]
        return inside if self._free is None else inside & self._free[_cell(position)]

    # ---- reward and observations

    def _reward(self, before: Battle, after: Battle, s: Stats, won: Tensor, lost: Tensor) -> Tensor:
        """SMAC's: damage to enemies, 10 for each that died, 200 for the battle, scaled to 20."""
        if self.sparse:
            return won.float() - lost.float()

        def losses(side: int) -> tuple[Tensor, Tensor]:
            rows = self._sides[side]
            damage = before.health + before.shield - after.health - after.shield
            deaths = (before.health > 0) & (after.health <= 0)
            return total(damage[rows], 0), 10 * deaths[rows].sum(0)

        damage, deaths = losses(1)
        if self.negative_scale is None:
            worth = damage.clamp_min(0) + deaths
        else:
            worth = damage + deaths - self.negative_scale * sum(losses(0))
        whole = total((s.health + s.shield)[self._sides[1]], 0)
        return 20 * (worth + 200 * won) / (whole + 10 * self.num_enemies + 200)

    def _see(self, battle: Battle, side: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        s = self._stats(battle.kind) if self.random_teams else self._fixed[1]
        own, foe = self._sides[side], self._sides[1 - side]
        alive, position = battle.health > 0, battle.position
        available = self._available(battle, s, side)
        sight = s.sight[own, None] if self.random_teams else SIGHT
        apart = position[:, None, :] - position[:, own, None]  # [2, own, V, N]
        distance = norm(apart)
        seen = alive[own, None] & alive & (distance < sight)
        where = torch.stack([distance, *apart]) / sight  # [3, own, V, N]
        looks = [self._looks(battle, s, 0), self._looks(battle, s, 1)]
        n = position.shape[2]

        def block(columns: slice, first: Tensor, look: Tensor) -> Tensor:
            rows = where.shape[1], look.shape[1]
            look = look[:, None].expand(-1, *rows, n)
            whole = torch.cat([first.expand(1, *rows, n), where[:, :, columns], look])
            return torch.where(seen[:, columns], whole, 0.0).permute(3, 1, 2, 0)  # [N, own, V, F]

        enemies = block(foe, self._attackable(available).float(), looks[1 - side])
        friends = block(own, torch.ones_like(where[:1, :, own]), looks[side])
        friends = friends.flatten(1, 2).index_select(1, self._rest[side])
        count = position[:, own].shape[1]
        mine = [looks[side]]
        if self.random_teams:
            mine.append((position[:, own] - FIELD / 2) / FIELD)
        parts = [
            available[:, :, 2:6].float(),
            enemies.flatten(2),
            friends.reshape(n, count, -1),
            torch.cat(mine).permute(2, 1, 0),
        ]
        here = alive[own].t().contiguous()
        obs = torch.where(here[..., None], torch.cat(parts, 2), 0.0)
        return obs, self._whole(battle, s, side, looks), available, here

    def _looks(self, battle: Battle, s: Stats, side: int) -> Tensor:
        """Health, shield and type bits of a side's units [F, units, N]."""
        rows = self._sides[side]
        parts = [(battle.health / s.health)[rows][None]]
        if self._shields[side]:
            parts.append((battle.shield / s.shield.clamp_min(1))[rows][None])
        if len(self._bits[side]):
            bits = (battle.kind[rows] == self._bit[side]).float()
            parts.append(bits.expand(-1, -1, battle.health.shape[1]))
        return torch.cat(parts)

    def _attackable(self, available: Tensor) -> Tensor:
        """SMAC's first column of an enemy: the action that bears its number can be taken."""
        return available[:, :, 6:].permute(1, 2, 0)[None]

    def _available(self, battle: Battle, s: Stats, side: int) -> Tensor:
        """SMAC's mask bool [N, own, U]."""
        own, foe = self._sides[side], self._sides[1 - side]
        position, alive = battle.position, battle.health > 0
        here = alive[own]
        ahead = position[:, own, None] + STRIDE / 2 * self._moves[:, None, 2:, None]
        moves = self._open(ahead) & here[:, None]  # [own, 4, N]
        reach = s.range.clamp_min(2)[own, None] if self.random_teams else SHOOT
        near = norm(position[:, own, None] - position[:, None]) <= reach  # [own, V, N]
        near = near & here[:, None] & alive
        attack = near[:, foe]
        if self._any.heals:
            count, foes = here.shape[0], attack.shape[1]
            heal = near[:, own] & ~s.heals[own]
            heal = pad(heal, (0, 0, 0, max(foes - count, 0)))[:, :foes]
            attack = torch.where(s.heals[own, None], heal, attack)
        nothing = torch.stack([~here, here], 1)
        return torch.cat([nothing, moves, attack], 1).permute(2, 0, 1).contiguous()

    def _whole(self, battle: Battle, s: Stats, side: int, looks: list[Tensor]) -> Tensor:
        """SMAC's state [N, S]: own units, enemies, last actions."""
        own = self._sides[side]
        alive = battle.health > 0
        ready = battle.cooldown / self._top_cooldown[battle.kind]
        ready = torch.where(s.heals, battle.energy / ENERGY, ready)
        where = (battle.position - FIELD / 2) / FIELD
        parts = []
        for team in (side, 1 - side):
            rows, look = self._sides[team], looks[team]
            middle = [ready[None, rows], where[:, rows]] if team == side else [where[:, rows]]
            features = torch.cat([look[:1], *middle, look[1:]])
            features = torch.where(alive[rows], features, 0.0)
            parts.append(features.permute(2, 1, 0).flatten(1))
        actions = battle.action[own].t()[..., None]
        codes = torch.arange(self.num_actions[side], device=self.device)
        last = (actions == codes).float()  # all 0 before the first
        return torch.cat([*parts, last.flatten(1)], 1)


def _roster(team: dict[str, int]) -> list[str]:
    return [name for name, count in team.items() for _ in range(count)]


def _formation(team: dict[str, int], starts: tuple[Point, ...], sign: int) -> list[Point]:
    """Places of a team's units: square blocks around their start, facing along `sign`."""
    groups: list[Any] = [_roster(team)]
    if len(starts) > 1:
        groups = [[name] * n for name, n in team.items()]
    places: list[Point] = []
    for names, (x, y) in zip(groups, starts, strict=True):
        width = math.ceil(math.sqrt(len(names)))
        size = 2 * max(SC2[name].radius for name in names) + 0.05
        for i in range(len(names)):
            row, column = divmod(i, width)
            rows = math.ceil(len(names) / width)
            places.append(
                (
                    x + sign * size * (column - (width - 1) / 2),
                    y + sign * size * (row - (rows - 1) / 2),
                )
            )
    return places


def _cell(position: Tensor) -> Tensor:
    """Index of the cell of 1 m x 1 m in which a position [2, ...] lies."""
    x, y = position.long().clamp(0, int(FIELD) - 1)
    return y * int(FIELD) + x


class Ground(NamedTuple):
    """Terrain, K free cells."""

    box: tuple[Tensor, Tensor]
    """Lower left and upper right corner of what is free, [2] each [m]."""
    free: Tensor | None
    """Whether a cell is free, bool [1024]; None where the whole box is."""
    node: Tensor
    """Number of the nearest free cell, a free one's own, int64 [1024]."""
    paths: Tensor | None
    """From one free cell to another, where to go straight ahead: x, y [m] and whether that is the
    end [K, K, 3]; None where every free cell can be seen from every other."""


@functools.cache
def ground_of(terrain: str) -> Ground:
    """The ground of a kind of terrain, with the shortest paths around obstacles."""
    size = int(FIELD)
    centre = torch.stack(torch.meshgrid(*[torch.arange(size) + 0.5] * 2, indexing="xy"), -1).view(
        -1, 2
    )
    outline = torch.tensor(TERRAIN[terrain], dtype=torch.float32)
    free, box = _inside(centre, outline), (outline.amin(0), outline.amax(0))
    if bool((free == ((centre > box[0]) & (centre < box[1])).all(1)).all()):
        return Ground(box, None, torch.zeros(size**2, dtype=torch.int64), None)
    place = centre[free]
    node = torch.cdist(centre, place).argmin(1)
    samples = torch.linspace(0, 1, 129)[:, None, None, None]
    seen = torch.ones(len(place), len(place), dtype=torch.bool)
    for i, start in enumerate(place):  # a row at a time: all at once would take a gigabyte
        line = start + samples[:, 0] * (place - start)
        seen[i] = free[_cell(line.permute(2, 0, 1))].all(0)
    paths = None if bool(seen.all()) else _paths(place, seen)
    return Ground(box, free, node, paths)


def _inside(points: Tensor, outline: Tensor) -> Tensor:
    """Whether points [P, 2] lie within a polygon [C, 2], by crossings of a ray to the right."""
    a, b = outline, outline.roll(-1, 0)
    x, y = points[:, 0, None], points[:, 1, None]
    crosses = (a[:, 1] > y) != (b[:, 1] > y)
    at = a[:, 0] + (y - a[:, 1]) * (b[:, 0] - a[:, 0]) / (b[:, 1] - a[:, 1])
    return (crosses & (x < at)).sum(1) % 2 == 1


def _paths(place: Tensor, seen: Tensor) -> Tensor:
    """See `Ground.paths`: the last cell of the shortest path that can be seen from its start."""
    distance = torch.cdist(place, place)
    steps = torch.where((distance < 1.5) & seen, distance, 0.0)
    _, before = csgraph.dijkstra(steps.numpy(), return_predecessors=True)
    before = torch.as_tensor(before).long()
    goal = torch.arange(len(place)).expand(len(place), -1)
    reached = before >= 0
    way = goal.clone()
    while bool((hidden := reached & ~seen.gather(1, way)).any()):
        way = torch.where(hidden, before.gather(1, way), way)
    return torch.cat([place[way], (way == goal).float()[..., None]], 2)
