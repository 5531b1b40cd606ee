"""Reading HDF5 files that nobody vouches for.

HDF5 can point into other files, be assembled from them, hold Python objects, and declare terabytes
in a few bytes. `SafeFile` looks before it reads: a refusal is a `DataError` that names the file,
the key, what was expected and what is there.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import h5py
import numpy as np

MAX_BYTES = 16 << 30
"""What one file may declare in all [byte]."""
EXPANSION = 1032
"""A deflated byte never becomes more bytes than these (zlib's technical details)."""
CHUNK_BYTES = 64 << 20
"""Largest chunk [byte]; HDF5 holds a chunk in memory whatever is read of it."""
_INT64 = np.iinfo(np.int64)


class DataError(ValueError):
    """A dataset that is refused: file, key, what was expected and what is there."""

    def __init__(self, file: str | Path, key: str, expected: str, actual: object) -> None:
        what = f"{file}: {key}" if key else f"{file}"
        super().__init__(f"{what}: expected {expected}, got {str(actual)[:200]}")


class SafeFile:
    """An HDF5 file of which only plain numeric arrays are read.

    Args:
        path: of the file.
        max_bytes: what may be read of it in all.

    Raises:
        DataError: not an HDF5 file.
    """

    def __init__(self, path: str | Path, max_bytes: int = MAX_BYTES) -> None:
        self.path, self.max_bytes, self._declared = Path(path), max_bytes, 0
        try:
            self.file = h5py.File(self.path, "r")
        except OSError as error:
            raise DataError(path, "", "an HDF5 file", error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(RuntimeError, OSError):
            self.file.close()

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        """What HDF5 says of a damaged file, in many exceptions, becomes a `DataError`.

        Only around calls of HDF5: elsewhere these exceptions are mistakes of ours.
        """
        try:
            yield
        except DataError:
            raise
        except (
            RuntimeError, LookupError, OSError, TypeError, ValueError, ArithmeticError, MemoryError,
        ) as error:  # fmt: skip
            reason = " ".join(str(error).split())
            raise DataError(self.path, name, "a sound HDF5 file", reason) from error

    def names(self, group: str = "/") -> list[str]:
        """Names in a group; of links that lead elsewhere, too."""
        found = self.group(group)
        with self._reading(group):
            return list(found)

    def group(self, name: str) -> h5py.Group:
        """A group of this very file.

        Raises:
            DataError: there is none.
        """
        found = self._object(name)
        if not isinstance(found, h5py.Group):
            raise DataError(self.path, name, "a group", type(found).__name__)
        return found

    def read(
        self, name: str, shape: tuple[int | None, ...] | None = None, kinds: str = "fiub"
    ) -> np.ndarray:
        """A whole array.

        Args:
            name: path within the file.
            shape: what it must have; None stands for any length.
            kinds: the kinds of dtype that are allowed.

        Raises:
            DataError: something else is there, or what is there is not finite, or too large for
                float32 or, an integer, for int64: as these it is used.
        """
        dataset = self._dataset(name, shape, kinds)
        with self._reading(name):
            value = np.asarray(dataset[()])
        if value.dtype.kind == "f":
            with np.errstate(over="ignore"):
                fits = np.isfinite(value.astype(np.float32, copy=False))
            self._require(name, value, fits, "finite numbers of float32")
        elif value.dtype == np.uint64:
            self._require(name, value, value <= _INT64.max, "numbers of int64")
        return value

    def _require(self, name: str, value: np.ndarray, fits: np.ndarray, expected: str) -> None:
        if not fits.all():
            place = tuple(int(i) for i in np.argwhere(~fits)[0])
            raise DataError(self.path, f"{name}{list(place)}", expected, value[place])

    def integer(self, group: str, attribute: str) -> int | None:
        """An integer attribute of a group; None if it has none of that name.

        Raises:
            DataError: something else is there.
        """
        attributes, name = self.group(group).attrs, f"{group}@{attribute}"
        with self._reading(name):
            if attribute not in attributes:
                return None
            found = attributes.get_id(attribute)
            kind, shape = found.dtype, found.shape
            if kind.kind not in "iub" or shape != ():
                raise DataError(self.path, name, "an integer", f"{kind} {shape}")
            value = int(attributes[attribute])  # type: ignore[arg-type]
            if value > _INT64.max:
                raise DataError(self.path, name, "a number of int64", value)
            return value

    def claim(self, name: str, size: int) -> None:
        """Count bytes that an array is about to take, `max_bytes` in all.

        Raises:
            DataError: they are too many.
        """
        self._declared += size
        if self._declared > self.max_bytes:
            expected = f"at most {self.max_bytes} bytes in all"
            raise DataError(self.path, name, expected, f"{self._declared} bytes")

    def _dataset(self, name: str, shape: tuple[int | None, ...] | None, kinds: str) -> h5py.Dataset:
        dataset = self._object(name)
        if not isinstance(dataset, h5py.Dataset):
            raise DataError(self.path, name, "an array", type(dataset).__name__)
        with self._reading(name):
            for expected, actual in self._objections(dataset, shape, kinds):
                raise DataError(self.path, name, expected, actual)
            self.claim(name, dataset.size * dataset.dtype.itemsize)
        return dataset

    def _objections(
        self, dataset: h5py.Dataset, shape: tuple[int | None, ...] | None, kinds: str
    ) -> Iterator[tuple[str, object]]:
        """What speaks against reading it: what was expected and what is there."""
        properties = dataset.id.get_create_plist()
        if dataset.is_virtual:
            yield "data of its own", "a virtual dataset, assembled from other files"
        if properties.get_external_count():
            yield "data in this file", f"external storage in {properties.get_external(0)[0]!r}"
        if dataset.dtype.kind not in kinds or dataset.dtype.hasobject:
            yield f"numbers (dtype kind {' or '.join(kinds)})", f"dtype {dataset.dtype}"
        actual: tuple[int, ...] | None = dataset.shape  # h5py's types do not know of None
        if actual is None:
            yield "an array", "nothing"
            return
        if shape is not None and (
            len(actual) != len(shape)
            or any(e is not None and e != a for e, a in zip(shape, actual, strict=True))
        ):
            yield f"shape {str(shape).replace('None', '*')}", f"{actual}"
        declared = math.prod(actual) * dataset.dtype.itemsize
        stored = min(dataset.id.get_storage_size(), self.path.stat().st_size)
        if declared > EXPANSION * stored + 4096:
            yield f"at most {EXPANSION} times its {stored} bytes on disk", f"{declared} bytes"
        chunk = math.prod(dataset.chunks or (0,)) * dataset.dtype.itemsize
        if chunk > CHUNK_BYTES:
            yield f"chunks of at most {CHUNK_BYTES} bytes", f"{chunk} bytes"

    def _object(self, name: str) -> h5py.Group | h5py.Dataset | h5py.Datatype:
        with self._reading(name):
            return self._follow([part for part in name.split("/") if part])

    def _follow(self, parts: list[str]) -> h5py.Group | h5py.Dataset | h5py.Datatype:
        """The object at a path without links that lead elsewhere."""
        here: h5py.Group = self.file
        for i, part in enumerate(parts):
            where = "/".join(parts[: i + 1])
            if not isinstance(here, h5py.Group):
                raise DataError(self.path, where, "a group above it", type(here).__name__)
            links = here.id.links
            if not links.exists(part.encode()):
                near = ", ".join(list(here)[:8])
                raise DataError(self.path, where, "to exist", f"only {near or 'an empty group'}")
            if links.get_info(part.encode()).type != h5py.h5l.TYPE_HARD:
                link = here.get(part, getlink=True)
                target = f"{getattr(link, 'filename', '')}:{getattr(link, 'path', '')}"
                raise DataError(self.path, where, "an object of this file", f"a link to {target}")
            here = here[part]  # type: ignore[assignment]
        return here
