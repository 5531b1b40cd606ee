"""Mutual-information estimators and objectives, in nats, for learning and for reward."""

from mi.combine import Lagrangian
from mi.estimators.classifier import Decoded, decode
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
    "CategoricalDiscriminator",
    "ContrastiveUpperBound",
    "Decoded",
    "GaussianDiscriminator",
    "GroupInformation",
    "Lagrangian",
    "LipschitzDisplacement",
    "SkillObjective",
    "Synergy",
    "TemporalDistance",
    "decode",
    "discrete_continuous",
    "groups",
]
