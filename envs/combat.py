"""Combat: small battles with the rosters of SMAC, all environments in one tensor.

Pure torch on any device, two sets of rules: `sc2` (`envs.combat_sc2`), StarCraft II's unit data
with SMAC's actions, observations, states and rewards; and `smax` (`envs.combat_smax`), those of
JaxMARL's SMAX, step for step. Results on `combat` are not SMAC results.

Shape letters: N environments, A agents (the allies), E enemies, V = A + E units (allies first),
D observation features, U actions, S state features.

Inside, the environments are the last axis of every tensor, and what units do to each other is a
[V, V, N] table that is reduced over the units: contiguous memory, no scatter, and the number of
operations depends on neither N nor V.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from envs.base import BatchedEnv, SimulationError, episode_keys, step_keys, uniform
from envs.units import MAPS, RANDOM, SMAX_MAPS, Unit

SCRIPTS = ("closest", "weakest", "attack-move", "heuristic")
SUBSTEPS, DT = 8, 1 / 16
"""A step is eight ticks of 1/16 s."""
FIELD = 32.0
"""Width and height of the field [m]."""

SEEN = ("obs", "state", "avail_actions", "alive")
"""What agents see, in the order of `Combat._see`."""
Scripts = tuple[str | None, str | None]
"""Of allies and of enemies, None where actions are given."""
Policy = Callable[[Tensor, dict[str, Tensor]], Tensor]
"""From observations [N, E, D] and `context` of the enemies to their actions int64 [N, E]."""


class Battle(NamedTuple):
    """The state of all battles; [V, N] unless said otherwise."""

    position: Tensor
    """[2, V, N] [m]"""
    health: Tensor
    """[hit points]; 0 is dead."""
    shield: Tensor
    """[hit points]"""
    cooldown: Tensor
    """Until a unit may attack again, negative if it may [s]."""
    energy: Tensor
    """Of healers."""
    quiet: Tensor
    """Until shields regenerate [s]."""
    goal: Tensor
    """Where a scripted unit goes as long as it has no target [2, V, N] [m]."""
    target: Tensor
    """Unit that is attacked, healed or followed, -1 is none; int64."""
    action: Tensor
    """Last actions, int64."""
    kind: Tensor
    """Row of the unit data, int64 [V, N], or [V, 1] where rosters are fixed."""


class Record(NamedTuple):
    """One scripted episode per environment, float32 [N] each."""

    won: Tensor
    length: Tensor
    returned: Tensor


class Combat(BatchedEnv):
    """What both sets of rules share; see `make_combat` for the arguments.

    An action that is not available does no harm: by `sc2` it becomes `stop`, or nothing where the
    unit is dead; by `smax` it has no effect.

    `info["battle_won"]` (bool [N]) says whether the step won the battle; `context()` has `state`,
    `avail_actions` and `alive`.
    """

    units: ClassVar[dict[str, Unit]]
    """The unit data."""
    battle: Battle
    num_agents: int

    def __init__(
        self,
        num_envs: int,
        device: torch.device | str,
        seed: int,
        teams: tuple[list[str], list[str]],
        limit: int,
        features: tuple[int, int],
        actions: tuple[int, int],
        opponent: str | Policy,
        compile: bool,
    ) -> None:
        self.teams, self.opponent = teams, opponent
        self.num_agents, self.num_enemies = len(teams[0]), len(teams[1])
        self.num_units = self.num_agents + self.num_enemies
        self.max_episode_steps, self.dt = limit, SUBSTEPS * DT
        agents = self.num_agents
        space = gym.spaces.Box(-np.inf, np.inf, (agents, features[0]), np.float32)
        action_space = gym.spaces.MultiDiscrete([actions[0]] * agents)
        super().__init__(num_envs, space, action_space, device, seed)
        self.metadata = {**self.metadata, "render_modes": ["rgb_array"]}
        self.num_actions = actions
        self._index = torch.arange(self.num_units, device=self.device)[:, None]
        self._ally = self._index < agents
        self._foe = self._ally[:, None] != self._ally  # [V, V, 1]
        self._other = (self._index[:, None] != self._index).float()
        self._constants()
        # Not computed within a step: a compiler that knows these numbers overflows.
        self._draws = torch.arange(max(self.step_draws, self.start_draws), device=self.device)
        self.battle = self._blank()
        self._outside = torch.zeros((), dtype=torch.bool, device=self.device)  # see `_enemies`
        self._transition, self._look_at, self._renew = self._play, self._see, self._restarted
        self._fused: Any = None
        if compile:
            from torch._dynamo import config

            # Of the graphs of all environments together; by default there may be 8.
            config.recompile_limit = max(config.recompile_limit, config.accumulated_recompile_limit)
            # Names of modules are not looked up at every step: they do not change.
            skip = torch.compiler.skip_guard_on_globals_unsafe
            options = {"cpp_wrapper": True, "guard_filter_fn": skip}
            settings: Any = {"fullgraph": True, "dynamic": False, "options": options}
            self._transition = torch.compile(self._play, **settings)
            self._look_at = torch.compile(self._see, **settings)
            self._renew = torch.compile(self._restarted, **settings)
            self._fused = torch.compile(self._turn, **settings)
        # What the last step has seen, each part handed out once: a receiver may write to it.
        self._seen: dict[str, Tensor] = {}
        # The same, within a step: what rows that do not begin an episode go on seeing.
        self._last: tuple[Tensor, ...] | None = None

    @property
    def opponent(self) -> str | Policy:
        """Who commands the enemies: a script, or a policy as `observe` says."""
        return self._opponent

    @opponent.setter
    def opponent(self, opponent: str | Policy) -> None:
        if not callable(opponent):
            one_of("opponent", opponent, SCRIPTS)
        self._opponent = opponent

    # ---- what a set of rules writes

    def _constants(self) -> None:
        """Tensors that never change."""
        raise NotImplementedError

    def _start(self, draws: Tensor) -> Battle:
        """Battles at the start of an episode, from uniform draws in [0, 1) [`start_draws`, N]."""
        raise NotImplementedError

    def _step(
        self, battle: Battle, action: Tensor, draws: Tensor, scripts: Scripts
    ) -> tuple[Battle, Tensor, Tensor, Tensor]:
        """The next battles, reward, terminated and won [N]; a pure function.

        Args:
            battle: the state.
            action: int64 [N, V], what units without a script are told.
            draws: uniform draws in [0, 1) [`step_draws`, N].
            scripts: of allies and of enemies, None where `action` counts.
        """
        raise NotImplementedError

    def _stats(self, kind: Tensor) -> Any:
        """Unit data of `kind` [V, 1 or N], with `health` and `radius` at least."""
        raise NotImplementedError

    def _see(self, battle: Battle, side: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Observations [N, A, D], state [N, S], available actions, alive, of a side's agents."""
        raise NotImplementedError

    start_draws: int
    step_draws: int
    random_teams: bool
    """Whether types are drawn at the start of each episode."""
    _kind: Tensor
    """Types of fixed rosters, int64 [V, 1]."""
    _table: Any
    """Data of all types, as `_stats` has those of units; [types] each."""

    # ---- see `BatchedEnv`

    def _blank(self) -> Battle:
        shape = (self.num_units, self.num_envs)
        position, goal = torch.zeros(2, 2, *shape, device=self.device).unbind(0)
        real = [torch.zeros(shape, device=self.device) for _ in range(5)]
        whole = [torch.zeros(shape, dtype=torch.int64, device=self.device) for _ in range(3)]
        if not self.random_teams:
            whole[2] = self._kind
        health, shield, cooldown, energy, quiet = real
        target, action, kind = whole
        return Battle(position, health, shield, cooldown, energy, quiet, goal, target, action, kind)

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """See `BatchedEnv`."""
        if self._fused is None or not self._same_step or not isinstance(self.opponent, str):
            returned = super().step(actions)
            self._last = None
            return returned
        action, where = self._check(actions), (self.rng.stream(), self.rng.episode, self.elapsed)
        with torch.no_grad():
            battle, reward, terminated, truncated, won, before, after = self._fused(
                self.battle, action, *where, (None, self.opponent)
            )
        self.rng.follow()
        self._set(battle)
        self._seen = {}
        obs, final_info = before[0], dict(zip(SEEN[1:], before[1:], strict=True))
        info = {"battle_won": won, "final_obs": obs, "final_info": final_info}
        info["_final_obs"] = terminated | truncated
        info |= zip(SEEN[1:], after[1:], strict=True)
        return after[0], reward, terminated, truncated, info

    @torch.no_grad()
    def _begin(self, mask: Tensor) -> None:
        self._set(self._renew(self.battle, mask, self.rng.keys()))
        self._seen = {}
        if self._last is None or self.device.type != "cpu":
            return
        rows = mask.nonzero()[:, 0]
        if 4 * len(rows) < self.num_envs:  # only they see anything else than before
            part = Battle(*(x if x is self._kind else x[..., rows] for x in self.battle))
            seen = [
                old.index_copy(0, rows, new)
                for old, new in zip(self._last, self._see(part, 0), strict=True)
            ]
            self._seen = dict(zip(SEEN, seen, strict=True))

    def _restarted(self, battle: Battle, mask: Tensor, keys: Tensor) -> Battle:
        """`battle`, where `mask` (bool [N]) says so at the start of an episode."""
        fresh = self._start(uniform(keys, self._draws[: self.start_draws]).t().contiguous())
        pairs = zip(fresh, battle, strict=True)
        return Battle(*(torch.where(mask, new, old) for new, old in pairs))

    def _set(self, battle: Battle) -> None:
        """Go on with `battle`; a fixed roster stays one column."""
        self.battle = battle if self.random_teams else battle._replace(kind=self._kind)

    @torch.no_grad()
    def _advance(self, action: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
        scripts = None, self.opponent if isinstance(self.opponent, str) else None
        if not isinstance(self.opponent, str):
            enemies = self._enemies(self.opponent)
            action = torch.cat([action, enemies.to(action.dtype)], 1)
        reward, terminated, won = self._proceed(action, scripts)
        return reward, terminated, {"battle_won": won}

    def _enemies(self, policy: Policy) -> Tensor:
        """Actions [N, E] of a policy for the enemies; on a GPU their values wait for `check`."""
        obs, context = self.observe(side=1)
        action, available = torch.as_tensor(policy(obs, context)), context["avail_actions"]
        action, last = action.to(self.device), available.shape[2] - 1
        known = action.shape == available.shape[:2] and not action.is_floating_point()
        if known:
            self._outside |= ((action < 0) | (action > last)).any()
        if not known or (self.device.type == "cpu" and bool(self._outside)):
            self._outside.zero_()
            raise ValueError(
                f"opponent: expected integers {tuple(available.shape[:2])} in 0 .. {last}, "
                f"got {action.dtype} {tuple(action.shape)}"
            )
        return action.long().clamp(0, last)

    def check(self) -> None:
        """See `BatchedEnv`: a policy's actions for the enemies are looked at here on a GPU."""
        if bool(self._outside):
            self._outside.zero_()
            raise SimulationError("opponent: an action that is not in the enemies' action space")

    def _proceed(self, action: Tensor, scripts: Scripts) -> tuple[Tensor, Tensor, Tensor]:
        battle, reward, terminated, won, self._last = self._transition(
            self.battle, action, self.rng.keys(), scripts
        )
        self._set(battle)
        self._seen = dict(zip(SEEN, self._last, strict=True))
        return reward, terminated, won

    def _play(
        self, battle: Battle, action: Tensor, keys: Tensor, scripts: Scripts
    ) -> tuple[Battle, Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
        """A step and what the allies then see."""
        # Contiguous: whatever is computed from them keeps their order in memory.
        action = pad(action, (0, self.num_units - action.shape[1])).t().contiguous()
        draws = uniform(keys, self._draws[: self.step_draws]).t().contiguous()
        battle, reward, terminated, won = self._step(battle, action, draws, scripts)
        return battle, reward, terminated, won, self._see(battle, 0)

    def _turn(
        self,
        battle: Battle,
        action: Tensor,
        stream: Tensor,
        episode: Tensor,
        elapsed: Tensor,
        scripts: Scripts,
    ) -> tuple[Battle, Tensor, Tensor, Tensor, Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """A whole `step`, new episodes included, for a compiler; sets `episode` and `elapsed`.

        Returns:
            Battles; reward, terminated, truncated and won [N]; what the allies see before and after
            new episodes begin.
        """
        keys = step_keys(episode_keys(stream, episode), elapsed + 1)
        battle, reward, terminated, won, before = self._play(battle, action, keys, scripts)
        done = terminated | (elapsed + 1 >= self.max_episode_steps)
        episode += done
        elapsed.copy_(torch.where(done, 0, elapsed + 1))
        battle = self._restarted(battle, done, episode_keys(stream, episode))
        return battle, reward, terminated, done ^ terminated, won, before, self._see(battle, 0)

    def _take(self, name: str) -> Tensor:
        """A part of what the allies see now, for somebody who may write to it."""
        if name not in self._seen:
            self._seen = dict(zip(SEEN, self._look_at(self.battle, 0), strict=True))
        return self._seen.pop(name)

    @torch.no_grad()
    def _observe(self) -> Tensor:
        return self._take("obs")

    @torch.no_grad()
    def context(self) -> dict[str, Tensor]:
        """`state` [N, S], `avail_actions` bool [N, A, U] and `alive` bool [N, A]."""
        return {name: self._take(name) for name in SEEN[1:]}

    @torch.no_grad()
    def observe(self, side: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Observations and context of the allies (0) or, as if they were agents, the enemies (1).

        A policy for the enemies, i.e. self-play, is `env.opponent = policy`, which is called with
        these at every step and returns their actions int64 [N, E]; enemies have as many actions as
        their side's `avail_actions` says. Evaluations make an environment of their own and a
        checkpoint holds no policy: both play against the script unless they are given an `env`.
        """
        obs, state, available, alive = self._look_at(self.battle, side)
        return obs, {"state": state, "avail_actions": available, "alive": alive}

    def _state(self) -> dict[str, Any]:
        state = self.battle._asdict()
        if not self.random_teams:
            del state["kind"]
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `BatchedEnv`; a unit, an action or a type that there is not is refused, too."""
        last = torch.tensor(self.num_actions, device=self.device)[(~self._ally).long()] - 1
        for name, least, most in (
            ("target", -1, torch.full_like(last, self.num_units - 1)),
            ("action", -1, last),
            ("kind", 0, torch.full_like(last, len(self._table.health) - 1)),
        ):
            saved = state["state"].get(name)
            if getattr(saved, "shape", None) != getattr(self.battle, name).shape:
                continue  # none of fixed rosters; anything else is refused below
            saved, most = saved.to(self.device), most.expand(saved.shape)
            wrong = (saved < least) | (saved > most)
            if bool(wrong.any()):
                bounds, got = f"{least} .. {most[wrong][0]}", saved[wrong][0].item()
                raise ValueError(f"environment state {name!r}: expected {bounds}, got {got}")
        super().load_state_dict(state)
        self._seen = {}

    @torch.no_grad()
    def render(self, pixels: int = 256) -> Tensor:  # type: ignore[override]
        """Images uint8 [N, 3, pixels, pixels] of the field from above, y upwards.

        Allies are blue, enemies red, the darker the later their type; over each unit its health in
        green and, where it has one, its shield in white; a line leads from who attacks (yellow) or
        heals (green) to the target. Obstacles are grey.
        """
        battle, device = self.battle, self.device
        radius, health, shield = self._shape()
        grid = (torch.arange(pixels, device=device) + 0.5) * (FIELD / pixels)
        position = battle.position.permute(2, 1, 0)[..., None]  # [N, V, 2, 1]
        x, y = (grid - position).permute(2, 0, 1, 3)  # [N, V, pixels] from the unit
        x, y = x[:, :, None], y.flip(-1)[..., None]  # rows of an image go down
        alive = (battle.health > 0).t()[..., None, None]
        radius = radius.t()[..., None, None]
        free = self._open(torch.stack(torch.meshgrid(grid, grid, indexing="xy"))).flip(0)
        image = torch.where(free[..., None], 235.0, 120.0).expand(self.num_envs, -1, -1, 3)
        image = image * torch.ones(3, device=device)
        image = _paint(image, (x.square() + y.square() <= radius.square()) & alive, self._colours())
        for value, most, height, colour in (
            (battle.health, health, 0.25, (30, 160, 60)),
            (battle.shield, shield, 0.55, (250, 250, 255)),
        ):
            share = (value / most.clamp_min(1)).t()[..., None, None]
            bar = (y > radius + height) & (y < radius + height + 0.25) & (x.abs() <= 0.6)
            bar = bar & alive & (most > 0).t()[..., None, None]
            image = _paint(image, bar, torch.zeros(self.num_units, 3, device=device))
            full = torch.tensor(colour, dtype=torch.float32, device=device)
            image = _paint(image, bar & (x <= 1.2 * share - 0.6), full.expand(self.num_units, 3))
        aim = battle.target.clamp_min(0)
        there = battle.position.gather(1, aim.expand(2, *aim.shape)) - battle.position
        tx, ty = there.permute(0, 2, 1)[..., None, None]
        along = (x * tx + y * ty) / (tx.square() + ty.square()).clamp_min(1e-6)
        beside = (x * ty - y * tx).abs() / (tx.square() + ty.square()).sqrt().clamp_min(1e-6)
        line = (along > 0) & (along < 1) & (beside < 0.6 * FIELD / pixels)
        acts = ((battle.target >= 0) & (battle.cooldown > 0)).t()[..., None, None]
        friend = (self._ally == self._ally[aim, 0])[..., None]  # [V, N, 1]
        yellow, green = torch.tensor([[225.0, 170, 0], [0, 170, 90]], device=device)
        image = _paint(
            image, line & acts & alive, torch.where(friend, green, yellow).transpose(0, 1)
        )
        return image.to(torch.uint8).permute(0, 3, 1, 2).contiguous()

    def _shape(self) -> tuple[Tensor, Tensor, Tensor]:
        """Radius, most health and most shield of the units, [V, N] each."""
        s = self._stats(self.battle.kind)
        most = getattr(s, "shield", torch.zeros_like(s.health))
        shape = self.battle.health.shape
        return s.radius.expand(shape), s.health.expand(shape), most.expand(shape)

    def _colours(self) -> Tensor:
        """Of the units' discs, [N, V, 3]."""
        team = torch.tensor([[60.0, 110, 225], [220, 70, 60]], device=self.device)
        shade = 1 - 0.22 * self.battle.kind.t()[..., None]
        return (team[(~self._ally[:, 0]).long()] * shade.clamp_min(0.3)).expand(
            self.num_envs, -1, -1
        )

    def _open(self, position: Tensor) -> Tensor:
        """Whether the ground is free at [2, ...]."""
        return torch.ones_like(position[0], dtype=torch.bool)

    # ---- scripts

    @torch.no_grad()
    def scripted(self, script: str, seed: int | None = None) -> Record:
        """Let scripted allies play one episode in every environment; the environment stays as is.

        Args:
            script: of the allies, one of `SCRIPTS`.
            seed: of the episodes; None takes every row's next.

        Raises:
            ValueError: unknown script, or an opponent that is not scripted.
        """
        one_of("script", script, SCRIPTS)
        if not isinstance(self.opponent, str):
            raise ValueError("scripted: expected a scripted opponent, got a policy")
        saved = self.state_dict()
        try:
            self.reset(seed=seed)
            record = Record(*torch.zeros(3, self.num_envs, device=self.device))
            idle = torch.zeros_like(self.battle.action).t()
            running = torch.ones_like(self._everyone)
            while bool(running.any()):
                self.rng.advance()
                reward, over, won = self._proceed(idle, (script, self.opponent))
                self.elapsed += 1
                record = Record(
                    record.won + (won & running),
                    record.length + running,
                    record.returned + reward * running,
                )
                running &= ~over & (self.elapsed < self.max_episode_steps)
        finally:  # also when it is interrupted
            self._last = None
            self.load_state_dict(saved)
        return record

    def scripted_win_rate(self, script: str, seed: int | None = None) -> float:
        """Share of environments whose battle scripted allies win; see `scripted`."""
        return self.scripted(script, seed).won.mean().item()


def one_of(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Raise ValueError unless `value` is among `choices`."""
    if value not in choices:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(map(str, choices))}")


def _paint(image: Tensor, mask: Tensor, colours: Tensor) -> Tensor:
    """Image [N, P, P, 3] with the last of the shapes `mask` [N, V, P, P] at each pixel."""
    units, rows = mask.shape[1], mask.shape[0]
    order = torch.arange(1, units + 1, device=mask.device)[:, None, None]
    top = (mask * order).amax(1)
    colours = colours.expand(rows, units, 3)
    index = (top - 1).clamp_min(0).view(rows, -1, 1).expand(-1, -1, 3)
    return torch.where(top[..., None] > 0, colours.gather(1, index).view_as(image), image)


def norm(x: Tensor) -> Tensor:
    """Lengths of vectors [2, ...]; not `hypot`, which does not vectorise."""
    return (x[0] * x[0] + x[1] * x[1]).sqrt()


def total(x: Tensor, dim: int) -> Tensor:
    """Sum over units, by halves.

    In which order `sum` adds depends on where in memory a row lies: a row would not be the same, to
    the last bit, among other rows. A compiled sum adds one after the other.
    """
    if torch.compiler.is_compiling():
        return x.sum(dim)
    while (count := x.shape[dim]) > 1:
        half = count // 2
        pairs = x.narrow(dim, 0, half) + x.narrow(dim, half, half)
        if count % 2:
            pairs.narrow(dim, 0, 1).add_(x.narrow(dim, count - 1, 1))
        x = pairs
    return x.squeeze(dim)


def separate(position: Tensor, alive: Tensor, touching: Tensor) -> Tensor:
    """Positions [2, V, N] after pushing apart, once and all at a time, living units that overlap.

    Args:
        position: [2, V, N] [m].
        alive: bool [V, N].
        touching: distances of contact [V, V, 1 or N] [m], 0 for units that never touch.
    """
    apart = position[:, :, None] - position[:, None]
    overlap = (touching / (norm(apart) + 1e-6) - 1).clamp_min(0)  # a unit and itself: times 0
    overlap = torch.where(alive[:, None] & alive, overlap, 0.0)
    return position + total(apart * overlap, 2) / 2


def scattered_starts(
    place: Tensor, group: Tensor, rest: Tensor, agents: int, swap: bool, edge: float
) -> Tensor:
    """SMACv2's starts [2, V, N] [m]: half of the battles are mirrored, half surrounded.

    Mirrored: allies anywhere on the left half, enemies at their mirror images (those who are more,
    anywhere on the right half). Surrounded: the allies within 2 m of the centre, each enemy within
    2 m of one of four points on the diagonals.

    Args:
        place: uniform draws in [0, 1), [2, V, N].
        group: the same, [V, N].
        rest: the same, [6, N].
        agents: A.
        swap: whether, half of the time, the enemies are surrounded instead (SMAX).
        edge: how near to the edge of the field one may start [m]; by 0 (SMAX), the points may be
            anywhere, and who is around them off the field.
    """
    half, total = FIELD / 2, place.shape[1]
    both = min(agents, total - agents)
    left = torch.stack([edge + place[0] * (half - edge), edge + place[1] * (FIELD - 2 * edge)])
    mirrored = torch.stack([FIELD - left[0], left[1]])
    mirrored = torch.cat([left[:, :agents], mirrored[:, :both], mirrored[:, agents + both :]], 1)
    corner = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1]], device=place.device)[..., None] * FIELD
    if edge:
        corner = corner.clamp(edge + 2, FIELD - edge - 2)
    points = corner + rest[:4] * (half - corner)  # [2, 4, N]
    around = points.gather(1, (4 * group).long().expand(2, *group.shape))
    inside = torch.arange(total, device=place.device)[:, None] < agents
    if swap:
        inside = inside ^ (rest[4] < 0.5)
    surrounded = torch.where(inside, half, around) + 4 * place - 2
    return torch.where(rest[5] < 0.5, surrounded, mirrored)


def make_combat(
    map: str,
    num_envs: int = 1,
    device: torch.device | str = "cpu",
    seed: int = 0,
    rules: Literal["sc2", "smax"] = "sc2",
    opponent: str | Policy | None = None,
    reward: Literal["shaped", "sparse"] = "shaped",
    reward_only_positive: bool = True,
    reward_negative_scale: float = 0.5,
    jitter: float = 0.0,
    compile: bool = False,
) -> Combat:
    """Make a battle on one of SMAC's maps, or between random teams as in SMACv2.

    Scripts, of opponents and for `scripted_win_rate`, by the rules of `sc2`:

    - 'attack-move', the opponent unless another is named: goes to the other side's start; attacks
      who comes within max(5, range + 0.5) m, the nearest, healers first; keeps a target that is in
      range or aims back; strikes back at those who hit it from further away.
    - 'closest': every step the nearest.
    - 'weakest': in range the one with the least health, else the nearest.
    - 'heuristic': the nearest, until it is dead.

    Healers heal who has lost the largest share of its health, and else follow the nearest. By the
    rules of `smax`, where only what is in range can be attacked:

    - 'heuristic', the opponent unless another is named, and 'closest', another name for it: SMAX's
      own; the nearest, until it is dead or out of range; else goes towards a random enemy in sight,
      else to the point opposite its start.
    - 'attack-move': the same, but towards the nearest enemy in sight.
    - 'weakest': in range the one with the least health; else goes towards the nearest, seen or not.

    Args:
        map: see `envs.units.MAPS`, `RANDOM` and `SMAX_MAPS`.
        num_envs: N.
        device: where all tensors live.
        seed: of starts, teams and weapons.
        rules: 'sc2' or 'smax'.
        opponent: a script, or a policy (see `Combat.observe`); None takes the rules' own.
        reward: 'shaped', or 'sparse': 1 for a victory, -1 for a defeat, 0 where both sides die at
            once or time runs out.
        reward_only_positive: as in SMAC; False, for shaped rewards of `sc2`, takes off what the
            allies lose: their health and shields, and 10 for each that dies. What enemies gain by
            regenerating is taken off, too, where it otherwise counts as nothing.
        reward_negative_scale: factor of what is taken off, at least 0.
        jitter: half-width of the random part of each coordinate of the starts [m], for the maps of
            `sc2`; a unit that would be off the ground starts where it would without. Random teams
            and `smax` have random starts already, and refuse it.
        compile: fuse a step by `torch.compile` (needs a C++ compiler; a minute at the first step).

    Raises:
        ValueError: an argument out of range, or a map that the rules do not have.
    """
    from envs.combat_sc2 import SC2Combat
    from envs.combat_smax import SMAXCombat

    one_of("rules", rules, ("sc2", "smax"))
    one_of("reward", reward, ("shaped", "sparse"))
    for name, value in (("jitter", jitter), ("reward_negative_scale", reward_negative_scale)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name}={value}: expected at least 0, and finite")
    one_of("map", map, (*MAPS, *RANDOM) if rules == "sc2" else tuple(SMAX_MAPS))
    if jitter and (rules == "smax" or map in RANDOM):
        what = "rules='smax'" if rules == "smax" else "random teams"
        raise ValueError(f"jitter={jitter}: expected 0, the starts of {what} are random")
    if reward_only_positive and reward_negative_scale != 0.5:
        raise ValueError(
            f"reward_negative_scale={reward_negative_scale}: only with reward_only_positive=False"
        )
    if not reward_only_positive and (rules == "smax" or reward == "sparse"):
        what = "rules='smax'" if rules == "smax" else "reward='sparse'"
        raise ValueError(f"reward_only_positive=False: expected True with {what}")
    if rules == "smax":
        return SMAXCombat(map, num_envs, device, seed, opponent, reward, compile)
    scale = None if reward_only_positive else reward_negative_scale
    return SC2Combat(map, num_envs, device, seed, opponent, reward, scale, jitter, compile)
