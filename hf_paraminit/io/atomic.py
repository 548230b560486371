"""Files and folders that appear complete or not at all.

New content is written beside its destination (same file system), flushed to disk, and only then renamed into place, so
a full disk, an exception or an interrupt leaves what was there before.
"""

import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from hf_paraminit.errors import OutputError, ParamInitError

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12}\.tmp")  # names that `_sibling` gives
_WAYS_OUT = {
    errno.ENOSPC: "Free some space or choose a place on another disk.",
    errno.EDQUOT: "Free some of your quota or choose a place on another disk.",
    errno.EFBIG: "Raise the file size limit (`ulimit -f`) or choose another file system.",
    errno.EACCES: "Choose a place where you may write, or change the permissions.",
    errno.EPERM: "Choose a place where you may write, or change the permissions.",
    errno.EROFS: "The file system is read-only: choose another place.",
    errno.ENOTDIR: "A part of the path is a file: choose another place or move that file.",
    errno.EEXIST: "A part of the path is a file: choose another place or move that file.",
    errno.EISDIR: "A folder has the name of a file to be written: choose another place or move that folder.",
}


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Replace one file as a whole.

    The body of the `with` block writes to the temporary path that it is given. Missing parent folders are created. A
    symbolic link is followed: the file that it points to is replaced, the link stays.

    Args:
        path: file to be created or replaced.

    Yields:
        Path beside the destination, not existing yet.

    Raises:
        OutputError: the file could not be written; the destination is as before.
    """
    destination = Path(os.path.realpath(path))
    with _output_errors(destination), _parent_folders(destination):
        temporary = _sibling(destination)
        mode = _default_mode(temporary)
        try:
            yield temporary
            temporary.chmod(mode)  # some writers, safetensors among them, let nobody else read
            _flush(temporary)
            os.replace(temporary, destination)
            _flush_folder(destination.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Create a folder as a whole, or bring all written files into an existing one.

    The body of the `with` block fills the temporary folder that it is given. If the destination does not exist, that
    folder is renamed to it. If it does exist, its other files are not ours to delete: the new files are renamed into
    it one at a time, those of the same name are kept aside until all are in place, and are put back if one fails.
    (Only a process killed between those renames can leave a mixture; the replaced files then lie in
    `.NAME.*.tmp/replaced` beside the folder.)

    Args:
        path: folder to be created or written into. A symbolic link is followed.

    Yields:
        An empty folder beside the destination.

    Raises:
        OutputError: the folder could not be written; the destination is as before.
    """
    destination = Path(os.path.realpath(path))
    with _output_errors(destination), _parent_folders(destination):
        staging = _sibling(destination)
        written, replaced = staging / "written", staging / "replaced"
        try:
            written.mkdir(parents=True)
            yield written
            for file in _files_of(written):
                _flush(file)
            if destination.exists():
                _move_into(written, destination, replaced)
                _flush_folder(destination)
            else:
                os.rename(written, destination)
            _flush_folder(destination.parent)
            shutil.rmtree(replaced, ignore_errors=True)
        finally:
            # A replaced file that could not be put back is the user's only copy, so it stays where it is.
            if not _files_of(replaced):
                shutil.rmtree(staging, ignore_errors=True)


def _move_into(written: Path, destination: Path, replaced: Path) -> None:
    """Rename every file of `written` to the same place in `destination`; undo all of it if one fails."""
    with ExitStack() as undo:
        for source in _files_of(written):
            relative = source.relative_to(written)
            target = destination / relative
            undo.enter_context(_parent_folders(target))
            if target.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
            if os.path.lexists(target):
                backup = replaced / relative
                backup.parent.mkdir(parents=True, exist_ok=True)
                os.replace(target, backup)
                undo.callback(os.replace, backup, target)
            os.replace(source, target)
            undo.callback(os.replace, target, source)
        undo.pop_all()


@contextmanager
def _parent_folders(path: Path) -> Iterator[None]:
    """Create the missing parents of a path, and remove them again if the body fails."""
    missing = [parent for parent in path.parents if not os.path.exists(parent)]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for parent in missing:  # innermost first; one that is not empty got its content from somebody else
            if os.path.isdir(parent) and not any(parent.iterdir()):
                parent.rmdir()
        raise


@contextmanager
def _output_errors(destination: Path) -> Iterator[None]:
    """Turn what the operating system says about a write into an `OutputError`."""
    try:
        yield
    except OutputError as error:  # from a write inside the block, which names a temporary file
        raise _output_error(destination, error.errno, os.strerror(error.errno or 0)) from error
    except ParamInitError:
        raise
    except OSError as error:
        raise _output_error(destination, error.errno, error.strerror or str(error)) from error
    except SafetensorError as error:
        # safetensors reports a failed write as text: "Error while serializing: I/O error: ... (os error 28)".
        system_error = re.search(r"I/O error.*\(os error (\d+)\)", str(error))
        if system_error is None:
            raise
        code = int(system_error[1])
        raise _output_error(destination, code, os.strerror(code)) from error


def _output_error(destination: Path, code: int | None, reason: str) -> OutputError:
    way_out = _WAYS_OUT.get(code or 0, "Choose another place.")
    error = OutputError(f"Could not write {destination}: {reason}. Nothing was changed there. {way_out}")
    error.errno = code
    return error


def _default_mode(path: Path) -> int:
    """Permissions that a new file gets here."""
    path.touch()
    mode = path.stat().st_mode
    path.unlink()
    return mode


def remove_unfinished(folder: Path) -> None:
    """Delete the files, below a folder that nobody else writes to, which a killed `atomic_write` has left there.

    What `atomic_folder` leaves stays: it may hold the only copy of what was to be replaced.
    """
    for path in folder.rglob(".*.tmp"):
        if path.is_file() and _TEMPORARY.fullmatch(path.name):
            path.unlink()


def _sibling(destination: Path) -> Path:
    return destination.with_name(f".{destination.name}.{uuid.uuid4().hex[:12]}.tmp")


def _files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if not path.is_dir())


def _flush(file: Path) -> None:
    with file.open("r+b") as stream:
        os.fsync(stream.fileno())


def _flush_folder(folder: Path) -> None:
    """Ask that renames inside a folder survive a power failure; they have happened already, so this may not fail.

    Windows has no such call, and some network file systems refuse it.
    """
    if not hasattr(os, "O_DIRECTORY"):
        return
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
