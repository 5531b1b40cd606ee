"""Command line: train, resume, evaluate and list agents.

    python train.py slim env=tabletop seed=1        train (the same command resumes, or is done)
    python train.py diayn env=tabletop seed=1       a baseline: a configuration of the nearest agent
    torchrun --nproc-per-node=4 train.py slim       one run on several processes or GPUs
    python train.py resume run=runs/…               go on with an interrupted run
    python train.py replay run=runs/…               repeat what led to a NaN or infinity
    python train.py eval run=runs/… episodes=512    evaluate its last checkpoint
    python train.py eval run=runs/… env_kwargs.split=held-out       in a changed environment
    python train.py eval <checkpoint> dataset=… context=ood-behaviour     on a dataset of tasks
    python train.py smoke/slim                      a run of seconds
    python train.py data point-robot out=data       offline data of a family of tasks, in Minari
    python train.py sweep slim seed=0..4 lr=1e-4,3e-4       many runs: see sweep --help
    python train.py export <checkpoint> out=actor.onnx      the actor as an ONNX file
    python train.py report runs out=report.html     one page about all runs in a directory
    python train.py infopower/paper                 a setting of configs/infopower
    python train.py list                            agents, baselines, environments
    python train.py slim --help                     every setting of an agent
    python train.py list tabletop                   every argument of an environment
    python train.py list pixels/dmc                 the environments of a group

Settings are `key=value`: dataclass defaults < configs/<agent>.yaml < the command line. A run
directory is a function of the settings, so issuing a command again never does work twice.

Exit codes: 0 done, 2 a mistake (one line says which), 75 stopped by SIGTERM or SIGUSR1 and 130 by
SIGINT, both after saving: the same command goes on from there.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
COMMANDS = ("train", "eval", "resume", "replay", "list", "data", "sweep", "export", "report")


def main(arguments: list[str]) -> int:
    """Run one command; returns the exit code."""
    # Small batched tensors lose more to thread hand-overs than they gain (measured: 10-50 times),
    # and the simulator has its own threads. Set OMP_NUM_THREADS to decide otherwise.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(__doc__)
        return 0
    import agents

    if not hasattr(agents, "AGENTS"):  # another distribution's __init__.py lies over ours
        found = agents.__file__ or f"{agents.__path__[0]} without its __init__.py"
        print(
            f"error: `agents` is {found}, not infomax-rl's: a distribution of the same name, such "
            "as openai-agents, was installed or uninstalled after it. Use another environment, or "
            "uninstall that one and pip install --force-reinstall --no-deps infomax-rl",
            file=sys.stderr,
        )
        return 2
    from agents.core.log import NonFiniteError
    from agents.core.memory import keep_freed
    from envs.base import SimulationError
    from envs.hdf5 import DataError

    keep_freed()
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:  # `train.py slim …` trains
        command, rest = "train", arguments
    try:
        commands = {"train": train, "eval": evaluate, "resume": resume, "list": show, "data": data}
        commands |= {"replay": replay, "sweep": sweep, "export": export, "report": report}
        return commands[command](rest)
    except BrokenPipeError:  # `train.py … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (
        agents.ConfigError, agents.CheckpointError, NonFiniteError, SimulationError, DataError,
    ) as error:  # fmt: skip
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a directory that is gone
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        return 2


def train(arguments: list[str]) -> int:
    """`train <agent> key=value …`."""
    from agents import AGENTS
    from agents.core import config as configuration

    name, overrides = _name(arguments)
    layers, agent = _layers(name)
    if any(argument in ("-h", "--help") for argument in overrides):
        documentation = inspect.getdoc(sys.modules[AGENTS[agent].__module__])
        print(f"{documentation}\n\nSettings (key=value):\n")
        print(configuration.describe(AGENTS[agent].Config))
        print("\nrun=<directory> chooses the run directory.")
        return 0
    directory, overrides = _take(overrides, "run")
    config = configuration.build(AGENTS[agent].Config, layers, overrides)
    run = directory or configuration.run_directory(name.replace("/", "-"), config.env, overrides)
    return _train(agent, name, config, Path(run))


def resume(arguments: list[str]) -> int:
    """`resume run=<directory>`: its config.yaml says the rest."""
    directory, name, agent, config = _run(arguments, "resume")
    return _train(agent, name, config, directory)


def replay(arguments: list[str]) -> int:
    """`replay run=<directory>`: repeat, from crash.ckpt, the updates that led to a NaN or infinity.

    Nothing is written; `device=` and other settings can be changed. Exit code 2 if it comes again.
    """
    from agents import AGENTS
    from agents.core import run

    directory, _, agent, config = _run(arguments, "replay")
    then, now = run.replay(AGENTS[agent](config=config), directory)
    print(f"then: {then}\nnow:  {now or 'finite values'}")
    return 2 if now else 0


def _run(arguments: list[str], command: str) -> tuple[Path, str, str, Any]:
    """A run's directory, name, agent and configuration, with settings changed."""
    from agents import AGENTS
    from agents.core import config as configuration

    directory, rest = _take(arguments, "run")
    if directory is None:
        raise configuration.ConfigError(f"{command}: expected run=<directory>")
    saved = configuration.read_yaml(Path(directory) / "config.yaml")
    name = str(saved.pop("agent", None))
    _, agent = _layers(name)
    return Path(directory), name, agent, configuration.build(AGENTS[agent].Config, [saved], rest)


def _train(agent_name: str, name: str, config: Any, directory: Path) -> int:
    """Train in a run directory, from where it stands."""
    from agents import AGENTS
    from agents.core import parallel
    from agents.core.config import to_dict
    from agents.core.run import EXIT_CODES, Run

    with parallel.together() as rank, Run(directory, name, to_dict(config), rank == 0) as run:
        say = print if rank == 0 else lambda text: None
        if run.finished:
            say(f"{directory}: finished already; give another seed= or run=, or delete it")
            return 0
        agent = AGENTS[agent_name](config=config)
        agent.run = run
        if run.checkpoint is not None:
            agent.restore(run.checkpoint, run.last)
            say(f"{directory}: resuming at {agent.num_timesteps:,} steps")
        else:
            say(f"{directory}: {name} in {config.env} on {agent.device}")
        agent.learn(progress_bar=rank == 0)
        if run.stop is not None:
            say(f"{directory}: stopped by {run.stop.name}, saved at {agent.num_timesteps:,} steps")
            return EXIT_CODES[run.stop]
        if rank:
            return 0
        results = agent.report(directory)
        run.finish(results)
        print_results(results)
        print(f"\nIn {directory}: metrics.csv, last.ckpt, tb/ (tensorboard --logdir {directory})")
        for kind in ("plots", "video"):
            for path in sorted((directory / kind).glob("*")):
                print(f"  {path}")
    return 0


def evaluate(arguments: list[str]) -> int:
    """`eval run=<directory> [episodes=N] [json=<file>]`, or checkpoint=<file> or just <file>.

    `env_kwargs.<name>=<value>` changes an argument of the environment for the evaluation, such as
    `eval run=runs/… env_kwargs.background=video env_kwargs.split=held-out`; see `list <env>`.

    With `dataset=` the checkpoints (one, or the seeds of an experiment) are evaluated on its tasks:
    `eval <checkpoint> … dataset=<directory or id> context=iid …`, see `eval --help`. Of a run the
    last is the result; `best/…` are the best one's, which was chosen by its returns in evaluation.
    """
    import agents
    from agents.core import config as configuration
    from agents.core.offline import OfflineConfig, evaluate_checkpoints

    if any(argument in ("-h", "--help") for argument in arguments):
        print(f"{inspect.getdoc(evaluate)}\n\nSettings with dataset=:\n")
        print(configuration.describe(OfflineConfig))
        return 0
    files = [Path(argument) for argument in arguments if _is_file(argument)]
    directory, rest = _take([a for a in arguments if not _is_file(a)], "run")
    output, rest = _take(rest, "json")
    checkpoint, rest = _take(rest, "checkpoint")
    device, rest = _take(rest, "device")
    offline = any(argument.startswith("dataset=") for argument in rest)
    episodes, rest = (None, rest) if offline else _take(rest, "episodes")
    changes: list[str] = []
    if not offline:
        changes = [argument for argument in rest if argument.startswith("env_kwargs.")]
        rest = [argument for argument in rest if argument not in changes]
    if rest and not offline:
        raise configuration.ConfigError(
            f"eval: unknown {rest[0]!r}, expected run=, checkpoint=, dataset=, episodes=, json=, "
            "device= or env_kwargs.<name>="
        )
    files += [Path(checkpoint)] if checkpoint else []
    if (directory is None) == (not files):
        raise configuration.ConfigError(
            "eval: expected run=<directory>, checkpoint=<file> or just <file>"
        )
    if directory is not None:
        files = [Path(directory) / "last.ckpt"]
    if offline:
        config = configuration.build(OfflineConfig, [], rest)
        loaded = [agents.load(path, device=device or "auto") for path in files]
        results = evaluate_checkpoints(loaded, [str(path) for path in files], config)
        if directory is not None and (best := Path(directory) / "best.ckpt").exists():
            config.out = str(Path(config.out) / "best") if config.out else ""
            agent = agents.load(best, device=device or "auto")
            chosen = evaluate_checkpoints([agent], [str(best)], config)
            results |= {f"best/{name}": value for name, value in chosen.items()}
    else:
        if episodes is not None and not (episodes.isdigit() and int(episodes) >= 1):
            raise configuration.ConfigError(f"episodes={episodes}: expected a positive integer")
        if len(files) > 1:
            raise configuration.ConfigError("eval: several checkpoints need dataset=")
        agent = agents.load(files[0], device=device or "auto")
        env, count = None, int(episodes) if episodes else agent.config.eval_episodes
        if changes:
            changed = configuration.build(
                agent.Config, [configuration.to_dict(agent.config)], changes
            )
            env = agent.make_eval_env(count, **changed.env_kwargs)
        results = agent.evaluate(env, count)
    print_results(results)
    if output is not None:
        try:
            Path(output).write_text(json.dumps(results, indent=2) + "\n")
        except OSError as error:
            raise configuration.ConfigError(f"json={output}: {error.strerror}") from None
    return 0


def data(arguments: list[str]) -> int:
    """`data <family> key=value …`: generate its offline data, or what is missing of them."""
    from agents.core import config as configuration
    from agents.core.generate import DataConfig, generate

    if any(argument in ("-h", "--help") for argument in arguments):
        print(configuration.describe(DataConfig))
        return 0
    if not arguments or "=" in arguments[0]:
        raise configuration.ConfigError(
            "data: expected a family, e.g. python train.py data ant-dir"
        )
    family, overrides = arguments[0], arguments[1:]
    config = configuration.build(DataConfig, [], overrides)
    returns = generate(family, config)
    print(f"\n{'tier':10} {'mean return':>12}")
    for tier, value in returns.items():
        print(f"{tier:10} {value:12.2f}")
    print(f"\nIn {Path(config.out) / 'corro' / family}: dataset=<this directory> trains on it")
    return 0


def sweep(arguments: list[str]) -> int:
    """Carry out many runs: every combination of what the settings list.

        python train.py sweep slim env=tabletop seed=0..4 lr=1e-4,3e-4           10 runs
        python train.py sweep slim,lsd,diayn env=tabletop seed=0..9 --jobs 8     30 runs
        python train.py sweep slim seed=0..99 --on ray                           on a cluster

    `a,b` are two values, `a..b` all integers from a to b; commas in brackets do not separate, so
    `hidden=[64,64],[256,256]` are two networks. Every run is one `python train.py` command in the
    directory that this command has by itself, with what it prints in train.log. Issue a sweep
    again, as often as you like: finished runs are skipped, interrupted ones go on where their last
    checkpoint was, those that another process carries out are left to it, the rest starts. So two
    terminals, or two machines with one directory, can share a sweep.

    --on local     processes of one thread, as many as processors, or --jobs N (the default)
    --on ray       tasks of a Ray cluster, needs pip install 'infomax-rl[ray]'. RAY_ADDRESS names
                   the cluster, else this machine is one. A run whose worker is lost begins again
                   from its checkpoint elsewhere; all machines share the directories of runs and
                   code. --gpus 0.25 lets four runs share a GPU; without it runs see none.
    --on slurm     writes a job array and says how to submit it; partition, time and memory are
                   sbatch's own options. 300 s before its time is up a job saves and queues itself
                   again. --jobs N runs at most N at a time, --gpus N gives each N GPUs. What Slurm
                   says of a job is in slurm-<job>_<run>.out beside the job array.
    --dry-run      lists the runs and how far they are, and does nothing

    Ctrl-C, SIGTERM and SIGUSR1 save all runs and stop. Exit codes: 0 every run is finished, 2 some
    failed (one line says why), 75 and 130 stopped or others have the rest: issue it again.
    """
    from agents import AGENTS
    from agents.core import config as configuration
    from agents.core import sweep as sweeping

    if not arguments or any(argument in ("-h", "--help") for argument in arguments):
        print(inspect.getdoc(sweep))
        return 0
    options, rest = _flags(arguments, {"on": "local", "jobs": None, "gpus": None, "dry-run": ""})
    names, overrides = _name(rest)
    tasks: dict[Path, sweeping.Task] = {}
    for name in sweeping.listed(names, "sweep"):
        layers, agent = _layers(name)
        for chosen in sweeping.expand(overrides):
            if any(setting.startswith("run=") for setting in chosen):
                raise configuration.ConfigError("sweep: run= names one run; leave it out")
            config = configuration.build(AGENTS[agent].Config, layers, chosen)
            directory = configuration.run_directory(name.replace("/", "-"), config.env, chosen)
            task = sweeping.Task(name, tuple(chosen), directory, config.total_timesteps)
            if directory in tasks:
                raise configuration.ConfigError(
                    f"sweep: {tasks[directory].label!r} and {task.label!r} are one run, {directory}"
                )
            tasks[directory] = task
    return sweeping.carry_out(list(tasks.values()), Path(__file__).resolve(), options)


def export(arguments: list[str]) -> int:
    """`export <checkpoint> [out=actor.onnx]`: the deterministic actor as an ONNX file.

    What an agent carries from step to step (a skill, a task's code, a recurrent state) goes in as
    `state_<name>` and comes out as `next_<name>`; what it reads of the environment besides
    (`avail_actions`) is an input, too. The number of rows is free. The file's metadata `infomax-rl`
    (JSON) say everything else, the value of each `state_<name>` when an episode begins included.
    The result is compared with torch's on steps of the environment. For an agent that reads
    contexts (corro), `actor-context.onnx` beside it turns a context into its `state_code`. Needs
    pip install 'infomax-rl[onnx]'.
    """
    import agents
    from agents.core.config import ConfigError
    from agents.core.export import export as export_actor

    if any(argument in ("-h", "--help") for argument in arguments):
        print(inspect.getdoc(export))
        return 0
    output, rest = _take(arguments, "out")
    if len(rest) != 1 or not _is_file(rest[0]):
        raise ConfigError("export: expected one checkpoint, e.g. export runs/…/last.ckpt")
    agent = agents.load(rest[0], device="cpu", num_envs=4)
    path = Path(output) if output else Path(rest[0]).with_suffix(".onnx")
    description = export_actor(agent, path)
    print(f"{path}: {agent.name} after {agent.num_timesteps:,} steps\n")
    for name, shape in description["inputs"].items():
        first = description["initial"].get(name)
        note = "" if first is None else f"at first {str(first)[:40]}"
        print(f"  in   {name:24} {shape!s:20} {note}")
    for name in description["outputs"]:
        print(f"  out  {name}")
    if "context" in description:
        print(f"\n{description['context']}: state_code of a context")
    print(f"\nas torch's up to {description['difference']:.1e}, relative to 1 + |x|")
    return 0


def report(arguments: list[str]) -> int:
    """`report runs/… [out=report.html]`: one page about all runs in directories and below them.

    Curves and final metrics as interquartile means over seeds with 95 % intervals, one line per
    agent and setting; pictures and videos of the first seed; configurations, versions, commands.
    The page holds all of it and loads nothing.
    """
    from agents.core.config import ConfigError
    from agents.core.report import report as build_page

    if any(argument in ("-h", "--help") for argument in arguments):
        print(inspect.getdoc(report))
        return 0
    output, rest = _take(arguments, "out")
    if not rest or not all(map(_is_file, rest)):
        raise ConfigError("report: expected directories of runs, e.g. report runs out=report.html")
    text, path = build_page([Path(directory) for directory in rest]), Path(output or "report.html")
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"out={path}: {error.strerror}; expected a writable file") from None
    print(f"{path}: {len(text) / 2**20:.1f} MiB")
    return 0


def show(arguments: list[str]) -> int:
    """`list`: what can be trained, and where; `list <environment>` its arguments, `<group>` ids."""
    import envs
    from agents import AGENTS
    from agents.core.config import ConfigError, read_yaml

    if arguments and arguments[0] not in envs.ENVS and (ids := envs.group(arguments[0])):
        _list_environments(ids)
        return 0
    if arguments:
        try:
            factory = envs.find(arguments[0])
        except ValueError as error:
            raise ConfigError(f"list: {error}") from None
        factory = getattr(factory, "func", factory)
        print(inspect.getdoc(factory))
        # Arguments that all environments of a kind have are in the docstring of what they share.
        for base in inspect.getmro(factory) if inspect.isclass(factory) else ():
            if "\nArgs:" in (inspect.getdoc(base) or ""):
                print("" if base is factory else f"\n{inspect.getdoc(base)}")
                break
        return 0
    print("Agents")
    for name, agent in AGENTS.items():
        print(f"  {name:20} {_first_line(sys.modules[agent.__module__])}")
    print("\nBaselines")
    for path in sorted((ROOT / "configs" / "baselines").glob("*.yaml")):
        comment = path.read_text().splitlines()[0].lstrip("# ")
        print(f"  {path.stem:20} [{read_yaml(path)['agent']}] {comment}")
    print("\nEnvironments")
    _list_environments(envs.ENVS)
    for prefix, factory in envs.FOREIGN.items():
        print(f"  {prefix + '/<id>':20} {_first_line(factory)}")
    return 0


def _list_environments(ids: Iterable[str]) -> None:
    """A line for each."""
    import envs

    for name in ids:
        factory = envs.ENVS[name]
        print(f"  {name:20} {_first_line(getattr(factory, 'func', factory))}")


def print_results(results: dict[str, Any]) -> None:
    """A table of metrics, with a random policy's beside them where it was measured."""
    baseline = {k.removeprefix("random/"): v for k, v in results.items() if k.startswith("random/")}
    width = max(map(len, results))
    print(f"\n{'':{width}} {'agent':>10}" + (f" {'random':>10}" if baseline else ""))
    for name, value in results.items():
        if not name.startswith("random/"):
            other = f" {baseline[name]:10.3f}" if name in baseline else ""
            print(f"{name:{width}} {value:10.3f}{other}")


def _flags(
    arguments: list[str], defaults: dict[str, str | None]
) -> tuple[dict[str, str | None], list[str]]:
    """Values of `--flag value`, `--flag=value` or, where the default is "", `--flag`; the rest."""
    import difflib

    from agents.core.config import ConfigError

    values, rest, waiting = dict(defaults), [], iter(arguments)
    for argument in waiting:
        flag, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("-"):
            rest.append(argument)
        elif not argument.startswith("--") or flag not in defaults:
            close = difflib.get_close_matches(flag, defaults, 1) or list(defaults)
            raise ConfigError(f"unknown {argument!r}; did you mean --{' or --'.join(close)}?")
        elif defaults[flag] == "":
            values[flag] = "yes"
        else:
            values[flag] = value if equals else next(waiting, "")
            if not values[flag]:
                raise ConfigError(f"--{flag}: expected a value")
    return values, rest


def _is_file(argument: str) -> bool:
    """Whether it is no `key=value`; directories of runs have `=` in their names as well."""
    key, equals, _ = argument.partition("=")
    return not equals or "/" in key


def _first_line(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").splitlines()[0]


def _name(arguments: list[str]) -> tuple[str, list[str]]:
    from agents.core.config import ConfigError

    if not arguments or "=" in arguments[0]:
        raise ConfigError("train: expected an agent, e.g. python train.py slim env=tabletop seed=1")
    return arguments[0], arguments[1:]


def _layers(name: str) -> tuple[list[Any], str]:
    """Configuration layers and the agent of an agent's or a baseline's name."""
    import difflib

    from agents import AGENTS
    from agents.core.config import ConfigError, read_yaml

    if name in AGENTS:
        path = ROOT / "configs" / f"{name}.yaml"
        return ([path] if path.exists() else []), name
    baselines = {p.stem: p for p in (ROOT / "configs" / "baselines").glob("*.yaml")}
    nested = {f"{p.parent.name}/{p.stem}": p for p in (ROOT / "configs").glob("*/*.yaml")}
    path = (baselines | nested).get(name)
    if path is not None:
        settings = read_yaml(path)
        return [settings], settings.pop("agent")
    known = [*AGENTS, *baselines]
    close = difflib.get_close_matches(name, [*known, *COMMANDS], 1)
    hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(known)}"
    raise ConfigError(f"unknown agent {name!r}; {hint}")


def _take(arguments: list[str], key: str) -> tuple[str | None, list[str]]:
    """The value of `key=` and the other arguments."""
    from agents.core.config import ConfigError

    values = [a.partition("=")[2] for a in arguments if a.partition("=")[0] == key]
    if len(values) > 1:
        raise ConfigError(f"{key}= is given {len(values)} times")
    if values == [""]:
        raise ConfigError(f"{key}=: expected a value")
    return (values[0] if values else None), [a for a in arguments if a.partition("=")[0] != key]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
