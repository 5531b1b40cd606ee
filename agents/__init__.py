"""Agents that maximise one information quantity and suppress another.

`from agents import SLIM`, `agents.load("runs/…/last.ckpt")`, `agents.AGENTS`.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any


def _guard() -> None:
    """Refuse to run with somebody else's `envs` or `mi`: other distributions own these names.

    A wheel installed after ours may have put its `__init__.py` over ours, or taken it away when it
    was uninstalled. So a name's content counts, and not only its place.
    """
    ours = Path(__file__).resolve().parent.parent
    for name, public in (("envs", "BatchedEnv"), ("mi", "estimate_mi")):
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin).resolve() if spec and spec.origin else None
        beside = origin is None or origin.parent == ours / name
        if origin is not None and beside and public in origin.read_text(errors="replace"):
            continue
        repair = "pip install --force-reinstall --no-deps infomax-rl" if beside else ""
        if origin is None:
            raise ImportError(
                f"infomax-rl needs its own package {name!r}, which is not installed or has lost "
                f"its __init__.py to another distribution of that name; {repair}"
            )
        owners = importlib.metadata.packages_distributions().get(name, [])
        intruders = sorted(set(owners) - {"infomax-rl"}) or ["unknown"]
        raise ImportError(
            f"infomax-rl needs its own package {name!r}, but {origin} is imported instead, from "
            f"the distribution {', '.join(intruders)}; uninstall it"
            f"{f', then {repair},' if repair else ''} or use another environment"
        )


_guard()

from agents.acorm import ACORM  # noqa: E402
from agents.acorm_mappo import ACORMMAPPO  # noqa: E402
from agents.base import Agent, AgentConfig  # noqa: E402
from agents.core.checkpoint import CheckpointError, load_checkpoint  # noqa: E402
from agents.core.config import ConfigError  # noqa: E402
from agents.core.hierarchy import SkillEnv, SkillPlanner  # noqa: E402
from agents.core.log import NonFiniteError  # noqa: E402
from agents.corro import CORRO  # noqa: E402
from agents.infopower import InfoPower  # noqa: E402
from agents.masd import MASD  # noqa: E402
from agents.slim import SLIM  # noqa: E402

__all__ = [
    "ACORM",
    "ACORMMAPPO",
    "AGENTS",
    "CORRO",
    "MASD",
    "SLIM",
    "Agent",
    "AgentConfig",
    "CheckpointError",
    "ConfigError",
    "InfoPower",
    "NonFiniteError",
    "SkillEnv",
    "SkillPlanner",
    "load",
]

AGENTS: dict[str, type[Agent]] = {
    "slim": SLIM,
    "masd": MASD,
    "acorm": ACORM,
    "acorm-mappo": ACORMMAPPO,
    "corro": CORRO,
    "infopower": InfoPower,
}


def load(path: str | Path, **kwargs: Any) -> Agent:
    """The agent a checkpoint holds, of whatever kind; arguments as `Agent.load`.

    Raises:
        CheckpointError: no readable checkpoint, or of an agent this version does not have.
    """
    tree = load_checkpoint(path)
    name = tree.get("agent") if isinstance(tree, dict) else None
    if not isinstance(name, str) or name not in AGENTS:
        raise CheckpointError(path, f"holds agent {name!r}, expected one of {', '.join(AGENTS)}")
    return AGENTS[name].load(path, **kwargs)
