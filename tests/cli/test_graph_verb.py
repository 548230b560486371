import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import networkx
import numpy as np
import pytest
import timm
import torch

import hf_paraminit
from hf_paraminit.cli.main import main
from hf_paraminit.graphs.graph import ComputationalGraph

image = pytest.importorskip("matplotlib.image")


@pytest.fixture(scope="module")
def expected() -> ComputationalGraph:
    return hf_paraminit.trace(timm.create_model("test_resnet"))


def write(path: Path, *more: str, model: str = "test_resnet") -> Path:
    assert main(["graph", model, "--output", str(path), *more]) == 0
    return path


def test_json_is_read_back_as_the_same_graph(
    expected: ComputationalGraph, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import json

    path = write(tmp_path / "g.json")
    found = ComputationalGraph.from_dict(json.loads(path.read_text()))
    assert found.nodes == expected.nodes
    assert torch.equal(found.edges, expected.edges)
    assert torch.equal(found.distances, expected.distances)
    assert capsys.readouterr().out == f"test_resnet: 42 nodes, 45 edges, written to {path}\n"


def test_graphml_is_read_back_by_networkx(expected: ComputationalGraph, tmp_path: Path) -> None:
    found = networkx.read_graphml(write(tmp_path / "g.graphml"), node_type=int)
    assert sorted(found.edges) == sorted(map(tuple, expected.edges.tolist()))
    conv = found.nodes[1]
    assert (conv["primitive"], conv["shape"], conv["parameters"]) == ("conv", "16x3x3x3", "conv1.0.weight")
    assert [found.nodes[index]["primitive"] for index in range(len(expected))] == list(expected.primitives)


def test_svg_is_xml_with_all_labels_and_always_the_same(expected: ComputationalGraph, tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.svg"), write(tmp_path / "b.SVG")
    assert first.read_bytes() == second.read_bytes()
    root = ElementTree.parse(first).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    text = "".join(root.itertext())
    assert "test_resnet: 42 nodes, 45 edges" in text
    for node in expected.nodes:
        if node.parameters:
            assert node.parameters[0].rpartition(".")[0] in text


def test_png_shows_the_colours_of_the_primitives(tmp_path: Path) -> None:
    pixels = image.imread(write(tmp_path / "g.png"))[..., :3]
    height, width, _ = pixels.shape
    assert height > 600
    assert width > 900
    conv_blue = np.array([0x77, 0xAA, 0xDD]) / 255
    share = (np.abs(pixels - conv_blue).max(-1) < 0.01).mean()
    assert 0.01 < share < 0.5


def test_options_reach_the_model_and_the_tracer(tmp_path: Path) -> None:
    def nodes(*more: str) -> ComputationalGraph:
        import json

        return ComputationalGraph.from_dict(json.loads(write(tmp_path / "g.json", *more, model="test_vit").read_text()))

    assert "msa" in nodes().primitives
    assert "msa" not in nodes("--attention", "fused").primitives
    assert nodes("--num-classes", "7").nodes[-1].shape == (7,)
    assert nodes("--in-chans", "1").input_size == (1, 160, 160)
    assert nodes("--img-size", "64").input_size == (3, 64, 64)
    assert nodes("--model-kwargs", '{"depth": 2}').primitives.count("msa") == 2


def test_the_input_size_can_be_chosen(tmp_path: Path) -> None:
    import json

    record = json.loads(write(tmp_path / "g.json", "--input-size", "96").read_text())
    assert record["input_size"] == [3, 96, 96]


def test_an_unknown_ending_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["graph", "test_resnet", "--output", str(tmp_path / "g.gif")])
    assert exit_.value.code == 2
    assert "must end in one of .svg, .png, .graphml, .json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["resnet5O"], "Did you mean 'resnet50'"),
        (["test_resnet", "--in-chans", "2", "--model-kwargs", '{"stem_type": 1, "x": 2}'], "'x'"),
        (["test_vit", "--input-size", "33"], "Cannot trace"),
    ],
)
def test_a_failure_leaves_no_file(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["graph", *words, "--output", str(tmp_path / "g.svg")]) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_without_matplotlib_the_extra_is_named(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.patches"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["graph", "test_resnet", "--output", str(tmp_path / f"g.{ending}")]) == 1
    assert 'pip install "hf_paraminit[plots]"' in capsys.readouterr().err
    write(tmp_path / "g.json")
    assert [path.name for path in tmp_path.iterdir()] == ["g.json"]


def test_a_full_disk_leaves_no_file(tmp_path: Path) -> None:
    code = (
        "import resource, sys\nresource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "from hf_paraminit.cli.main import main\n"
        "sys.exit(max(main(['graph', 'test_resnet', '--output', name]) for name in sys.argv[1:]))"
    )
    names = [str(tmp_path / f"g.{ending}") for ending in ("json", "svg", "png", "graphml")]
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("paraminit: error: Could not write")]
    assert len(errors) == len(names)
    assert list(tmp_path.iterdir()) == []


def test_the_kind_of_graph_can_be_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    expected = {
        mode: hf_paraminit.trace(timm.create_model("test_vit"), mode=mode) for mode in ("native", "auto", "compat")
    }
    for mode, graph in expected.items():
        path = write(tmp_path / f"{mode}.json", "--mode", mode, model="test_vit")
        assert ComputationalGraph.from_dict(json.loads(path.read_text())).nodes == graph.nodes
    said = capsys.readouterr().out.splitlines()
    assert ["(native mode)" in line for line in said] == [True, expected["auto"].mode == "native", False]
    assert expected["native"].nodes != expected["compat"].nodes


def test_an_unknown_kind_of_graph_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["graph", "test_vit", "--mode", "fast", "--output", str(tmp_path / "g.json")])
    assert exit_.value.code == 2
    assert "compat" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
