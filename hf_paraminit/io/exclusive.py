"""One run at a time writes to a place, and what goes wrong there is said in one kind of error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from hf_paraminit.errors import OutputError


@contextmanager
def exclusive(place: Path, lock: Path) -> Iterator[None]:
    """Hold a file or folder for this run; the system lets go of it when the process ends, however it ends.

    Args:
        place: What is held, as messages name it.
        lock: File that stands for it; its folder is made.

    Raises:
        OutputError: Another run holds it, or nothing can be written there.
    """
    with as_output_error(place):
        lock.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(lock, timeout=0)
        try:
            held.acquire()
        except Timeout as error:
            raise OutputError(
                f"Another run is writing to {place}. Wait for it, or choose another output folder."
            ) from error
    try:
        yield
    finally:
        held.release()


@contextmanager
def as_output_error(place: Path) -> Iterator[None]:
    """Turn the system's errors about a place into `OutputError`."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            f"Cannot write to {place}: {error.strerror or error}. Choose a folder that can be written."
        ) from error
