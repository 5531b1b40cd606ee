"""Every block of the README runs: Python as it stands, `train.py` lines with small settings."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text()
PLAIN = ("eval", "resume", "data", "sweep", "export", "report")  # commands that train nothing
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


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.S)


def test_python_blocks_run_in_order(tmp_path):
    script = "\n".join(["import torch", "torch.set_num_threads(1)", *blocks("python")])
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=600,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def command_lines() -> list[list[str]]:
    lines = [
        line.partition("#")[0].split() for block in blocks("bash") for line in block.split("\n")
    ]
    return [line[2:] for line in lines if line[:2] == ["python", "train.py"]]


def test_train_lines_run_in_order(tmp_path):
    lines = command_lines()
    assert len(lines) >= 7
    for line in lines:
        if "=" in line[-1] and line[0] not in PLAIN:
            given = {argument.partition("=")[0] for argument in line}
            small = SMALL_OF.get(line[0], SMALL)
            line = [*line, *(f"{k}={v}" for k, v in small.items() if k not in given)]
            # The small settings must not change the directory that later lines name.
            seed = next((a for a in line if a.startswith("seed=")), "seed=0")
            plain = len(given - {line[0], "env", "seed"}) == 0
            name = f"slim-tabletop/{seed}" if plain else f"{len(given)}"
            if not any(argument.startswith("run=") for argument in line):
                own = f"{line[0]}-{len(given)}" if line[0] in SMALL_OF else name
                line.append(f"run=runs/{own}")
        done = subprocess.run(
            [sys.executable, str(ROOT / "train.py"), *line], cwd=tmp_path, capture_output=True,
            text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, (line, done.stderr[-2000:])
    assert (tmp_path / "results.json").exists()


@pytest.mark.parametrize("package", ["envs", "mi"])
def test_import_guard_names_the_intruder(tmp_path, package):
    """A foreign package of the same name, found first, with a distribution that owns it."""
    foreign = tmp_path / package
    foreign.mkdir()
    (foreign / "__init__.py").write_text("")
    info = tmp_path / "someone_elses-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: someone-elses\nVersion: 1.0\n")
    (info / "top_level.txt").write_text(f"{package}\n")
    (info / "RECORD").write_text(f"{package}/__init__.py,,\n")
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; "
         "import agents"],
        capture_output=True, text=True, timeout=120, cwd="/",
    )  # fmt: skip
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: infomax-rl needs its own package")
    assert f"'{package}'" in last
    assert "someone-elses" in last


def test_the_readmes_line_shows_a_foreign_agents_that_is_found_first(tmp_path):
    """Ours cannot see this case, being never imported; the line the README gives does."""
    (line,) = re.findall(r"python -c \"(import agents; .*)\"", TEXT)
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "__init__.py").write_text("class Runner: ...\n")
    seen = {}
    for name, first in (("theirs", str(tmp_path)), ("ours", str(ROOT))):
        code = f"import sys; sys.path.insert(0, {first!r}); {line}"
        seen[name] = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd="/"
        )
    assert seen["theirs"].returncode == 1
    assert "module 'agents' has no attribute 'AGENTS'" in seen["theirs"].stderr
    assert seen["ours"].returncode == 0
    assert str(ROOT / "agents" / "__init__.py") in seen["ours"].stdout


def test_dependencies_point_one_way():
    """`envs` and `mi` know nothing of `agents`, and `mi` nothing of `envs`."""
    for package, forbidden in (("envs", ("agents",)), ("mi", ("agents", "envs"))):
        for path in (ROOT / package).rglob("*.py"):
            for name in forbidden:
                assert not re.search(rf"^\s*(from|import) {name}\b", path.read_text(), re.M), path
