"""Checkpoints round-trip bit for bit, survive kills, and refuse everything else in one line."""

import json
import os
import pickle
import random
import resource
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from agents.core.checkpoint import CheckpointError, load_checkpoint, save_checkpoint

ROOT = Path(__file__).parents[2]
JSON, TENSORS = "state.json", "state.safetensors"


def bits(tensor: torch.Tensor) -> bytes:
    """The values as bytes, whatever the strides."""
    dense = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())
    return dense.reshape(-1).view(torch.uint8).numpy().tobytes()


def same(a: Any, b: Any) -> bool:
    """Whether two trees agree in every type, dtype, shape and bit."""
    if isinstance(a, torch.Tensor):
        return (
            isinstance(b, torch.Tensor)
            and (a.dtype, a.shape) == (b.dtype, b.shape)
            and bits(a) == bits(b)
        )
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        keys = [(type(k), k) for k in a] == [(type(k), k) for k in b]
        return keys and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


def small_tree() -> dict[str, Any]:
    """A little of everything."""
    return {
        "weights": torch.arange(12, dtype=torch.float32).reshape(3, 4),
        "mask": torch.tensor([True, False, True]),
        "state": {0: {"step": torch.tensor(3.0)}, 1: (1, [2.5, None, True, "é\n\ud800"])},
        "best": float("-inf"),
        "empty": torch.empty(0, 7, dtype=torch.int64),
        "half": torch.tensor([1.5, float("nan")], dtype=torch.bfloat16),
    }


def error_of(path: Path) -> str:
    """The message of the refusal, after checking its form."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"{path}: ")
    return message


def write_zip(path: Path, members: list[tuple[str, bytes]], compression: int = 0) -> None:
    """A zip with exactly these members."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, compression)


def hostile(path: Path, state: Any, tensors: bytes | None = None) -> str:
    """The refusal of a well-formed zip with this content."""
    text = state if isinstance(state, bytes) else json.dumps(state).encode()
    empty = struct.pack("<Q", 8) + b"{}      "
    write_zip(path, [(JSON, text), (TENSORS, empty if tensors is None else tensors)])
    return error_of(path)


def tensor_file(header: Any, data: bytes = b"") -> bytes:
    """A safetensors file."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


# --- round trips ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype",
    [
        "bool",
        "uint8",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint16",
        "uint32",
        "uint64",
        "float16",
        "bfloat16",
        "float32",
        "float64",
        "complex64",
    ],
)
@pytest.mark.parametrize("shape", [(), (1,), (5,), (0,), (0, 3), (2, 3, 5)])
def test_every_dtype_and_shape(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    size = torch.empty(shape, dtype=kind).nbytes
    high = 2 if dtype == "bool" else 256  # random bytes include NaNs with a payload
    raw = torch.randint(high, (size,), dtype=torch.uint8)
    tree = [raw.view(kind).reshape(shape)]
    save_checkpoint(tmp_path / "c", tree)
    assert same(load_checkpoint(tmp_path / "c"), tree)


def test_views_shared_storage_and_odd_strides(tmp_path: Path) -> None:
    base = torch.randn(6, 8)
    tree = {
        "same": [base, base],
        "transposed": base.t(),
        "sliced": base[1:5:2, 3],
        "expanded": torch.tensor(2.0).expand(3, 4),
        "one, stride 5": torch.randn(10).as_strided((1,), (5,)),
        "conjugate": torch.randn(3, dtype=torch.complex64).conj(),
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "parameter": nn.Parameter(base),
    }
    save_checkpoint(tmp_path / "c", tree)
    loaded = load_checkpoint(tmp_path / "c")
    plain = {key: value for key, value in tree.items() if key != "conjugate"}
    assert same({key: loaded[key] for key in plain}, plain)
    assert torch.equal(loaded["conjugate"], tree["conjugate"].resolve_conj())
    loaded["same"][0].zero_()
    assert torch.equal(loaded["same"][1], base)


def test_trees_keep_their_types(tmp_path: Path) -> None:
    tree = {
        "dict": {},
        "list": [],
        "tuple": (),
        "keys": {1: "a", "1": "b", -(2**70): "c", "": "d"},
        "numbers": [True, 1, 1.0, 2**80, -0.0, 5e-324, 0.1, float("inf"), float("nan")],
        "tags": [{"tensor": "0"}, {"dict": []}, {"tuple": 1}, {"float": "inf"}],
        "text": 'é\0"\\\ud800',
    }
    save_checkpoint(tmp_path / "c", tree)
    loaded = load_checkpoint(tmp_path / "c")
    assert same(loaded, tree)
    assert str(loaded["numbers"][4]) == "-0.0"


def test_optimiser_and_ordered_dict(tmp_path: Path) -> None:
    network = nn.Linear(3, 2)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.1)
    network(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    assert isinstance(network.state_dict(), OrderedDict)
    save_checkpoint(tmp_path / "c", [network.state_dict(), optimiser.state_dict()])
    weights, state = load_checkpoint(tmp_path / "c")
    assert same(weights, dict(network.state_dict()))
    assert same(state, optimiser.state_dict())
    torch.optim.Adam(network.parameters()).load_state_dict(state)


def test_the_file_is_a_zip_with_a_real_safetensors_member_and_is_deterministic(
    tmp_path: Path,
) -> None:
    tree = {"b": torch.tensor([True]), "w": torch.randn(3, 2), "e": torch.empty(0)}
    save_checkpoint(tmp_path / "a", tree)
    save_checkpoint(tmp_path / "b", tree)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with zipfile.ZipFile(tmp_path / "a") as archive:
        assert archive.testzip() is None
        tensors = safetensors.torch.load(archive.read(TENSORS))
    assert same([tensors["0"], tensors["1"], tensors["2"]], list(tree.values()))


def test_large_tensors_are_not_copied(tmp_path: Path) -> None:
    tree = {"replay": torch.ones(8 << 20), "more": torch.ones(8 << 20)}  # 32 MiB each
    tracemalloc.start()  # sees bytes objects and NumPy, not torch's own memory
    try:
        save_checkpoint(tmp_path / "c", tree)
        loaded = load_checkpoint(tmp_path / "c")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert same(loaded, tree)
    assert peak < 24 << 20


def test_the_64_bit_zip_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path / "small", small_tree())
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)  # as if the file had more than 4 GiB
    save_checkpoint(tmp_path / "large", small_tree())
    assert b"PK\6\7" in (tmp_path / "large").read_bytes()
    assert b"PK\6\7" not in (tmp_path / "small").read_bytes()
    assert same(load_checkpoint(tmp_path / "large"), small_tree())


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (object(), "state['a'][0] is a builtins.object, expected a tensor"),
        ({1.5: 0}, "state['a'][0] has key '1.5', expected a str or int"),
        ({True: 0}, "state['a'][0] has key 'True', expected a str or int"),
        (torch.eye(2).to_sparse(), "expected a dense one"),
        (torch.empty(2, device="meta"), "state['a'][0] is a meta torch.strided torch.float32"),
        (torch.zeros(2, dtype=torch.complex128), "torch.complex128 tensor, expected"),
        (b"bytes", "is a builtins.bytes"),
    ],
)
def test_what_cannot_be_saved_is_named(tmp_path: Path, value: Any, problem: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        save_checkpoint(tmp_path / "c", {"a": [value]})
    assert problem in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_a_cycle_is_refused(tmp_path: Path) -> None:
    tree: list[Any] = []
    tree.append(tree)
    with pytest.raises(CheckpointError, match="nested too deeply"):
        save_checkpoint(tmp_path / "c", tree)


# --- damage --------------------------------------------------------------------------------------


def test_no_mutation_loads_as_something_else(tmp_path: Path) -> None:
    tree, path = small_tree(), tmp_path / "c"
    save_checkpoint(path, tree)
    good = path.read_bytes()
    assert same(load_checkpoint(path), tree)
    random_ = random.Random(0)
    mutants: list[bytes] = [good[:length] for length in range(0, len(good), 7)]
    mutants += [good + b"\0", b"\0" + good, good + good, good[:-22] + b"x" + good[-22:]]
    for _ in range(1200):  # one bit anywhere
        at = random_.randrange(len(good))
        flipped = bytes([good[at] ^ 1 << random_.randrange(8)])
        mutants.append(good[:at] + flipped + good[at + 1 :])
    directory = good.index(b"PK\1\2")
    for at in [*range(directory, len(good)), *range(40)]:  # every byte that no CRC covers
        for value in {0, 255, good[at] ^ 1, random_.randrange(256)} - {good[at]}:
            mutants.append(good[:at] + bytes([value]) + good[at + 1 :])
    for _ in range(500):  # a block overwritten, removed, or repeated
        a, b = sorted(random_.randrange(len(good)) for _ in range(2))
        block = random_.choice([random_.randbytes(b - a), b"", good[a:b] * 2, bytes(b - a)])
        mutants.append(good[:a] + block + good[b:])
    counts = {"refused": 0, "identical": 0}
    for mutant in mutants:
        path.write_bytes(mutant)
        try:
            loaded = load_checkpoint(path)
        except CheckpointError as error:
            counts["refused"] += 1
            assert "\n" not in str(error)
        else:
            counts["identical"] += 1
            assert same(loaded, tree), "a damaged file loaded silently as something else"
    print(counts)
    assert counts["refused"] > 0.8 * len(mutants) > 1600


def test_files_that_are_not_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "c"
    assert error_of(path) == f"{path}: no such checkpoint"
    assert error_of(tmp_path) == f"{tmp_path}: cannot read: Is a directory"
    for content in (b"", b"PK", pickle.dumps({"a": 1}), os.urandom(5000)):
        path.write_bytes(content)
        assert "no end of a zip file; expected a complete checkpoint" in error_of(path)
    torch.save({"a": torch.ones(3)}, path)
    assert "members, expected state.json and state.safetensors" in error_of(path)


def test_a_pickle_inside_is_not_executed(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "executed"),))

    path = tmp_path / "c"
    write_zip(path, [(JSON, pickle.dumps(Bomb())), (TENSORS, pickle.dumps(Bomb()))])
    error_of(path)
    write_zip(path, [("data.pkl", pickle.dumps(Bomb())), (TENSORS, b"")])
    assert "members ['data.pkl', 'state.safetensors'], expected state.json" in error_of(path)
    assert not (tmp_path / "executed").exists()


def test_zip_tricks(tmp_path: Path) -> None:
    path = tmp_path / "c"
    state = json.dumps({"format": 1, "tree": None}).encode()
    tensors = tensor_file({})
    write_zip(path, [(JSON, state), (TENSORS, tensors)])
    assert load_checkpoint(path) is None
    write_zip(path, [(JSON, b" " * (64 << 20)), (TENSORS, tensors)], zipfile.ZIP_DEFLATED)
    assert "state.json is compressed, expected stored bytes" in error_of(path)
    write_zip(path, [(JSON, state), ("../../state.safetensors", tensors)])
    assert "members ['../../state.safetensors', 'state.json']" in error_of(path)
    write_zip(path, [(JSON, state), (TENSORS, tensors), ("x", b"")])
    assert "3 members" in error_of(path)
    with pytest.warns(UserWarning, match="Duplicate name"):
        write_zip(path, [(JSON, state), (JSON, state)])
    assert "members ['state.json', 'state.json']" in error_of(path)
    write_zip(path, [(JSON, b" " * (17 << 20)), (TENSORS, tensors)])
    assert "17825792 bytes of JSON, expected at most" in error_of(path)
    write_zip(path, [(JSON, state), (TENSORS, tensors)])
    with zipfile.ZipFile(path, "a") as archive:  # leaves the old directory: room to hide bytes
        archive.fp.write(b"hidden" * 1000)  # pyright: ignore[reportOptionalMemberAccess]
        archive.start_dir = archive.fp.tell()  # pyright: ignore
        archive._didModify = True  # pyright: ignore
    assert "member sizes differ by" in error_of(path)
    write_zip(path, [(f"{i}", b"") for i in range(20000)])
    assert "20000 members" in error_of(path)


def test_hostile_state(tmp_path: Path) -> None:
    path = tmp_path / "c"
    deep = b'{"format": 1, "tree": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    assert "nested too deeply" in hostile(path, deep)
    for newer in ({"format": 2, "tree": None, "more": 1}, {"format": 10**9}):
        expected = f"newer format {newer['format']}, this version reads <= 1"
        assert expected in hostile(path, newer)
    for bad in (True, "1", None, 0, 1.0):
        assert "expected a number from 1 to 1" in hostile(path, {"format": bad, "tree": None})
    assert "expected format and tree" in hostile(path, {"format": 1})
    for state in (
        b"[]",
        b'{"format": 1, "tree": NaN}',
        b'{"format": 1, "tree": 1, "tree": 2}',
        b"\xff\xfe",
        b"9" * 10_000,
    ):
        hostile(path, state)
    for tree in (
        {"tensor": "0"},
        {"tensor": ["0"]},
        {"float": "1e999"},
        {"float": []},
        {"dict": {"a": 1}},
        {"dict": [["a", 1], ["a", 2]]},
        {"dict": [["a"]]},
        {"dict": [[None, 1]]},
        {"dict": [[[], 1]]},
        {"tuple": "abc"},
        {"__class__": "os.system"},
        {},
        {"tuple": [], "dict": []},
    ):
        hostile(path, {"format": 1, "tree": tree})


def test_hostile_tensors(tmp_path: Path) -> None:
    path = tmp_path / "c"
    one = {"format": 1, "tree": {"tensor": "0"}}

    def entry(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
        return {"0": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}

    write_zip(path, [(JSON, json.dumps(one).encode()), (TENSORS, tensor_file(entry(), b"abcd"))])
    assert load_checkpoint(path).numel() == 1
    huge = entry(shape=[2**62], offsets=[0, 2**64])
    assert "does not fit the member" in hostile(path, one, tensor_file(huge, b"abcd"))
    for header, data in (
        (entry(shape=[-1]), b"abcd"),
        (entry(shape=[True]), b"abcd"),
        (entry(shape=[1.0]), b"abcd"),
        (entry(shape="1"), b"abcd"),
        (entry(shape=[2**63, 0], offsets=[0, 0]), b""),
        (entry(dtype="OBJECT"), b"abcd"),
        (entry(dtype=[]), b"abcd"),
        (entry(offsets=[4, 8]), b"abcdefgh"),
        (entry(), b"abc"),
        (entry(), b"abcdefgh"),
        ({"0": []}, b""),
        ([], b""),
        (entry(dtype="BOOL", offsets=[0, 1]), b"\2"),
    ):
        hostile(path, one, tensor_file(header, data))
    two = {"format": 1, "tree": [{"tensor": "0"}, {"tensor": "0"}]}
    assert "missing or used twice" in hostile(path, two, tensor_file(entry(), b"abcd"))
    unused = {"format": 1, "tree": None}
    assert "1 tensors that the state does not" in hostile(
        path, unused, tensor_file(entry(), b"abcd")
    )
    for content in (b"", b"1234567", struct.pack("<Q", 2**62), struct.pack("<Q", 2**64 - 1)):
        hostile(path, one, content)


# --- failures and kills --------------------------------------------------------------------------


def test_a_failed_save_leaves_the_previous_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c"
    save_checkpoint(path, 1)
    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
            with pytest.raises(CheckpointError) as caught:
                save_checkpoint(path, 2)
        assert str(caught.value) == f"{path}: cannot save: No space left"
        assert load_checkpoint(path) == 1 and os.listdir(tmp_path) == ["c"]


def test_order_of_fsync_and_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(descriptor: int) -> None:
        is_directory = os.path.isdir(f"/proc/self/fd/{descriptor}")
        calls.append("fsync directory" if is_directory else "fsync file")
        fsync(descriptor)

    def recorded_replace(source: str, target: str) -> None:
        assert load_checkpoint(source) == "all of it"
        assert Path(source).parent == Path(target).parent
        calls.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    save_checkpoint(tmp_path / "c", "all of it")
    assert calls == ["fsync file", "replace", "fsync directory"]


def test_directories_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot save: No such file or directory"):
        save_checkpoint(tmp_path / "gone" / "c", 1)
    path = tmp_path / "c"
    path.mkdir()
    with pytest.raises(CheckpointError, match="cannot save: Is a directory"):
        save_checkpoint(path, 1)
    assert os.listdir(tmp_path) == ["c"]


def test_read_only_directory(tmp_path: Path) -> None:
    path = tmp_path / "c"
    save_checkpoint(path, 1)
    tmp_path.chmod(0o555)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)  # root may write everywhere
        with pytest.raises(CheckpointError, match="cannot save: Permission denied"):
            save_checkpoint(path, 2)
    finally:
        os.seteuid(user)
        tmp_path.chmod(0o755)
    assert load_checkpoint(path) == 1 and os.listdir(tmp_path) == ["c"]


@pytest.mark.parametrize("limit", [10, 200, 100_000, 3_000_000])
def test_disk_full(tmp_path: Path, limit: int) -> None:
    path = tmp_path / "c"
    save_checkpoint(path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))  # Python ignores SIGXFSZ
    try:
        with pytest.raises(CheckpointError, match="cannot save: File too large"):
            save_checkpoint(path, torch.zeros(1_000_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert load_checkpoint(path) == 1 and os.listdir(tmp_path) == ["c"]


def test_only_old_temporaries_of_this_file_are_removed(tmp_path: Path) -> None:
    names = {".c.host.1.tmp": 7200, ".c.host.2.tmp": 60, ".other.host.1.tmp": 7200, "c.tmp": 7200}
    for name, age in names.items():
        (tmp_path / name).write_bytes(b"half a file")
        os.utime(tmp_path / name, (time.time() - age, time.time() - age))
    save_checkpoint(tmp_path / "c", 1)
    assert set(os.listdir(tmp_path)) == {"c", *names} - {".c.host.1.tmp"}
    assert load_checkpoint(tmp_path / "c") == 1


KILLS = """
import os, random, signal, sys, time, torch
from agents.core.checkpoint import load_checkpoint, save_checkpoint
torch.set_num_threads(1)
path, random_, step, interrupted = sys.argv[1], random.Random(0), 0, 0
save_checkpoint(path, {"step": 0})
for _ in range(12):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        while True:
            step += 1
            weights = torch.full((200_000,), float(step))
            save_checkpoint(path, {"step": step, "weights": weights})
            os.write(writer, b".")
    os.read(reader, 1)  # one save is complete
    time.sleep(random_.uniform(0, 0.05))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    tree = load_checkpoint(path)
    assert tree["step"] > step, "a complete save was lost"
    assert torch.equal(tree["weights"], torch.full((200_000,), float(tree["step"])))
    step = tree["step"]
    interrupted += any(name.endswith(f".{child}.tmp") for name in os.listdir("."))
print(interrupted, step)
"""


def test_kill_in_the_middle_of_saves(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    output = subprocess.run(
        [sys.executable, "-c", KILLS, "c"],
        cwd=tmp_path,
        env=environment,
        timeout=60,
        check=True,
        stdout=subprocess.PIPE,
    ).stdout
    interrupted, saves = map(int, output.split())
    print(f"{interrupted} of 12 kills hit a save, {saves} saves")
    assert interrupted > 0  # a save was indeed under way
