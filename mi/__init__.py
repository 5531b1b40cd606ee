"""Mutual-information estimators and objectives, in nats, for learning and for reward."""

from mi.combine import Lagrangian
from mi.objectives.skill import (
    CategoricalDiscriminator,
    GaussianDiscriminator,
    LipschitzDisplacement,
    SkillObjective,
    TemporalDistance,
)

__all__ = [
    "CategoricalDiscriminator",
    "GaussianDiscriminator",
    "Lagrangian",
    "LipschitzDisplacement",
    "SkillObjective",
    "TemporalDistance",
]
