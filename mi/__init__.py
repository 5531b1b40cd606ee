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

__all__ = [
    "CategoricalDiscriminator",
    "ContrastiveUpperBound",
    "Decoded",
    "GaussianDiscriminator",
    "Lagrangian",
    "LipschitzDisplacement",
    "SkillObjective",
    "TemporalDistance",
    "decode",
    "discrete_continuous",
]
