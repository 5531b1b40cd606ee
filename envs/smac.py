"""The real game: SMAC and SMACv2, where they are installed, as batched environments.

`smac/<map>` and `smacv2/<race>_<n>_vs_<m>`, e.g. `smac/3m` and `smacv2/terran_5_vs_5`. The packages
drive StarCraft II 4.10 itself, which is not on PyPI; errors say what to get. The interface is that
of `combat`, which has the same maps under the same names.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from envs.foreign import GymnasiumBatch, Workers, _batch
from envs.units import MAPS, RANDOM, TEAMS

NEEDS = (
    "needs the package {package} (from github.com/oxwhirl/{package}; {note}) and StarCraft II "
    "4.10 for Linux with SMAC's maps, in ~/StarCraftII or where SC2PATH says; {instead}"
)
NOTES = {
    "smac": "`smac` on PyPI is something else",
    "smacv2": "it is not on PyPI",
}


class SMACEnv(gym.Env[np.ndarray, Any]):
    """A `StarCraft2Env` of SMAC or SMACv2 as one environment with an agent axis.

    Infos hold `alive` [A], `avail_actions` [A, U], `state` [S] and `battle_won`. An action that is
    not available becomes `stop`, or nothing where the unit is dead. The time limit truncates; with
    the game's own default, `continuing_episode=False`, it terminates.

    Args:
        package: 'smac' or 'smacv2'.
        name: of the map or the teams.
        **kwargs: the game's own arguments.

    Raises:
        ValueError: the package or the game is not installed.
    """

    def __init__(self, package: str, name: str, **kwargs: Any) -> None:
        self._make = functools.partial(_game, package, name, **kwargs)
        self.game, self._launched = self._make(), False
        sizes = self.game.get_env_info()  # known before the game is launched
        self.num_agents, actions = int(sizes["n_agents"]), int(sizes["n_actions"])
        self.max_episode_steps = int(sizes["episode_limit"])
        shape = (self.num_agents, int(sizes["obs_shape"]))
        self.observation_space = spaces.Box(-np.inf, np.inf, shape, np.float32)
        self.action_space: Any = spaces.MultiDiscrete([actions] * self.num_agents)
        self.context_layout: dict[str, Any] = {
            "alive": ((self.num_agents,), "bool"),
            "avail_actions": ((self.num_agents, actions), "bool"),
            "state": ((int(sizes["state_shape"]),), "float32"),
        }

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode; a seed launches the game anew, which takes seconds."""
        super().reset(seed=seed)
        if seed is not None:
            self.game.close()
            self.game = self._make(seed=seed)
        self.game.reset()
        return self._obs(), self._context() | {"battle_won": False}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Advance the game by eight loops; see `gymnasium.Env`."""
        available = self._context()["avail_actions"]
        rows = np.arange(self.num_agents)
        stop = available[:, 1].astype(np.int64)
        action = np.where(available[rows, action], action, stop)
        reward, over, info = self.game.step(action.tolist())
        late = bool(info.get("episode_limit", False))
        won = {"battle_won": bool(info.get("battle_won", False))}
        return self._obs(), float(reward), bool(over) and not late, late, self._context() | won

    def close(self) -> None:
        """End the game."""
        self.game.close()

    def _obs(self) -> np.ndarray:
        return np.asarray(self.game.get_obs(), np.float32)

    def _context(self) -> dict[str, np.ndarray]:
        available = np.asarray(self.game.get_avail_actions(), np.bool_)
        return {
            "alive": ~available[:, 0],  # to do nothing is for the dead
            "avail_actions": available,
            "state": np.asarray(self.game.get_state(), np.float32),
        }


def _needs(package: str, name: str) -> str:
    """What a game takes to run, and which of our maps would do instead."""
    ours = f"`combat/{name}`" if name in (*MAPS, *RANDOM) else "the maps of `combat/`"
    return NEEDS.format(package=package, note=NOTES[package], instead=f"{ours} need none of it")


def _game(package: str, name: str, **kwargs: Any) -> Any:
    """A game of SMAC or SMACv2; not launched before its first reset."""
    needs = _needs(package, name)
    kwargs = {"continuing_episode": True} | kwargs  # else nothing tells a time limit from a defeat
    try:
        if package == "smac":
            from smac.env import StarCraft2Env  # type: ignore[import-not-found]

            return StarCraft2Env(map_name=name, **kwargs)
        from smacv2.env import StarCraftCapabilityEnvWrapper  # type: ignore[import-not-found]
    except ImportError as error:
        raise ValueError(f"{package}/{name}: {needs} ({error})") from None
    return StarCraftCapabilityEnvWrapper(**_capabilities(name), **kwargs)


def _capabilities(name: str) -> dict[str, Any]:
    """SMACv2's arguments for random teams, as its examples have them."""
    race, battle = RANDOM[name]
    teams = TEAMS[race]
    return {
        "capability_config": {
            "n_units": sum(battle.allies.values()),
            "n_enemies": sum(battle.enemies.values()),
            "team_gen": {
                "dist_type": "weighted_teams",
                "unit_types": list(teams),
                "weights": list(teams.values()),
                "exception_unit_types": [list(teams)[-1]],
                "observe": True,
            },
            "start_positions": {
                "dist_type": "surrounded_and_reflect", "p": 0.5, "map_x": 32, "map_y": 32,
            },
        },
        "map_name": f"10gen_{race}",
        "conic_fov": False,
        "use_unit_ranges": True,
        "min_attack_range": 2,
        "obs_own_pos": True,
    }  # fmt: skip


def from_smac(
    name: str,
    num_envs: int = 1,
    device: torch.device | str = "cpu",
    seed: int = 0,
    workers: Workers = "auto",
    timeout: float = 300.0,
    *,
    package: str = "smac",
    **kwargs: Any,
) -> GymnasiumBatch:
    """Games of SMAC (`package='smac'`) or SMACv2 ('smacv2'): [N, A, D]; see `SMACEnv`.

    Args:
        name: SMAC's map, or for SMACv2 teams such as 'terran_5_vs_5'.
        num_envs: N games.
        device: where the tensors live.
        seed: copy i is seeded with `seed + i`.
        workers: see `envs.from_gymnasium`.
        timeout: see `envs.from_gymnasium`.
        package: 'smac' or 'smacv2'.
        **kwargs: the game's own arguments, e.g. `difficulty`.

    Raises:
        ValueError: the package or the game is not installed, or unknown teams.
    """
    if package == "smacv2" and name not in RANDOM:
        raise ValueError(f"smacv2/{name}: expected one of {', '.join(RANDOM)}")
    folder = Path(os.environ.get("SC2PATH", "~/StarCraftII")).expanduser()
    make = functools.partial(SMACEnv, package, name, **kwargs)
    if not folder.is_dir():
        raise ValueError(f"{package}/{name}: {_needs(package, name)} (there is no {folder})")
    return _batch(make, num_envs, device, seed, workers, timeout)
