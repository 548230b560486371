"""The folder of a comparison: one JSON line per finished cell, written by one run at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_paraminit.io.exclusive import as_output_error, exclusive

Record = dict[str, Any]

LOCK = ".lock"


class RunStore:
    """Finished cells, in memory and, if there is a folder, in its `runs*.jsonl`.

    Args:
        folder: Where to keep them; None keeps them in memory only.
        rank: Number of this process; each writes a file of its own and reads all.

    Attributes:
        records: The newest record of each key.

    Raises:
        OutputError: The folder cannot be written.
    """

    def __init__(self, folder: Path | None, *, rank: int = 0) -> None:
        self.folder = folder
        self.records: dict[str, Record] = {}
        self._file = None
        if folder is not None:
            name = "runs.jsonl" if rank == 0 else f"runs-{rank:03d}.jsonl"
            self._file = folder / name
            with as_output_error(folder):
                folder.mkdir(parents=True, exist_ok=True)
                self._file.touch()
                if not os.access(self._file, os.W_OK):
                    raise PermissionError(f"{self._file} may not be written")
            self.read()

    def read(self) -> None:
        """Take in what all processes have written so far."""
        if self.folder is None:
            return
        for file in sorted(self.folder.glob("runs*.jsonl")):
            for record in _records_of(file):
                self._take(record)

    def add(self, record: Record) -> None:
        """Keep one more record; it is on disk when this returns."""
        self._take(record)
        if self._file is None:
            return
        with as_output_error(self._file), self._file.open("a+b") as stream:
            if stream.tell() and not _ends_with_newline(stream):
                stream.write(b"\n")  # a killed run left half a line
            stream.write(json.dumps(record).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())

    def of(self, keys: Iterable[str]) -> list[Record]:
        """The records of these keys, in order; keys without one are left out."""
        return [self.records[key] for key in keys if key in self.records]

    def is_done(self, key: str) -> bool:
        """Whether a result is there; a failed cell is tried again by the next run."""
        return self.records.get(key, {}).get("status") == "done"

    def _take(self, record: Record) -> None:
        if not self.is_done(record["key"]):
            self.records[record["key"]] = record


@contextmanager
def locked(folder: Path | None) -> Iterator[None]:
    """Hold a comparison's folder for this run; the system lets go of it when the process ends, however it ends.

    Raises:
        OutputError: Another run holds it, or the folder cannot be written.
    """
    if folder is None:
        yield
        return
    with exclusive(folder, folder / LOCK):
        yield


def _records_of(file: Path) -> Iterator[Record]:
    """Complete lines; what a killed run left of its last one does not count."""
    with as_output_error(file):
        lines = file.read_bytes().splitlines()
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("key"), str):
            yield record


def _ends_with_newline(stream: Any) -> bool:
    stream.seek(-1, os.SEEK_END)
    return stream.read(1) == b"\n"
