"""MASD: skill discovery of coordination in multi-agent RL (He, Shao & Ji 2020, arXiv 2006.04021).

A skill z, shared by a team for an episode, must be readable from the states of all agents together
and not from that of any single one: max I(Z; S_1..S_A) - λ I(Z; S_i). One discriminator reads the
whole team and works with the policy; another reads single agents and is its adversary.

This is a reconstruction: the paper's abstract gives the two terms and the adversarial training; the
form of the reward, base algorithms, networks and hyper-parameters are our choice, and so is the
penalty on larger groups (`subset_size`).

Without interaction the two terms contradict each other. Given z, agents that neither see each other
nor share randomness have independent states, p(s|z) = Π p(s_i|z); if no single state tells z, this
is Π p(s_i), which does not depend on z either. Settings that hide the agents from each other are
therefore refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import torch
from torch import Tensor
from torch.nn import functional

import mi
from agents.base import Agent, State, Step
from agents.core import coordination
from agents.core.checkpoint import load_checkpoint
from agents.core.config import ConfigError, require
from agents.core.evaluate import Episodes
from agents.core.replay import Replay
from agents.core.team import MAPPO, MASAC, Batch, Sizes, TeamConfig
from envs.base import BatchedEnv


@dataclass
class MASDConfig(TeamConfig):
    """Settings of MASD."""

    env: str = "particles/free"
    """Environment id, see `python train.py list`; one with several agents."""
    num_envs: int = 256
    """Environments stepped together, N."""
    eval_episodes: int = 4096
    """Episodes of one evaluation; half of them fit the decoders that judge the others."""
    skill: Literal["discrete", "sphere"] = "discrete"
    """Prior of z: one of `skill_size` categories, or uniform on the unit sphere."""
    skill_size: int = 8
    """K skills, or dimensions of a continuous skill."""
    objective: Literal["team", "independent", "factored"] = "team"
    """`team`: I(Z;S) - λ agg I(Z;S_C) over groups C; `independent`: each agent its own I(Z;S_i)
    (DIAYN); `factored`: each agent a skill of its own, I(Z_i;S_i) - λ I(Z_i;S_others) (DUSDi)."""
    penalty_weight: float = 1.0
    """λ; 0 is joint DIAYN."""
    warmup: float = 0.0
    """Share of the training over which λ rises from 0."""
    aggregate: Literal["mean", "max", "sum"] = "mean"
    """How the penalties of several groups become one."""
    penalty: Literal["ba", "club"] = "ba"
    """Estimator of the penalty: Barber-Agakov (a lower bound), or CLUB (an upper one)."""
    subset_size: int = 1
    """k: groups of up to so many agents are penalised; 1 is the paper's single agents."""
    subset_samples: int = 8
    """Groups drawn per update where there are more."""
    inputs: Literal["positions", "relative", "velocities", "trajectory"] = "positions"
    """What the team's discriminator reads: positions, positions relative to their centre, positions
    and velocities, or positions and their mean so far (MAVEN-style). The adversary reads single
    positions, with velocities where those are read, and the time."""
    features: list[int] | None = None
    """Columns of an agent's observation that are its state s_i; None takes the environment's."""
    observed: list[int] | None = None
    """Columns of an agent's observation that its actor reads; None is all."""
    skill_weight: float = 1.0
    """Weight of the skill reward."""
    task_weight: float = 0.0
    """Weight of the environment's reward."""
    pretrained: str | None = None
    """Checkpoint of a MASD agent whose actor training starts from; its observation columns must
    lead those of this environment."""
    fixed_skill: int | None = None
    """The one discrete skill to use, e.g. for fine-tuning; None draws skills."""
    backbone: Literal["mappo", "sac"] = "mappo"
    """On-policy, or off-policy with rewards recomputed by the current discriminators."""
    horizon: int = 25
    """Steps of every environment between two updates, T."""
    discriminator_lr: float = 1e-3
    """Adam's step size for the discriminators."""
    discriminator_updates: int = 8
    """Gradient steps of the team's discriminator per update."""
    adversary_updates: int = 16
    """Gradient steps of the adversary per update: the penalty is only worth what it can decode."""
    discriminator_batch: int = 1024
    """Transitions per such step."""
    capacity: int = 400
    """Steps of every environment that are remembered (sac)."""

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        counts = ("horizon", "discriminator_updates", "adversary_updates", "discriminator_batch")
        for name in (*counts, "capacity", "subset_size", "subset_samples"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        rate = self.discriminator_lr
        require(rate > 0, "discriminator_lr", rate, "a positive number")
        for name in ("penalty_weight", "skill_weight", "task_weight"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        weights = max(self.skill_weight, self.task_weight)
        require(weights > 0, "skill_weight", weights, "it or task_weight above 0")
        require(0 <= self.warmup <= 1, "warmup", self.warmup, "in [0, 1]")
        least = 2 if self.skill == "discrete" else 1
        require(self.skill_size >= least, "skill_size", self.skill_size, f"at least {least}")
        episodes, enough = self.eval_episodes, coordination.MIN_EPISODES
        require(episodes >= enough, "eval_episodes", episodes, f"at least {enough}, for a decoder")
        if self.fixed_skill is not None:
            valid = self.skill == "discrete" and 0 <= self.fixed_skill < self.skill_size
            require(valid, "fixed_skill", self.fixed_skill, "one of the discrete skills")
        team = self.objective == "team" or self.inputs == "positions"
        require(team, "inputs", self.inputs, "positions unless objective=team")


class MASD(Agent):
    """Coordination skills; see the module's docstring."""

    name = "masd"
    Config = MASDConfig
    score = "coordination"

    def build(self) -> None:
        """Actors, critic, discriminators, memory."""
        config, space = self.config, self.env.single_observation_space
        if self.env.num_agents is None or len(space.shape or ()) != 2:
            raise ConfigError(f"env={config.env}: masd needs several agents that observe vectors")
        self.agents, width = space.shape  # type: ignore[misc]
        self.columns = self._columns("features", self._state_columns(), width)
        self.observed = self._columns("observed", config.observed, width)
        self._refuse_contradictions()
        self.codes = self.agents if config.objective == "factored" else 1
        context = self.env.context()
        self.states = context["state"].shape[1] if "state" in context else self.agents * width
        self._actions()
        if config.backbone == "sac" and self.scale is None:
            raise ConfigError("backbone=sac: expected continuous actions, use backbone=mappo")
        sizes = Sizes(
            inputs=len(self.observed) + config.skill_size + self.agents,
            central=self.states + self.codes * config.skill_size + 1,
            agents=self.agents,
            actions=self.actions,
            discrete=self.scale is None,
            rewards=1 if config.objective == "team" else self.agents,
        )
        self.learner = (MAPPO if config.backbone == "mappo" else MASAC)(config, sizes, self.device)
        self.parts = dict(self.learner.parts)
        features = len(self.columns)
        self.synergy = mi.Synergy(
            config.objective, self.agents, features + 1,
            features * 2 if config.inputs == "trajectory" else features, config.skill_size,
            config.skill == "discrete", config.penalty_weight, config.penalty, config.subset_size,
            config.aggregate,
        ).to(self.device)  # fmt: skip
        self.optimizer = torch.optim.Adam(
            self.synergy.parameters(), config.discriminator_lr, fused=True
        )
        self.parts |= {"synergy": self.synergy, "synergy_optimizer": self.optimizer}
        self.rollout_steps = config.horizon
        self.horizon = min(self.env.max_episode_steps, 2**31)  # of an episode, by which time counts
        self.memory = self._memory(width)
        if config.backbone == "sac":  # on-policy it is empty whenever a checkpoint is taken
            self.parts["memory"] = self.memory

    def _memory(self, width: int) -> Replay:
        config = self.config
        shapes: dict[str, tuple[int, ...]] = {
            "obs": (self.agents, width), "next_obs": (self.agents, width),
            "state": (self.states,), "next_state": (self.states,),
            "skill": (self.codes * config.skill_size,), "time": (), "reward": (), "ended": (),
        }  # fmt: skip
        if config.inputs == "trajectory":
            shapes["total"] = (self.agents, len(self.columns))
        fields = {name: (shape, torch.float32) for name, shape in shapes.items()}
        discrete = (self.agents,), torch.int64
        continuous = (self.agents, self.actions), torch.float32
        fields["action"] = discrete if self.scale is None else continuous
        steps = config.horizon if config.backbone == "mappo" else config.capacity
        return Replay(fields, steps, self.num_envs, self.device)

    def _actions(self) -> None:
        """Number of actions, and middle and half-width of the Box that they fill."""
        space = self.env.single_action_space
        self.scale: list[Tensor] | None = None
        if isinstance(space, gym.spaces.MultiDiscrete):
            self.actions = int(space.nvec[0])
        elif isinstance(space, gym.spaces.Box) and len(space.shape) == 2:
            low, high = (torch.as_tensor(b, device=self.device) for b in (space.low, space.high))
            self.actions, self.scale = space.shape[1], [(high + low) / 2, (high - low) / 2]
        else:
            raise ConfigError(f"env: masd needs Box or MultiDiscrete actions, got {space}")

    def _state_columns(self) -> list[int] | None:
        """Observation columns that are an agent's state, as `inputs` says."""
        if self.config.features is not None or self.config.inputs != "velocities":
            return self.config.features or self.env.skill_columns
        moving = getattr(self.env, "velocity_columns", None)
        if moving is None:
            raise ConfigError("inputs=velocities: this environment names none, use features=[...]")
        return [*(self.env.skill_columns or []), *moving]

    def _columns(self, name: str, columns: list[int] | None, width: int) -> Tensor:
        columns = list(range(width)) if columns is None else list(columns)
        if not columns or max(columns) >= width or min(columns) < 0:
            raise ConfigError(f"{name}={columns}: expected columns in 0..{width - 1}")
        return torch.tensor(columns, device=self.device)

    def _refuse_contradictions(self) -> None:
        """Refuse objectives that no policy can meet; the module's docstring has the proof."""
        config = self.config
        if config.objective != "team" or not config.penalty_weight or not config.skill_weight:
            return
        require(
            config.subset_size < self.agents,
            "subset_size",
            config.subset_size,
            f"less than the {self.agents} agents: the whole team would be rewarded and penalised",
        )
        others = getattr(self.env, "other_columns", None)
        if others is not None and not set(others) & set(self.observed.tolist()):
            name = "observed" if others else "env_kwargs.visibility"
            raise ConfigError(
                f"{name}: the actors do not see the other agents, so their states are independent "
                "given the skill, and what no single state tells, all together cannot tell "
                "either; let them see each other, or set penalty_weight=0"
            )

    # ---- acting

    def initial_state(self, num_envs: int) -> State:
        """Skills from the prior [num_envs, C Z], and the time [num_envs]."""
        config, size = self.config, self.config.skill_size
        shape, device = (num_envs, self.codes), self.device
        if config.skill == "discrete":
            skill = torch.randint(size, shape, generator=self.generator, device=device)
            skill = skill if config.fixed_skill is None else skill * 0 + config.fixed_skill
            skill = functional.one_hot(skill, size).float()
        else:
            noise = torch.randn((*shape, size), generator=self.generator, device=device)
            skill = functional.normalize(noise, dim=-1)
        state = {"skill": skill.flatten(1), "time": torch.zeros(num_envs, device=device)}
        if config.inputs == "trajectory":
            state["total"] = torch.zeros(num_envs, self.agents, len(self.columns), device=device)
        return state

    def act(self, obs: Tensor, state: State, deterministic: bool) -> tuple[Tensor, State]:
        """Actions of π(·|o_i, z, i), [N, A, U] or int64 [N, A]; the skill stays for the episode."""
        x = self._read(obs, state["skill"])
        action = self.learner.act(x, self.generator, deterministic)
        if self.scale is not None:
            action = self.scale[0] + self.scale[1] * action
        carried = dict(state)
        if "time" in state:
            carried["time"] = state["time"] + 1
        if "total" in state:
            carried["total"] = state["total"] + obs[..., self.columns]
        return action, carried

    def _read(self, obs: Tensor, skill: Tensor) -> Tensor:
        """What the actors read: observation, skill, which agent; [..., A, D]."""
        lead = obs.shape[:-1]
        skill = skill.unflatten(-1, (self.codes, -1)).expand(*lead, self.config.skill_size)
        identity = torch.eye(self.agents, device=self.device).expand(*lead, self.agents)
        return torch.cat([obs[..., self.observed], skill, identity], -1)

    def store(self, step: Step) -> None:
        """See `Agent`."""
        info, action = step.info, step.action
        if self.scale is not None:
            action = (action - self.scale[0]) / self.scale[1]
        values = {k: step.state[k] for k in ("skill", "time", "total") if k in step.state}
        self.memory.add(
            obs=step.obs,
            next_obs=info["final_obs"],
            state=step.context.get("state", step.obs.flatten(1)),
            next_state=info.get("final_info", {}).get("state", info["final_obs"].flatten(1)),
            action=action,
            reward=step.reward,
            ended=(step.terminated | step.truncated).float(),  # the critic knows the time
            **values,
        )

    # ---- learning

    def update(self) -> dict[str, Tensor]:
        """Discriminators, then the policy on the rewards that they now pay."""
        config, metrics = self.config, {}
        members = self.synergy.draw(config.subset_samples, self.generator)
        if config.skill_weight:
            metrics = self._update_discriminators(members)
        if isinstance(self.learner, MAPPO):
            batch, rewards = self._experience(self.memory.steps(), members)
            self.memory.clear()
            return metrics | rewards | self.learner.update(batch, self.generator)
        sums: dict[str, Tensor] = {}
        for _ in range(config.updates):
            sample = self.memory.sample(config.batch_size, self.generator)
            batch, rewards = self._experience(sample, members)
            rewards |= self.learner.update(batch, self.generator)
            sums = {name: sums.get(name, 0) + value for name, value in rewards.items()}
        return metrics | {name: value / config.updates for name, value in sums.items()}

    def _update_discriminators(self, members: Tensor) -> dict[str, Tensor]:
        """Maximum likelihood for both; the adversary gets as many steps as it is given."""
        config, synergy = self.config, self.synergy
        steps = {"discriminator": config.discriminator_updates}
        if synergy.adversary is not None:
            steps["adversary"] = config.adversary_updates
        sums = {f"{name}/loss": torch.zeros((), device=self.device) for name in steps}
        for step in range(max(steps.values())):
            batch = self.memory.sample(config.discriminator_batch, self.generator)
            team_x, x, skill = self._features(batch)
            losses: dict[str, Tensor] = {}
            if step < config.discriminator_updates:
                losses["discriminator/loss"] = synergy.cooperative_loss(team_x, skill)
            if step < steps.get("adversary", 0):
                losses["adversary/loss"] = synergy.adversary_loss(x, skill, members)
            self.optimizer.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            self.optimizer.step()
            for name, loss in losses.items():
                sums[name] += loss.detach()
        return {name: value / steps[name.split("/")[0]] for name, value in sums.items()}

    def _features(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """What both discriminators read of the successors [B, A, F], and skills [B, C, Z].

        The adversary knows the time: averaged over episodes it would decode less than somebody who
        looks at their end, and the penalty is only worth what it can decode.
        """
        x = team_x = batch["next_obs"][..., self.columns]
        if self.config.inputs == "relative":
            team_x = x - x.mean(-2, keepdim=True)
        elif self.config.inputs == "trajectory":
            total = batch["total"] + batch["obs"][..., self.columns] + x
            team_x = torch.cat([x, total / (batch["time"] + 2)[..., None, None]], -1)
        time = (batch["time"] / self.horizon)[..., None, None].expand(*x.shape[:-1], 1)
        return team_x, torch.cat([x, time], -1), batch["skill"].unflatten(-1, (self.codes, -1))

    @torch.no_grad()
    def _experience(self, batch: Batch, members: Tensor) -> tuple[Batch, dict[str, Tensor]]:
        """What the learner reads, with the reward that the discriminators pay now."""
        config, lead = self.config, batch["reward"].shape
        metrics = {"reward/task": batch["reward"].mean()}
        reward = config.task_weight * batch["reward"][..., None]
        if config.skill_weight:
            team_x, x, skill = (v.flatten(0, len(lead) - 1) for v in self._features(batch))
            share = self.num_timesteps / max(config.warmup * config.total_timesteps, 1)
            weight = config.penalty_weight * (min(1.0, share) if config.warmup else 1.0)
            paid, gain, penalties = self.synergy.reward(team_x, x, skill, members, weight)
            reward = reward + config.skill_weight * paid.unflatten(0, lead)
            metrics |= {"reward/skill": paid.mean(), "information/joint": gain.mean()}
            if penalties.shape[1]:
                metrics["information/penalised"] = penalties.mean()
                metrics["information/penalised_max"] = penalties.mean(0).amax()
        skill, time = batch["skill"], batch["time"][..., None] / self.horizon
        return {
            "x": self._read(batch["obs"], skill),
            "next_x": self._read(batch["next_obs"], skill),
            "central": torch.cat([batch["state"], skill, time], -1),
            "next_central": torch.cat([batch["next_state"], skill, time + 1 / self.horizon], -1),
            "action": batch["action"],
            "reward": reward.expand(*lead, 1 if config.objective == "team" else self.agents),
            "ended": batch["ended"],
        }, metrics

    def learn(self, *args: Any, **kwargs: Any) -> MASD:
        """See `Agent`; starts from the actor of `pretrained`."""
        if self.config.pretrained is not None and self.num_timesteps == 0:
            self.start_from(self.config.pretrained)
        return super().learn(*args, **kwargs)

    @torch.no_grad()
    def start_from(self, path: str) -> None:
        """Take the actor of another MASD agent; columns that only this environment has weigh 0.

        Raises:
            CheckpointError, ConfigError: no readable checkpoint, or an actor of other sizes.
        """
        tree: Any = load_checkpoint(path)
        try:
            source, old = tree["parts"]["policy"], tree["config"]["skill_size"]
            target = self.learner.policy.state_dict()
            first = "mean.0.weight"
            tail = old + self.agents  # skill and identity
            shared = source[first].shape[1] - tail
            if old != self.config.skill_size or shared > len(self.observed):
                raise ValueError(f"{shared} columns and {old} skills")
            adapted = torch.zeros_like(target[first])
            adapted[:, :shared], adapted[:, -tail:] = source[first].split((shared, tail), 1)
            self.learner.policy.load_state_dict(source | {first: adapted})
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(f"pretrained={path}: its actor does not fit, {reason}") from None

    # ---- evaluation

    def headline(self, row: dict[str, float]) -> dict[str, float]:
        """See `Agent`."""
        names = ("information/joint", "information/penalised", "reward/task", "eval/coordination")
        return {name.split("/")[1]: row[name] for name in names if name in row}

    def rollout_skills(
        self, episodes: int, env: BatchedEnv | None = None, deterministic: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Final states [E, A, F] of the frozen policy, and the skills [E].

        F is 2 and the states are positions [m] in particle worlds. Skills are numbered; of
        `factored` ones agent i's counts K^i. Continuous ones are vectors [E, Z].

        Args:
            episodes: E.
            env: where; a fresh copy of the training environment if None.
            deterministic: act without exploration; the objective is about the policy with it.
        """
        return coordination.rollout(self, episodes, env, deterministic)

    def evaluate(
        self,
        env: BatchedEnv | None = None,
        episodes: int | None = None,
        deterministic: bool = False,
    ) -> dict[str, float]:
        """See `Agent`; by default of the policy as trained, exploration included."""
        return super().evaluate(env, episodes, deterministic)

    def episode_metrics(self, episodes: Episodes) -> dict[str, float]:
        """Information that team, single agents and pairs give about the skill; coverage."""
        return coordination.metrics(self, episodes)

    def report(self, directory: Path) -> dict[str, float]:
        """See `Agent`; adds interventions, a picture and a video of every skill."""
        return super().report(directory) | coordination.report(self, directory)
