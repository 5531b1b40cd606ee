"""Dependence in the unit of a metric, which does not saturate where information does."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor

from mi import functional as F
from mi.critics import Critic, LipschitzCritic
from mi.functional import Options
from mi.neural import MIEstimator


class WassersteinDependency(MIEstimator):
    """sup over 1-Lipschitz f of E f - E⁻ f: distance between joint and product distribution.

    Ozair et al. 2019. Not in nats: in the unit of x and y, with the Euclidean distance of pairs. A
    `LipschitzCritic` keeps the constraint by construction; other critics are held to it by a
    penalty on the norm of their gradient. For consecutive states instead of the Euclidean metric,
    `TemporalDistance` is the same idea (METRA).

    Example, skills that lead far apart::

        dependency = WassersteinDependency(LipschitzCritic(d, z))
        loss = dependency.loss(state, skill)
        reward = dependency.pointwise(state, skill)                # [B]

    Args:
        critic: f.
        penalty: weight of `functional.gradient_penalty`; None takes 10 (Gulrajani et al. 2017), and
            0 for a `LipschitzCritic`.
        predictive: train by InfoNCE under the same constraint (Wasserstein predictive coding).
    """

    formula = "sup over 1-Lipschitz f of E f - E⁻ f"
    reference = "Ozair et al. 2019"

    def __init__(
        self, critic: Critic, penalty: float | None = None, predictive: bool = False
    ) -> None:
        super().__init__(critic)
        default = 0.0 if isinstance(critic, LipschitzCritic) else 10.0
        self.penalty, self.predictive = default if penalty is None else penalty, predictive

    def loss(
        self, x: Tensor, y: Tensor, *, negatives: Tensor | None = None, **options: Unpack[Options]
    ) -> Tensor:
        """-E f + E⁻ f plus the penalty, 0-d; arguments as `MIEstimator.loss`."""
        loss = super().loss(x, y, negatives=negatives, **options)
        if not self.penalty:
            return loss
        return loss + self.penalty * F.gradient_penalty(self.critic, x, y, y.roll(1, 0))

    def _objective(self, options: Options) -> Tensor:
        return F.infonce(**options) if self.predictive else F.wasserstein(**options)

    def _value(self, options: Options) -> Tensor:
        return F.wasserstein(**options)
