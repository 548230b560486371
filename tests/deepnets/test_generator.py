"""Generated files: the same however they are made, resumed after a kill, and never at the cost of what is there."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_server import REPOSITORY_ROOT

import hf_paraminit.deepnets.generator as generator
from hf_paraminit.deepnets.dataset import DatasetError, StoredNetworks
from hf_paraminit.deepnets.described import GeneratedNetworks
from hf_paraminit.deepnets.generator import generate, name_tables, node_rows, path_lengths
from hf_paraminit.deepnets.splits import SPLITS, draw_record
from hf_paraminit.errors import MissingDependencyError, OutputError
from hf_paraminit.io.exclusive import exclusive

h5py = pytest.importorskip("h5py")

META = "deepnets1m_train_meta.json"


def contents(folder: Path, split: str) -> list[tuple[Any, ...]]:
    networks = StoredNetworks(folder, split)
    return [
        (networks.record(index), *(array.tobytes() for array in networks._arrays(index)))
        for index in range(len(networks))
    ]


@contextmanager
def counted_draws(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    drawn: list[int] = []

    def draw(split: Any, index: int, **options: Any) -> Any:
        drawn.append(index)
        return draw_record(split, index, **options)

    with monkeypatch.context() as patch:
        patch.setattr(generator, "draw_record", draw)
        yield drawn


def interrupt_at(patch: pytest.MonkeyPatch, name: str) -> None:
    """Let a function of the generator be interrupted by the user."""

    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    patch.setattr(generator, name, interrupted)


# --- Contents --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_files_hold_the_networks_of_the_split(split: str, tmp_path: Path) -> None:
    file = generate(split, tmp_path, num_networks=5, chunk_size=2)
    assert file == tmp_path / f"deepnets1m_{SPLITS[split].file}.hdf5"
    stored, drawn = StoredNetworks(tmp_path, split), GeneratedNetworks(split)
    assert len(stored) == 5
    assert not stored.repair
    for index in range(5):
        stored.check(index)
        assert stored.record(index) == drawn.record(index)
        assert stored.arguments(index) == drawn.arguments(index)
        first, second = stored.graph(index), drawn.graph(index)
        assert first.primitives == second.primitives
        assert first.parameter_names == second.parameter_names
        assert [node.cell for node in first.nodes] == [node.cell for node in second.nodes]
        assert torch.equal(first.distances, second.distances)
        assert torch.equal(first.edges, second.edges)
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == [
        f"deepnets1m_{SPLITS[split].file}.hdf5",
        f"deepnets1m_{SPLITS[split].file}_meta.json",
    ]


def test_the_format_is_the_published_one(tmp_path: Path) -> None:
    with h5py.File(generate("train", tmp_path, num_networks=3), "r") as file:
        assert file.attrs["title"] == "DeepNets-1M"
        assert sorted(file["train"]) == ["0", "1", "2"]
        adjacency, rows = file["train/1/adj"], file["train/1/nodes"]
        assert (adjacency.dtype, rows.dtype) == (np.uint8, np.uint16)
        assert adjacency.shape == (len(rows), len(rows))
    metadata = json.loads((tmp_path / META).read_text())["train"]
    assert set(metadata) == {"nets", "meta"}
    assert set(metadata["meta"]) == {"primitives_ext", "unique_op_names"}
    (record,) = {tuple(sorted(record)) for record in metadata["nets"]}
    published = (
        "C_mult fc_dim fc_layers genotype glob_avg ks n_cells norm num_nodes num_params preproc stem_pool stem_type"
    )
    assert list(record) == published.split()
    assert all(key.isdecimal() for table in metadata["meta"].values() for key in table)
    assert "attn." not in " ".join(metadata["meta"]["unique_op_names"].values())


def test_listing_by_cell_equals_listing_by_position() -> None:
    """The published generator writes nodes by cell and distances by position."""
    for index in range(40):
        _, wiring = draw_record(SPLITS["dense"], index)
        rows = node_rows(wiring, 10)
        assert (np.diff(rows[:, 1].astype(int)) >= 0).all()
        lengths = path_lengths(wiring)
        assert not np.tril(lengths).any()
        assert (lengths[:-1, -1] > 0).sum() == len(rows) - 1 or lengths.max() == generator.STORED_CUTOFF


def test_the_stem_is_where_the_published_loader_looks_for_it() -> None:
    positions = set()
    for index in range(60):
        record, wiring = draw_record(SPLITS["train"], index)
        names = [node.name for node in wiring.nodes]
        if record["stem_type"] == 1 and any(name.startswith("stem1") for name in names):
            last = [max(i for i, name in enumerate(names) if name.startswith(stem)) for stem in ("stem0.", "stem1.")]
            positions.add((record["norm"], *last))
    assert positions == {("bnorm", 4, 6), (None, 2, 3)}


def test_names_have_numbers_in_every_split() -> None:
    for split in SPLITS.values():
        _, names = name_tables(split.space.max_steps)
        assert len(set(names.values())) == len(names) < 2**16
        for index in range(12):
            node_rows(draw_record(split, index)[1], split.space.max_steps)  # would raise KeyError


def test_another_seed_gives_other_networks(tmp_path: Path) -> None:
    generate("val", tmp_path / "a", num_networks=4, seed=1)
    generate("val", tmp_path / "b", num_networks=4)
    assert contents(tmp_path / "a", "val") != contents(tmp_path / "b", "val")


def test_the_splits_of_one_file_join_each_other(tmp_path: Path) -> None:
    generate("val", tmp_path, num_networks=3)
    before = contents(tmp_path, "val")
    generate("bnfree", tmp_path, num_networks=2)
    assert contents(tmp_path, "val") == before
    assert len(StoredNetworks(tmp_path, "bnfree")) == 2
    assert {record["norm"] for record, *_ in contents(tmp_path, "bnfree")} == {None}


# --- Interruption ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_size", [1, 4, 100])
def test_chunks_do_not_matter(chunk_size: int, tmp_path: Path) -> None:
    generate("train", tmp_path / "a", num_networks=6, chunk_size=chunk_size)
    generate("train", tmp_path / "b", num_networks=6, chunk_size=3)
    assert contents(tmp_path / "a", "train") == contents(tmp_path / "b", "train")
    assert (tmp_path / "a" / META).read_bytes() == (tmp_path / "b" / META).read_bytes()


def test_processes_do_not_matter(tmp_path: Path) -> None:
    generate("train", tmp_path / "a", num_networks=8, chunk_size=2, processes=2)
    generate("train", tmp_path / "b", num_networks=8)
    assert contents(tmp_path / "a", "train") == contents(tmp_path / "b", "train")


LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "hf_paraminit"]


def launch(*words: str) -> subprocess.CompletedProcess[str]:
    """Run `paraminit deepnets generate` in two processes that share the work."""
    command = [*LAUNCH, "deepnets", "generate", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=REPOSITORY_ROOT, env=environment, capture_output=True, text=True, timeout=600)


def test_a_launcher_shares_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two splits of one file, the first of which an interrupted run began; files are those of one process."""
    with monkeypatch.context() as patch:
        interrupt_at(patch, "_merge")
        with pytest.raises(KeyboardInterrupt):
            generate("val", tmp_path / "two", num_networks=2)
    done = launch("val", "bnfree", "--networks", "5", "--output", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("written to") == 2
    for split in ("val", "bnfree"):
        generate(split, tmp_path / "one", num_networks=5)
        assert contents(tmp_path / "two", split) == contents(tmp_path / "one", split)
    names = "deepnets1m_eval_meta.json"
    assert (tmp_path / "two" / names).read_bytes() == (tmp_path / "one" / names).read_bytes()
    assert not list((tmp_path / "two").glob("*.parts"))


@pytest.mark.slow
def test_launched_processes_end_together_where_another_run_writes(tmp_path: Path) -> None:
    with exclusive(tmp_path, tmp_path / ".deepnets1m_eval.hdf5.lock"):
        done = launch("val", "--networks", "2", "--output", str(tmp_path))
    assert done.returncode != 0
    assert "Another run is writing" in done.stderr
    assert not list(tmp_path.glob("*.hdf5"))


def test_a_finished_split_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = generate("train", tmp_path, num_networks=4)
    before = file.stat().st_mtime_ns
    with counted_draws(monkeypatch) as drawn:
        assert generate("train", tmp_path, num_networks=4) == file
    assert not drawn
    assert file.stat().st_mtime_ns == before


@pytest.mark.parametrize("failure", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_run_goes_on(
    failure: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(split: Any, index: int, **options: Any) -> Any:
        if index == 7:
            raise failure
        return draw_record(split, index, **options)

    with monkeypatch.context() as patch:
        patch.setattr(generator, "draw_record", draw)
        with pytest.raises(failure):
            generate("train", tmp_path, num_networks=10, chunk_size=3)
    assert not list(tmp_path.glob("deepnets1m_train.hdf5"))
    with counted_draws(monkeypatch) as drawn:
        generate("train", tmp_path, num_networks=10, chunk_size=2)  # chunks may differ
    assert drawn == [6, 7, 8, 9]
    generate("train", tmp_path / "whole", num_networks=10)
    assert contents(tmp_path, "train") == contents(tmp_path / "whole", "train")


def test_an_interruption_while_the_parts_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, "_write_metadata")
        with pytest.raises(KeyboardInterrupt):
            generate("train", tmp_path, num_networks=5, chunk_size=2)
    assert not (tmp_path / META).exists()
    with counted_draws(monkeypatch) as drawn:
        generate("train", tmp_path, num_networks=5, chunk_size=2)
    assert not drawn
    assert len(contents(tmp_path, "train")) == 5


def test_a_killed_process_loses_no_finished_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"from hf_paraminit.deepnets.generator import generate; generate('train', {str(tmp_path)!r}, chunk_size=3)"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY_ROOT, env=environment, stderr=subprocess.PIPE
    )
    parts = tmp_path / "deepnets1m_train.parts"
    try:
        while len(list(parts.glob("*.hdf5"))) < 3:
            assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finished = 3 * len(list(parts.glob("*.hdf5")))
    with counted_draws(monkeypatch) as drawn:
        generate("train", tmp_path, num_networks=finished + 4, chunk_size=3)
    assert drawn == list(range(finished, finished + 4))
    StoredNetworks(tmp_path, "train").check(finished)


def test_parts_that_no_settings_describe_are_drawn_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, "_merge")
        with pytest.raises(KeyboardInterrupt):
            generate("train", tmp_path, num_networks=4, chunk_size=2, seed=9)
    (tmp_path / "deepnets1m_train.parts" / "settings.json").unlink()
    generate("train", tmp_path, num_networks=4)
    generate("train", tmp_path / "whole", num_networks=4)
    assert contents(tmp_path, "train") == contents(tmp_path / "whole", "train")


# --- Refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{"seed": 9}, {"num_networks": 5}])
def test_results_of_other_settings_are_not_replaced(changes: dict[str, int], tmp_path: Path) -> None:
    file = generate("train", tmp_path, num_networks=3)
    before = file.read_bytes()
    with pytest.raises(OutputError, match=r"already holds 3 networks of 'train'.*Choose another folder"):
        generate("train", tmp_path, **{"num_networks": 3, **changes})
    assert file.read_bytes() == before


def test_parts_of_other_settings_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, "_merge")
        with pytest.raises(KeyboardInterrupt):
            generate("train", tmp_path, num_networks=3)
    with pytest.raises(OutputError, match=r"unfinished run with other settings.*'seed': 9.*'seed': 1"):
        generate("train", tmp_path, num_networks=3, seed=9)


def test_a_published_file_is_not_replaced(tmp_path: Path) -> None:
    golden = Path(__file__).parents[1] / "golden" / "deepnets1m"
    for name in ("deepnets1m_eval.hdf5", "deepnets1m_eval_meta.json"):
        (tmp_path / name).write_bytes((golden / name).read_bytes())
    with pytest.raises(OutputError, match="already holds 2 networks of 'val'"):
        generate("val", tmp_path, num_networks=2)
    (tmp_path / "deepnets1m_eval_meta.json").unlink()
    with pytest.raises(DatasetError, match=r"holds bnfree, deep, .*does not describe them"):
        generate("val", tmp_path, num_networks=2)
    assert (tmp_path / "deepnets1m_eval.hdf5").read_bytes() == (golden / "deepnets1m_eval.hdf5").read_bytes()


def test_two_runs_do_not_write_the_same_file(tmp_path: Path) -> None:
    with (
        exclusive(tmp_path / "deepnets1m_train.hdf5", tmp_path / ".deepnets1m_train.hdf5.lock"),
        pytest.raises(OutputError, match="Another run is writing"),
    ):
        generate("train", tmp_path, num_networks=2)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"Cannot write to .*file"):
        generate("train", tmp_path / "file", num_networks=2)


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """Let writes behind this many bytes of a file fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_while_a_part_is_written(tmp_path: Path) -> None:
    generate("val", tmp_path, num_networks=2)
    before = contents(tmp_path, "val")
    with full_disk(5_000), pytest.raises(OutputError, match=r"Could not write .*Nothing was changed there"):
        generate("test", tmp_path, num_networks=6, chunk_size=6)
    assert contents(tmp_path, "val") == before
    assert not list(tmp_path.rglob("*.tmp"))
    generate("test", tmp_path, num_networks=6)
    assert len(contents(tmp_path, "test")) == 6


def test_a_full_disk_while_the_parts_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate("val", tmp_path, num_networks=8)
    before = contents(tmp_path, "val")
    with monkeypatch.context() as patch:
        interrupt_at(patch, "_merge")
        with pytest.raises(KeyboardInterrupt):
            generate("test", tmp_path, num_networks=8)
    limit = (tmp_path / "deepnets1m_eval.hdf5").stat().st_size // 2
    with full_disk(limit), pytest.raises(OutputError, match=r"Could not write .*deepnets1m_eval\.hdf5: File too large"):
        generate("test", tmp_path, num_networks=8)
    assert contents(tmp_path, "val") == before
    with counted_draws(monkeypatch) as drawn:
        generate("test", tmp_path, num_networks=8)
    assert not drawn


def test_joblib_is_optional(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "joblib", None)
    generate("train", tmp_path, num_networks=2, chunk_size=1)
    with pytest.raises(MissingDependencyError, match=r"Several processes need joblib.*hf_paraminit\[data\]"):
        generate("val", tmp_path, num_networks=2, chunk_size=1, processes=2)
