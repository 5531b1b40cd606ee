"""Empowerment: how much an action tells about what follows it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mi import functional as F
from mi.critics import Decoder
from mi.functional import Reduction


class VariationalEmpowerment(nn.Module):
    """I(A; S' | S) >= E[log q(a | s, s') - log π(a | s)]: Barber-Agakov, given the state.

    Mohamed & Rezende 2015; InfoPower (Bharadhwaj et al. 2022). A lower bound whatever q is, as long
    as `log_policy` is the density that the actions were drawn from, in the same coordinates (both
    before, or both after, a squashing function). The end must not contain the action by other ways
    than the world: a recurrent state that was fed the action satisfies the bound without looking.

    Example, in representation learning and as an intrinsic reward::

        empowerment = VariationalEmpowerment(GaussianDecoder(start_size + end_size, action_size))
        nats = empowerment.information(z, a, z_next, log_policy)   # differentiable in the codes
        reward = empowerment.pointwise(z, a, z_next, log_policy)   # [B]

    Args:
        decoder: q(a | start, end): of inputs [start, end], e.g. a `critics.GaussianDecoder` or a
            `CategoricalDecoder` (actions int64).
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def information(
        self,
        start: Tensor,
        action: Tensor,
        end: Tensor,
        log_policy: Tensor | float,
        *,
        mask: Tensor | None = None,
        weight: Tensor | None = None,
        reduction: Reduction = "mean",
    ) -> Tensor:
        """The bound [nats], 0-d or as `reduction` says; differentiable in everything.

        Args:
            start: s [*, d].
            action: [*, e], or int64 [*] for a class decoder; k actions side by side for k steps.
            end: s' [*, f].
            log_policy: log π(a | s) [*], or its mean -H(A | S), which has less variance.
            mask: bool [*].
            weight: [*].
            reduction: as in `mi.functional`.
        """
        log_q = self.decoder(torch.cat([start, end], -1), action)
        return F.barber_agakov(log_q, log_policy, mask=mask, weight=weight, reduction=reduction)

    def loss(
        self,
        start: Tensor,
        action: Tensor,
        end: Tensor,
        *,
        mask: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """-E log q(a | s, s'), 0-d; arguments as `information`."""
        return -self.information(start, action, end, 0.0, mask=mask, weight=weight)

    @torch.no_grad()
    def pointwise(
        self, start: Tensor, action: Tensor, end: Tensor, log_policy: Tensor | float
    ) -> Tensor:
        """Log q(a | s, s') - log π(a | s), [*], detached: a reward."""
        return self.information(start, action, end, log_policy, reduction="none")
