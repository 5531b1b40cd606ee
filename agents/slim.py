"""SLIM: skill learning with multiple critics (Emukpere et al., ICRA 2024, arXiv 2402.00823).

A policy π(a | s, z) is trained on several rewards at once: a discovery reward that makes the skill
z readable from how the object moves, a reach reward and a safety reward. Each reward has a critic
of its own; the advantages are normalised one by one before they are combined by weights, so that no
reward drowns another by its scale.

This is a reconstruction: the paper's abstract and the authors' patents give the three critics, the
weights and the normalisation; base algorithm (PPO), formulas and hyper-parameters are our choice.
DIAYN, LSD and METRA are configurations of this file (`configs/baselines`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

import mi
from agents.base import Agent, AgentConfig, State, Step
from agents.core.config import ConfigError, require
from agents.core.evaluate import Episodes
from agents.core.nets import (
    GaussianPolicy,
    ReturnScale,
    RunningNorm,
    flat_sizes,
    gaussian_log_prob,
    mlp,
)
from agents.core.replay import Replay
from agents.core.returns import gae
from agents.core.skills import report_skills, skill_metrics

DISCOVERY: dict[str, type[mi.SkillObjective]] = {
    "lipschitz": mi.LipschitzDisplacement,
    "gaussian": mi.GaussianDiscriminator,
    "categorical": mi.CategoricalDiscriminator,
    "temporal": mi.TemporalDistance,
}


@dataclass
class SLIMConfig(AgentConfig):
    """Settings of SLIM."""

    skill: Literal["sphere", "discrete"] = "sphere"
    """Prior of z: uniform on the unit sphere, or one of `skill_size` categories."""
    skill_size: int = 2
    """Z: dimensions of a continuous skill, or number of discrete ones."""
    discovery: Literal["lipschitz", "gaussian", "categorical", "temporal"] = "lipschitz"
    """Discovery reward: Lipschitz displacement (LSD), Barber-Agakov with a Gaussian or categorical
    decoder (DIAYN), or displacement in temporal distance (METRA)."""
    features: list[int] | None = None
    """Observation columns that skills are about; None takes the environment's `skill_columns`
    (the objects' positions on the tabletop), or the whole observation where it names none."""
    feature_scale: float = 10.0
    """Multiplies the features: brings metres to order 1."""
    weights: dict[str, float] = field(default_factory=dict)
    """w_k of each reward by name: `discovery` (1 unless given) and the environment's reward terms
    (`reach`, `safety` on the tabletop; `default_weight` unless given). 0 leaves a reward out."""
    default_weight: float = 0.3
    """w_k of the environment's reward terms that `weights` does not name."""
    violation_budget: float | None = None
    """Violations an episode may have: a Lagrange multiplier replaces the weight of `safety`. None
    keeps the weight fixed."""
    critics: Literal["multi", "single"] = "multi"
    """One critic per reward, or a single one for the weighted sum of the raw rewards."""
    normalize_advantages: bool = True
    """Standardise each critic's advantage on its own before weighting it."""
    hidden: list[int] = field(default_factory=lambda: [128, 128])
    """Widths of the policy's and the critics' hidden layers."""
    horizon: int = 50
    """Steps of every environment between two updates, T."""
    lr: float = 3e-4
    """Adam's step size for policy and critics."""
    discovery_lr: float = 1e-3
    """Adam's step size for the discovery estimator."""
    discovery_updates: int = 16
    """Gradient steps of the discovery estimator per update."""
    discovery_batch: int = 1024
    """Transitions per such step."""
    epochs: int = 5
    """Passes over the experience per update."""
    minibatches: int = 8
    """Gradient steps per pass."""
    gamma: float = 0.97
    """Discount γ."""
    gae_lambda: float = 0.95
    """λ of the advantage estimate."""
    clip: float = 0.2
    """Clipping range ε of PPO's ratio."""
    entropy: float = 0.003
    """Weight of the policy's entropy."""
    value_weight: float = 0.5
    """Weight of the critics' loss."""
    bound_weight: float = 1e-3
    """Weight of the penalty on mean actions out of bounds, where clipping hides the gradient."""
    max_grad_norm: float = 1.0
    """Gradient clipping."""

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        require(self.horizon >= 2, "horizon", self.horizon, "at least 2")
        counts = ("skill_size", "discovery_updates", "discovery_batch")
        for name in (*counts, "epochs", "minibatches"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("lr", "discovery_lr", "feature_scale", "max_grad_norm"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a positive number")
        require(0 <= self.gamma < 1, "gamma", self.gamma, "in [0, 1)")
        require(0 <= self.gae_lambda <= 1, "gae_lambda", self.gae_lambda, "in [0, 1]")
        require(0 < self.clip < 1, "clip", self.clip, "in (0, 1)")
        require(
            bool(self.hidden) and min(self.hidden) > 0, "hidden", self.hidden, "positive widths"
        )
        for name, weight in self.weights.items():
            require(weight >= 0, f"weights.{name}", weight, "at least 0")
        require(self.default_weight >= 0, "default_weight", self.default_weight, "at least 0")
        if self.violation_budget is not None:
            require(self.violation_budget > 0, "violation_budget", self.violation_budget, "above 0")
        require(
            self.discovery != "categorical" or self.skill == "discrete",
            "discovery",
            self.discovery,
            "skill=discrete with the categorical decoder",
        )
        size = 2 if self.skill == "discrete" else 1
        require(self.skill_size >= size, "skill_size", self.skill_size, f"at least {size}")


class SLIM(Agent):
    """Multi-critic PPO with skills; see the module's docstring."""

    name = "slim"
    Config = SLIMConfig
    score: ClassVar[str] = "coverage"

    def build(self) -> None:
        """Policy π(a|s,z), critics V_k(s,z), discovery estimator, multiplier, memory."""
        config = self.config
        obs_size, actions = flat_sizes(self.env, "SLIM")
        self.weights, self.active = self._choose_rewards()
        self.columns = self._feature_columns(obs_size)
        inputs = obs_size + config.skill_size
        critics = len(self.reward_names) if config.critics == "multi" else 1
        self.norm = RunningNorm(obs_size).to(self.device)
        self.policy = GaussianPolicy(inputs, config.hidden, actions).to(self.device)
        self.critic = mlp(inputs, config.hidden, critics).to(self.device)
        self.return_scale = ReturnScale(critics).to(self.device)
        estimator = DISCOVERY[config.discovery]
        self.discovery = estimator(len(self.columns), config.skill_size).to(self.device)
        self.optimizer = torch.optim.Adam(
            [*self.policy.parameters(), *self.critic.parameters()], config.lr, eps=1e-5
        )
        self.discovery_optimizer = torch.optim.Adam(
            self.discovery.parameters(), config.discovery_lr
        )
        self.parts = {
            "norm": self.norm,
            "policy": self.policy,
            "critic": self.critic,
            "return_scale": self.return_scale,
            "discovery": self.discovery,
            "optimizer": self.optimizer,
            "discovery_optimizer": self.discovery_optimizer,
        }
        self.multiplier = None
        if config.violation_budget is not None:
            initial = config.weights.get("safety", config.default_weight)
            multiplier = mi.Lagrangian(config.violation_budget, initial)
            self.multiplier = self.parts["multiplier"] = multiplier.to(self.device)
        self.rollout_steps = config.horizon
        space: Any = self.env.single_action_space
        self.bounds = [torch.as_tensor(b, device=self.device) for b in (space.low, space.high)]
        fields = {"obs": obs_size, "next_obs": obs_size, "skill": config.skill_size}
        fields |= {"action": actions, "rewards": len(self.env.reward_names)}
        shapes = {name: ((size,), torch.float32) for name, size in fields.items()}
        shapes |= {name: ((), torch.float32) for name in ("cost", "terminated", "done")}
        # Empty whenever a checkpoint is taken, hence not one of the parts.
        self.memory = Replay(shapes, config.horizon, self.num_envs, self.device)

    def _choose_rewards(self) -> tuple[Tensor, Tensor]:
        """Weights w [K] above 0, and their rewards' columns among `all_rewards`, int64 [K]."""
        config = self.config
        names = self.all_rewards = (*self.env.reward_names, "discovery")
        unknown = config.weights.keys() - set(names)
        if unknown:
            raise ConfigError(f"weights.{min(unknown)}: no such reward, expected one of {names}")
        if config.violation_budget is not None and "safety" not in names:
            raise ConfigError(f"violation_budget: {config.env!r} has no reward term 'safety'")
        default = dict.fromkeys(names, config.default_weight) | {"discovery": 1.0}
        weights = default | config.weights
        if config.violation_budget is not None and not weights["safety"]:
            raise ConfigError("weights.safety=0: expected more than 0 with a violation_budget")
        active = [i for i, name in enumerate(names) if weights[name] > 0]
        if not active:
            raise ConfigError("weights: expected at least one above 0")
        self.reward_names = tuple(names[i] for i in active)
        chosen = [weights[name] for name in self.reward_names]
        return torch.tensor(chosen, device=self.device), torch.tensor(active, device=self.device)

    def _feature_columns(self, obs_size: int) -> Tensor:
        """Observation columns that skills are about, int64 [D]."""
        columns = list(self.config.features or self.env.skill_columns or range(obs_size))
        if max(columns) >= obs_size or min(columns) < 0:
            raise ConfigError(f"features={columns}: expected columns in 0..{obs_size - 1}")
        return torch.tensor(columns, device=self.device)

    # ---- acting

    def initial_state(self, num_envs: int) -> State:
        """A skill for each row, from the prior, [num_envs, Z]."""
        size, kwargs = self.config.skill_size, {"generator": self.generator, "device": self.device}
        if self.config.skill == "discrete":
            skill = functional.one_hot(torch.randint(size, (num_envs,), **kwargs), size).float()
        else:
            skill = functional.normalize(torch.randn(num_envs, size, **kwargs), dim=-1)
        return {"skill": skill}

    def act(self, obs: Tensor, state: State, deterministic: bool) -> tuple[Tensor, State]:
        """Actions [N, U] of π(·|s, z); the skill stays for the episode."""
        x = torch.cat([self.norm(obs), state["skill"]], -1)
        action = self.policy(x)[0] if deterministic else self.policy.sample(x, self.generator)
        return action, state

    def store(self, step: Step) -> None:
        """See `Agent`; keeps the environment's reward terms apart."""
        rewards = step.info.get("reward_terms", step.reward[:, None])
        self.guard.watch("reward_terms", rewards)
        self.memory.add(
            obs=step.obs,
            next_obs=step.info["final_obs"],
            skill=step.state["skill"],
            action=step.action,
            rewards=rewards,
            cost=step.info.get("cost", torch.zeros_like(step.reward)),
            terminated=step.terminated.float(),
            done=(step.terminated | step.truncated).float(),
        )

    # ---- learning

    def update(self) -> dict[str, Tensor]:
        """Discovery estimator, then rewards, advantages, and PPO on their combination."""
        batch = self.memory.steps()
        self.memory.clear()
        x, x_next = self._features(batch["obs"]), self._features(batch["next_obs"])
        metrics = self._update_discovery(x, x_next, batch["skill"])
        discovery = self.discovery.pointwise(x, x_next, batch["skill"])
        rewards = torch.cat([batch["rewards"], discovery[..., None]], -1)  # [T, N, K]
        for i, name in enumerate(self.all_rewards):
            metrics[f"reward/{name}"] = rewards[..., i].mean()
        weights, rewards = self._weights(batch["cost"], metrics), rewards[..., self.active]
        advantage, returns, inputs = self._advantages(batch, rewards, weights, metrics)
        metrics |= self._update_policy(inputs, batch["action"].flatten(0, 1), advantage, returns)
        self.norm.update(batch["obs"])  # last: PPO's ratio compares with the policy that acted
        return metrics

    def _features(self, obs: Tensor) -> Tensor:
        return obs[..., self.columns] * self.config.feature_scale

    def _update_discovery(self, x: Tensor, x_next: Tensor, skill: Tensor) -> dict[str, Tensor]:
        """A few steps of the estimator of the dependence between skill and features."""
        x, x_next, skill = x.flatten(0, 1), x_next.flatten(0, 1), skill.flatten(0, 1)
        total = torch.zeros((), device=self.device)
        for _ in range(self.config.discovery_updates):
            rows = torch.randint(
                len(x), (self.config.discovery_batch,), generator=self.generator, device=self.device
            )
            loss = self.discovery.loss(x[rows], x_next[rows], skill[rows])
            self.discovery_optimizer.zero_grad()
            loss.backward()
            self.discovery_optimizer.step()
            total += loss.detach()
        return {"discovery/loss": total / self.config.discovery_updates}

    def _weights(self, cost: Tensor, metrics: dict[str, Tensor]) -> Tensor:
        """W [K]; the multiplier takes the place of safety's weight and follows the violations."""
        if self.multiplier is None:
            return self.weights
        violations = cost.mean() * self.env.max_episode_steps
        metrics["safety/violations_per_episode"] = violations
        metrics["safety/multiplier"] = self.multiplier.update(violations).clone()
        weights = self.weights.clone()
        weights[self.reward_names.index("safety")] = self.multiplier.value
        return weights

    @torch.no_grad()
    def _advantages(
        self,
        batch: dict[str, Tensor],
        rewards: Tensor,
        weights: Tensor,
        metrics: dict[str, Tensor],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Combined advantage [T·N], scaled returns [T·N, K] and network inputs [T·N, D+Z]."""
        config = self.config
        if config.critics == "single":
            rewards = (rewards * weights).sum(-1, keepdim=True)
        inputs = torch.cat([self.norm(batch["obs"]), batch["skill"]], -1)
        next_inputs = torch.cat([self.norm(batch["next_obs"]), batch["skill"]], -1)
        scale = self.return_scale
        value, next_value = (
            scale.decode(self.critic(inputs)),
            scale.decode(self.critic(next_inputs)),
        )
        advantages = gae(
            rewards, value, next_value, batch["terminated"], batch["done"], config.gamma,
            config.gae_lambda,
        )  # fmt: skip
        returns = advantages + value
        scale.update(returns)
        residual = (returns - value).var((0, 1)) / returns.var((0, 1)).clamp_min(1e-12)
        metrics["critic/explained_variance"] = 1 - residual.mean()
        if config.critics == "multi":
            if config.normalize_advantages:
                advantages = _standardize(advantages, (0, 1))
            advantages = advantages * weights
        advantage = _standardize(advantages.sum(-1), (0, 1))
        return advantage.flatten(), scale.encode(returns).flatten(0, 1), inputs.flatten(0, 1)

    def _update_policy(
        self, inputs: Tensor, action: Tensor, advantage: Tensor, returns: Tensor
    ) -> dict[str, Tensor]:
        """PPO's epochs (Schulman et al. 2017, eq. 7) with one value loss per critic."""
        config = self.config
        with torch.no_grad():
            old_log_prob = gaussian_log_prob(action, *self.policy(inputs))
        sums: dict[str, Tensor] = {}
        steps = 0
        for _ in range(config.epochs):
            order = torch.randperm(len(inputs), generator=self.generator, device=self.device)
            for rows in order.chunk(config.minibatches):
                losses = self._losses(
                    inputs[rows], action[rows], old_log_prob[rows], advantage[rows], returns[rows]
                )
                loss = (
                    losses["policy/loss"]
                    + config.value_weight * losses["critic/loss"]
                    - config.entropy * losses["policy/entropy"]
                    + config.bound_weight * losses["policy/bound"]
                )
                self.optimizer.zero_grad()
                loss.backward()
                for part in (self.policy, self.critic):  # apart: no critic shrinks the policy's
                    nn.utils.clip_grad_norm_(part.parameters(), config.max_grad_norm)
                self.optimizer.step()
                steps += 1
                sums = {k: sums.get(k, 0) + v.detach() for k, v in losses.items()}
        return {k: v / steps for k, v in sums.items()}

    def _losses(
        self, x: Tensor, action: Tensor, old_log_prob: Tensor, advantage: Tensor, returns: Tensor
    ) -> dict[str, Tensor]:
        """Clipped policy loss, value loss summed over critics, entropy, bound; 0-d each."""
        mean, log_std = self.policy(x)
        log_ratio = gaussian_log_prob(action, mean, log_std) - old_log_prob
        ratio = log_ratio.exp()
        assert ratio.shape == advantage.shape, (ratio.shape, advantage.shape)
        clipped = ratio.clamp(1 - self.config.clip, 1 + self.config.clip)
        value = self.critic(x)
        assert value.shape == returns.shape, (value.shape, returns.shape)
        return {
            "policy/loss": -torch.minimum(ratio * advantage, clipped * advantage).mean(),
            "critic/loss": (value - returns).square().mean(0).sum(),
            "policy/entropy": log_std.sum(),  # up to a constant
            "policy/bound": (mean - mean.clamp(*self.bounds)).square().sum(-1).mean(),
            "policy/kl": (ratio - 1 - log_ratio).mean(),
        }

    # ---- evaluation

    def headline(self, row: dict[str, float]) -> dict[str, float]:
        """See `Agent`."""
        names = [f"reward/{name}" for name in self.reward_names]
        names += ["safety/violations_per_episode", "eval/coverage", "eval/r2"]
        return {name.split("/")[1]: row[name] for name in names if name in row}

    def episode_metrics(self, episodes: Episodes) -> dict[str, float]:
        """Coverage, controllability and safety of the skills; see `skill_metrics`."""
        return skill_metrics(episodes, self.columns, self.config.skill)

    def report(self, directory: Path) -> dict[str, float]:
        """See `Agent`; adds the skills' video and displacement plot."""
        return super().report(directory) | report_skills(self, directory)


def _standardize(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    return (x - x.mean(dims, keepdim=True)) / (x.std(dims, keepdim=True) + 1e-8)
