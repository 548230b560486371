import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_paraminit.errors import OutputError
from hf_paraminit.io.run_store import RunStore, locked

DONE = {"key": "a", "status": "done", "auc": 1.0}


def test_what_was_added_is_there_for_the_next_run(tmp_path: Path) -> None:
    RunStore(tmp_path / "new").add(DONE)
    assert RunStore(tmp_path / "new").of(["a", "b"]) == [DONE]


def test_half_a_line_of_a_killed_run_does_not_count_and_does_no_harm(tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    file.write_text(json.dumps(DONE) + '\n{"key": "b", "sta')
    store = RunStore(tmp_path)
    assert list(store.records) == ["a"]
    store.add({"key": "c", "status": "done"})
    assert list(RunStore(tmp_path).records) == ["a", "c"]


def test_lines_that_are_no_records_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "runs.jsonl").write_bytes(b'[]\n{"key": 3}\n\xff\xfe\n' + json.dumps(DONE).encode() + b"\n")
    assert list(RunStore(tmp_path).records) == ["a"]


def test_a_failed_cell_is_open_and_a_later_result_replaces_it(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    store.add({"key": "a", "status": "failed", "error": "E"})
    assert not store.is_done("a")
    store.add(DONE)
    store.add({"key": "a", "status": "failed", "error": "E"})
    assert RunStore(tmp_path).of(["a"]) == [DONE]


def test_processes_write_files_of_their_own_and_read_all(tmp_path: Path) -> None:
    first, second = RunStore(tmp_path), RunStore(tmp_path, rank=1)
    second.add(DONE)
    assert (tmp_path / "runs-001.jsonl").exists()
    assert not first.is_done("a")
    first.read()
    assert first.is_done("a")


def test_without_a_folder_records_stay_in_memory() -> None:
    store = RunStore(None)
    store.add(DONE)
    store.read()
    assert store.is_done("a")


def test_two_runs_do_not_write_to_one_folder(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from hf_paraminit.io.run_store import locked\n"
        "with locked(Path(sys.argv[1])): print('never')"
    )
    with locked(tmp_path):
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "Another run is writing to" in done.stderr
    assert done.stdout == ""
    with locked(tmp_path):
        pass  # free again


def test_a_killed_run_leaves_no_lock(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from hf_paraminit.io.run_store import locked\n"
        "with locked(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    with locked(tmp_path):
        pass


def test_an_output_that_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for use in (lambda path: RunStore(path), lambda path: locked(path).__enter__()):
        with pytest.raises(OutputError, match="Choose a folder"):
            use(tmp_path / "file")
        with pytest.raises(OutputError, match="Choose a folder"):
            use(tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="Choose a folder"):
        RunStore(tmp_path)
