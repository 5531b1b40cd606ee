"""What `combat` is made of: units, maps and random teams, as data.

Units of `rules="sc2"` (`SC2`): hit points, shields, armour, weapons, radii, speeds and sight of
StarCraft II 4.10, as dumped from the game by BurnySc2/sc2-techtree (`data/data.json`; equal in
every dump between February 2019 and January 2021, patches 4.8 to 5.0). Times are "Normal" seconds,
of which one has 16 game loops. Not in that dump: the medivac's healing, the shape of the colossus'
beam and the radius of a baneling's explosion, which are those of uoe-agents/smaclite; and a
baneling's damage, 16 and 19 more against light units, which is from memory and may be off by 2.

Units of `rules="smax"` (`SMAX`): those of JaxMARL 0.2.0, which mix "Normal" and "Faster" seconds
and have no shields, armour or bonus damage.

Maps (`MAPS`): rosters, time limits and types of SMAC (Samvelyan et al. 2019). Where the teams
start is what smaclite gives, but in blocks and for 2s_vs_1sc side by side; where smaclite lacks a
map, its usual places. Terrain is our outline of that of the game's maps. Random teams (`TEAMS`):
unit types and their weights of SMACv2 (Ellis et al. 2023).
"""

from __future__ import annotations

from dataclasses import dataclass

Point = tuple[float, float]


@dataclass(frozen=True)
class Unit:
    """A type of unit."""

    health: float
    """[hit points]"""
    damage: float
    """Of one hit; of a healer: hit points per second."""
    cooldown: float
    """Between attacks [s]."""
    range: float
    """Between the edges of attacker and target [m]; of SMAX, between their centres."""
    radius: float
    """[m]"""
    speed: float
    """[m/s]"""
    sight: float
    """[m]"""
    shield: float = 0.0
    """Hit points that regenerate, 2 per second after 10 s without damage."""
    armor: float = 0.0
    """What every hit on the health loses; shields have none."""
    hits: int = 1
    """Per attack."""
    bonus_light: float = 0.0
    """More damage per hit against light units."""
    bonus_armored: float = 0.0
    """More damage per hit against armoured units."""
    light: bool = False
    armored: bool = False
    flies: bool = False
    """Is hit only by those who `shoot_up`, and meets neither ground units nor terrain."""
    shoots_up: bool = False
    climbs: bool = False
    """Walks over terrain and over units on the ground, although it can be hit there."""
    heals: bool = False
    """Heals instead of attacking, three hit points for one of energy."""
    beam: bool = False
    """Hits a strip of 2.8 m x 0.3 m across the line of fire."""
    bursts: bool = False
    """Dies of its attack, which hits all enemies on the ground within 2.2 m."""
    regeneration: float = 0.0
    """[hit points / s]"""


SC2: dict[str, Unit] = {
    "marine": Unit(45, 6, 0.861, 5, 0.375, 2.25, 9, light=True, shoots_up=True),
    "marauder": Unit(125, 10, 1.5, 6, 0.5625, 2.25, 10, armor=1, bonus_armored=10, armored=True),
    "medivac": Unit(150, 9, 0.0, 4, 0.75, 2.5, 11, armor=1, armored=True, flies=True, heals=True),
    "stalker": Unit(
        80, 13, 1.87, 6, 0.625, 2.953, 10, 80, 1, bonus_armored=5, armored=True, shoots_up=True
    ),
    "zealot": Unit(100, 8, 1.2, 0.1, 0.5, 2.25, 9, 50, 1, hits=2, light=True),
    "colossus": Unit(
        200, 10, 1.5, 7, 1.0, 2.25, 10, 150, 1, 2, bonus_light=5, armored=True, climbs=True,
        beam=True,
    ),
    "zergling": Unit(35, 5, 0.696, 0.1, 0.375, 2.953, 8, light=True, regeneration=0.2734),
    "baneling": Unit(
        30, 16, 0.0, 0.25, 0.375, 2.5, 8, bonus_light=19, bursts=True, regeneration=0.2734
    ),
    "hydralisk": Unit(
        90, 12, 0.825, 5, 0.625, 2.25, 9, light=True, shoots_up=True, regeneration=0.2734
    ),
    "spine_crawler": Unit(
        300, 25, 1.85, 7, 1.125, 0.0, 11, armor=2, bonus_armored=5, armored=True,
        regeneration=0.2734,
    ),
}  # fmt: skip
"""Of `rules="sc2"`, by name."""

PROTOSS = ("stalker", "zealot", "colossus")
"""Those with shields: whether a team has any decides about the layout of observations."""

SMAC_COOLDOWN = {
    "marine": 15, "marauder": 25, "stalker": 35, "zealot": 22, "colossus": 24, "hydralisk": 10,
    "zergling": 11, "baneling": 1,
}  # fmt: skip
"""By what SMAC divides cooldowns [loops] in its state."""

SMAX: dict[str, Unit] = {
    "marine": Unit(45, 9, 0.61, 5, 0.375, 3.15, 9),
    "marauder": Unit(125, 10, 1.07, 6, 0.5625, 2.25, 10),
    "stalker": Unit(160, 13, 1.87, 6, 0.625, 4.13, 10),
    "zealot": Unit(150, 8, 0.86, 2, 0.5, 3.15, 9),
    "zergling": Unit(35, 5, 0.5, 2, 0.375, 4.13, 8),
    "hydralisk": Unit(80, 12, 0.59, 5, 0.625, 3.15, 9),
}
"""Of `rules="smax"`, in SMAX's order."""


@dataclass(frozen=True)
class Map:
    """Two rosters and where they meet, on a field of 32 m x 32 m."""

    allies: dict[str, int]
    """How many of each type, in the order of SMAC's type bits."""
    enemies: dict[str, int]
    limit: int
    """Steps of an episode."""
    ally_start: tuple[Point, ...] = ((9.0, 16.0),)
    """Centre of the whole team, or of each type's group [m]."""
    enemy_start: tuple[Point, ...] = ((23.0, 16.0),)
    enemy_goal: Point = (9.0, 16.0)
    """Where the enemies go as long as they see nobody [m]."""
    terrain: str = "simple"


def _same(limit: int, terrain: str = "simple", **team: int) -> Map:
    return Map(team, team, limit, terrain=terrain)


MAPS: dict[str, Map] = {
    "3m": _same(60, marine=3),
    "8m": _same(120, marine=8),
    "25m": _same(150, marine=25),
    "5m_vs_6m": Map({"marine": 5}, {"marine": 6}, 70),
    "8m_vs_9m": Map({"marine": 8}, {"marine": 9}, 120),
    "10m_vs_11m": Map({"marine": 10}, {"marine": 11}, 150),
    "27m_vs_30m": Map({"marine": 27}, {"marine": 30}, 180),
    "MMM": _same(150, marauder=2, marine=7, medivac=1),
    "MMM2": Map(
        {"marauder": 2, "marine": 7, "medivac": 1}, {"marauder": 3, "marine": 8, "medivac": 1}, 180
    ),
    "2s3z": _same(120, stalker=2, zealot=3),
    "3s5z": _same(150, stalker=3, zealot=5),
    "1c3s5z": _same(180, colossus=1, stalker=3, zealot=5),
    "3s5z_vs_3s6z": Map({"stalker": 3, "zealot": 5}, {"stalker": 3, "zealot": 6}, 170),
    "3s_vs_5z": Map({"stalker": 3}, {"zealot": 5}, 250, terrain="open"),
    "6h_vs_8z": Map({"hydralisk": 6}, {"zealot": 8}, 150),
    "corridor": Map(
        {"zealot": 6},
        {"zergling": 24},
        400,
        ((19.04, 19.12),),
        ((27.91, 28.24),),
        (4.47, 4.33),
        "corridor",
    ),
    "bane_vs_bane": Map(
        {"baneling": 4, "zergling": 20},
        {"baneling": 4, "zergling": 20},
        200,
        ((16.0, 8.0), (16.0, 11.0)),
        ((16.0, 24.0), (16.0, 21.0)),
        (16.0, 8.0),
        "octagon",
    ),
    "2c_vs_64zg": Map(
        {"colossus": 2},
        {"zergling": 64},
        400,
        ((16.0, 16.0),),
        ((16.0, 9.0),),
        (16.0, 16.0),
        "ravine",
    ),
    "2s_vs_1sc": Map(
        {"stalker": 2},
        {"spine_crawler": 1},
        300,
        ((14.0, 10.35),),
        ((13.92, 20.04),),
        (14.0, 10.35),
        "open",
    ),
    "so_many_baneling": Map({"zealot": 7}, {"baneling": 32}, 100),
}
"""By SMAC's names."""

TERRAIN: dict[str, tuple[Point, ...]] = {
    "simple": ((0, 8), (32, 8), (32, 24), (0, 24)),
    "open": ((0, 0), (32, 0), (32, 32), (0, 32)),
    "octagon": ((5, 10), (11, 5), (21, 5), (27, 10), (27, 22), (21, 27), (11, 27), (5, 22)),
    "corridor": (
        (1, 3), (3, 1), (12, 1), (14, 3), (13, 4), (13, 10), (16, 13), (25, 13), (31, 20), (31, 30),
        (30, 31), (20, 31), (11, 22), (11, 18), (14, 15), (11, 13), (2, 13), (1, 12),
    ),
    "ravine": (
        (0, 9), (3, 6), (29, 6), (32, 9), (32, 12), (4, 12), (4, 13), (32, 13), (32, 17), (29, 21),
        (3, 21), (0, 17),
    ),
}  # fmt: skip
"""Where units on the ground can be: the corners of a polygon [m]."""

TEAMS: dict[str, dict[str, float]] = {
    "protoss": {"stalker": 0.45, "zealot": 0.45, "colossus": 0.1},
    "terran": {"marine": 0.45, "marauder": 0.45, "medivac": 0.1},
    "zerg": {"zergling": 0.45, "hydralisk": 0.45, "baneling": 0.1},
}
"""Weights of unit types in SMACv2's random teams; the last type never makes up a whole team."""


def _random(race: str, allies: int, enemies: int) -> tuple[str, Map]:
    first = next(iter(TEAMS[race]))
    return race, Map({first: allies}, {first: enemies}, 200, terrain="open")


RANDOM: dict[str, tuple[str, Map]] = {
    f"{race}_{allies}_vs_{enemies}": _random(race, allies, enemies)
    for race in TEAMS
    for allies, enemies in ((5, 5), (10, 10), (10, 11), (20, 20), (20, 23))
}
"""SMACv2's battles between random teams: what they are drawn from, and how many units there are."""

SMAX_MAPS: dict[str, tuple[list[str], list[str]] | int] = {
    **{
        name: (
            [unit for unit, count in MAPS[name].allies.items() for _ in range(count)],
            [unit for unit, count in MAPS[name].enemies.items() for _ in range(count)],
        )
        for name in (
            "3m", "8m", "25m", "5m_vs_6m", "10m_vs_11m", "27m_vs_30m", "2s3z", "3s5z",
            "3s5z_vs_3s6z", "3s_vs_5z", "6h_vs_8z",
        )
    },
    "smacv2_5_units": 5,
    "smacv2_10_units": 10,
    "smacv2_20_units": 20,
}  # fmt: skip
"""Maps of SMAX: rosters, or the number of units of each side, drawn uniformly from all types."""
