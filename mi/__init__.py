"""Mutual-information estimators and objectives, in nats, for learning and for reward.

- `mi.functional`: bounds as pure functions of scores, a formula sheet;
- `mi.estimate_mi(x, y)` and its relatives: measuring from samples, one call;
- `mi.critics` and `mi.neural`: critics, decoders, and estimators that are trained;
- objects that agents train and take rewards from: everything else here.
"""

from mi import critics, functional, neural
from mi.channels import Capacity, channel_capacity, gaussian_capacity, water_filling
from mi.combine import Lagrangian
from mi.estimate import (
    EstimatorInfo,
    estimate_mi,
    interaction_information,
    list_estimators,
    total_correlation,
    transfer_entropy,
)
from mi.estimators.classifier import Decoded, decode
from mi.estimators.gaussian import gaussian_mi
from mi.estimators.knn import discrete_continuous
from mi.neural import MIEstimator
from mi.objectives.contrastive import ClusteredPositives, GeneratedNegatives
from mi.objectives.empowerment import VariationalEmpowerment
from mi.objectives.skill import (
    CategoricalDiscriminator,
    ContrastiveUpperBound,
    GaussianDiscriminator,
    LipschitzDisplacement,
    SkillObjective,
    TemporalDistance,
    VonMisesFisherDiscriminator,
)
from mi.objectives.synergy import GroupInformation, Synergy, groups
from mi.result import MIResult

__all__ = [
    "Capacity",
    "CategoricalDiscriminator",
    "ClusteredPositives",
    "ContrastiveUpperBound",
    "Decoded",
    "EstimatorInfo",
    "GaussianDiscriminator",
    "GeneratedNegatives",
    "GroupInformation",
    "Lagrangian",
    "LipschitzDisplacement",
    "MIEstimator",
    "MIResult",
    "SkillObjective",
    "Synergy",
    "TemporalDistance",
    "VariationalEmpowerment",
    "VonMisesFisherDiscriminator",
    "channel_capacity",
    "critics",
    "decode",
    "discrete_continuous",
    "estimate_mi",
    "functional",
    "gaussian_capacity",
    "gaussian_mi",
    "groups",
    "interaction_information",
    "list_estimators",
    "neural",
    "total_correlation",
    "transfer_entropy",
    "water_filling",
]
