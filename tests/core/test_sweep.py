"""Sweeps: what is listed, and that nothing is lost or done twice, whoever is killed.

Most tests carry out `sweep_script.py` instead of the learning script: it keeps the same contract
and counts its steps. The full one trains.
"""

import fcntl
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import train
from agents.core.config import ConfigError
from agents.core.sweep import (
    Task,
    _outcome,
    _table,
    carry_out,
    expand,
    run_here,
    run_local,
    run_on_ray,
    slurm_script,
    watch,
    write_slurm_script,
)

SCRIPT = Path(__file__).parent / "sweep_script.py"
ROOT = Path(__file__).resolve().parents[2]


def make(folder: Path, *steps: int, mode: str = "") -> list[Task]:
    more = (f"mode={mode}",) if mode else ()
    return [
        Task("toy", (f"steps={n}", f"id={i}", *more), folder / f"{mode}{i}", n)
        for i, n in enumerate(steps)
    ]


def outcomes(running, until=lambda: False) -> dict[Task, int]:
    """Exit codes of the runs that ended; leaves the rest alone once `until` holds."""
    codes = {}
    for task, code in running:
        if task is not None:
            assert task not in codes
            codes[task] = code
        if until():
            break
    return codes


def go_on(task=None, code=None) -> None:
    return None


def numbers(task: Task, name: str) -> list[int]:
    return [int(line.split()[0]) for line in (task.directory / name).read_text().splitlines()]


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["seed=0..2"], [["seed=0"], ["seed=1"], ["seed=2"]]),
        (["lr=1e-4,3e-4", "seed=5"], [["lr=1e-4", "seed=5"], ["lr=3e-4", "seed=5"]]),
        (["seed=-1..0,7"], [["seed=-1"], ["seed=0"], ["seed=7"]]),
        (["hidden=[64,64],[8,8]"], [["hidden=[64,64]"], ["hidden=[8,8]"]]),
        (["x={a: 1, b: 2}", "y='a,b'"], [["x={a: 1, b: 2}", "y='a,b'"]]),
        (["dataset=../data..old"], [["dataset=../data..old"]]),
        (["x="], [["x="]]),
        ([], [[]]),
    ],
)
def test_expand(given, expected):
    assert expand(given) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("seed=3..1", "seed=3..1: expected a rising range"),
        ("seed=0..100000", "expected a rising range of at most 100,000"),
        ("lr=1,,2", "lr=1,,2: an item is empty"),
        ("lr", "malformed override 'lr', expected key=value"),
        ("seed=0..999 x=0..999", "1,000,000 runs, expected at most"),
    ],
)
def test_expand_refuses(given, message):
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        expand(given.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "train: expected an agent"),
        (["slmi", "seed=0..1"], "unknown agent 'slmi'; did you mean 'slim'?"),
        (["slim", "sed=0..1"], "did you mean 'seed'?"),
        (["slim", "lr=1e-4,fast"], "lr: expected float, got 'fast'"),
        (["slim", "seed=0,1,0"], "'slim seed=0' and 'slim seed=0' are one run"),
        (["slim", "device=cpu,auto"], "are one run, runs/slim-tabletop"),
        (["slim", "run=here"], "run= names one run"),
        (["slim", "--on", "mars"], "--on mars: expected local, ray or slurm"),
        (["slim", "--job=2"], "did you mean --jobs?"),
        (["slim", "--jobs", "0"], "--jobs 0: expected a positive integer"),
        (["slim", "--jobs"], "--jobs: expected a value"),
        (["slim", "--gpus", "1"], "--gpus: only with --on ray or slurm"),
        (["slim", "--on", "ray", "--jobs", "2"], "Ray runs as many as its processors allow"),
        (["slim", "--on", "slurm", "--gpus", "nan"], "--gpus nan: expected a number"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_before_anything_starts(
    arguments, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    if not arguments:
        arguments = ["seed=0"]
    assert train.main(["sweep", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_directories_are_those_of_single_commands(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr("agents.core.sweep.carry_out", lambda tasks, *rest: seen.extend(tasks) or 0)
    assert train.main(["sweep", "slim,lsd", "env=tabletop", "seed=0..1", "lr=1e-4,3e-4"]) == 0
    assert len(seen) == 8
    assert {str(task.directory) for task in seen} >= {
        "runs/slim-tabletop/lr=1e-4/seed=0", "runs/lsd-tabletop/lr=3e-4/seed=1",
    }  # fmt: skip
    monkeypatch.setattr(train, "_train", lambda agent, name, config, run: seen.append(run) or 0)
    assert train.main(["slim", "lr=3e-4", "env=tabletop", "seed=1"]) == 0
    assert seen[-1] in {task.directory for task in seen[:-1]}
    assert train.main(["sweep", "--help"]) == 0
    assert "--on slurm" in capsys.readouterr().out


def test_dry_run_says_how_far_runs_are(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done, half = (tmp_path / f"runs/slim-tabletop/seed={i}" for i in (0, 1))
    for run in (done, half):
        run.mkdir(parents=True)
        (run / "last.ckpt").touch()
        (run / "metrics.csv").write_text("timesteps,return\n100,1\n5000,2.5\n70")
    (half / "metrics.csv").write_text("timesteps,return\n100,1\n5000,2.5\n")
    (done / "done.json").touch()
    assert train.main(["sweep", "slim", "seed=0..2", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["finished", "interrupted", "new", "3"]
    assert "5,000 of 1,000,000 steps" in lines[1]
    assert not (tmp_path / "runs/slim-tabletop/seed=2").exists()


def test_local_runs_as_many_as_jobs_and_skips_what_is_finished(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # of this process; runs have one thread each
    tasks = make(tmp_path, 5, 6, 7, 8)
    failing = make(tmp_path, 3, mode="fail")
    assert (
        watch([*tasks, *failing], lambda stop: run_local([*tasks, *failing], SCRIPT, 2, stop)) == 2
    )
    out = capsys.readouterr().out
    assert "error: mode=fail: expected another" in out
    assert "5 runs: 4 finished, 1 failed" in out
    events = []
    for task in tasks:
        _, threads, first, began = (task.directory / "starts").read_text().split()
        assert (threads, first) == ("1", "0")
        events += [(float(began), 1), (float((task.directory / "ends").read_text()), -1)]
    at_once = [sum(change for _, change in sorted(events)[: i + 1]) for i in range(len(events))]
    assert max(at_once) == 2
    assert watch(tasks, lambda stop: run_local([], SCRIPT, 2, stop)) == 0
    assert [numbers(task, "steps") for task in tasks] == [
        list(range(1, n + 1)) for n in (5, 6, 7, 8)
    ]
    assert tasks[0].log.read_text().startswith("$ python sweep_script.py toy steps=5 id=0 run=/")


def test_what_is_finished_is_left_out(tmp_path, capsys):
    done, new = make(tmp_path, 3, 4)
    options: dict[str, str | None] = {"on": "local", "jobs": "1", "gpus": None, "dry-run": ""}
    assert carry_out([done], SCRIPT, options) == 0
    capsys.readouterr()
    assert carry_out([done, new], SCRIPT, options | {"on": "slurm"}) == 0
    assert "1 of 2 runs are left; submit them with" in capsys.readouterr().out
    (script,) = tmp_path.glob("*.sbatch")
    assert re.findall(r"^(\d+)\) .* id=(\d+)", script.read_text(), re.M) == [("0", "1")]
    assert carry_out([done, new], SCRIPT, options) == 0
    out = capsys.readouterr().out
    assert out.startswith("2 runs, 1 finished already\n")
    assert (out.count(done.label), out.count(new.label)) == (0, 1)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_saves_all_and_the_same_sweep_goes_on(tmp_path, capsys, number, code):
    tasks = make(tmp_path, 40, 40, 40)
    begun = threading.Thread(
        target=lambda: (
            wait_for(lambda: all((t.directory / "last.ckpt").exists() for t in tasks[:2])),
            os.kill(os.getpid(), number),
        )
    )
    begun.start()
    codes = []

    def run(stop):
        for task, each in run_local(tasks, SCRIPT, 2, stop):
            codes.extend([each] if task else [])
            yield task, each

    assert watch(tasks, run) == code
    begun.join()
    assert codes == [code, code]  # the runs got the same signal
    assert "2 interrupted, 1 not started" in capsys.readouterr().out
    assert [task.status() for task in tasks] == ["interrupted", "interrupted", "new"]
    assert watch(tasks, lambda stop: run_local(tasks, SCRIPT, 2, stop)) == 0
    for task, starts in zip(tasks, (2, 2, 1), strict=True):
        assert numbers(task, "steps") == list(range(1, 41))
        assert len(numbers(task, "starts")) == starts


def test_a_killed_process_is_interrupted_and_goes_on(tmp_path, capsys):
    (task,) = make(tmp_path, 30)

    def kill() -> None:
        wait_for(lambda: (task.directory / "last.ckpt").exists())
        os.kill(numbers(task, "starts")[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    assert watch([task], lambda stop: run_local([task], SCRIPT, 1, stop)) == 75
    killer.join()
    assert "1 runs: 1 interrupted" in capsys.readouterr().out
    assert watch([task], lambda stop: run_local([task], SCRIPT, 1, stop)) == 0
    steps = numbers(task, "steps")
    assert sorted(set(steps)) == list(range(1, 31))
    assert len(steps) <= 31  # at most the step that no checkpoint held yet


def test_the_table_shows_what_runs_now(tmp_path):
    old, now, waiting, done = make(tmp_path, 10, 20, 30, 40)
    for task in (old, now, done):
        task.directory.mkdir()
        task.log.touch()
        (task.directory / "metrics.csv").write_text(
            "timesteps,return,time/steps_per_second\n2,9,9\n5,2.5,1234\n"
        )
    os.utime(old.log, (1, 1))  # of an earlier sweep
    row, total = _table([old, now, waiting, done], {done: "finished"}, time.time() - 60)
    assert row.split() == [
        "25%", "█" * 5 + "·" * 15, "1,234", "steps/s", "return", "2.5", "toy", "steps=20", "id=1",
    ]  # fmt: skip
    assert total == "1/4 ended, 1 running, 2 waiting, 1.0 min"


def test_runs_of_other_machines_are_absolute_and_not_failures(tmp_path):
    assert Task("toy", (), Path("here"), 1).arguments == ["toy", f"run={Path.cwd() / 'here'}"]
    (task,) = make(tmp_path, 3)
    task.directory.mkdir()
    task.log.write_text(f"error: run={task.directory}: another process is using this directory\n")
    assert _outcome(task, 2) == "running"
    task.log.write_text("error: lr: expected float\n")
    assert _outcome(task, 2) == "failed"


def test_what_another_process_carries_out_is_left_to_it(tmp_path, capsys):
    mine, theirs = make(tmp_path, 3, 3)
    theirs.directory.mkdir()
    with (theirs.directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert watch([mine, theirs], lambda s: run_local([mine, theirs], SCRIPT, 2, s)) == 75
    assert "1 finished, 1 running" in capsys.readouterr().out
    assert not (theirs.directory / "starts").exists()


def test_slurm_script_runs_saves_and_queues_itself_again(tmp_path):
    folder = tmp_path / 'it\'s "100%a" #1'
    tasks = [*make(folder, 3, 400), *make(folder, 5, mode="fail")]
    path = write_slurm_script(tasks, SCRIPT, 5, 0.5)
    text = path.read_text()
    for line in ("--array=0-2%5", "--signal=B:USR1@300", "--requeue", "--gpus-per-task=1"):
        assert f"#SBATCH {line}\n" in text
    (output,) = re.findall("^#SBATCH (--output=.*)$", text, re.M)
    (output,) = shlex.split(output)  # sbatch takes a path in double quotes as a shell does
    symbols = {"%": "%", "A": "77", "a": "1"}
    output = re.sub("%(.)", lambda symbol: symbols[symbol[1]], output)
    assert output == f"--output={folder}/slurm-77_1.out"
    assert text == slurm_script(tasks, SCRIPT, 5, 0.5)
    assert subprocess.run(["bash", "-n", path]).returncode == 0
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "scontrol").write_text(f'#!/bin/sh\necho "$@" > {tools}/called\n')
    (tools / "scontrol").chmod(0o755)

    def element(i: int) -> subprocess.Popen:
        variables = {"SLURM_ARRAY_TASK_ID": str(i), "SLURM_ARRAY_JOB_ID": "77"}
        path_ = f"{tools}:{os.environ['PATH']}"
        return subprocess.Popen(
            ["bash", path], env={**os.environ, **variables, "PATH": path_},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    done, failed = element(0), element(2)
    assert done.wait(60) == 0, done.communicate()
    assert tasks[0].finished
    assert failed.wait(60) == 2
    assert failed.communicate() == ("", "")
    first, last = tasks[2].log.read_text().splitlines()
    assert first.startswith("$ python sweep_script.py toy steps=5 id=0 mode=fail run=/")
    assert last == tasks[2].last_words() == "error: mode=fail: expected another"
    assert not (tools / "called").exists()
    for number in (signal.SIGUSR1, signal.SIGTERM):
        before = len(numbers(tasks[1], "steps")) if tasks[1].log.parent.exists() else 0
        stopped = element(1)
        wait_for(
            lambda before=before: (
                (tasks[1].directory / "steps").exists() and len(numbers(tasks[1], "steps")) > before
            )
        )
        stopped.send_signal(number)
        assert stopped.wait(60) == 75, stopped.communicate()
        assert (tools / "called").read_text() == "requeue 77_1\n"
        (tools / "called").unlink()
    steps = numbers(tasks[1], "steps")
    assert steps == list(range(1, len(steps) + 1))
    assert element(3).wait(60) == 2


def test_a_path_that_sbatch_cannot_take_is_refused(tmp_path):
    for name in ("back\\slash", "line\nbreak"):
        with pytest.raises(ConfigError, match=r"--on slurm: .*expected no backslash"):
            write_slurm_script(make(tmp_path / name, 3), SCRIPT, None, 0)
    assert not list(tmp_path.iterdir())


def test_without_ray_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"--on ray: needs Ray: pip install 'infomax-rl\[ray\]'"):
        outcomes(run_on_ray(make(tmp_path, 1), SCRIPT, 0, go_on))


def test_a_worker_that_finds_the_run_in_use_is_to_try_again(tmp_path):
    """The lost worker's process may live on for a while; a mistake stays one."""
    (held,), (failing,) = make(tmp_path, 3), make(tmp_path, 3, mode="fail")
    held.directory.mkdir()
    with (held.directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InterruptedError, match="to be gone on with"):
            run_here(held, str(SCRIPT))
    assert run_here(failing, str(SCRIPT)) == 2


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray", reason="needs the extra `ray`")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False, logging_level="error")
    yield ray
    ray.shutdown()


def test_ray_begins_again_where_a_worker_is_lost(cluster, tmp_path, capsys):
    """Two workers, one killed with -9 in the middle and one asked to leave: each run ends once."""
    tasks = make(tmp_path, 120, 60, 5)
    failing = make(tmp_path, 3, mode="raise")

    def disturb() -> None:
        for task, number in ((tasks[0], signal.SIGKILL), (tasks[1], signal.SIGTERM)):
            wait_for(lambda task=task: (task.directory / "last.ckpt").exists())
            os.kill(numbers(task, "starts")[0], number)

    disturber = threading.Thread(target=disturb)
    disturber.start()
    every = [*tasks, *failing]
    assert watch(every, lambda stop: run_on_ray(every, SCRIPT, 0, stop)) == 2
    disturber.join()
    out = capsys.readouterr().out
    assert "4 runs: 3 finished, 1 failed" in out
    assert "RuntimeError: a mistake in the code" in out
    assert [len(numbers(task, "starts")) for task in tasks] == [2, 2, 1]
    assert len({pid for task in tasks for pid in numbers(task, "starts")}) == 5  # fresh processes
    for task, total, again in zip(tasks, (120, 60, 5), (1, 0, 0), strict=True):
        steps = numbers(task, "steps")
        assert sorted(set(steps)) == list(range(1, total + 1))
        assert len(steps) - total <= again
        assert (task.directory / "ends").read_text().count("\n") == 1


def test_ray_stops_after_saving(cluster, tmp_path):
    tasks = make(tmp_path, 500, 500)  # 10 s

    def stop() -> int | None:
        begun = all((task.directory / "last.ckpt").exists() for task in tasks)
        return signal.SIGTERM if begun else None

    codes = outcomes(run_on_ray(tasks, SCRIPT, 0, stop))
    assert codes == dict.fromkeys(tasks, 130)
    for task in tasks:
        assert task.status() == "interrupted"
        assert numbers(task, "steps") == list(range(1, numbers(task, "last.ckpt")[0] + 1))


@pytest.mark.full
def test_ray_trains_and_a_killed_worker_changes_nothing(cluster, tmp_path):
    """Two runs of MASD on two workers, one killed after a checkpoint, against plain commands."""
    from trees import assert_same

    from agents.core.checkpoint import load_checkpoint

    def task(folder: str, seed: int) -> Task:
        settings = (f"seed={seed}", "total_timesteps=20000")
        return Task("smoke/masd", settings, tmp_path / folder / str(seed), 20000)

    tasks = [task("ray", seed) for seed in (0, 1)]
    killed = []
    for ended, code in run_on_ray(tasks, ROOT / "train.py", 0, go_on):
        if ended is not None:
            assert code == 0, ended.last_words()
        elif not killed and (tasks[0].directory / "last.ckpt").exists():
            for process in Path("/proc").glob("[0-9]*"):  # who holds the lock of run 0
                links = process.glob("fd/*")
                try:
                    held = any(os.readlink(f) == str(tasks[0].directory / ".lock") for f in links)
                except OSError:
                    continue
                if held and process.name != str(os.getpid()):
                    os.kill(int(process.name), signal.SIGKILL)
                    killed.append(process.name)
    assert len(killed) == 1
    assert "resuming at" in tasks[0].log.read_text()
    for seed, ours in enumerate(tasks):
        plain = task("plain", seed)
        subprocess.run(
            [sys.executable, str(ROOT / "train.py"), *plain.arguments],
            check=True,
            capture_output=True,
        )
        same, other = (load_checkpoint(t.directory / "last.ckpt") for t in (plain, ours))
        assert_same(same, other)
        rows = [(t.directory / "metrics.csv").read_text().count("\n") for t in (plain, ours)]
        assert rows[0] == rows[1]
