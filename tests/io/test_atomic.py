"""Files and folders that appear whole or not at all."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from hub_server import REPOSITORY_ROOT

from hf_paraminit.errors import OutputError, PredictorNotFoundError
from hf_paraminit.io.atomic import atomic_folder, atomic_write, remove_unfinished

Atomic = Callable[[Path], AbstractContextManager[Path]]


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder, hidden and temporary ones included."""
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def fail_at(monkeypatch: pytest.MonkeyPatch, name: str, code: int, call: int = 1) -> None:
    """Let the given call of a function of `os` fail with an error code; earlier and later ones work."""
    real, calls = getattr(os, name), iter(range(1, 1000))

    def failing(*args: object, **kwargs: object) -> object:
        if next(calls) == call:
            raise OSError(code, os.strerror(code))
        return real(*args, **kwargs)

    monkeypatch.setattr(os, name, failing)


def test_file_is_created_with_its_parents_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.txt"
    for text in ("first", "second"):
        with atomic_write(path) as temporary:
            temporary.write_text(text)
        assert contents(tmp_path) == {"a/b/file.txt": text}


def test_previous_file_is_there_until_the_end(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_link_to_a_file_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "target.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to(tmp_path / "target.txt")
    with atomic_write(tmp_path / "link.txt") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "target.txt").read_text() == "new"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, PredictorNotFoundError])
def test_failure_in_the_body_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write_half() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write_half()
    assert contents(tmp_path) == {"file.txt": "old"}


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("code", "way_out"), [(errno.ENOSPC, "Free some space"), (errno.EACCES, "may write"), (errno.EIO, "another place")]
)
def test_failing_system_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, code: int, way_out: str
) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    fail_at(monkeypatch, step, code)
    with pytest.raises(OutputError, match=way_out) as raised, atomic_write(path) as temporary:
        temporary.write_text("new")
    assert str(path) in str(raised.value)
    assert contents(tmp_path) == {"file.txt": "old"}


def test_failed_write_takes_its_new_parent_folders_away(tmp_path: Path) -> None:
    for context in (atomic_write, atomic_folder):
        with pytest.raises(ValueError, match="stop"), context(tmp_path / "a" / "b" / "c"):
            raise ValueError("stop")
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("context", [atomic_write, atomic_folder])
def test_impossible_name_leaves_no_parent_folders(tmp_path: Path, context: Atomic) -> None:
    with pytest.raises(OutputError, match="name too long"), context(tmp_path / "a" / ("x" * 300) / "b"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("context", [atomic_write, atomic_folder])
def test_path_through_a_file_is_refused(tmp_path: Path, context: Atomic) -> None:
    (tmp_path / "file.txt").write_text("old")
    with pytest.raises(OutputError, match="A part of the path is a file"), context(tmp_path / "file.txt" / "x"):
        pass
    assert contents(tmp_path) == {"file.txt": "old"}


def test_folder_where_a_file_is_to_be_written(tmp_path: Path) -> None:
    (tmp_path / "name").mkdir()
    with pytest.raises(OutputError), atomic_write(tmp_path / "name") as temporary:
        temporary.write_text("new")
    assert contents(tmp_path) == {}


def test_new_folder_appears_whole(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "config.json").write_text("{}")
        (folder / "sub").mkdir()
        (folder / "sub" / "x").write_text("x")
        assert not (tmp_path / "out").exists()
    assert contents(tmp_path) == {"out/config.json": "{}", "out/sub/x": "x"}


def make_folder(tmp_path: Path) -> Path:
    out = tmp_path / "out"
    (out / "sub").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "mine.txt", "sub/mine.txt"):
        (out / name).write_text(f"old {name}")
    return out


def write_into(folder: Path) -> None:
    for name in ("README.md", "config.json", "model.safetensors", "fresh/x"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("new")


def test_existing_folder_keeps_the_files_that_are_not_written(tmp_path: Path) -> None:
    out = make_folder(tmp_path)
    with atomic_folder(out) as folder:
        write_into(folder)
    assert contents(tmp_path) == {
        "out/README.md": "new",
        "out/config.json": "new",
        "out/fresh/x": "new",
        "out/mine.txt": "old mine.txt",
        "out/model.safetensors": "new",
        "out/sub/mine.txt": "old sub/mine.txt",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def count_replaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    calls = []
    real = os.replace
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *args: (calls.append(args), real(*args))[1])
        with atomic_folder(make_folder(tmp_path)) as folder:
            write_into(folder)
    return len(calls)


def test_failure_at_any_rename_puts_the_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    renames = count_replaces(tmp_path / "counted", monkeypatch)
    assert renames == 6  # four files in, two of the same name aside
    for call in range(1, renames + 1):
        place = tmp_path / str(call)
        out = make_folder(place)
        before = contents(place)
        with monkeypatch.context() as patch:
            fail_at(patch, "replace", errno.ENOSPC, call)
            with pytest.raises(OutputError, match="Nothing was changed"), atomic_folder(out) as folder:
                write_into(folder)
        assert contents(place) == before
        assert not (out / "fresh").exists()
        assert [path.name for path in place.iterdir()] == ["out"]


def test_old_file_that_cannot_be_put_back_is_kept_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = make_folder(tmp_path)
    real = os.replace

    def failing(source: Path, target: Path) -> None:
        if Path(source).parts[-2:] == ("written", "model.safetensors") or Path(source).parent.name == "replaced":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OutputError), atomic_folder(out) as folder:
        write_into(folder)
    assert "old model.safetensors" in contents(tmp_path).values()


def test_folder_with_the_name_of_a_written_file_is_not_touched(tmp_path: Path) -> None:
    out = make_folder(tmp_path)
    (out / "README.md").mkdir()
    (out / "README.md" / "precious.txt").write_text("precious")
    before = contents(tmp_path)
    with pytest.raises(OutputError, match="A folder has the name of a file"), atomic_folder(out) as folder:
        write_into(folder)
    assert contents(tmp_path) == before


def test_file_where_a_folder_is_to_be_written(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("old")
    with pytest.raises(OutputError), atomic_folder(tmp_path / "out") as folder:
        write_into(folder)
    assert contents(tmp_path) == {"out": "old"}


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are a POSIX thing")
def test_real_write_error_while_saving_weights(tmp_path: Path) -> None:
    """A process that may not write so large a file: safetensors' own error class is translated too."""
    out = make_folder(tmp_path)
    before = contents(tmp_path)
    code = (
        "import resource, torch\n"
        "from safetensors.torch import save_file\n"
        "from hf_paraminit.errors import OutputError\n"
        "from hf_paraminit.io.atomic import atomic_folder\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n"
        f"    with atomic_folder({str(out)!r}) as folder:\n"
        "        (folder / 'config.json').write_text('{}')\n"
        "        save_file({'a': torch.zeros(4096)}, folder / 'model.safetensors')\n"
        "except OutputError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY_ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "File too large" in done.stdout, done.stderr
    assert "ulimit" in done.stdout
    assert contents(tmp_path) == before


def test_only_what_a_killed_write_left_is_removed(tmp_path: Path) -> None:
    unfinished = tmp_path / "deep" / ".models.jsonl.fc1705443696.tmp"
    kept = [
        tmp_path / ".notes.tmp",
        tmp_path / "models.jsonl.fc1705443696.tmp",
        tmp_path / ".zoo.fc1705443696.tmp" / "replaced" / "weights",  # of a folder: the only copy, perhaps
    ]
    for file in (unfinished, *kept):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x")
    remove_unfinished(tmp_path)
    assert not unfinished.exists()
    assert all(file.exists() for file in kept)


def test_the_temporary_file_of_a_write_is_one_that_is_removed(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "file") as temporary:
        temporary.write_text("first")
        remove_unfinished(tmp_path)
        assert not temporary.exists()
        temporary.write_text("second")
    assert contents(tmp_path) == {"file": "second"}
