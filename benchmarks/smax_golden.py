"""Steps of JaxMARL's SMAX from random states, for the tests of `combat` with rules=smax.

    python benchmarks/smax_golden.py        writes tests/envs/golden/smax_<map>.npz

JaxMARL runs in an environment of its own, `.venv-jaxmarl`. Each file holds, for 24 states: these
(positions, health, types, cooldowns, last actions), actions of all units, what SMAX makes of them
(the next state, rewards of both sides, observations of all units, world state, available actions),
and what its heuristic does with both sides in the first state.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from common import ROOT, foreign_python

MAPS = ("3m", "2s3z", "5m_vs_6m", "6h_vs_8z", "smacv2_5_units")
CODE = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jaxmarl.environments.smax import SMAX, map_name_to_scenario
from jaxmarl.environments.smax.heuristic_enemy import (
    create_heuristic_policy, get_heuristic_policy_initial_state)

COUNT = 24

def stack(of_agent, agents):
    width = max(of_agent[a].shape[-1] for a in agents)
    rows = [np.asarray(of_agent[a]) for a in agents]
    return np.stack([np.pad(r, (0, width - r.shape[-1])) for r in rows])

def main(name, path):
    scenario = map_name_to_scenario(name)
    env = SMAX(scenario=scenario)
    rng = np.random.default_rng(len(name))
    units, allies = env.num_agents, env.num_allies
    policies = [jax.jit(create_heuristic_policy(env, side)) for side in (0, 1)]
    rows = []
    for i in range(COUNT):
        key = jax.random.PRNGKey(i)
        _, state = env.reset(key)
        types = np.asarray(state.unit_types)
        # most in one crowd, some far away, some at the walls
        position = rng.normal(16, 3, (units, 2))
        far = rng.random(units) < 0.15
        position[far] = rng.uniform(0.02, 31.98, (int(far.sum()), 2))
        share = rng.uniform(0.02, 1, units) * (rng.random(units) > 0.15)
        health = np.asarray(env.unit_type_health)[types] * share
        moves = rng.integers(0, 5, units)
        limit = np.where(np.arange(units) < allies, env.num_ally_actions, env.num_enemy_actions)
        last = np.where(rng.random(units) < 0.5, moves, rng.integers(5, limit))
        last_move, last_attack = env._decode_discrete_actions(jnp.asarray(last))
        state = state.replace(
            unit_positions=jnp.asarray(position, jnp.float32),
            unit_health=jnp.asarray(health, jnp.float32),
            unit_alive=jnp.asarray(health > 0),
            unit_weapon_cooldowns=jnp.asarray(rng.uniform(-0.3, 0.6, units), jnp.float32),
            prev_movement_actions=last_move, prev_attack_actions=last_attack)
        before = env.get_obs(state)
        heuristic = []
        for j, agent in enumerate(env.agents):
            memory = get_heuristic_policy_initial_state()
            act, _ = policies[int(j >= allies)](key, memory, before[agent])
            heuristic.append(int(act))
        idle = rng.random(units) < 0.4
        action = np.where(idle, rng.integers(0, 5, units), rng.integers(5, limit))
        joint = {a: jnp.asarray(action[j]) for j, a in enumerate(env.agents)}
        obs, after, reward, done, _ = env.step_env(key, state, joint)
        rows.append({
            "position": state.unit_positions, "health": state.unit_health, "kind": types,
            "cooldown": state.unit_weapon_cooldowns, "last": last, "action": action,
            "heuristic": np.array(heuristic), "obs_before": stack(before, env.agents),
            "state_before": env.get_world_state(state),
            "available_before": stack(env.get_avail_actions(state), env.agents),
            "next_position": after.unit_positions, "next_health": after.unit_health,
            "next_alive": after.unit_alive, "next_cooldown": after.unit_weapon_cooldowns,
            "next_obs": stack(obs, env.agents), "next_state": obs["world_state"],
            "reward": np.array([reward[env.agents[0]], reward[env.agents[-1]]]),
            "over": done["__all__"]})
    np.savez_compressed(path, **{k: np.stack([np.asarray(r[k]) for r in rows]) for k in rows[0]})

main(*sys.argv[1:])
"""


def main() -> None:
    python = foreign_python("jaxmarl", ["jaxmarl==0.2.0"])
    folder = ROOT / "tests" / "envs" / "golden"
    folder.mkdir(exist_ok=True)
    for name in MAPS:
        path: Path = folder / f"smax_{name}.npz"
        # in a folder where nothing shadows a package
        command = [python, "-c", CODE, name, str(path)]
        subprocess.run(command, check=True, cwd=folder)
        print(path.relative_to(ROOT), path.stat().st_size // 1024, "kB", flush=True)


if __name__ == "__main__":
    main()
