"""`paraminit deepnets generate | info | show`."""

import json
from pathlib import Path

import pytest

from hf_paraminit.cli.main import main
from hf_paraminit.deepnets.splits import SPLITS

pytest.importorskip("h5py")

GOLDEN = Path(__file__).parents[1] / "golden" / "deepnets1m"


def run(*words: str) -> int:
    return main(["deepnets", *words])


def test_generate_describe_and_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("generate", "val", "bnfree", "--networks", "3", "--chunk", "2", "--output", str(tmp_path)) == 0
    output = capsys.readouterr()
    assert output.out.count("written to") == 2
    assert "network/s" in output.err  # the progress bar has a rate

    assert run("info", str(tmp_path), "--check", "--json") == 0
    val, bnfree = json.loads(capsys.readouterr().out)
    assert (val["split"], bnfree["split"]) == ("val", "bnfree")
    assert val["networks"] == bnfree["without norm"] == 3
    assert (val["checked"], val["published"]) == (True, False)
    assert sum(val["operations"].values()) > 10

    shown = {}
    for option in ([], ["--data", str(tmp_path)]):
        assert run("show", "val", "1", "--json", *option) == 0
        shown[len(option)] = json.loads(capsys.readouterr().out)
    assert shown[0] == shown[2]


def test_generating_again_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("generate", "test", "--networks", "2", "--output", str(tmp_path))
    assert run(*words) == 0
    before = (tmp_path / "deepnets1m_eval.hdf5").read_bytes()
    capsys.readouterr()
    assert run(*words) == 0
    assert "network/s" not in capsys.readouterr().err
    assert (tmp_path / "deepnets1m_eval.hdf5").read_bytes() == before
    assert run(*words[:3], "5", *words[4:]) == 1
    assert "already holds 2 networks" in capsys.readouterr().err


def test_info_without_a_file_lists_the_splits(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(SPLITS)


def test_info_on_files_of_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", str(GOLDEN), "--check") == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert "mean nodes" in header
    assert len(rows) == 7
    assert all(row.split()[-2:] == ["yes", "no"] for row in rows)  # sound, but not the published files


def test_show_prints_cells_and_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", "train", "0", "--data", str(GOLDEN)) == 0
    text = capsys.readouterr().out
    assert "normal cell: state 2 = conv_1x1(1) + msa(0); output = states 2" in text
    assert "nodes: 156" in text
    assert "primitives: conv " in text


@pytest.mark.parametrize(
    ("words", "parameters"),
    [
        (("DARTS", "--channels", "16", "--cells", "3"), None),
        (("ViT", "--channels", "128", "--cells", "12"), 1_012_234),
        (("predefined", "1"), 1_012_234),
        (("predefined", "0"), 23_520_842),
    ],
)
def test_show_named_networks(
    words: tuple[str, ...], parameters: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torchvision")
    assert run("show", *words, "--json") == 0
    description = json.loads(capsys.readouterr().out)
    assert parameters is None or description["parameters"] == parameters
    assert description["nodes"] == sum(description["primitives"].values())


@pytest.mark.parametrize("ending", ["svg", "png", "graphml", "json"])
def test_show_draws_and_exports(ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / f"net.{ending}"
    assert run("show", "bnfree", "1", "--output", str(file)) == 0
    assert f"Graph written to {file}" in capsys.readouterr().out
    assert file.stat().st_size > 1000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("show", "test"), "Add its number"),
        (("show", "test", "500"), "no network 500: expected 0 to 499"),
        (("show", "predefined", "2"), "expected 0 to 1"),
        (("show", "DARTS", "0"), "is a genotype, not a split"),
        (("show", "test", "0", "--cells", "3"), "the splits fix both"),
        (("show", "search", "0", "--data", str(GOLDEN)), "no file of the split 'search'"),
        (("info", "nowhere"), "nowhere_meta.json"),
        (("info", str(GOLDEN.parent)), "holds no DeepNets-1M file"),
    ],
)
def test_failures_are_one_line(words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words) == 1
    error = capsys.readouterr().err
    assert error.startswith("paraminit: error: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ("generate", "predefined", "--output", "x"),
        ("generate", "val"),
        ("generate", "val", "--networks", "0", "--output", "x"),
        ("show", "xyz", "0"),
        ("show", "test", "-1"),
        ("show", "test", "0", "--output", "net.pdf"),
    ],
)
def test_wrong_arguments(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        run(*words)
    assert exit_.value.code == 2
