"""Families of MuJoCo tasks against a C loop of `mj_step`, with a task for each of 64 rows.

Where the bodies differ, every row has a model of its own. The C loop has one, so that all rows get
the same body here, and both simulate the same.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from envs_mujoco import Ours, paired, row

PARAMETERS = {
    "half-cheetah-vel": 0,
    "half-cheetah-dir": 0,
    "ant-dir": 0,
    "hopper-param": 41,
    "walker-param": 32,
}
"""Of a body; 0 where tasks differ in reward."""


class Family(Ours):
    """See `Ours`."""

    def record(self, folder: Path) -> None:
        """See `Ours`; nobody falls meanwhile, since the C loop begins no episode anew."""
        self.env.task.healthy = lambda sim: None
        super().record(folder)
        del self.env.task.healthy


def measure(rounds: int) -> list[dict[str, Any]]:
    """Rows for speed.csv."""
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for id, size in PARAMETERS.items():
            arguments = {"tasks": [[0.0] * size]} if size else {}
            # 100 steps to begin with and these 90 are less than an episode
            ours = Family(id, 64, 90, Path(folder) / id, **arguments)
            values = paired(rounds, ours.rate, ours.limit)
            rows.append(row(id, 64, values, "C loop of mj_step", 0.85) | {"part": "families"})
    return rows
