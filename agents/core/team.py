"""Learners for teams: decentralised actors with shared weights, a centralised critic.

A learner sees a batch of tensors and a reward, not where the reward comes from:
`x` [..., A, D] what each actor reads, `central` and `next_central` [..., C] what the critic reads,
`action` [..., A, U] (or int64 [..., A]), `reward` [..., R] (one column for the team or one for each
agent), `ended` [...] float, 1 where no value follows.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from agents.base import AgentConfig
from agents.core.config import require
from agents.core.nets import (
    LOG_2PI,
    CategoricalPolicy,
    GaussianPolicy,
    ReturnScale,
    mlp,
)
from agents.core.returns import gae

Batch = dict[str, Tensor]


@dataclass
class Sizes:
    """What a learner must know about the environment."""

    inputs: int
    """D, what an actor reads."""
    central: int
    """C, what the critic reads."""
    agents: int
    """A."""
    actions: int
    """U, or the number of discrete actions."""
    discrete: bool
    rewards: int
    """R, 1 or A."""


@dataclass
class TeamConfig(AgentConfig):
    """Settings of both learners."""

    hidden: list[int] = field(default_factory=lambda: [128, 128])
    """Widths of the hidden layers of actor and critic."""
    lr: float = 3e-4
    """Adam's step size for actor and critic."""
    gamma: float = 0.99
    """Discount γ."""
    gae_lambda: float = 0.95
    """λ of the advantage estimate (mappo)."""
    clip: float = 0.2
    """Clipping range of PPO's ratio (mappo)."""
    epochs: int = 4
    """Passes over the experience per update (mappo)."""
    minibatches: int = 4
    """Gradient steps per pass (mappo)."""
    entropy: float = 0.01
    """Weight of the policy's entropy (mappo)."""
    max_grad_norm: float = 0.5
    """Gradient clipping (mappo)."""
    batch_size: int = 1024
    """Transitions per gradient step (sac)."""
    updates: int = 25
    """Gradient steps per update (sac)."""
    target_rate: float = 0.01
    """Rate at which the target critics follow (sac)."""

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        for name in ("epochs", "minibatches", "batch_size", "updates"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("lr", "max_grad_norm"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a positive number")
        require(self.entropy >= 0, "entropy", self.entropy, "at least 0")
        require(0 <= self.gamma < 1, "gamma", self.gamma, "in [0, 1)")
        require(0 <= self.gae_lambda <= 1, "gae_lambda", self.gae_lambda, "in [0, 1]")
        require(0 < self.clip < 1, "clip", self.clip, "in (0, 1)")
        require(0 < self.target_rate <= 1, "target_rate", self.target_rate, "in (0, 1]")
        widths = bool(self.hidden) and min(self.hidden) > 0
        require(widths, "hidden", self.hidden, "positive widths")


class MAPPO:
    """PPO with a centralised critic (Yu et al. 2022).

    Attributes:
        parts: what has a state.
        policy: π(a_i | x_i), shared by the agents.
    """

    def __init__(self, config: TeamConfig, sizes: Sizes, device: torch.device) -> None:
        self.config, self.device = config, device
        kind = CategoricalPolicy if sizes.discrete else GaussianPolicy
        self.policy = kind(sizes.inputs, config.hidden, sizes.actions).to(device)
        self.critic = mlp(sizes.central, config.hidden, sizes.rewards).to(device)
        self.scale = ReturnScale(sizes.rewards).to(device)
        parameters = [*self.policy.parameters(), *self.critic.parameters()]
        self.optimizer = torch.optim.Adam(parameters, config.lr, eps=1e-5, fused=True)
        self.parts: dict[str, Any] = {
            "policy": self.policy,
            "critic": self.critic,
            "return_scale": self.scale,
            "optimizer": self.optimizer,
        }

    def act(self, x: Tensor, generator: torch.Generator, deterministic: bool) -> Tensor:
        """Actions of all agents, [..., A, U] or int64 [..., A]."""
        return self.policy.mode(x) if deterministic else self.policy.sample(x, generator)

    def update(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Epochs of clipped policy gradients on [T, N, ...] of fresh experience."""
        config = self.config
        advantage, returns, metrics = self._advantages(batch)
        x, action = batch["x"].flatten(0, 1), batch["action"].flatten(0, 1)
        central = batch["central"].flatten(0, 1)
        with torch.no_grad():
            old, _ = self.policy.judge(x, action)
        sums: dict[str, Tensor] = {}
        for _ in range(config.epochs):
            order = torch.randperm(len(x), generator=generator, device=self.device)
            for rows in order.chunk(config.minibatches):
                losses = self._losses(
                    x[rows], action[rows], old[rows], advantage[rows], central[rows], returns[rows]
                )
                loss = (
                    losses["policy/loss"]
                    + 0.5 * losses["critic/loss"]
                    - config.entropy * losses["policy/entropy"]
                )
                self.optimizer.zero_grad()
                loss.backward()
                for part in (self.policy, self.critic):
                    nn.utils.clip_grad_norm_(part.parameters(), config.max_grad_norm)
                self.optimizer.step()
                sums = {k: sums.get(k, 0) + v.detach() for k, v in losses.items()}
        steps = config.epochs * config.minibatches
        return metrics | {name: value / steps for name, value in sums.items()}

    @torch.no_grad()
    def _advantages(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Standardised advantages and scaled returns, [T N, R] each."""
        value = self.scale.decode(self.critic(batch["central"]))
        next_value = self.scale.decode(self.critic(batch["next_central"]))
        ended = batch["ended"]
        advantage = gae(
            batch["reward"], value, next_value, ended, ended, self.config.gamma,
            self.config.gae_lambda,
        )  # fmt: skip
        returns = advantage + value
        self.scale.update(returns)
        explained = 1 - (advantage.var() / returns.var().clamp_min(1e-12))
        advantage = (advantage - advantage.mean((0, 1))) / (advantage.std((0, 1)) + 1e-8)
        returns = self.scale.encode(returns)
        metrics = {"critic/explained_variance": explained}
        return advantage.flatten(0, 1), returns.flatten(0, 1), metrics

    def _losses(
        self,
        x: Tensor,
        action: Tensor,
        old: Tensor,
        advantage: Tensor,
        central: Tensor,
        returns: Tensor,
    ) -> dict[str, Tensor]:
        """Clipped policy loss (Schulman et al. 2017, eq. 7), value loss, entropy; 0-d each."""
        log_prob, entropy = self.policy.judge(x, action)
        log_ratio = log_prob - old
        ratio = log_ratio.exp()
        assert ratio.shape[:1] == advantage.shape[:1], (ratio.shape, advantage.shape)
        clipped = ratio.clamp(1 - self.config.clip, 1 + self.config.clip)
        value = self.critic(central)
        assert value.shape == returns.shape, (value.shape, returns.shape)
        return {
            "policy/loss": -torch.minimum(ratio * advantage, clipped * advantage).mean(),
            "critic/loss": (value - returns).square().mean(),
            "policy/entropy": entropy.mean(),
            "policy/kl": (ratio - 1 - log_ratio).mean(),
        }


class SquashedPolicy(nn.Module):
    """tanh of a Gaussian whose mean and deviation are functions of x (Haarnoja et al. 2018)."""

    def __init__(self, inputs: int, hidden: list[int], actions: int) -> None:
        super().__init__()
        self.mean = mlp(inputs, hidden, 2 * actions, output_gain=0.01)

    def mode(self, x: Tensor) -> Tensor:
        """The squashed mean, [..., U]."""
        return self.mean(x).chunk(2, -1)[0].tanh()

    def sample(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A reparametrised action [..., U] and its log-probability [...]."""
        mean, raw = self.mean(x).chunk(2, -1)
        log_std = -2.25 + 2.75 * raw.tanh()  # between exp(-5) and exp(0.5)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        before = mean + log_std.exp() * noise
        log_prob = -(0.5 * noise.square() + log_std + 0.5 * LOG_2PI)
        # log(1 - tanh²) without cancellation
        squash = 2 * (0.6931471805599453 - before - nn.functional.softplus(-2 * before))
        return before.tanh(), (log_prob - squash).sum(-1)


class MASAC:
    """Soft actor-critic with centralised twin critics Q(s, a_1..a_A) and a learned temperature.

    Attributes:
        parts: what has a state.
        policy: π(a_i | x_i), shared by the agents.
    """

    def __init__(self, config: TeamConfig, sizes: Sizes, device: torch.device) -> None:
        self.config, self.device = config, device
        self.policy = SquashedPolicy(sizes.inputs, config.hidden, sizes.actions).to(device)
        width = sizes.central + sizes.agents * sizes.actions
        self.critics = nn.ModuleList(
            mlp(width, config.hidden, sizes.rewards) for _ in range(2)
        ).to(device)  # fmt: skip
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)
        self.temperature = nn.ParameterDict({"log": nn.Parameter(torch.tensor(-1.0))}).to(device)
        self.target_entropy = -float(sizes.actions)
        self.optimizers = {
            f"{name}_optimizer": torch.optim.Adam(module.parameters(), config.lr, fused=True)
            for name, module in (
                ("policy", self.policy), ("critics", self.critics),
                ("temperature", self.temperature),
            )
        }  # fmt: skip
        self.parts: dict[str, Any] = {
            "policy": self.policy,
            "critics": self.critics,
            "targets": self.targets,
            "temperature": self.temperature,
            **self.optimizers,
        }

    def act(self, x: Tensor, generator: torch.Generator, deterministic: bool) -> Tensor:
        """Actions of all agents in [-1, 1], [..., A, U]."""
        return self.policy.mode(x) if deterministic else self.policy.sample(x, generator)[0]

    def update(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """One step of critics, actor and temperature on [B, ...] of remembered experience."""
        alpha = self.temperature["log"].exp().detach()
        critic_loss = self._critic_loss(batch, alpha, generator)
        self._step("critics", critic_loss)
        action, log_prob = self.policy.sample(batch["x"], generator)
        values = self._values(self.critics, batch["central"], action)
        policy_loss = (alpha * log_prob.mean(-1) - values.amin(0).mean(-1)).mean()
        self._step("policy", policy_loss)
        gap = (log_prob.detach() + self.target_entropy).mean()
        self._step("temperature", -self.temperature["log"].exp() * gap)
        with torch.no_grad():
            for target, value in zip(
                self.targets.parameters(), self.critics.parameters(), strict=True
            ):
                target.lerp_(value, self.config.target_rate)
        return {
            "policy/loss": policy_loss.detach(),
            "critic/loss": critic_loss.detach(),
            "policy/entropy": -log_prob.detach().mean(),
            "policy/temperature": alpha,
        }

    def _critic_loss(self, batch: Batch, alpha: Tensor, generator: torch.Generator) -> Tensor:
        with torch.no_grad():
            action, log_prob = self.policy.sample(batch["next_x"], generator)
            value = self._values(self.targets, batch["next_central"], action).amin(0)
            value = value - alpha * log_prob.mean(-1, keepdim=True)
            going = (1 - batch["ended"])[..., None]
            target = batch["reward"] + self.config.gamma * going * value
        values = self._values(self.critics, batch["central"], batch["action"])
        assert values.shape[1:] == target.shape, (values.shape, target.shape)
        return (values - target).square().mean((1, 2)).sum()

    def _values(self, critics: nn.ModuleList, central: Tensor, action: Tensor) -> Tensor:
        """Q of each critic, [2, ..., R]."""
        inputs = torch.cat([central, action.flatten(-2)], -1)
        return torch.stack([critic(inputs) for critic in critics])

    def _step(self, name: str, loss: Tensor) -> None:
        optimizer = self.optimizers[f"{name}_optimizer"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
