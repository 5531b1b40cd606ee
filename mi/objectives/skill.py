"""Skill-discovery objectives: how much a state, or its change, tells about the skill.

Shape letters: B batch, D features of the state, Z size of the skill (number of skills if discrete).
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from mi.critics import MaxMin, VonMisesFisherDecoder, von_mises_fisher


class SkillObjective(nn.Module):
    """An estimator of the dependence between skill and state.

    `loss` trains the estimator's parameters; `pointwise` is the reward of a policy that maximises
    the dependence. Skills are float [B, Z]: unit vectors, or one-hot rows if discrete.
    """

    def loss(self, x: Tensor, x_next: Tensor, skill: Tensor) -> Tensor:
        """Loss of the estimator, 0-d, from transitions x -> x_next, [B, D] each."""
        raise NotImplementedError

    def pointwise(self, x: Tensor, x_next: Tensor, skill: Tensor) -> Tensor:
        """Reward of each transition, [B], detached."""
        raise NotImplementedError


def _network(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, outputs),
    )


class CategoricalDiscriminator(SkillObjective):
    """Barber-Agakov bound I(Z; X') >= log Z + E log q(z|x'), uniform discrete skills [nats].

    The reward of DIAYN (Eysenbach et al. 2019, eq. 3).

    Args:
        features: D.
        skill_size: Z, the number of skills.
        hidden: width of the two hidden layers.
    """

    def __init__(self, features: int, skill_size: int, hidden: int = 128) -> None:
        super().__init__()
        self.log_prior = -math.log(skill_size)
        self.decoder = _network(features, hidden, skill_size)

    def log_prob(self, x: Tensor, skill: Tensor) -> Tensor:
        """Log q(skill | x), [B]."""
        return (functional.log_softmax(self.decoder(x), -1) * skill).sum(-1)

    def prior_log_prob(self, x: Tensor) -> Tensor:
        """E log q(Z | x) over skills Z from the prior, [B]."""
        return functional.log_softmax(self.decoder(x), -1).mean(-1)

    def loss(self, x: Tensor, x_next: Tensor, skill: Tensor) -> Tensor:
        """Cross-entropy of the skill given x_next."""
        return -self.log_prob(x_next, skill).mean()

    @torch.no_grad()
    def pointwise(self, x: Tensor, x_next: Tensor, skill: Tensor) -> Tensor:
        """Log q(z|x') - log p(z)."""
        return self.log_prob(x_next, skill) - self.log_prior


class GaussianDiscriminator(SkillObjective):
    """Barber-Agakov with q(z|x') = N(μ(x'), σ² I), σ learned; continuous skills [nats].

    The reference density p is the Gaussian with the first two moments of the uniform distribution
    on the unit sphere, N(0, I/Z), so that a state that tells nothing is worth 0.

    Args:
        features: D.
        skill_size: Z.
        hidden: width of the two hidden layers.
        min_std: lower bound of σ; without it the reward is unbounded when the skill is decodable.
    """

    def __init__(
        self, features: int, skill_size: int, hidden: int = 128, min_std: float = 0.1
    ) -> None:
        super().__init__()
        self.decoder = _network(features, hidden, skill_size)
        self.prior_std = skill_size**-0.5
        self.min_std = min(min_std, self.prior_std / 2)
        # Through a softplus, because a clamp would end the gradient at the bound for good.
        self.raw_std = nn.Parameter(
            torch.tensor(math.log(math.expm1(self.prior_std - self.min_std)))
        )

    def log_prob(self, x: Tensor, skill: Tensor) -> Tensor:
        """Log q(skill | x), [B]."""
        return _gaussian(skill, self.decoder(x), self.min_std + functional.softplus(self.raw_std))

    def prior_log_prob(self, x: Tensor) -> Tensor:
        """E log q(Z | x) over skills Z from the prior (zero mean, variance 1/Z), [B]."""
        std = self.min_std + functional.softplus(self.raw_std)
        mean = self.decoder(x)
        spread = 0.5 * mean.shape[-1] * (self.prior_std / std).square()
        return _gaussian(torch.zeros_like(mean), mean, std) - spread

    def loss(self, x: Tensor, x_next: Tensor, skill: Tensor) -> Tensor:
        """Negative log-likelihood of the skill given x_next."""
        return -self.log_prob(x_next, skill).mean()

    @torch.no_grad()
    def pointwise(self, x: Tensor, x_next: Tensor, skill: Tensor) -> Tensor:
        """Log q(z|x') - log p(z)."""
        prior = _gaussian(skill, torch.zeros_like(skill), torch.tensor(self.prior_std))
        return self.log_prob(x_next, skill) - prior


def _gaussian(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log N(x; mean, std² I), [B]."""
    constant = std.log() + 0.5 * math.log(2 * math.pi)
    return -(0.5 * ((x - mean) / std).square() + constant).sum(-1)


class VonMisesFisherDiscriminator(SkillObjective):
    """Barber-Agakov with q(z|x') von Mises-Fisher; skills on the unit sphere, exactly [nats].

    A state that tells nothing has κ = 0 and is worth 0, whatever the skill.

    Args:
        features: D.
        skill_size: Z >= 2.
        hidden: width of the two hidden layers.
        max_concentration: bounds κ; without it the reward is unbounded when the skill is decodable.
    """

    def __init__(
        self, features: int, skill_size: int, hidden: int = 128, max_concentration: float = 100.0
    ) -> None:
        super().__init__()
        self.decoder = VonMisesFisherDecoder(features, skill_size, hidden, max_concentration)
        # Minus the logarithm of the sphere's area.
        self.log_prior = math.lgamma(skill_size / 2) - math.log(2 * math.pi ** (skill_size / 2))

    def log_prob(self, x: Tensor, skill: Tensor) -> Tensor:
        """Log q(skill | x), [B]."""
        return self.decoder(x, skill)

    def prior_log_prob(self, x: Tensor) -> Tensor:
        """E log q(Z | x) over uniform skills Z, whose mean is 0, [B]."""
        natural = self.decoder.natural(x)
        return von_mises_fisher(natural, torch.zeros_like(natural))

    def loss(self, x: Tensor, x_next: Tensor, skill: Tensor) -> Tensor:
        """Negative log-likelihood of the skill given x_next."""
        return -self.log_prob(x_next, skill).mean()

    @torch.no_grad()
    def pointwise(self, x: Tensor, x_next: Tensor, skill: Tensor) -> Tensor:
        """Log q(z|x') - log p(z)."""
        return self.log_prob(x_next, skill) - self.log_prior


class ContrastiveUpperBound(SkillObjective):
    """CLUB: I(Z; X') <= E log q(z|x') - E log q(z''|x'), z'' from the prior [nats].

    Cheng et al. 2020, eq. 6, with the expectation over z'' in closed form. A bound only as far as
    q is the true posterior, so it is trained by maximum likelihood like Barber-Agakov's; where that
    is a lower bound, this one errs on the other side, which is what a quantity to be suppressed
    wants.

    Args:
        decoder: q(z|x').
    """

    def __init__(
        self,
        decoder: CategoricalDiscriminator | GaussianDiscriminator | VonMisesFisherDiscriminator,
    ) -> None:
        super().__init__()
        self.decoder = decoder

    def loss(self, x: Tensor, x_next: Tensor, skill: Tensor) -> Tensor:
        """Negative log-likelihood of the skill given x_next."""
        return self.decoder.loss(x, x_next, skill)

    @torch.no_grad()
    def pointwise(self, x: Tensor, x_next: Tensor, skill: Tensor) -> Tensor:
        """Log q(z|x') - E log q(Z|x') over the prior."""
        return self.decoder.log_prob(x_next, skill) - self.decoder.prior_log_prob(x_next)


class LipschitzDisplacement(SkillObjective):
    """(φ(x') - φ(x)) · z with φ 1-Lipschitz: moving far along z, in the unit of x.

    The reward of LSD (Park et al. 2022, eq. 5): a lower bound, up to scale, of the Wasserstein
    dependency between skill and displacement. Spectral normalisation with norm-preserving
    activations makes ‖φ(x) - φ(y)‖ <= ‖x - y‖ hold by construction.

    Args:
        features: D.
        skill_size: Z.
        hidden: width of the two hidden layers, even.
    """

    def __init__(self, features: int, skill_size: int, hidden: int = 128) -> None:
        super().__init__()
        sizes = (features, hidden, hidden, skill_size)
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(sizes):
            layers += [spectral_norm(nn.Linear(inputs, outputs)), MaxMin()]
        self.embedding = nn.Sequential(*layers[:-1])

    def displacement(self, x: Tensor, x_next: Tensor) -> Tensor:
        """φ(x') - φ(x), [B, Z]; one forward, so that both see the same power iteration."""
        start, end = self.embedding(torch.stack([x, x_next])).unbind(0)
        return end - start

    def loss(self, x: Tensor, x_next: Tensor, skill: Tensor) -> Tensor:
        """-E (φ(x') - φ(x)) · z."""
        return -(self.displacement(x, x_next) * skill).sum(-1).mean()

    @torch.no_grad()
    def pointwise(self, x: Tensor, x_next: Tensor, skill: Tensor) -> Tensor:
        """(φ(x') - φ(x)) · z."""
        return (self.displacement(x, x_next) * skill).sum(-1)


class TemporalDistance(SkillObjective):
    """(φ(x') - φ(x)) · z with ‖φ(x') - φ(x)‖ <= 1 for consecutive states.

    The objective of METRA (Park et al. 2024, eq. 7-9) by dual gradient descent with slack.

    Args:
        features: D.
        skill_size: Z.
        hidden: width of the two hidden layers.
        initial_multiplier: first value of the dual variable.
        slack: how far below 1 the squared norm still counts as met.
    """

    def __init__(
        self,
        features: int,
        skill_size: int,
        hidden: int = 128,
        initial_multiplier: float = 30.0,
        slack: float = 1e-3,
    ) -> None:
        super().__init__()
        self.embedding = _network(features, hidden, skill_size)
        self.log_multiplier = nn.Parameter(torch.tensor(math.log(initial_multiplier)))
        self.slack = slack

    def loss(self, x: Tensor, x_next: Tensor, skill: Tensor) -> Tensor:
        """The Lagrangian for φ plus the dual's loss; each side sees the other as a constant."""
        step = self.embedding(x_next) - self.embedding(x)
        constraint = (1 - step.square().sum(-1)).clamp(max=self.slack)
        multiplier = self.log_multiplier.exp()
        primal = (step * skill).sum(-1) + multiplier.detach() * constraint
        return -primal.mean() + multiplier * constraint.detach().mean()

    @torch.no_grad()
    def pointwise(self, x: Tensor, x_next: Tensor, skill: Tensor) -> Tensor:
        """(φ(x') - φ(x)) · z."""
        return ((self.embedding(x_next) - self.embedding(x)) * skill).sum(-1)
