"""Two processes of `torchrun` learn as one: all agents, on gloo."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import agents
from agents import AGENTS
from agents.core import parallel
from agents.core.checkpoint import load_checkpoint

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def torchrun(*arguments: str, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What both processes found, and the directory with process 0's checkpoints."""
    sys.path.insert(0, str(HERE.parent / "agents"))
    from test_corro import scripted

    from envs.data import save

    out = tmp_path_factory.mktemp("parallel")
    for tier in ("mixed", "ood"):
        save(scripted(tier), out / "data")
    process = torchrun(str(HERE / "parallel_script.py"), str(out), str(out / "data"))
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return [json.loads((out / f"rank{rank}.json").read_text()) for rank in (0, 1)], out


def test_gradients_and_statistics_are_those_of_all_samples(ranks):
    for result in ranks[0]:
        assert all(result["toy"].values()), result["toy"]


@pytest.mark.parametrize("name", AGENTS)
def test_parameters_are_equal_after_50_updates(ranks, name):
    (first, second), out = ranks
    first, second = first[name], second[name]
    assert first["updates"] == second["updates"] == 50
    assert first["parameters"] == second["parameters"] != first["fresh"]
    assert first["buffers"] == second["buffers"]
    assert first["generator"] != second["generator"]
    if name != "corro":  # whose environment plays no part in learning
        assert first["observed"] != second["observed"]
    agent = agents.load(out / f"{name}.ckpt", device="cpu")
    assert agent.num_timesteps == first["timesteps"]
    if name != "corro":
        assert agent.num_timesteps == 50 * 2 * agent.rollout_steps * agent.num_envs
    before = agent.num_updates
    agent.learn(callback=lambda agent, row: agent.num_updates < before + 2)  # on one process
    assert agent.num_updates == before + 2


def test_one_process_is_left_alone():
    assert (parallel.world(), parallel.rank()) == (1, 0)
    assert parallel.everywhere(True)
    assert not parallel.everywhere(False)
    agent = AGENTS["masd"](env="particles/free", num_envs=2, hidden=[8])
    assert agent.synchronised is None
    assert agent.seed == agent.config.seed
    assert not any(p._post_accumulate_grad_hooks for p in agent.learner.policy.parameters())


def test_networks_are_found_in_parts_that_are_none_themselves():
    first, second = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    parts = {"first": first, "pair": SimpleNamespace(first=first, second=second), "steps": 3}
    assert parallel.modules(parts) == [first, second]


@pytest.mark.full
def test_the_command_line_stops_resumes_and_finishes(tmp_path):
    """A signal to one of the processes saves; two go on, then one; rank 0 alone writes."""
    run = tmp_path / "run"
    line = [str(ROOT / "train.py"), "smoke/masd", "total_timesteps=40000", f"run={run}"]
    first = torchrun(*line)
    while not (run / "last.ckpt").exists():
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    children = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGUSR1)
    out, err = first.communicate(timeout=300)
    assert "stopped by SIGUSR1, saved at" in out, err
    stopped = load_checkpoint(run / "last.ckpt")["num_timesteps"]
    assert 0 < stopped < 40000
    second = torchrun(*line)
    out, err = second.communicate(timeout=600)
    assert second.returncode == 0, err[-2000:]
    assert out.count("resuming at") == 1
    rows = [row.split(",")[0] for row in (run / "metrics.csv").read_text().splitlines()[1:]]
    assert [int(step) for step in rows] == sorted({int(step) for step in rows})
    assert load_checkpoint(run / "last.ckpt")["num_timesteps"] == 40000
    again = subprocess.run([sys.executable, *line], capture_output=True, text=True)
    assert "finished already" in again.stdout
    assert torch.distributed.is_available()
