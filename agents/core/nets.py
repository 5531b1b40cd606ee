"""Networks and normalisers that several agents share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import gymnasium as gym
import torch
from torch import Tensor, nn

from agents.core.config import ConfigError
from agents.core.parallel import pooled_moments, world
from envs.base import BatchedEnv

LOG_2PI = math.log(2 * math.pi)


def mlp(
    inputs: int,
    hidden: Sequence[int],
    outputs: int,
    output_gain: float = 1.0,
    activation: type[nn.Module] = nn.ELU,
) -> nn.Sequential:
    """Multi-layer perceptron, [..., inputs] -> [..., outputs].

    Orthogonal weights and zero biases, as usual for PPO (Andrychowicz et al. 2021); `output_gain`
    scales the last layer (0.01 starts a policy near its mean action).
    """
    sizes = [inputs, *hidden, outputs]
    layers: list[nn.Module] = []
    for i in range(len(sizes) - 1):
        layer = nn.Linear(sizes[i], sizes[i + 1])
        last = i == len(sizes) - 2
        nn.init.orthogonal_(layer.weight, output_gain if last else 2**0.5)
        nn.init.zeros_(layer.bias)
        layers += [layer] if last else [layer, activation()]
    return nn.Sequential(*layers)


class RunningNorm(nn.Module):
    """Normalises features by their running mean and standard deviation.

    Statistics are exact over everything `update` has seen (Chan et al. 1983) and part of the
    `state_dict`.

    Args:
        features: D.
        clip: largest absolute normalised value.

    Attributes:
        pooled: whether `update` counts what all processes of `torchrun` give it.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, features: int, clip: float = 10.0) -> None:
        super().__init__()
        self.clip, self.pooled = clip, False
        self.register_buffer("mean", torch.zeros(features, dtype=torch.float64))
        self.register_buffer("variance", torch.ones(features, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Take the samples x [..., D] into account."""
        x = x.reshape(-1, x.shape[-1]).to(torch.float64)
        variance, mean = torch.var_mean(x, 0, correction=0)
        samples = x.shape[0]
        if self.pooled:
            (mean, variance), samples = pooled_moments(mean, variance), samples * world()
        total = self.count + samples
        delta, share = mean - self.mean, samples / total
        self.variance.lerp_(variance, share).add_(delta.square() * share * (1 - share))
        self.mean.lerp_(mean, share)
        self.count.copy_(total)

    def forward(self, x: Tensor) -> Tensor:
        """(x - mean) / std, clipped, [..., D]."""
        std = (self.variance + 1e-8).sqrt()
        return ((x - self.mean) / std).clamp(-self.clip, self.clip).to(torch.float32)


class GaussianPolicy(nn.Module):
    """N(μ(x), diag σ²) with a state-independent σ; actions are clipped by the environment.

    Args:
        inputs: size of x.
        hidden: widths of the hidden layers.
        actions: U.
        initial_std: first value of σ.
        bounds: smallest and largest σ.
    """

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int],
        actions: int,
        initial_std: float = 0.7,
        bounds: tuple[float, float] = (0.1, 1.3),
    ) -> None:
        super().__init__()
        self.mean = mlp(inputs, hidden, actions, output_gain=0.01)
        self._low, self._high = math.log(bounds[0]), math.log(bounds[1])
        share = (math.log(initial_std) - self._low) / (self._high - self._low)
        # Through a sigmoid, because a clamp would end the gradient at a bound for good.
        self.raw_std = nn.Parameter(torch.full((actions,), math.log(share / (1 - share))))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """μ(x) [..., U] and log σ [U]."""
        log_std = self._low + (self._high - self._low) * torch.sigmoid(self.raw_std)
        return self.mean(x), log_std

    def sample(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """An action, [..., U]."""
        mean, log_std = self(x)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        return mean + log_std.exp() * noise

    def mode(self, x: Tensor) -> Tensor:
        """The likeliest action, [..., U]."""
        return self.mean(x)

    def judge(self, x: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability of an action and entropy, [...] each."""
        mean, log_std = self(x)
        log_prob = gaussian_log_prob(action, mean, log_std)
        return log_prob, (log_std + 0.5 + 0.5 * LOG_2PI).sum().expand(log_prob.shape)


class CategoricalPolicy(nn.Module):
    """Softmax over U actions; the interface of `GaussianPolicy`.

    Args:
        inputs: size of x.
        hidden: widths of the hidden layers.
        actions: U.
    """

    def __init__(self, inputs: int, hidden: Sequence[int], actions: int) -> None:
        super().__init__()
        self.mean = mlp(inputs, hidden, actions, output_gain=0.01)

    def sample(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """An action, int64 [...]."""
        logits = self.mean(x)
        uniform = torch.rand(logits.shape, generator=generator, device=x.device)
        noise = -torch.log(-torch.log(uniform.clamp_min(1e-10)).clamp_min(1e-10))  # Gumbel's
        return (logits + noise).argmax(-1)

    def mode(self, x: Tensor) -> Tensor:
        """The likeliest action, int64 [...]."""
        return self.mean(x).argmax(-1)

    def judge(self, x: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability of an action and entropy, [...] each."""
        log_prob = torch.log_softmax(self.mean(x), -1)
        chosen = log_prob.gather(-1, action[..., None])[..., 0]
        return chosen, -(log_prob.exp() * log_prob).sum(-1)


def gaussian_log_prob(action: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log N(action; mean, diag exp(log_std)²), [...]."""
    scaled = (action - mean) * torch.exp(-log_std)
    return -(0.5 * scaled.square() + log_std + 0.5 * LOG_2PI).sum(-1)


class ReturnScale(nn.Module):
    """Running standard deviation of each critic's return, so that critics predict order-1 values.

    It makes the learning of a critic independent of its reward's scale. It rises at once (the first
    object that moves is a thousandfold of sensor-level jitter) and falls slowly.

    Args:
        critics: K.
        rate: of the exponential average on the way down.
    """

    std: Tensor

    def __init__(self, critics: int, rate: float = 0.1) -> None:
        super().__init__()
        self.rate, self.pooled = rate, False
        self.register_buffer("std", torch.zeros(critics))

    def update(self, returns: Tensor) -> None:
        """Take the returns [..., K] into account."""
        std = returns.flatten(0, -2).std(0)
        if self.pooled:
            mean = returns.flatten(0, -2).mean(0)
            std = pooled_moments(mean, std.square())[1].sqrt()
        std = std.clamp_min(1e-8)
        self.std.copy_(torch.maximum(std, torch.lerp(self.std, std, self.rate)))

    def encode(self, returns: Tensor) -> Tensor:
        """Returns -> network targets."""
        return returns / self.std.clamp_min(1e-8)

    def decode(self, output: Tensor) -> Tensor:
        """Network outputs -> values; zero before the first update."""
        return output * self.std


def flat_sizes(env: BatchedEnv, agent: str) -> tuple[int, int]:
    """Sizes D and U of a vector observation and a continuous action.

    Raises:
        ConfigError: the environment has other spaces; `agent` is named as the one who needs them.
    """
    sizes = []
    for name in ("observation", "action"):
        space = getattr(env, f"single_{name}_space")
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
            raise ConfigError(f"env: {agent} needs a vector {name} space (Box), got {space}")
        sizes.append(space.shape[0])
    return sizes[0], sizes[1]
