"""Measuring and showing the skills of a team: how much a skill is told by all, by some, by one.

Everything is measured on a frozen policy by decoders that are fitted afresh and judged on held-out
episodes (`mi.decode`), with a nearest-neighbour estimate beside them. Information is in nats, about
the states at the end of an episode.

Shape letters: E episodes, A agents, F features of an agent's state, K skills.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import torch
from torch import Tensor
from torch.nn import functional

import mi
from agents.core import plot
from agents.core.config import require
from agents.core.evaluate import Episodes, play
from envs.adapt import can_render
from envs.base import BatchedEnv

if TYPE_CHECKING:
    from agents.masd import MASD

BIN = 0.5  # side of a coverage bin [m]
PAIRS = 6  # pairs that are measured at most
MIN_EPISODES = 10  # that a decoder is fitted to and judged on


def labels(agent: MASD, skill: Tensor) -> Tensor:
    """Numbers int64 [E] of discrete skills [E, C K]: sum over codes of code_i K^i."""
    code = skill.unflatten(-1, (agent.codes, -1)).argmax(-1)
    return (code * agent.config.skill_size ** torch.arange(agent.codes, device=code.device)).sum(-1)


def final_states(agent: MASD, episodes: Episodes) -> Tensor:
    """States of all agents at the end, [E, A, F]."""
    return episodes.last_obs[..., agent.columns]


def rollout(
    agent: MASD, episodes: int, env: BatchedEnv | None = None, deterministic: bool = False
) -> tuple[Tensor, Tensor]:
    """See `MASD.rollout_skills`."""
    seed = agent.config.seed + 2
    with agent.using(torch.Generator(agent.device).manual_seed(seed)):
        played = play(agent, env or agent.make_eval_env(episodes), seed, deterministic)
    skill = played.state["skill"]
    if agent.config.skill == "discrete":
        skill = labels(agent, skill)
    return final_states(agent, played)[:episodes], skill[:episodes]


def metrics(agent: MASD, episodes: Episodes) -> dict[str, float]:
    """What a team's states tell about its skill.

    - `joint`, `joint_accuracy`: from the states of all agents;
    - `single_0` ..., `single_max`, `single_mean`: from that of one;
    - `pair_max`, `pair_mean`: from those of two, where there are more agents than that;
    - `relative`: from the states relative to their mean;
    - `coordination`: joint - single_max, what only the team tells;
    - `joint_knn`, `single_knn_max` (discrete skills): the same by another estimator;
    - `coverage`: distinct bins of 0.5 m of the team's joint state.
    """
    x, skill = final_states(agent, episodes), episodes.state["skill"]
    require(len(x) >= MIN_EPISODES, "episodes", len(x), f"at least {MIN_EPISODES}, for a decoder")
    agents = range(x.shape[1])
    joint = _decode(agent, x, skill)
    single = [_decode(agent, x[:, [i]], skill).nats for i in agents]
    results = {
        "joint": joint.nats,
        "single_max": max(single),
        "single_mean": sum(single) / len(single),
        "coordination": joint.nats - max(single),
        "relative": _decode(agent, x - x.mean(1, keepdim=True), skill).nats,
        "coverage": float(len(torch.unique((x.flatten(1) / BIN).round(), dim=0))),
    }
    results |= {f"single_{i}": value for i, value in enumerate(single)}
    pairs = list(itertools.combinations(agents, 2)) if len(agents) > 2 else []
    if pairs:
        chosen = pairs[:: -(-len(pairs) // PAIRS)]
        values = [_decode(agent, x[:, pair], skill).nats for pair in chosen]
        results |= {"pair_max": max(values), "pair_mean": sum(values) / len(values)}
    if agent.config.skill == "discrete":
        label = labels(agent, skill)
        results["joint_accuracy"] = joint.accuracy
        results["joint_knn"] = mi.discrete_continuous(x.flatten(1), label)
        results["single_knn_max"] = max(mi.discrete_continuous(x[:, i], label) for i in agents)
    return results


def _decode(agent: MASD, x: Tensor, skill: Tensor) -> mi.Decoded:
    discrete = agent.config.skill == "discrete"
    if discrete:
        classes = agent.config.skill_size**agent.codes
        skill = functional.one_hot(labels(agent, skill), classes).float()
    steps = min(400, max(25, len(x) // 8))
    return mi.decode(x.flatten(1), skill, discrete, steps=steps, seed=agent.config.seed)


class Intervened:
    """A team in which some agents act at random, whatever the policy says.

    Args:
        agent: the team's policy.
        random: which agents act at random; all of them make a random policy.
    """

    def __init__(self, agent: MASD, random: Sequence[int]) -> None:
        self.agent, self.random = agent, list(random)
        self.generator = torch.Generator(agent.device).manual_seed(agent.config.seed + 3)

    def initial_state(self, num_envs: int) -> dict[str, Tensor]:
        """Skills from the prior."""
        with self.agent.using(self.generator):
            return self.agent.initial_state(num_envs)

    def act(
        self, obs: Tensor, state: dict[str, Tensor], deterministic: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The team's actions with those of some agents replaced."""
        with self.agent.using(self.generator):
            action, state = self.agent.act(obs, state, deterministic)
        space: Any = self.agent.env.single_action_space
        unit = torch.rand(action.shape, generator=self.generator, device=action.device)
        if isinstance(space, gym.spaces.Box):
            low, high = (torch.as_tensor(b, device=action.device) for b in (space.low, space.high))
            noise = low + (high - low) * unit
        else:
            noise = (unit * self.agent.actions).long()
        action[:, self.random] = noise[:, self.random]
        return action, state


def interventions(agent: MASD, episodes: int, seed: int) -> dict[str, float]:
    """What is left of the joint information when one agent does not take part, in nats.

    Where skills are coordination, it falls: an agent means something only beside the others.

    Returns:
        `intervened`: one agent acts at random; the mean over who does. The others still react to
        it, so that all states together may tell as much as before;
        `intervened_rest`: the same, from the states of those others;
        `exchanged`: one agent's final state is that of the same agent in another episode of the
        same skill, which keeps what each agent tells alone and breaks how they fit together
        (discrete skills, mean over agents);
        `random/...`: `metrics` of a team of which everybody acts at random.
    """
    env, team = agent.make_eval_env(episodes), range(agent.agents)
    joint, rest = [], []
    for i in team:
        played = play(Intervened(agent, [i]), env, seed, deterministic=False)
        x, skill = final_states(agent, played), played.state["skill"]
        joint.append(_decode(agent, x, skill).nats)
        rest.append(_decode(agent, x[:, [j for j in team if j != i]], skill).nats)
    results = {"intervened": _mean(joint), "intervened_rest": _mean(rest)}
    if agent.config.skill == "discrete":
        generator = torch.Generator(agent.device).manual_seed(seed)
        with agent.using(generator):
            played = play(agent, env, seed, deterministic=False)
        x, skill = final_states(agent, played), played.state["skill"]
        partner = exchange(labels(agent, skill), generator)
        values = []
        for i in team:
            mixed = x.clone()
            mixed[:, i] = x[partner, i]
            values.append(_decode(agent, mixed, skill).nats)
        results["exchanged"] = _mean(values)
    everybody = play(Intervened(agent, team), env, seed)
    random = metrics(agent, everybody) | {"return_mean": everybody.returns.mean().item()}
    return results | {f"random/{name}": value for name, value in random.items()}


def exchange(label: Tensor, generator: torch.Generator) -> Tensor:
    """For each episode another one of the same skill, all different, int64 [E]."""
    shuffled = torch.randperm(len(label), generator=generator, device=label.device)
    shuffled = shuffled[label[shuffled].argsort(stable=True)]  # by skill, at random within it
    partner = torch.empty_like(shuffled)
    partner[shuffled] = shuffled.roll(1)
    # the first of each skill took the last of the one before; it takes the last of its own
    first = label[shuffled] != label[shuffled].roll(1)
    last = label[shuffled] != label[shuffled].roll(-1)
    partner[shuffled[first]] = shuffled[last]
    return partner


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def report(agent: MASD, directory: Path) -> dict[str, float]:
    """Interventions; `plots/skills.png` and, where the environment renders, `video/skills.mp4`."""
    seed = agent.config.seed + 2
    skills = evenly_spread(agent, 8)
    paths = trajectories(agent, skills.repeat_interleave(4, 0), seed)
    plot.plot_team(paths.unflatten(1, (len(skills), 4)), directory / "plots" / "skills.png")
    record(agent, skills, directory / "video" / "skills.mp4", seed)
    return interventions(agent, agent.config.eval_episodes, seed)


def evenly_spread(agent: MASD, count: int) -> Tensor:
    """Up to `count` skills [K, C Z]: all discrete ones if they are so few, or draws."""
    config = agent.config
    if config.skill == "discrete" and agent.codes == 1:
        return torch.eye(config.skill_size, device=agent.device)[:count]
    with agent.using(torch.Generator(agent.device).manual_seed(0)):
        return agent.initial_state(count)["skill"]


def trajectories(agent: MASD, skills: Tensor, seed: int) -> Tensor:
    """Paths of all agents, all teams from the same start, [T, E, A, 2]."""
    env = agent.make_eval_env(len(skills))
    env.rng.share()
    seen: list[Tensor] = []
    with agent.using(torch.Generator(agent.device).manual_seed(seed)):
        state = agent.initial_state(len(skills)) | {"skill": skills}
        played = play(agent, env, seed, False, state, seen.append)
    path = torch.stack([*seen, played.last_obs])[..., agent.columns[:2]]
    return functional.pad(path, (0, 2 - path.shape[-1]))  # a single feature is x


def record(agent: MASD, skills: Tensor, path: Path, seed: int) -> None:
    """Video of the skills side by side, all from the same start."""
    env = agent.make_eval_env(len(skills))
    if not can_render(env):
        return
    env.rng.share()
    frames: list[Tensor] = []
    with agent.using(torch.Generator(agent.device).manual_seed(seed)):
        state = agent.initial_state(len(skills)) | {"skill": skills}
        play(agent, env, seed, True, state, lambda _: frames.append(env.render().clone()))  # type: ignore[union-attr]
    plot.write_video(path, torch.stack(frames), fps=round(1 / (env.dt or 0.1)))
