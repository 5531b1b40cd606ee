"""Objectives that agents maximise, one small class per family; `PUBLISHED` says who needs which."""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """An objective of a publication, and what serves it here."""

    paper: str
    maximises: str
    kind: str
    objects: tuple[str, ...]
    """Names in `mi`, e.g. "functional.infonce"."""
    use: str
    """In reinforcement learning."""
    only_primitive: bool = False
    """It adds nothing to the primitive, so that there is no class for it."""


PUBLISHED = (
    Published(
        "Factorized mutual information",
        "mean over margins of KL(p_λ ‖ Π p_i)",
        "as its estimator",
        ("FactorizedInformation",),
        "coordination of n agents at pairwise cost",
    ),
    Published(
        "Generalised mutual learning (GML), long tails",
        "H(Y) + E log q(y|z), q of class-mean similarities",
        "lower",
        ("ClassInfoNCE",),
        "tasks, roles or skills of unequal frequency",
    ),
    Published(
        "InfoCTM",
        "linked pairs, own denominators, both directions",
        "lower",
        ("functional.infonce",),
        '`positives`, `exclude`, `denominator="own"`, `symmetric`',
    ),
    Published(
        "DMI, dialogue",
        "I(context; response), any bound",
        "any",
        ("functional", "list_estimators"),
        "context against what follows it",
    ),
    Published(
        "VISTA",
        "E log N(y; g(x), σ²), positions weighted",
        "lower",
        ("neural.BarberAgakov", "critics.GaussianDecoder"),
        "predicting later steps, `std=…`, `weight`",
    ),
    Published(
        "CLIM",
        "NT-Xent + H(C) - H(C|X)",
        "lower + exact",
        ("functional.ntxent", "DiscreteInfoMax"),
        "adaptation to a domain without labels",
    ),
    Published(
        "PIM",
        "H(C) - λ H(C|X) + labelled likelihood",
        "exact",
        ("DiscreteInfoMax", "bilevel_search"),
        "skills or clusters with few labels",
    ),
    Published(
        "AMI",
        "max min E log q(x|fake) - E log q(x|real)",
        "neither",
        ("AdversarialBarberAgakov",),
        "policies as readable as experts",
    ),
    Published(
        "InfoCORE",
        "I(X; Y | C), negatives weighted by q(c|y)",
        "lower",
        ("ConditionalInfoNCE",),
        "task codes that the behaviour policy does not explain",
    ),
    Published(
        "AIM, alternating information maximisation",
        "H(X) + E log q(x|a), a sampled",
        "lower",
        ("ScoreFunctionBarberAgakov",),
        "options and messages without a gradient",
    ),
    Published(
        "mPrompt",
        "Bernoulli decoder of a mask",
        "lower",
        ("neural.BarberAgakov", "critics.BernoulliDecoder"),
        "",
        True,
    ),
    Published(
        "InfoPower",
        "I(O; Z) + I(A; Z'|Z) - KL, multipliers",
        "lower, upper",
        ("VariationalEmpowerment", "functional.infonce", "functional.vib_kl", "Lagrangian"),
        "world models under distractors",
    ),
    Published(
        "Wasserstein dependency, WPC",
        "sup over 1-Lipschitz f of E f - E⁻ f",
        "not nats",
        ("WassersteinDependency", "LipschitzDisplacement", "TemporalDistance"),
        "skills that lead far (LSD, METRA)",
    ),
    Published(
        "PlanLLM",
        "InfoNCE + matching + caption likelihood",
        "lower + estimate",
        ("functional.infonce", "PairMatching", "neural.BarberAgakov"),
        "does this goal belong to this state",
    ),
    Published(
        "DGVAE",
        "E log σ(f_kk) + E⁻ log σ(-f_kj) over slots",
        "estimate",
        ("Slotwise", "functional.jsd"),
        "agents, objects or factors that differ",
    ),
    Published(
        "ALBEF, MoCo",
        "InfoNCE with slow keys, queue, soft targets",
        "lower",
        ("MomentumContrast", "PairMatching"),
        "representations of pixels (CURL)",
    ),
    Published(
        "ACORM", "log-share of the own cluster, qᵀ W k", "lower", ("ClusteredPositives",), "roles"
    ),
    Published(
        "MoleBLEND", "E log p(each part | blend)", "lower", ("neural.BarberAgakov",), "", True
    ),
    Published(
        "Evolution is all you need",
        "InfoNCE of relatives",
        "lower",
        ("functional.infonce",),
        "",
        True,
    ),
    Published(
        "MASD",
        "I(Z; S) - λ agg I(Z; S_i), adversarial",
        "lower, lower or upper",
        ("Synergy", "GroupInformation"),
        "coordination skills",
    ),
    Published(
        "RLMRec",
        "InfoNCE with M keys and target indices",
        "lower",
        ("functional.infonce",),
        "`targets` [N] into all users, goals or tasks",
    ),
    Published(
        "SLIM",
        "log p^-1(z) + E log q(z|s)",
        "lower",
        ("CategoricalDiscriminator", "GaussianDiscriminator", "VonMisesFisherDiscriminator"),
        "skills",
    ),
    Published(
        "DTS, β-TCVAE",
        "I(X; Z), TC(Z), Σ KL(q(z_j) ‖ p), by groups",
        "estimate",
        ("functional.elbo_terms",),
        "factors of a world model",
    ),
    Published(
        "CORRO",
        "InfoNCE, negatives of the same (s, a)",
        "lower of I(Z; M | s, a)",
        ("GeneratedNegatives", "negatives"),
        "task codes from offline data",
    ),
    Published(
        "Shape-erased features",
        "I(Z_rest; Y | Z_known), orthogonal parts",
        "estimate",
        ("OrthogonalSplit", "ConditionalBarberAgakov", "functional.linear_erasure"),
        "task and behaviour apart",
    ),
    Published(
        "ParetoGNN",
        "several bounds, shortest common gradient",
        "combiner",
        ("mgda", "min_norm_weights", "functional.decorrelation"),
        "several objectives, one encoder",
    ),
    Published(
        "DAS",
        "Σ InfoNCE over pairs of views",
        "lower",
        ("MultiViewInfoNCE",),
        "sensors that should agree",
    ),
    Published(
        "ClusT3",
        "E H(C|X) + KL(uniform ‖ E p)",
        "exact up to a constant",
        ("DiscreteInfoMax",),
        '`marginal="kl_uniform"`: test-time adaptation',
    ),
    Published(
        "ITHP",
        "E log q(y|b) - β KL(q(b|x) ‖ r), stacked",
        "lower, upper",
        ("InformationBottleneck",),
        "a state that remembers what matters",
    ),
    Published(
        "Relational reasoning",
        "E log σ(r([x, y])), focal",
        "estimate",
        ("PairMatching", "critics.RelationCritic"),
        "same episode, same task?",
    ),
    Published(
        "PDF, parallel embeddings",
        "Σ over pairs of CLUB, minimised",
        "upper",
        ("FactorizedInformation", "neural.CLUB"),
        "skills or agents that do not overlap",
    ),
    Published(
        "SepCLR",
        "alignment, uniformity, kernel joint entropy",
        "estimate",
        ("functional.alignment", "functional.uniformity", "functional.kernel_joint_entropy"),
        "common and salient parts of a code",
    ),
)
"""The 32 publications whose objectives this package serves."""
