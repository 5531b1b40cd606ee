"""The blocks of Markdown files, and how the commands in them run in a test: with small settings."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLAIN = ("eval", "resume", "data", "sweep", "export", "report", "list")  # these train nothing
SMALL = {
    "total_timesteps": "200", "num_envs": "8", "horizon": "10", "hidden": "[16,16]",
    "discovery_updates": "2", "eval_episodes": "16", "env_kwargs.num_threads": "1",
    "env_kwargs.horizon": "20",
}  # fmt: skip
SMALL_TEAM = {
    "total_timesteps": "200", "num_envs": "8", "horizon": "10", "hidden": "[16,16]",
    "discriminator_updates": "2", "eval_episodes": "32", "env_kwargs.horizon": "20",
}  # fmt: skip
SMALL_PIXELS = {
    "total_timesteps": "100", "num_envs": "4", "depth": "4", "batch_size": "4", "batch_length": "8",
    "prefill": "40", "gradient_steps": "1", "eval_episodes": "4", "replay_capacity": "2000",
    "env_kwargs.background": "ghost",
}  # fmt: skip
SMALL_OFFLINE = {"total_timesteps": "200", "encoder_hidden": "[8,8]", "hidden": "[8,8]"}
SMALL_ROLES = {
    "total_timesteps": "200", "num_envs": "4", "horizon": "10", "eval_episodes": "8",
    "embedding_size": "16", "role_size": "8", "hidden": "8",
}  # fmt: skip
SMALL_OF = {
    **dict.fromkeys(("masd", "joint-diayn", "masd-pairs", "mappo"), SMALL_TEAM),
    **dict.fromkeys(("acorm", "acorm-mappo", "qmix"), SMALL_ROLES),
    **dict.fromkeys(("infopower", "dreamer", "infopower-no-representation"), SMALL_PIXELS),
    **dict.fromkeys(("corro", "focal"), SMALL_OFFLINE),
}


def blocks(text: str, language: str) -> list[str]:
    """Fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.S | re.M)


def command_lines(text: str) -> list[list[str]]:
    """Words of the commands in the shell blocks, comments aside."""
    lines = [line for block in blocks(text, "bash") for line in block.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def small(line: list[str]) -> list[str]:
    """Arguments of `train.py` with settings of seconds, in the directory they would have."""
    if "=" not in line[-1] or line[0] in PLAIN:
        return line
    given = {argument.partition("=")[0] for argument in line}
    settings = SMALL_OF.get(line[0], SMALL)
    if any(argument.startswith("env=gym/") for argument in line):
        settings = {k: v for k, v in settings.items() if not k.startswith("env_kwargs.")}
    line = [*line, *(f"{k}={v}" for k, v in settings.items() if k not in given)]
    # The small settings must not change the directory that later lines name.
    seed = next((a for a in line if a.startswith("seed=")), "seed=0")
    plain = len(given - {line[0], "env", "seed"}) == 0
    name = f"slim-tabletop/{seed}" if plain else f"{len(given)}"
    if not any(argument.startswith("run=") for argument in line):
        own = f"{line[0]}-{len(given)}" if line[0] in SMALL_OF else name
        line.append(f"run=runs/{own}")
    return line
