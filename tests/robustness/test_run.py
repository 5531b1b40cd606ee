"""The command line as users meet it: resume after kill -9, signals, errors, files left behind."""

import csv
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from trees import assert_same

import train
from agents.core import parallel
from agents.core.checkpoint import load_checkpoint, save_checkpoint
from agents.core.config import ConfigError
from agents.core.run import Run

ROOT = Path(__file__).resolve().parents[2]


def start(run: Path, steps: int, *more: str) -> subprocess.Popen:
    arguments = [f"total_timesteps={steps}", "eval_interval=4", f"run={run}", *more]
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), "smoke/slim", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def wait_for(path: Path, process: subprocess.Popen) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return [
            {k: v for k, v in row.items() if not k.startswith("time/")}
            for row in csv.DictReader(file)
        ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """An uninterrupted run of 2,000 steps."""
    run = tmp_path_factory.mktemp("whole") / "run"
    code, out, err = finish(start(run, 2000))
    assert code == 0, out + err
    return run


def test_run_directory_holds_everything(whole):
    for name in ("config.yaml", "metrics.csv", "last.ckpt", "best.ckpt", "done.json"):
        assert (whole / name).stat().st_size > 0, name
    assert list((whole / "tb").iterdir())
    assert {p.name for p in (whole / "plots").iterdir()} == {"learning.png", "skills.png"}
    assert (whole / "video" / "skills.mp4").stat().st_size > 1000
    done = json.loads((whole / "done.json").read_text())
    assert {"return_mean", "coverage", "r2", "random/coverage", "consistency"} <= done.keys()
    steps = [int(row["timesteps"]) for row in rows(whole)]
    assert steps == [*range(160, 2000, 160), 2000]


def test_kill_9_and_the_same_command_again_is_bit_identical(whole, tmp_path):
    run = tmp_path / "run"
    code = None
    for kills in range(1, 6):
        process = start(run, 2000)
        before = (run / "last.ckpt").stat().st_mtime_ns if (run / "last.ckpt").exists() else 0
        while process.poll() is None:
            if (run / "last.ckpt").exists() and (run / "last.ckpt").stat().st_mtime_ns > before:
                time.sleep(0.02 * kills)  # somewhere between two checkpoints
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.005)
        code, out, err = finish(process)
        if code == 0:
            break
        assert code == -signal.SIGKILL, out + err
    if code != 0:
        code, out, err = finish(start(run, 2000))
        assert code == 0, out + err
        assert "resuming at" in out
    same, other = load_checkpoint(whole / "last.ckpt"), load_checkpoint(run / "last.ckpt")
    assert_same(same, other)
    assert rows(run) == rows(whole)


@pytest.mark.parametrize(
    ("number", "expected"),
    [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)],
)
def test_signals_save_and_say_so(tmp_path, number, expected):
    run = tmp_path / "run"
    process = start(run, 10_000_000)
    wait_for(run / "last.ckpt", process)
    process.send_signal(number)
    code, out, err = finish(process)
    assert code == expected, out + err
    assert "Traceback" not in err
    saved = load_checkpoint(run / "last.ckpt")["num_timesteps"]
    assert f"saved at {saved:,} steps" in out
    assert not (run / "done.json").exists()


def test_finished_run_is_not_run_twice(whole):
    before = (whole / "last.ckpt").read_bytes()
    code, out, _ = finish(start(whole, 2000))
    assert code == 0
    assert "finished already" in out
    assert (whole / "last.ckpt").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "lr", "before"),
    [("acorm", "lr=1e15", True), ("slim", "lr=1e15", False)],
    ids=["after a checkpoint", "before the first"],
)
def test_a_nan_leaves_what_repeats_it(tmp_path, capsys, name, lr, before):
    run = tmp_path / "run"
    command = [f"smoke/{name}", f"run={run}", lr, "checkpoint_interval=2"]
    assert train.main(command) == 2
    said = capsys.readouterr().err
    error, _, hint = said.removeprefix("error: ").partition("; `")
    assert "NaN or infinity" in error
    assert hint.startswith(f"python train.py replay run={run}`")
    assert json.loads((run / "crash.json").read_text())["error"] == error
    assert (run / "crash.ckpt").exists() == (run / "last.ckpt").exists() == before
    if before:  # the next checkpoint does not change the old one
        kept = (run / "crash.ckpt").read_bytes()
        save_checkpoint(run / "last.ckpt", None)
        assert (run / "crash.ckpt").read_bytes() == kept
    files = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert train.main(["replay", f"run={run}"]) == 2
    assert capsys.readouterr().out == f"then: {error}\nnow:  {error}\n"
    assert files == {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    if not before:
        assert train.main(["replay", f"run={run}", "lr=1e-4"]) == 0
        assert capsys.readouterr().out.endswith("now:  finite values\n")


def test_there_is_nothing_to_repeat(whole, capsys):
    assert train.main(["replay", f"run={whole}"]) == 2
    assert "expected a readable crash.json" in capsys.readouterr().err


def test_eval_writes_json(whole, tmp_path):
    output = tmp_path / "results.json"
    command = [sys.executable, str(ROOT / "train.py"), "eval", f"run={whole}", f"json={output}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    results = json.loads(output.read_text())
    assert {"return_mean", "return_std", "episodes", "coverage", "r2"} <= results.keys()
    assert results["episodes"] == 16


def cli(*arguments: str, cwd: Path = ROOT) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        capture_output=True, text=True, timeout=300, cwd=cwd,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["slmi"], "unknown agent 'slmi'; did you mean 'slim'?"),
        (["slim", "lrr=1"], "did you mean 'lr'?"),
        (["slim", "lr=fast"], "lr: expected float, got 'fast'"),
        (["slim", "gamma=2"], "gamma=2.0: expected in [0, 1)"),
        (["slim", "env=tabeltop"], "did you mean 'tabletop'?"),
        (["slim", "env_kwargs.robot=ur5"], "robot='ur5': expected one of gantry, panda"),
        (["slim", "env_kwargs.horizon=long"], "env=tabletop"),
        (["slim", "env_kwargs.num_envs=3"], "env_kwargs.num_envs=3: expected num_envs= instead"),
        (["slim", "env_kwargs.num_threads=-1"], "num_threads=-1: expected at least 0"),
        (["masd", "subset_size=3"], "subset_size=3: expected less than the 3 agents"),
        (["masd", "env_kwargs.visibility=0"], "the actors do not see the other agents"),
        (["masd", "env=particles/fre"], "did you mean 'particles/free'?"),
        (["masd", "env_kwargs.agents=1"], "agents=1: expected at least 2"),
        (["slim", "weights.speed=1"], "weights.speed: no such reward"),
        (["slim", "device=tpu"], "device='tpu': expected auto, cpu, cuda or cuda:<index>"),
        (["eval", "run=nowhere"], "nowhere/last.ckpt: no such checkpoint"),
        (["eval"], "expected run=<directory>, checkpoint=<file> or just <file>"),
        (["resume"], "expected run=<directory>"),
    ],
)
def test_mistakes_get_one_line_and_exit_code_2(tmp_path, arguments, message):
    run = [f"run={tmp_path / 'run'}"] if arguments[0][:2] in ("sl", "ma") else []
    code, out, err = cli(*arguments, *run)
    assert code == 2, out + err
    assert message in err, err
    assert len(err.strip().splitlines()) == 1, err


def test_a_mistake_does_not_spoil_the_directory(tmp_path):
    run = tmp_path / "run"
    code, _, err = finish(start(run, 200, "env_kwargs.start=medium"))
    assert code == 2
    assert "start='medium': expected one of easy, hard" in err
    assert finish(start(run, 200))[0] == 0


def test_corrupt_checkpoint_is_refused_and_kept(whole, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    damaged = bytearray((whole / "last.ckpt").read_bytes())
    damaged[len(damaged) // 2] ^= 0x10
    (run / "last.ckpt").write_bytes(damaged)
    code, _, err = finish(start(run, 2000))
    assert code == 2
    assert "last.ckpt" in err
    assert len(err.strip().splitlines()) == 1, err
    assert (run / "last.ckpt").read_bytes() == damaged


def test_other_settings_in_the_same_directory_are_refused(whole):
    code, _, err = finish(start(whole, 2000, "lr=0.01"))
    assert code == 2
    assert "holds a run with lr=0.0003, expected 0.01" in err


def test_two_processes_in_one_directory(tmp_path):
    run = tmp_path / "run"
    first = start(run, 10_000_000)
    wait_for(run / "last.ckpt", first)
    code, _, err = finish(start(run, 10_000_000))
    assert code == 2
    assert "another process is using this directory" in err
    first.send_signal(signal.SIGTERM)
    assert finish(first)[0] == 75


def test_resume_command_goes_on(tmp_path):
    run = tmp_path / "run"
    process = start(run, 100_000)
    wait_for(run / "last.ckpt", process)
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 75
    before = load_checkpoint(run / "last.ckpt")["num_timesteps"]
    resumed = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), "resume", f"run={run}"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    stamp = (run / "last.ckpt").stat().st_mtime_ns
    while (run / "last.ckpt").stat().st_mtime_ns == stamp:
        assert resumed.poll() is None, resumed.communicate()
        time.sleep(0.01)
    resumed.send_signal(signal.SIGTERM)
    code, out, err = finish(resumed)
    assert code == 75, err
    assert f"resuming at {before:,} steps" in out
    assert load_checkpoint(run / "last.ckpt")["num_timesteps"] > before


def test_help_and_list_teach(tmp_path):
    code, out, _ = cli("--help")
    assert code == 0
    assert "python train.py slim env=tabletop seed=1" in out
    code, out, _ = cli("slim", "--help")
    assert code == 0
    for word in ("gae_lambda", "violation_budget", "total_timesteps", "reconstruction"):
        assert word in out
    code, out, _ = cli("list")
    assert code == 0
    assert "start: 'easy'" in cli("list", "tabletop")[1]
    for env, argument in (("pixels/arm", "background:"), ("particles/spread", "actions:")):
        assert argument in cli("list", env)[1]
    for word in ("slim", "diayn", "lsd", "metra", "slim-single-critic", "tabletop/panda"):
        assert word in out


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_directory_is_one_line(tmp_path):
    run = tmp_path / "locked"
    run.mkdir(mode=0o500)
    code, _, err = finish(start(run, 2000))
    assert code == 2
    assert str(run) in err


def test_who_looks_at_a_run_does_not_keep_it_from_starting(tmp_path):
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # as `Task.status` of a sweep does
        with pytest.raises(ConfigError, match="another process is using this directory"):
            Run(tmp_path, "slim", {})
        threading.Timer(0.2, fcntl.flock, (lock, fcntl.LOCK_UN)).start()
        with Run(tmp_path, "slim", {}):
            pass


def test_a_crash_of_another_process_than_the_first_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "rank", lambda: 3)
    run = Run(tmp_path, "slim", {}, leads=False)
    assert "crash-3.json keeps this; `replay` repeats what the first" in run.crash(
        "reward: NaN", 40
    )
    kept = json.loads((tmp_path / "crash-3.json").read_text())
    assert kept == {"error": "reward: NaN", "timesteps": 40}
    assert not (tmp_path / "crash.json").exists()
    run.directory = tmp_path / "gone"
    assert "crash-3.json could not be written: No such file" in run.crash("reward: NaN", 40)
