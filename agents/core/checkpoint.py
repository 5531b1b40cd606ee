"""Checkpoints: one uncompressed zip of ``state.json`` and ``state.safetensors``, without pickle.

A file is replaced as a whole or not at all, so that a run can be killed at any moment. The zip
gives every byte of content a CRC, which safetensors alone lacks: a damaged file is refused instead
of loading as slightly different weights.

The tensor member is a plain safetensors file, but it is written and read here, not by the
``safetensors`` package: that one needs the whole file in memory two to three times and refuses
tensors that share storage. Here each tensor streams straight between its own memory and the disk,
which a replay of several gigabytes needs.
"""

import contextlib
import json
import math
import os
import platform
import struct
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final, TypeAlias

import torch
from torch import Tensor

Tree: TypeAlias = Any
"""Nested dicts (with str or int keys), lists and tuples of tensors, None, bool, int, float, str."""

FORMAT: Final = 1
"""Version of the layout; a reader refuses newer ones."""

_TREE, _TENSORS = "state.json", "state.safetensors"
_METADATA_LIMIT = 16 << 20  # [byte] JSON grows about 30-fold when parsed: bounds memory to ~0.5 GB
_DIRECTORY_LIMIT = 1024  # [byte] everything in the zip besides the contents of its two members
_CHUNK = 8 << 20  # [byte] read and written at once
_STALE = 3600.0  # [s] a temporary file untouched for this long belongs to a dead process
_DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F64": torch.float64,
    "C64": torch.complex64,
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read: one line with the file, the fault, what was expected.

    Args:
        path: the checkpoint file.
        problem: what is wrong with it; white space is collapsed so that it stays one line.
    """

    def __init__(self, path: str | os.PathLike[str], problem: str) -> None:
        """See the class."""
        super().__init__(" ".join(f"{path}: {problem}".split())[:600])


class _Refused(ValueError):
    """The content breaks a rule of the format; the message says which."""


def save_checkpoint(path: str | os.PathLike[str], tree: Tree) -> None:
    """Write ``tree`` to ``path``; a reader sees the previous file or the new one, never a mixture.

    Subclasses come back as what they derive from: an OrderedDict as a dict, a Parameter as a
    tensor. Every occurrence of a tensor is stored on its own, so shared storage is not shared any
    more after loading. Infinite and NaN floats round-trip, because a best score starts at -inf.

    Args:
        path: the file to write; its directory must exist.
        tree: the state, see :data:`Tree`. Tensors on an accelerator are copied to the host one at
            a time.

    Raises:
        CheckpointError: the tree holds something else, or the file cannot be written. The previous
            file is then untouched.
    """
    path = Path(path)
    try:
        tensors: list[Tensor] = []
        packed = json.dumps({"format": FORMAT, "tree": _pack(tree, tensors, "")}, allow_nan=False)
        header, order = _tensor_header(tensors)
        if max(len(packed), len(header)) > _METADATA_LIMIT:
            raise _Refused(
                f"too many entries, expected at most {_METADATA_LIMIT >> 20} MiB of JSON"
            )
        with _replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            with archive.open(_member(_TREE, len(packed)), "w") as member:
                member.write(packed.encode())
            size = len(header) + sum(tensor.nbytes for tensor in tensors)
            with archive.open(_member(_TENSORS, size), "w") as member:
                member.write(header)
                for index in order:
                    content = _bytes_of(_on_host(tensors[index]))
                    for start in range(0, len(content), _CHUNK):
                        member.write(content[start : start + _CHUNK])
    except Exception as error:
        raise CheckpointError(path, f"cannot save: {_reason(error)}") from error


def load_checkpoint(path: str | os.PathLike[str]) -> Tree:
    """Return the tree that :func:`save_checkpoint` wrote; its tensors are on the CPU.

    Safe on files from anywhere: nothing is executed, and memory stays proportional to the file.

    Args:
        path: the file to read.

    Raises:
        CheckpointError: there is no such file, or it is damaged, hostile or of a newer format.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            _check_directory(file, size)
            with zipfile.ZipFile(file) as archive:
                sizes = _check_members(archive, size)
                with archive.open(_TREE) as member:
                    content = _parse_json(_read(member, sizes[_TREE]))
                tree = _check_format(content)
                with archive.open(_TENSORS) as member:
                    tensors = _read_tensors(member, sizes[_TENSORS])
        tree = _unpack(tree, tensors)
        if tensors:
            raise _Refused(f"{len(tensors)} tensors that the state does not mention")
        return tree
    except FileNotFoundError:
        raise CheckpointError(path, "no such checkpoint") from None
    except OSError as error:
        raise CheckpointError(path, f"cannot read: {_reason(error)}") from error
    except Exception as error:
        raise CheckpointError(path, f"not a readable checkpoint: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """A short account of ``error`` for the end of a message."""
    if isinstance(error, _Refused):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return f"{type(error).__name__}: {str(error)[:200]}"


# --- the file ------------------------------------------------------------------------------------


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of ``path`` on success and vanishes on failure."""
    _remove_stale(path)
    # Host and process in the name: two processes that save the same file never share a temporary.
    temporary = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # else the rename may reach the disk before the content
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # makes the rename itself survive a power cut
    finally:
        os.close(directory)


def _remove_stale(path: Path) -> None:
    """Delete what killed processes left of ``path``; by age, as they may have run on any host."""
    with os.scandir(path.parent) as entries:
        for entry in entries:
            if entry.name.startswith(f".{path.name}.") and entry.name.endswith(".tmp"):
                with contextlib.suppress(OSError):
                    if time.time() - entry.stat().st_mtime > _STALE:
                        os.unlink(entry)


def _member(name: str, size: int) -> zipfile.ZipInfo:
    """A member to write; without a time stamp, so that equal trees give equal files."""
    member = zipfile.ZipInfo(name)
    member.file_size = size  # decides in advance whether it needs the 64-bit zip layout
    return member


def _check_directory(file: IO[bytes], size: int) -> None:
    """Refuse any directory but that of two members, before ``zipfile`` reads it whole."""
    tail_size = 56 + 20 + 22  # 64-bit end record, its locator, end record
    file.seek(max(0, size - tail_size))
    tail = file.read(tail_size).rjust(tail_size, b"\0")
    signature, *_, entries, length, _, comment = struct.unpack("<4s4H2LH", tail[-22:])
    if tail[56:60] == b"PK\6\7":  # zipfile lets the 64-bit record win
        length = struct.unpack("<Q", tail[40:48])[0]
    if signature != b"PK\5\6" or comment:
        raise _Refused("no end of a zip file; expected a complete checkpoint")
    if entries != 2 or length > _DIRECTORY_LIMIT:
        raise _Refused(f"{entries} members, expected {_TREE} and {_TENSORS}")


def _check_members(archive: zipfile.ZipFile, size: int) -> dict[str, int]:
    """The size of both members, after refusing every zip that ``save_checkpoint`` cannot write."""
    members = archive.infolist()
    names = sorted(member.filename for member in members)
    if names != [_TREE, _TENSORS]:
        raise _Refused(f"members {str(names)[:200]}, expected {_TREE} and {_TENSORS}")
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise _Refused(f"{member.filename} is compressed, expected stored bytes")
    # Leaves no room for hidden bytes, and a size beyond that of the file is a lie.
    slack = size - sum(member.file_size for member in members)
    if not 0 <= slack <= _DIRECTORY_LIMIT:
        raise _Refused(f"member sizes differ by {slack} bytes from the {size} bytes of the file")
    return {member.filename: member.file_size for member in members}


def _read(member: IO[bytes], size: int) -> bytes:
    """Exactly ``size`` bytes of metadata."""
    if size > _METADATA_LIMIT:
        raise _Refused(f"{size} bytes of JSON, expected at most {_METADATA_LIMIT}")
    content = member.read(size)
    if len(content) != size:
        raise _Refused(f"{len(content)} bytes of JSON, expected {size}")
    return content


def _parse_json(content: bytes) -> Any:
    """Parse strict JSON: no NaN literals and no key twice."""

    def reject(literal: str) -> None:
        raise _Refused(f"{literal} is not JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(result := dict(pairs)) != len(pairs):
            raise _Refused("a JSON object has a key twice")
        return result

    return json.loads(content.decode(), parse_constant=reject, object_pairs_hook=unique)


def _check_format(content: Any) -> Tree:
    """The packed tree of a ``state.json`` whose format this version reads."""
    version = content.get("format") if isinstance(content, dict) else None
    if type(version) is not int or version < 1:
        raise _Refused(f"format {str(version)[:20]!r}, expected a number from 1 to {FORMAT}")
    if version > FORMAT:
        raise _Refused(f"newer format {version}, this version reads <= {FORMAT}")
    if set(content) != {"format", "tree"}:
        raise _Refused(f"{_TREE} has keys {str(sorted(content))[:200]}, expected format and tree")
    return content["tree"]


# --- the tensors: https://github.com/huggingface/safetensors#format -------------------------------


def _on_host(tensor: Tensor) -> Tensor:
    """The values of ``tensor`` as one dense block of host memory, copied only where necessary."""
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    if tensor.is_contiguous() and tensor.stride()[-1:] in ((), (1,)):
        return tensor
    # A single element counts as contiguous with any stride, but only stride 1 can become bytes.
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a dense host tensor itself, not a copy."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _tensor_header(tensors: list[Tensor]) -> tuple[bytes, list[int]]:
    """The start of a safetensors file, and the order in which the tensors follow it."""
    # Widest elements first, as safetensors does: every tensor is then aligned for memory mapping.
    order = sorted(range(len(tensors)), key=lambda index: -tensors[index].element_size())
    header, end = {}, 0
    for index in order:
        tensor = tensors[index]
        begin, end = end, end + tensor.nbytes
        dtype, shape = _DTYPE_NAMES[tensor.dtype], list(tensor.shape)
        header[str(index)] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded)) + encoded, order


def _read_tensors(member: IO[bytes], size: int) -> dict[str, Tensor]:
    """All tensors of a safetensors member of ``size`` bytes, each allocated once and filled."""
    if size < 8:
        raise _Refused(f"{_TENSORS} has {size} bytes, expected at least 8")
    (header_size,) = struct.unpack("<Q", _read(member, 8))
    if header_size > size - 8:
        raise _Refused(f"tensor header of {header_size} bytes in a member of {size}")
    header = _parse_json(_read(member, header_size))
    if not isinstance(header, dict):
        raise _Refused("the tensor header is not an object")
    tensors, position = {}, 0
    for name, entry in header.items():
        dtype, shape, offsets = _DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
        if not all(type(length) is int and length >= 0 for length in shape):
            raise _Refused(f"tensor {name[:20]!r} has shape {str(shape)[:100]}")
        end = position + math.prod(shape) * dtype.itemsize
        if offsets != [position, end] or end > size - 8 - header_size:
            raise _Refused(f"tensor {name[:20]!r} does not fit the member")
        tensors[name] = _fill(torch.empty(shape, dtype=dtype), member)
        position = end
    if position != size - 8 - header_size:
        raise _Refused("bytes that belong to no tensor")
    return tensors


def _fill(tensor: Tensor, member: IO[bytes]) -> Tensor:
    """``tensor`` with its memory read from ``member``; the zip checks the CRC at the last byte."""
    content = _bytes_of(tensor)
    for start in range(0, len(content), _CHUNK):
        part = content[start : start + _CHUNK]
        chunk = member.read(len(part))
        if len(chunk) != len(part):
            raise _Refused("tensor data ends early")
        part[:] = chunk
    if tensor.dtype is torch.bool and tensor.numel() and tensor.view(torch.uint8).max() > 1:
        raise _Refused("a bool that is neither 0 nor 1")  # undefined behaviour in torch's kernels
    return tensor


# --- the tree: tensors and what JSON has no form for become objects with a single, tagging key ----


def _pack(tree: Tree, tensors: list[Tensor], where: str) -> Any:
    """``tree`` as JSON, with each tensor moved to ``tensors`` and replaced by its index."""
    if isinstance(tree, Tensor):
        if tree.dtype not in _DTYPE_NAMES or tree.layout != torch.strided or tree.is_meta:
            kind = f"{tree.device.type} {tree.layout} {tree.dtype}"
            raise _Refused(f"state{where} is a {kind} tensor, expected a dense one with data")
        tensors.append(tree)
        return {"tensor": str(len(tensors) - 1)}
    if isinstance(tree, dict):
        for key in tree:
            if not isinstance(key, (str, int)) or isinstance(key, bool):
                raise _Refused(f"state{where} has key {str(key)[:50]!r}, expected a str or int")
        return {"dict": [[k, _pack(v, tensors, f"{where}[{k!r}]")] for k, v in tree.items()]}
    if isinstance(tree, (list, tuple)):
        items = [_pack(item, tensors, f"{where}[{i}]") for i, item in enumerate(tree)]
        return {"tuple": items} if isinstance(tree, tuple) else items
    if isinstance(tree, float) and not math.isfinite(tree):
        return {"float": str(float(tree))}
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    kind = f"{type(tree).__module__}.{type(tree).__qualname__}"
    raise _Refused(f"state{where} is a {kind}, expected a tensor, container, number, str or None")


def _unpack(node: Any, tensors: dict[str, Tensor]) -> Tree:
    """The inverse of :func:`_pack`; takes every tensor that it uses out of ``tensors``."""
    if isinstance(node, list):
        return [_unpack(item, tensors) for item in node]
    if not isinstance(node, dict):
        return node
    if len(node) != 1:
        raise _Refused(f"an object with {len(node)} keys in the state, expected one")
    ((tag, content),) = node.items()
    if tag == "tensor" and isinstance(content, str):
        if content not in tensors:
            raise _Refused(f"tensor {content[:20]!r} is missing or used twice")
        return tensors.pop(content)
    if tag == "float" and content in ("inf", "-inf", "nan"):
        return float(content)
    if tag == "tuple" and isinstance(content, list):
        return tuple(_unpack(item, tensors) for item in content)
    if tag == "dict" and isinstance(content, list):
        result = {key: _unpack(value, tensors) for key, value in content}
        if len(result) != len(content) or not all(type(key) in (str, int) for key in result):
            raise _Refused("a dict with a key twice, or one that is neither str nor int")
        return result
    raise _Refused(f"unknown tag {tag[:20]!r} in the state")
