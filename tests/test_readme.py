"""Every block of the README runs: Python as it stands, `train.py` lines with small settings."""

import re
import subprocess
import sys

import pytest
from snippets import ROOT, blocks, command_lines, small

TEXT = (ROOT / "README.md").read_text()


def test_python_blocks_run_in_order(tmp_path):
    script = "\n".join(["import torch", "torch.set_num_threads(1)", *blocks(TEXT, "python")])
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=600,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def test_train_lines_run_in_order(tmp_path):
    lines = [words[2:] for words in command_lines(TEXT) if words[:2] == ["python", "train.py"]]
    assert len(lines) >= 7
    for line in map(small, lines):
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
