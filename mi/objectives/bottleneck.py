"""Codes that keep what is asked for and little else."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from mi import functional as F
from mi.critics import Decoder, mlp


class InformationBottleneck(nn.Module):
    """max I(B; Y) - β I(B; X): a Gaussian code, a decoder, and a price for what the code holds.

    Alemi et al. 2017. `rate` is an upper bound of I(B; X), `-distortion` a lower bound of I(B; Y)
    up to H(Y). Bottlenecks stack (ITHP): the next one reads the sample of this one.

    Example, a state that remembers what predicts the next sensor::

        loss = bottleneck.loss(camera, touch)
        code = bottleneck.sample(camera)                           # [B, size]

    Args:
        inputs: size of x.
        size: of the code.
        decoder: q(y|b).
        beta: β.
        prior: r(b): `normal` is N(0, 1); `learned` a diagonal Gaussian; `vamp` the mean of the
            codes of learnt inputs (Tomczak & Welling 2018), estimated from one sample.
        components: of the `vamp` prior.
        hidden: width of the encoder.
    """

    def __init__(
        self,
        inputs: int,
        size: int,
        decoder: Decoder,
        beta: float = 1e-2,
        prior: Literal["normal", "learned", "vamp"] = "normal",
        components: int = 16,
        hidden: int = 128,
    ) -> None:
        super().__init__()
        if prior not in ("normal", "learned", "vamp"):
            raise ValueError(f"prior: expected normal, learned or vamp, got {prior!r}")
        self.encoder, self.decoder = mlp(inputs, hidden, 2 * size), decoder
        self.beta, self.prior = beta, prior
        self.prior_mean = nn.Parameter(torch.zeros(size), prior == "learned")
        self.prior_log_std = nn.Parameter(torch.zeros(size), prior == "learned")
        self.pseudo_inputs = nn.Parameter(torch.randn(components, inputs), prior == "vamp")

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the code, [*, size] each."""
        mean, raw = self.encoder(x).chunk(2, -1)
        return mean, softplus(raw) + 1e-3

    def sample(self, x: Tensor) -> Tensor:
        """A code [*, size], differentiable."""
        mean, std = self.encode(x)
        return mean + std * torch.randn_like(std)

    def rate(self, x: Tensor) -> Tensor:
        """E KL(q(b|x) ‖ r(b)) [nats], 0-d: an upper bound of I(B; X)."""
        mean, std = self.encode(x)
        if self.prior != "vamp":
            return F.vib_kl(mean, std, self.prior_mean, self.prior_log_std.exp())
        code = mean + std * torch.randn_like(std)
        means, stds = self.encode(self.pseudo_inputs)
        log_q = torch.distributions.Normal(mean, std).log_prob(code).sum(-1)
        each = torch.distributions.Normal(means, stds).log_prob(code[..., None, :]).sum(-1)
        return (log_q - torch.logsumexp(each, -1) + math.log(len(means))).mean()

    def distortion(self, x: Tensor, y: Tensor) -> Tensor:
        """-E log q(y|b) [nats], 0-d."""
        return -F.barber_agakov(self.decoder(self.sample(x), y), 0.0)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """`distortion` + β `rate`, 0-d.

        Args:
            x: [*, inputs].
            y: [*, e], or int64 [*].
        """
        return self.distortion(x, y) + self.beta * self.rate(x)
