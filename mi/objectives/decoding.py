"""Barber-Agakov with a twist: an adversary, or actions that have no gradient."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mi import functional as F
from mi.critics import Decoder


class AdversarialBarberAgakov(nn.Module):
    """min over q, max over the generator of E log q(x|y_fake) - E log q(x|y_real).

    The decoder learns to read x from real y and not from generated ones; the generator learns to be
    read. At the saddle point what it makes tells as much about x as what is real (adversarial
    mutual information; Pan et al. 2020). A fake that tells less than nothing counts as nothing,
    without which the decoder's loss has no bound; that is ours.

    Example, imitation of how experts reveal their goals::

        game = AdversarialBarberAgakov(CategoricalDecoder(y_size, goals), log_prior=-log(goals))
        loss = game.decoder_loss(goal, y_expert, y_policy)
        reward = game.generator_reward(goal, y_policy)             # [B]

    Args:
        decoder: q(x|y).
        log_prior: log p(x) [nats], of a likely x or on average.
    """

    def __init__(self, decoder: Decoder, log_prior: float) -> None:
        super().__init__()
        self.decoder, self.log_prior = decoder, log_prior

    def decoder_loss(self, x: Tensor, y_real: Tensor, y_fake: Tensor) -> Tensor:
        """E [log q(x|y_fake) - log p(x)]₊ - E log q(x|y_real), 0-d.

        Args:
            x: int64 [B], or [B, d].
            y_real: [B, e].
            y_fake: [B, e], constants here.
        """
        fake = F.barber_agakov(self.decoder(y_fake.detach(), x), self.log_prior, reduction="none")
        real = F.barber_agakov(self.decoder(y_real, x), self.log_prior)
        return fake.clamp_min(0).mean() - real

    @torch.no_grad()
    def generator_reward(self, x: Tensor, y_fake: Tensor) -> Tensor:
        """Log q(x|y_fake) - log p(x), [B], detached."""
        return F.barber_agakov(self.decoder(y_fake, x), self.log_prior, reduction="none")


class ScoreFunctionBarberAgakov(nn.Module):
    """max I(X; A) >= H(X) + E log q(x|a) where a is sampled and has no gradient (REINFORCE).

    The gradient of the sampler is (r - b) ∇ log π(a|x) with r = log q(x|a) - log p(x) and b a
    moving average of r. As in alternating information maximisation, and as a skill's reward
    without a critic.

    Example, a message or an option that names its cause::

        objective = ScoreFunctionBarberAgakov(CategoricalDecoder(actions, causes), log_prior)
        action = policy.sample()
        loss = objective.loss(cause, one_hot(action), policy.log_prob(action))

    Args:
        decoder: q(x|a).
        log_prior: log p(x), or -H(X).
        rate: of the baseline.
    """

    baseline: Tensor

    def __init__(self, decoder: Decoder, log_prior: float, rate: float = 0.05) -> None:
        super().__init__()
        self.decoder, self.log_prior, self.rate = decoder, log_prior, rate
        self.register_buffer("baseline", torch.zeros(()))

    def information(self, x: Tensor, action: Tensor) -> Tensor:
        """The bound [nats], 0-d."""
        return F.barber_agakov(self.decoder(action, x), self.log_prior)

    def loss(self, x: Tensor, action: Tensor, log_prob: Tensor) -> Tensor:
        """Loss of decoder and sampler together, 0-d; moves the baseline if gradients are on.

        Args:
            x: int64 [B], or [B, d].
            action: what was sampled, [B, e].
            log_prob: log π(a|x) [B], differentiable.
        """
        nats = F.barber_agakov(self.decoder(action, x), self.log_prior, reduction="none")
        advantage = (nats - self.baseline).detach()
        if torch.is_grad_enabled():
            with torch.no_grad():
                self.baseline.lerp_(nats.mean(), self.rate)
        return -(nats + advantage * log_prob).mean()

    @torch.no_grad()
    def pointwise(self, x: Tensor, action: Tensor) -> Tensor:
        """Log q(x|a) - log p(x), [B], detached: a reward."""
        return F.barber_agakov(self.decoder(action, x), self.log_prior, reduction="none")
