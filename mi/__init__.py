"""Mutual-information estimators and objectives, in nats, for learning and for reward.

- `mi.functional`: bounds as pure functions of scores, a formula sheet;
- `mi.estimate_mi(x, y)` and its relatives: measuring from samples, one call;
- `mi.critics` and `mi.neural`: critics, decoders, and estimators that are trained;
- objects that agents train and take rewards from: everything else here.
"""

from mi import critics, functional, negatives, neural
from mi.channels import Capacity, channel_capacity, gaussian_capacity, water_filling
from mi.combine import Lagrangian, bilevel_search, mgda, min_norm_weights
from mi.estimate import (
    EstimatorInfo,
    dual_total_correlation,
    estimate_mi,
    interaction_information,
    list_estimators,
    o_information,
    total_correlation,
    transfer_entropy,
)
from mi.estimators.classifier import Decoded, decode
from mi.estimators.gaussian import gaussian_mi
from mi.estimators.knn import discrete_continuous
from mi.neural import MIEstimator
from mi.objectives.bottleneck import InformationBottleneck
from mi.objectives.conditional import (
    ConditionalBarberAgakov,
    ConditionalInfoNCE,
    OrthogonalSplit,
)
from mi.objectives.contrastive import (
    ClusteredPositives,
    GeneratedNegatives,
    MomentumContrast,
    MultiViewInfoNCE,
    PairMatching,
    Slotwise,
)
from mi.objectives.decoding import AdversarialBarberAgakov, ScoreFunctionBarberAgakov
from mi.objectives.dependency import WassersteinDependency
from mi.objectives.empowerment import VariationalEmpowerment
from mi.objectives.multi import FactorizedInformation
from mi.objectives.skill import (
    CategoricalDiscriminator,
    ContrastiveUpperBound,
    GaussianDiscriminator,
    LipschitzDisplacement,
    SkillObjective,
    TemporalDistance,
    VonMisesFisherDiscriminator,
)
from mi.objectives.supervised import ClassInfoNCE, DiscreteInfoMax
from mi.objectives.synergy import GroupInformation, Synergy, groups
from mi.result import MIResult

__all__ = [
    "AdversarialBarberAgakov",
    "Capacity",
    "CategoricalDiscriminator",
    "ClassInfoNCE",
    "ClusteredPositives",
    "ConditionalBarberAgakov",
    "ConditionalInfoNCE",
    "ContrastiveUpperBound",
    "Decoded",
    "DiscreteInfoMax",
    "EstimatorInfo",
    "FactorizedInformation",
    "GaussianDiscriminator",
    "GeneratedNegatives",
    "GroupInformation",
    "InformationBottleneck",
    "Lagrangian",
    "LipschitzDisplacement",
    "MIEstimator",
    "MIResult",
    "MomentumContrast",
    "MultiViewInfoNCE",
    "OrthogonalSplit",
    "PairMatching",
    "ScoreFunctionBarberAgakov",
    "SkillObjective",
    "Slotwise",
    "Synergy",
    "TemporalDistance",
    "VariationalEmpowerment",
    "VonMisesFisherDiscriminator",
    "WassersteinDependency",
    "bilevel_search",
    "channel_capacity",
    "critics",
    "decode",
    "discrete_continuous",
    "dual_total_correlation",
    "estimate_mi",
    "functional",
    "gaussian_capacity",
    "gaussian_mi",
    "groups",
    "interaction_information",
    "list_estimators",
    "mgda",
    "min_norm_weights",
    "negatives",
    "neural",
    "o_information",
    "total_correlation",
    "transfer_entropy",
    "water_filling",
]
