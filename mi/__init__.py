"""Mutual-information estimators and objectives, in nats, for learning and for reward.

- `mi.functional`: bounds as pure functions of scores, a formula sheet;
- `mi.estimate_mi(x, y)` and its relatives: measuring from samples, one call;
- objects that agents train and take rewards from: everything else here.
"""

from mi import functional
from mi.channels import Capacity, channel_capacity, gaussian_capacity, water_filling
from mi.combine import Lagrangian
from mi.estimate import (
    EstimatorInfo,
    MIResult,
    estimate_mi,
    interaction_information,
    list_estimators,
    total_correlation,
    transfer_entropy,
)
from mi.estimators.classifier import Decoded, decode
from mi.estimators.gaussian import gaussian_mi
from mi.estimators.knn import discrete_continuous
from mi.objectives.skill import (
    CategoricalDiscriminator,
    ContrastiveUpperBound,
    GaussianDiscriminator,
    LipschitzDisplacement,
    SkillObjective,
    TemporalDistance,
)
from mi.objectives.synergy import GroupInformation, Synergy, groups

__all__ = [
    "Capacity",
    "CategoricalDiscriminator",
    "ContrastiveUpperBound",
    "Decoded",
    "EstimatorInfo",
    "GaussianDiscriminator",
    "GroupInformation",
    "Lagrangian",
    "LipschitzDisplacement",
    "MIResult",
    "SkillObjective",
    "Synergy",
    "TemporalDistance",
    "channel_capacity",
    "decode",
    "discrete_continuous",
    "estimate_mi",
    "functional",
    "gaussian_capacity",
    "gaussian_mi",
    "groups",
    "interaction_information",
    "list_estimators",
    "total_correlation",
    "transfer_entropy",
    "water_filling",
]
