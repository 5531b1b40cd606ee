"""Pieces of world models: convolutions, a recurrent state-space model, a bounded policy.

Shape letters: B batch, T time, H imagined time, M imagined starts, E embedding, Z code size, D size
of the deterministic state, U actions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

import mi
from agents.core.nets import LOG_2PI, mlp


def symlog(x: Tensor) -> Tensor:
    """sign(x) log(1 + |x|): rewards of any scale to order 1 (Hafner et al. 2023, eq. 9)."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """Inverse of `symlog`."""
    return x.sign() * x.abs().expm1()


def pixels(obs: Tensor) -> Tensor:
    """Images uint8 [*, C, H, W] as floats in [-0.5, 0.5]."""
    return obs.float() / 255 - 0.5


class ConvEncoder(nn.Module):
    """Images uint8 [*, C, H, W] -> embeddings float32 [*, E]: four strided convolutions.

    Kernel 4 and stride 2 as in Dreamer, but padded as in DreamerV3 (Hafner et al. 2023): 64 pixels
    end as 4 x 4 instead of 2 x 2, which says sooner and better where things are.
    Normalised at the end, so that what differs between images is of order 1 from the start.

    Args:
        shape: (C, H, W); H and W at least 16.
        depth: channels of the first layer; each next one doubles them.
        bfloat16: run the convolutions in bfloat16.
    """

    def __init__(self, shape: tuple[int, ...], depth: int, bfloat16: bool = True) -> None:
        super().__init__()
        channels = [shape[0], *(depth * 2**i for i in range(4))]
        layers: list[nn.Module] = []
        for i in range(4):
            layers += [nn.Conv2d(channels[i], channels[i + 1], 4, 2, 1), nn.ReLU(inplace=True)]
            # torch's own initialisation shrinks what differs between images fourfold in a layer.
            nn.init.orthogonal_(layers[-2].weight, 2**0.5)  # type: ignore[arg-type]
            nn.init.zeros_(layers[-2].bias)  # type: ignore[arg-type]
        self.layers = nn.Sequential(*layers)
        self.layers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.low_precision = bfloat16
        self.size = channels[-1] * math.prod(_conv_sizes(s)[-1] for s in shape[1:])
        self.norm = nn.LayerNorm(self.size)

    def forward(self, obs: Tensor) -> Tensor:
        """Embeddings [*, E]."""
        if obs.dtype != torch.uint8:
            raise ValueError(f"images: expected uint8, got {obs.dtype}")
        lead = obs.shape[:-3]
        # bfloat16 holds 0 .. 255 exactly, in half of the memory; bytes are the cheapest to reorder.
        kind = torch.bfloat16 if self.low_precision else torch.float32
        x = obs.flatten(0, -4).contiguous(memory_format=torch.channels_last)
        x = x.to(kind).mul_(1 / 255).sub_(0.5)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.low_precision):
            x = self.layers(x)
        return self.norm(x.float().reshape(*lead, self.size))


class ConvDecoder(nn.Module):
    """Features [*, D] -> means of images [*, C, H, W], as `pixels` scales them.

    The mirror image of `ConvEncoder`.

    Args:
        features: D.
        shape: (C, H, W), as `ConvEncoder`'s.
        depth: likewise.
        bfloat16: likewise.
    """

    def __init__(
        self, features: int, shape: tuple[int, ...], depth: int, bfloat16: bool = True
    ) -> None:
        super().__init__()
        self.shape, self.low_precision = tuple(shape), bfloat16
        heights, widths = _conv_sizes(shape[1]), _conv_sizes(shape[2])
        channels = [depth * 8, depth * 4, depth * 2, depth, shape[0]]
        self.first = (channels[0], heights[-1], widths[-1])
        self.linear = nn.Linear(features, math.prod(self.first))
        layers: list[nn.Module] = []
        for i in range(4):
            rest = [s[3 - i] - 2 * s[4 - i] for s in (heights, widths)]
            layer = nn.ConvTranspose2d(
                channels[i], channels[i + 1], 4, 2, 1, output_padding=(rest[0], rest[1])
            )
            # Four of its 16 taps reach a pixel; torch's own initialisation counts otherwise, and
            # what the features say fades 250-fold on its way to the picture.
            nn.init.normal_(layer.weight, 0.0, (2 / (4 * channels[i])) ** 0.5)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
            layers += [layer, nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])
        self.layers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, features: Tensor) -> Tensor:
        """Means [*, C, H, W], float32."""
        x = self.linear(features.flatten(0, -2)).unflatten(-1, self.first)
        x = x.to(memory_format=torch.channels_last)
        # On the CPU transposed convolutions are slower in bfloat16 than in float32.
        low = self.low_precision and x.device.type != "cpu"
        with torch.autocast(x.device.type, torch.bfloat16, enabled=low):
            x = self.layers(x)
        return x.float().view(*features.shape[:-1], *self.shape)


def _conv_sizes(size: int) -> list[int]:
    """Side of an image before and after each of the four convolutions."""
    sizes = [size]
    for _ in range(4):
        sizes.append(sizes[-1] // 2)
    if sizes[-1] < 1:
        raise ValueError(f"image of {size} pixels: expected at least 16")
    return sizes


class Gaussian(NamedTuple):
    """Diagonal Gaussians, [*, Z] each."""

    mean: Tensor
    std: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Reparametrised sample from standard normal `noise` [*, Z]."""
        return self.mean + self.std * noise

    def detach(self) -> Gaussian:
        """The same without gradients."""
        return Gaussian(self.mean.detach(), self.std.detach())


class Unrolled(NamedTuple):
    """A sequence seen by an `RSSM`, [B, T, ...] each."""

    embedding: Tensor
    """Of o_t, [B, T, E]."""
    deter: Tensor
    """h_t [B, T, D]: what is remembered, z_{t-1} and a_{t-1} included, o_t not."""
    code: Tensor
    """Sample z_t of the posterior, [B, T, Z]."""
    posterior: Gaussian
    prior: Gaussian

    @property
    def features(self) -> Tensor:
        """(h_t, z_t), [B, T, D + Z]."""
        return torch.cat([self.deter, self.code], -1)


class RSSM(nn.Module):
    """Recurrent state-space model (Hafner et al. 2019): h_t = GRU(h_{t-1}, z_{t-1}, a_{t-1}).

    Args:
        embedding: E.
        actions: U.
        deter: D.
        stoch: Z.
        hidden: width of its layers.
        recurrent_posterior: q(z_t | h_t, o_t) as published; else q(z_t | o_t), a code of the
            observation alone, which a_{t-1} does not reach through h_t.
    """

    MIN_STD = 0.1

    def __init__(
        self, embedding: int, actions: int, deter: int, stoch: int, hidden: int,
        recurrent_posterior: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.deter_size, self.stoch_size = deter, stoch
        self.recurrent_posterior = recurrent_posterior
        self.input = nn.Linear(stoch + actions, hidden)
        self.cell = nn.GRUCell(hidden, deter)
        self.prior_head = mlp(deter, [hidden], 2 * stoch)
        inputs = embedding + deter * recurrent_posterior
        self.posterior_head = mlp(inputs, [hidden], 2 * stoch)
        # σ = 0.23: at 0.8 the noise hides what little an untrained mean says of the image, and a
        # contrast or a decoder first learns to ignore the code, from which it hardly recovers.
        nn.init.constant_(self.posterior_head[-1].bias[stoch:], -2.0)  # type: ignore[index]

    def advance(self, deter: Tensor, code: Tensor, action: Tensor) -> Tensor:
        """h_t [*, D] from h_{t-1}, z_{t-1} and a_{t-1}."""
        return self.cell(functional.elu(self.input(torch.cat([code, action], -1))), deter)

    def prior(self, deter: Tensor) -> Gaussian:
        """p(z_t | h_t), the forward model q_χ of InfoPower."""
        return self._gaussian(self.prior_head(deter))

    def posterior(self, embedding: Tensor, deter: Tensor) -> Gaussian:
        """q(z_t | o_t), or q(z_t | h_t, o_t)."""
        inputs = torch.cat([embedding, deter], -1) if self.recurrent_posterior else embedding
        return self._gaussian(self.posterior_head(inputs))

    def observe(self, embedding: Tensor, action: Tensor, first: Tensor, noise: Tensor) -> Unrolled:
        """Filter a sequence from zero states.

        Codes of observations alone enter h without their gradient: h then predicts them as well as
        it can, and they do not change in order to be predicted.

        Args:
            embedding: of o_t, [B, T, E].
            action: a_{t-1}, which led to o_t, [B, T, U].
            first: bool [B, T], where no step of the same episode precedes.
            noise: standard normal [B, T, Z].
        """
        keep = (~first).to(embedding.dtype)[..., None]
        action = action * keep
        deter = embedding.new_zeros(len(embedding), self.deter_size)
        code = embedding.new_zeros(len(embedding), self.stoch_size)
        whole = None if self.recurrent_posterior else self.posterior(embedding, deter)
        codes = None if whole is None else whole.sample(noise)
        deters, posteriors = [], []
        for t in range(embedding.shape[1]):
            deter = self.advance(deter * keep[:, t], code * keep[:, t], action[:, t])
            deters.append(deter)
            if codes is not None:
                code = codes[:, t].detach()
            else:
                posteriors.append(self.posterior(embedding[:, t], deter))
                code = posteriors[-1].sample(noise[:, t])
        if whole is None or codes is None:
            whole = Gaussian(*(torch.stack(parts, 1) for parts in zip(*posteriors, strict=True)))
            codes = whole.sample(noise)
        history = torch.stack(deters, 1)
        return Unrolled(embedding, history, codes, whole, self.prior(history))

    def _gaussian(self, raw: Tensor) -> Gaussian:
        mean, std = raw.chunk(2, -1)
        return Gaussian(mean, functional.softplus(std) + self.MIN_STD)


class TanhGaussianPolicy(nn.Module):
    """tanh(N(μ(x), diag σ(x)²)), actions in (-1, 1) (Haarnoja et al. 2018).

    Args:
        network: [*, D] -> [*, 2 U].
        bounds: smallest and largest σ.
    """

    def __init__(self, network: nn.Module, bounds: tuple[float, float] = (0.1, 1.0)) -> None:
        super().__init__()
        self.network, self.bounds = network, bounds

    def moments(self, x: Tensor) -> Gaussian:
        """μ and σ before the tanh, [*, U] each."""
        mean, raw = self.network(x).chunk(2, -1)
        low, high = self.bounds
        return Gaussian(5 * torch.tanh(mean / 5), low + (high - low) * torch.sigmoid(raw + 2))

    @staticmethod
    def sample(moments: Gaussian, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Reparametrised action [*, U] and its log-density [*], from standard normal noise."""
        before = moments.sample(noise)
        log_prob = -(0.5 * noise.square() + moments.std.log() + 0.5 * LOG_2PI)
        # log(1 - tanh² u) without cancellation
        jacobian = 2 * (math.log(2) - before - functional.softplus(-2 * before))
        return before.tanh(), (log_prob - jacobian).sum(-1)


class Imagined(NamedTuple):
    """What a policy does in a model."""

    states: Tensor
    """(h, z) from the start on, [H + 1, M, D + Z]."""
    action: Tensor
    """[H, M, U]"""
    log_prob: Tensor
    """log π(a | s), [H, M]."""
    reward: Tensor
    """Of arriving at each successor, [H, M]."""
    continues: Tensor
    """Probability that the successor is not terminal, [H, M]."""


class WorldModel(nn.Module):
    """Encoder, RSSM, heads for reward and termination, and a decoder of pixels if asked for.

    Args:
        shape: of an image, (C, H, W).
        actions: U.
        depth: channels of the first convolution.
        deter: D.
        stoch: Z.
        units: width of hidden layers.
        recurrent_posterior: see `RSSM`.
        decode: have a decoder.
        bfloat16: see `ConvEncoder`.
    """

    def __init__(
        self, shape: tuple[int, ...], actions: int, depth: int, deter: int, stoch: int, units: int,
        recurrent_posterior: bool, decode: bool, bfloat16: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.sizes, features = [deter, stoch], deter + stoch
        self.encoder = ConvEncoder(shape, depth, bfloat16)
        self.rssm = RSSM(self.encoder.size, actions, deter, stoch, units, recurrent_posterior)
        self.reward = mi.critics.GaussianDecoder(features, 1, units, min_std=0.05)
        self.continues = mlp(features, [units], 1)
        self.decoder = ConvDecoder(features, shape, depth, bfloat16) if decode else None

    def observe(self, batch: dict[str, Tensor], noise: Tensor) -> Unrolled:
        """Filter sequences `obs`, `action` and `first` [B, T, ...]; see `RSSM.observe`."""
        embedding = self.encoder(batch["obs"])
        return self.rssm.observe(embedding, batch["action"], batch["first"], noise)

    def filter(self, obs: Tensor, state: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        """(h_t, z_t) [N, D + Z] from the previous one, a_{t-1} [N, U] and o_t."""
        deter, code = state.split(self.sizes, -1)
        deter = self.rssm.advance(deter, code, action)
        posterior = self.rssm.posterior(self.encoder(obs), deter)
        return torch.cat([deter, posterior.sample(noise)], -1)

    def imagine(
        self, policy: TanhGaussianPolicy, state: Tensor, horizon: int, draw: Callable[..., Tensor]
    ) -> Imagined:
        """Let a policy act in the model, with gradients through both.

        Args:
            policy: sees states without their gradient.
            state: where it starts, [M, D + Z].
            horizon: H.
            draw: standard normal noise of a shape.
        """
        states, actions, log_probs = [state], [], []
        for _ in range(horizon):
            moments = policy.moments(state.detach())
            action, log_prob = policy.sample(moments, draw(*moments.mean.shape))
            deter, code = state.split(self.sizes, -1)
            deter = self.rssm.advance(deter, code, action)
            code = self.rssm.prior(deter).sample(draw(len(state), self.sizes[1]))
            state = torch.cat([deter, code], -1)
            states.append(state)
            actions.append(action)
            log_probs.append(log_prob)
        every = torch.stack(states)
        reward = symexp(self.reward.moments(every[1:])[0].squeeze(-1))
        alive = torch.sigmoid(self.continues(every[1:]).squeeze(-1))
        return Imagined(every, torch.stack(actions), torch.stack(log_probs), reward, alive)

    def reward_information(self, features: Tensor, reward: Tensor) -> Tensor:
        """I(R_t; Z_t) >= H(R) + E log q(r | h, z) [nats], 0-d, of rewards on the `symlog` scale.

        H(R) is that of a Gaussian as wide as the rewards of the batch, an upper bound of it.
        """
        target = symlog(reward)
        std = (target.var(correction=0) + self.reward.min_std**2).sqrt()
        entropy = std.log() + 0.5 + 0.5 * LOG_2PI
        return mi.functional.barber_agakov(self.reward(features, target[..., None]), -entropy)

    def continue_loss(self, features: Tensor, terminated: Tensor) -> Tensor:
        """Cross-entropy of going on, 0-d."""
        logit = self.continues(features).squeeze(-1)
        return functional.binary_cross_entropy_with_logits(logit, 1 - terminated)

    def reconstruction(self, features: Tensor, obs: Tensor) -> Tensor:
        """Log N(o; decoder(h, z), 1) up to a constant [nats], 0-d, as in Dreamer."""
        assert self.decoder is not None
        error = self.decoder(features) - pixels(obs)
        return -0.5 * error.square().flatten(2).sum(-1).mean()


class Pairs(NamedTuple):
    """For each step of sequences, an earlier one of the same episode; [B, T] each."""

    start: Tensor
    """Where it is, int64."""
    steps: Tensor
    """How much earlier, 1 .. most, int64."""
    mask: Tensor
    """Whether there is one, bool."""


def earlier(first: Tensor, most: int, generator: torch.Generator) -> Pairs:
    """Pair each step with one that is uniformly 1 .. `most` steps earlier.

    Args:
        first: bool [B, T], steps that nothing precedes.
        most: largest distance.
        generator: decides which distance.
    """
    draw = torch.rand(first.shape, generator=generator, device=first.device)
    steps = (draw * most).long() + 1
    start = torch.arange(first.shape[1], device=first.device) - steps
    episode = first.cumsum(1)
    mask = (start >= 0) & (episode.gather(1, start.clamp_min(0)) == episode)
    return Pairs(start.clamp_min(0), steps, mask)


def take(x: Tensor, time: Tensor) -> Tensor:
    """Rows of x [B, T, D] at the steps int64 [B, T], [B, T, D]."""
    return x.gather(1, time[..., None].expand(-1, -1, x.shape[-1]))


def mean_since(x: Tensor, pairs: Pairs, most: int) -> Tensor:
    """Means of x [B, T, D] over each pair's steps, without the earlier one itself, [B, T, D]."""
    ahead = torch.arange(1, most + 1, device=x.device)
    step = (pairs.start[..., None] + ahead).clamp_max(x.shape[1] - 1)  # [B, T, most]
    values = take(x, step.flatten(1)).unflatten(1, step.shape[1:])
    inside = (ahead <= pairs.steps[..., None])[..., None]
    return (values * inside).sum(2) / pairs.steps[..., None]
