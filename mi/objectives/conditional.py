"""Information given a third variable: what x tells about y that c does not tell already."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from mi import functional as F
from mi.critics import CategoricalDecoder, Critic, Decoder
from mi.functional import Reduction


class ConditionalInfoNCE(nn.Module):
    """InfoNCE whose negatives count as much as they belong to the anchor's condition: I(X; Y | C).

    A lower bound as far as the weighted negatives are distributed as p(y | c):

    - c int64: negatives of the same condition, weight 1, and no others;
    - c int64 and a classifier q(c|y): all of them, with weights q(c_i | y_j) / q(c_i), for
      conditions of which a batch holds few samples (InfoCORE; Wang et al. 2024);
    - c float: kernel weights exp(-‖c_i - c_j‖² / 2 width²) (Tsai et al. 2022).

    Example, a code of the task that the behaviour policy does not explain::

        objective = ConditionalInfoNCE(SeparableCritic(d, d), CategoricalDecoder(d, policies))
        loss = objective.loss(code, other_code, policy)            # policy int64 [B]

    Args:
        critic: f(x, y), of [x, c] where the optimal score depends on c.
        classifier: q(c|y); trained by `loss`, too, and a constant for the encoders.
        width: of the kernel, for float conditions; in the unit of c.
    """

    def __init__(
        self, critic: Critic, classifier: CategoricalDecoder | None = None, width: float = 1.0
    ) -> None:
        super().__init__()
        self.critic, self.classifier, self.width = critic, classifier, width

    def information(self, x: Tensor, y: Tensor, c: Tensor, reduction: Reduction = "mean") -> Tensor:
        """The bound [nats], 0-d or as `reduction` says; differentiable in x and y.

        Args:
            x: [B, d].
            y: [B, e].
            c: int64 [B], or [B, f].
            reduction: as in `mi.functional`.
        """
        scores = self.critic.pairwise(x, y)
        if c.is_floating_point():
            if self.classifier is not None:
                raise ValueError("ConditionalInfoNCE: a classifier is of integer conditions c")
            distance = torch.cdist(c, c).square()
            return self._weighted(scores, -distance / (2 * self.width**2), reduction)
        if self.classifier is None:
            return F.infonce(scores, exclude=F.other_condition(c), reduction=reduction)
        with torch.no_grad():
            log_weight = self.classifier.pairwise(y, c).mT  # log q(c_i | y_j)
        return self._weighted(scores, log_weight, reduction)

    def _weighted(self, scores: Tensor, log_weight: Tensor, reduction: Reduction) -> Tensor:
        """InfoNCE with weights whose mean over each anchor's negatives is 1."""
        own = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
        total = torch.logsumexp(log_weight.masked_fill(own, -torch.inf), 1, keepdim=True)
        log_weight = log_weight - total + math.log(len(scores) - 1)
        return F.infonce(scores, log_weight=log_weight, reduction=reduction)

    def loss(self, x: Tensor, y: Tensor, c: Tensor) -> Tensor:
        """-`information` plus the classifier's cross-entropy, without gradient for y, 0-d."""
        if self.classifier is None:
            return -self.information(x, y, c)
        return -self.information(x, y, c) - self.classifier(y.detach(), c).mean()

    @torch.no_grad()
    def pointwise(self, x: Tensor, y: Tensor, c: Tensor) -> Tensor:
        """Each anchor's term [B], detached."""
        return self.information(x, y, c, "none")


class ConditionalBarberAgakov(nn.Module):
    """I(X; Y | C) as E log q(y|x, c) - E log r(y|c), by the chain rule; neither bound.

    Both densities are learnt; where H(Y | C) is known, as of a policy's actions, take
    `VariationalEmpowerment`, which is a lower bound.

    Example, what the erased half of a code still tells about the class::

        split = OrthogonalSplit(d, k)
        chain = ConditionalBarberAgakov(CategoricalDecoder(d, C), CategoricalDecoder(k, C))
        known, rest = split(code)
        loss = chain.loss(rest, label, known)
        nats = chain.information(rest, label, known)

    Args:
        decoder: q(y | [x, c]).
        marginal: r(y | c).
    """

    def __init__(self, decoder: Decoder, marginal: Decoder) -> None:
        super().__init__()
        self.decoder, self.marginal = decoder, marginal

    def information(
        self,
        x: Tensor,
        y: Tensor,
        c: Tensor,
        *,
        mask: Tensor | None = None,
        reduction: Reduction = "mean",
    ) -> Tensor:
        """The difference [nats], 0-d or as `reduction` says; differentiable.

        Args:
            x: [*, d].
            y: [*, e], or int64 [*].
            c: [*, f].
            mask: bool [*].
            reduction: as in `mi.functional`.
        """
        log_q = self.decoder(torch.cat([x, c], -1), y)
        return F.barber_agakov(log_q, self.marginal(c, y), mask=mask, reduction=reduction)

    def loss(self, x: Tensor, y: Tensor, c: Tensor, mask: Tensor | None = None) -> Tensor:
        """Negative log-likelihood of both, 0-d."""
        log_q = self.decoder(torch.cat([x, c], -1), y) + self.marginal(c, y)
        return -F.barber_agakov(log_q, 0.0, mask=mask)

    @torch.no_grad()
    def pointwise(self, x: Tensor, y: Tensor, c: Tensor) -> Tensor:
        """Log q(y|x, c) - log r(y|c), [*], detached."""
        return self.information(x, y, c, reduction="none")


class OrthogonalSplit(nn.Module):
    """A code as coordinates in a learnt subspace and in its orthogonal complement.

    One orthogonal matrix, so that nothing is lost or stretched and no penalty is needed: what the
    one part is trained to hold can be left out of the other (shape-erased features).

    Example, task and behaviour in different halves::

        behaviour, task = split(code)                              # [*, k], [*, d - k]

    Args:
        size: d.
        kept: k.
    """

    def __init__(self, size: int, kept: int) -> None:
        super().__init__()
        if not 0 < kept < size:
            raise ValueError(f"OrthogonalSplit: expected 0 < kept < {size}, got {kept}")
        self.kept = kept
        self.rotation = orthogonal(nn.Linear(size, size, bias=False))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates in the subspace [*, k] and in its complement [*, d - k]."""
        first, rest = self.rotation(z).split([self.kept, z.shape[-1] - self.kept], -1)
        return first, rest
