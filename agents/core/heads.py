"""Learning a policy from stored transitions: SAC, TD3+BC, IQL and BRAC over one pair of critics.

A head sees inputs x (observation and, where there is one, task code) and never where they come
from. `critic_loss` keeps the gradient with respect to x, so that a code may be trained by it.

Shape letters as in `agents/base.py`; B transitions, K critics.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from agents.core.nets import mlp


class Batch(NamedTuple):
    """Transitions for a head."""

    x: Tensor
    """[B, D]"""
    action: Tensor
    """[B, U], in -1 .. 1"""
    reward: Tensor
    """[B]"""
    x_next: Tensor
    """[B, D]"""
    terminated: Tensor
    """float [B], 1 where the successor has no value"""


class Critics(nn.Module):
    """K independent Q(x, a) as batched matrix products, [B, D] and [B, U] -> [K, B].

    Args:
        inputs: D + U.
        hidden: widths.
        count: K.
        layer_norm: normalise hidden layers, which keeps Q in range off the data (Ball et al. 2023).
    """

    def __init__(
        self, inputs: int, hidden: Sequence[int], count: int = 2, layer_norm: bool = True
    ) -> None:
        super().__init__()
        sizes = [inputs, *hidden, 1]
        bounds = [1 / math.sqrt(size) for size in sizes[:-1]]
        shapes = list(zip(sizes[:-1], sizes[1:], bounds, strict=True))
        self.weights = nn.ParameterList(
            torch.empty(count, i, o).uniform_(-bound, bound) for i, o, bound in shapes
        )
        self.biases = nn.ParameterList(
            torch.empty(count, 1, o).uniform_(-bound, bound) for _, o, bound in shapes
        )
        self.count, self.layer_norm = count, layer_norm

    def forward(self, x: Tensor, action: Tensor) -> Tensor:
        """Q of each critic, [K, B]."""
        h = torch.cat([x, action], -1).expand(self.count, -1, -1)
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = torch.baddbmm(bias, h, weight)
            if i < len(self.weights) - 1:
                h = functional.layer_norm(h, h.shape[-1:]) if self.layer_norm else h
                h = functional.relu(h)
        return h.squeeze(-1)


class SquashedGaussian(nn.Module):
    """Tanh of N(μ(x), diag σ(x)²), actions in -1 .. 1 (Haarnoja et al. 2018, appendix C)."""

    def __init__(self, inputs: int, hidden: Sequence[int], actions: int) -> None:
        super().__init__()
        self.network = mlp(inputs, hidden, 2 * actions, output_gain=0.01)

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """μ and log σ before the tanh, [..., U] each."""
        mean, log_std = self.network(x).chunk(2, -1)
        return mean, log_std.clamp(-5, 2)

    def mode(self, x: Tensor) -> Tensor:
        """The action without noise, [..., U]."""
        return self.moments(x)[0].tanh()

    def sample(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """An action [..., U], and its log-probability [...]."""
        mean, log_std = self.moments(x)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        raw = mean + log_std.exp() * noise
        return raw.tanh(), _log_prob(raw, noise, log_std)

    def log_prob(self, x: Tensor, action: Tensor) -> Tensor:
        """Log-probability of an action [..., U], [...]."""
        mean, log_std = self.moments(x)
        raw = torch.atanh(action.clamp(-0.999, 0.999))  # beyond, the tanh has no inverse
        return _log_prob(raw, (raw - mean) * torch.exp(-log_std), log_std)


def _log_prob(raw: Tensor, noise: Tensor, log_std: Tensor) -> Tensor:
    """Log-density of tanh(raw), with log(1 - tanh²) in its stable form, [...]."""
    gaussian = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    squash = 2 * (math.log(2) - raw - functional.softplus(-2 * raw))
    return (gaussian - squash).sum(-1)


class SAC(nn.Module):
    """Soft actor-critic (Haarnoja et al. 2018), and what the other heads share.

    Args:
        inputs: D.
        actions: U.
        hidden: widths of policy and critics.
        gamma: discount γ.
        temperature: weight α of the entropy; None lets α keep the entropy at -U.
        layer_norm: of the critics.
        polyak: τ of the target critics.
        weight: the head's trade-off (BRAC and TD3+BC: of behaviour; IQL: inverse temperature).
    """

    def __init__(
        self,
        inputs: int,
        actions: int,
        hidden: Sequence[int],
        gamma: float = 0.99,
        temperature: float | None = None,
        layer_norm: bool = True,
        polyak: float = 0.005,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.gamma, self.polyak, self.weight, self.actions = gamma, polyak, weight, actions
        self.policy = SquashedGaussian(inputs, hidden, actions)
        self.critics = Critics(inputs + actions, hidden, layer_norm=layer_norm)
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)
        self.automatic = temperature is None
        initial = math.log(0.1 if temperature is None else max(temperature, 1e-8))
        self.log_alpha = nn.Parameter(torch.tensor(initial), requires_grad=self.automatic)

    def actor_parameters(self) -> list[nn.Parameter]:
        """What `actor_loss` trains; the critics' parameters belong to `critic_loss`."""
        return [*self.policy.parameters(), *([self.log_alpha] if self.automatic else [])]

    def critic_parameters(self) -> list[nn.Parameter]:
        """What `critic_loss` trains, besides x."""
        return [*self.critics.parameters()]

    @torch.no_grad()
    def target(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """R + γ (1 - terminated) V(x'), [B]."""
        value = self.next_value(batch.x_next, generator)
        return batch.reward + self.gamma * (1 - batch.terminated) * value

    def next_value(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """V(x) = min Q'(x, a) - α log π(a|x) for a sampled a, [B]."""
        action, log_prob = self.policy.sample(x, generator)
        return self.targets(x, action).amin(0) - self.log_alpha.exp() * log_prob

    def critic_loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Any]:
        """Squared Bellman error summed over critics, 0-d, and metrics."""
        value = self.critics(batch.x, batch.action)
        target = self.target(batch, generator)
        assert value.shape == (self.critics.count, *target.shape), (value.shape, target.shape)
        return (value - target).square().mean(1).sum(), {"value": value.detach().mean()}

    def actor_loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Any]:
        """E[α log π(a|x) - min Q(x, a)], 0-d, with α's own loss; and metrics."""
        action, log_prob = self.policy.sample(batch.x, generator)
        alpha = self.log_alpha.exp()
        loss = (alpha.detach() * log_prob - self.critics(batch.x, action).amin(0)).mean()
        if self.automatic:
            loss = loss - alpha * (log_prob.detach().mean() - self.actions)
        return loss, {"entropy": -log_prob.detach().mean(), "alpha": alpha.detach().clone()}

    @torch.no_grad()
    def follow(self) -> None:
        """Move the target critics by τ."""
        torch._foreach_lerp_(
            list(self.targets.parameters()), list(self.critics.parameters()), self.polyak
        )


class BRAC(SAC):
    """SAC with a penalty on KL(π ‖ behaviour), in value and policy (Wu et al. 2019, eq. 5 and 6).

    The behaviour is a squashed Gaussian fitted by maximum likelihood as learning goes on.
    """

    def __init__(self, inputs: int, actions: int, hidden: Sequence[int], **options: Any) -> None:
        super().__init__(inputs, actions, hidden, **options)
        self.behaviour = SquashedGaussian(inputs, hidden, actions)

    def critic_parameters(self) -> list[nn.Parameter]:
        """See `SAC`."""
        return [*super().critic_parameters(), *self.behaviour.parameters()]

    def divergence(self, x: Tensor, action: Tensor, log_prob: Tensor) -> Tensor:
        """Log π - log behaviour at an action of π: one sample of the KL, [B]."""
        return log_prob - self.behaviour.log_prob(x, action)

    def next_value(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """See `SAC`; less weight · KL."""
        action, log_prob = self.policy.sample(x, generator)
        penalty = self.log_alpha.exp() * log_prob
        penalty = penalty + self.weight * self.divergence(x, action, log_prob)
        return self.targets(x, action).amin(0) - penalty

    def critic_loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Any]:
        """See `SAC`; with the behaviour's likelihood."""
        loss, metrics = super().critic_loss(batch, generator)
        return loss - self.behaviour.log_prob(batch.x.detach(), batch.action).mean(), metrics

    def actor_loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Any]:
        """See `SAC`; plus weight · KL."""
        action, log_prob = self.policy.sample(batch.x, generator)
        alpha = self.log_alpha.exp()
        kl = self.divergence(batch.x, action, log_prob)
        value = self.critics(batch.x, action).amin(0)
        loss = (alpha.detach() * log_prob + self.weight * kl - value).mean()
        if self.automatic:
            loss = loss - alpha * (log_prob.detach().mean() - self.actions)
        return loss, {"entropy": -log_prob.detach().mean(), "kl": kl.detach().mean()}


class TD3BC(SAC):
    """TD3 with behaviour cloning (Fujimoto & Gu 2021, eq. 3): λ = 1/mean|Q|, no entropy.

    Every actor step follows a critic step; the policy's σ is unused.
    """

    noise, noise_clip = 0.2, 0.5

    def next_value(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Min Q' at the smoothed action of the policy, [B]."""
        action = self.policy.mode(x)
        noise = torch.randn(action.shape, generator=generator, device=x.device) * self.noise
        action = (action + noise.clamp(-self.noise_clip, self.noise_clip)).clamp(-1, 1)
        return self.targets(x, action).amin(0)

    def actor_parameters(self) -> list[nn.Parameter]:
        """See `SAC`."""
        return list(self.policy.parameters())

    def actor_loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Any]:
        """E[weight (a - π(x))² - Q(x, π(x)) / mean|Q|], 0-d."""
        action = self.policy.mode(batch.x)
        value = self.critics(batch.x, action)[0]
        cloning = (action - batch.action).square().sum(-1).mean()
        scale = value.detach().abs().mean().clamp_min(1e-8)
        return self.weight * cloning - value.mean() / scale, {"cloning": cloning.detach()}


class IQL(SAC):
    """Implicit Q-learning (Kostrikov et al. 2022, eq. 5 to 7): expectile V, weighted regression."""

    expectile, largest = 0.8, 100.0

    def __init__(self, inputs: int, actions: int, hidden: Sequence[int], **options: Any) -> None:
        super().__init__(inputs, actions, hidden, **options)
        self.value = mlp(inputs, hidden, 1)

    def critic_parameters(self) -> list[nn.Parameter]:
        """See `SAC`."""
        return [*super().critic_parameters(), *self.value.parameters()]

    def actor_parameters(self) -> list[nn.Parameter]:
        """See `SAC`."""
        return list(self.policy.parameters())

    def next_value(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """V(x), [B]."""
        return self.value(x)[..., 0]

    def advantage(self, batch: Batch) -> Tensor:
        """Min Q'(x, a) - V(x), [B]; with V's gradient, without that of x."""
        x = batch.x.detach()
        return self.targets(x, batch.action).amin(0) - self.value(x)[..., 0]

    def critic_loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Any]:
        """Bellman error of Q and expectile loss of V, 0-d."""
        loss, metrics = super().critic_loss(batch, generator)
        error = self.advantage(batch)
        weight = torch.where(error > 0, self.expectile, 1 - self.expectile)
        return loss + (weight * error.square()).mean(), metrics

    def actor_loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Any]:
        """E[-exp(weight · advantage) log π(a|x)], 0-d."""
        with torch.no_grad():
            weight = (self.weight * self.advantage(batch)).exp().clamp_max(self.largest)
        loss = -(weight * self.policy.log_prob(batch.x, batch.action)).mean()
        return loss, {"weight": weight.mean()}


HEADS: dict[str, type[SAC]] = {"sac": SAC, "td3bc": TD3BC, "iql": IQL, "brac": BRAC}
