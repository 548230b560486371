"""`paraminit run`: unmodified scripts, started alone, by Accelerate and by torchrun with two processes."""

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageClassification, ViTConfig, ViTForImageClassification

import hf_paraminit
from hf_paraminit.cli.main import main

SCRIPTS = Path(__file__).parents[1] / "hooks" / "scripts"
PYTHON = [sys.executable]
LAUNCHER = [*PYTHON, "-m", "hf_paraminit", "run"]
TORCHRUN = [*PYTHON, "-m", "torch.distributed.run", "--nproc_per_node", "2", *LAUNCHER[1:]]
ACCELERATE = [*PYTHON, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", *LAUNCHER[1:]]
VIT = ViTConfig(
    hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
)


def start(words: list[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    names = ("HF_PARAMINIT_INIT", "HF_PARAMINIT_INIT_KWARGS", "HF_PARAMINIT_SCOPE", "HF_PARAMINIT_DISABLE")
    inherited = {key: value for key, value in os.environ.items() if key not in names}
    settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    return subprocess.run(
        words, cwd=cwd, env={**inherited, **settings, **environment}, capture_output=True, text=True, check=False
    )


# A script runs as Python runs it


FACTS = """
import sys
def facts():
    main = sys.modules["__main__"]
    known = ("__name__", "__file__", "__package__", "__doc__", "__cached__")
    return (
        sys.argv, sys.path[0], {key: vars(main).get(key) for key in known}, type(vars(main)["__loader__"]).__name__,
        getattr(vars(main)["__spec__"], "name", None), vars(main) is globals(), "facts" in vars(main),
    )
print(*facts(), sep="\\n")
"""
FILES = {
    "facts.py": f'"""A docstring."""\n{FACTS}',
    "neighbour.py": "VALUE = 3",
    "imports.py": "import neighbour; print(neighbour.VALUE)",
    "exits.py": "import sys; sys.exit(int(sys.argv[1]))",
    "complains.py": "raise SystemExit('it went wrong')",
    "ends_quietly.py": "raise SystemExit",
    "raises.py": "def f():\n    raise ValueError\ntry:\n    f()\nexcept ValueError as e:\n    raise KeyError from e",
    "is_broken.py": "x = 1\nif x\n",
    "own_hook.py": "import sys\nsys.excepthook = lambda *a: print('hook', a[0].__name__)\n1/0",
    "at_exit.py": "import atexit, sys\natexit.register(lambda: print(sys.modules['__main__'].VALUE))\nVALUE = 5",
    "pickles.py": "import pickle\nclass A: pass\nprint(type(pickle.loads(pickle.dumps(A()))) is A, A.__module__)",
    "future.py": "def f(x: int): pass\nprint(f.__annotations__)",
    "fails_in_ours.py": "from hf_paraminit import ParamInitError\nraise ParamInitError('raised by the script')",
    "package/__init__.py": "",
    "package/__main__.py": FACTS,
    "package/part.py": FACTS,
    "folder/__main__.py": "import beside, sys; print(beside.VALUE, sys.argv[1:], sys.path[0], __name__)",
    "folder/beside.py": "VALUE = 4",
}
# what follows `python`, and the same words follow `paraminit run`
ALIKE = {
    "own arguments": ["facts.py", "a", "--init", "ghn3", "--scope", "all", "-m", "x", "--", "--debug", "--help"],
    "absolute path": ["FOLDER/facts.py", ""],
    "other folder": ["./package/part.py", "-h"],
    "neighbour": ["imports.py"],
    "exit code": ["exits.py", "3"],
    "exit message": ["complains.py"],
    "exit without code": ["ends_quietly.py"],
    "exception": ["raises.py"],
    "syntax error": ["is_broken.py"],
    "excepthook": ["own_hook.py"],
    "atexit": ["at_exit.py"],
    "pickle": ["pickles.py"],
    "future statements": ["future.py"],
    "own error class": ["fails_in_ours.py"],
    "module": ["-m", "package.part", "-m", "--init", "x"],
    "package": ["-m", "package", "--", "a"],
}
# words after `paraminit run` -> exit code, and a part of standard error
OTHERS = {
    "two dashes": (["--", "facts.py", "--", "a"], 0, ""),
    "folder": (["folder", "a"], 0, ""),
    "interrupt": (["interrupted.py"], 130, "KeyboardInterrupt"),
    "no script": (["nowhere.py"], 2, "there is no script 'nowhere.py'"),
    "no module": (["-m", "package.nowhere"], 1, "No module named package.nowhere"),
    "nothing": ([], 2, "name a script, or a module after -m"),
    "unknown option": (["--lr", "1", "facts.py"], 2, "unrecognized arguments: --lr"),
    "unknown initializer": (["--init", "ghn33", "facts.py"], 1, "no initializer 'ghn33'. Did you mean 'ghn3'"),
    "unknown setting": (["--init", "ghn3", "--init-kwargs", '{"sed": 1}', "facts.py"], 1, "does not take 'sed'"),
    "unknown scope": (["--init", "ghn3", "--scope", "heads", "facts.py"], 2, "invalid choice: 'heads'"),
    "scope without init": (["--scope", "all", "facts.py"], 2, "--init-kwargs and --scope go with --init"),
    "two scopes": (
        ["--init", "ghn3", "--scope", "all", "--init-kwargs", '{"scope": "head"}', "facts.py"],
        1,
        "are both given",
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scripts")
    for name, text in {**FILES, "interrupted.py": "raise KeyboardInterrupt"}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


# Importing torch takes seconds, so one process does it and then forks: each child goes on as `paraminit run`.
FORKS = """
import json, os, sys
import hf_paraminit.cli.run
from hf_paraminit.cli.main import main
for number, words in enumerate(json.loads(sys.argv[1])):
    if os.fork() == 0:
        for descriptor, stream in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{stream}_{number}", os.O_WRONLY | os.O_CREAT), descriptor)
        sys.argv[:] = ["paraminit", "run", *words]
        sys.exit(main())
    print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@dataclass(frozen=True)
class Outcome:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def launched(folder: Path) -> dict[str, Outcome]:
    """The outcome of `paraminit run` with the words of each case."""
    cases = {**ALIKE, **{case: words for case, (words, _, _) in OTHERS.items()}}
    commands = [[word.replace("FOLDER", str(folder)) for word in words] for words in cases.values()]
    done = start([*PYTHON, "-c", FORKS, json.dumps(commands)], folder)
    assert done.returncode == 0, done.stderr
    codes = [int(line) for line in done.stdout.split()]
    assert len(codes) == len(cases)
    texts = [[(folder / f"{stream}_{number}").read_text() for stream in ("out", "err")] for number in range(len(cases))]
    return {case: Outcome(code, *text) for case, code, text in zip(cases, codes, texts, strict=True)}


@pytest.mark.parametrize("case", ALIKE)
def test_a_script_runs_as_python_runs_it(case: str, launched: dict[str, Outcome], folder: Path) -> None:
    python = start([*PYTHON, *(word.replace("FOLDER", str(folder)) for word in ALIKE[case])], folder)
    assert launched[case] == Outcome(python.returncode, python.stdout, python.stderr)


def test_the_cases_above_differ_in_what_they_show(launched: dict[str, Outcome]) -> None:
    codes = {case: launched[case].code for case in ALIKE if launched[case].code != 0}
    failures = ("exit message", "exception", "syntax error", "excepthook", "own error class")
    assert codes == {"exit code": 3, **dict.fromkeys(failures, 1)}
    assert 'raises.py", line 6, in <module>' in launched["exception"].err
    assert launched["own arguments"].out.startswith("['facts.py', 'a', '--init', 'ghn3',")


@pytest.mark.parametrize("case", OTHERS)
def test_mistakes_show_before_the_script_starts(case: str, launched: dict[str, Outcome]) -> None:
    _, code, message = OTHERS[case]
    found = launched[case]
    assert found.code == code, found.err
    assert message in found.err
    assert "Traceback" not in found.err or case == "interrupt"
    assert (found.out == "") == (code != 0)


def test_two_dashes_end_our_options_only(launched: dict[str, Outcome]) -> None:
    assert launched["two dashes"].out.splitlines()[0] == "['facts.py', '--', 'a']"


def test_a_folder_with_a_main_file(launched: dict[str, Outcome], folder: Path) -> None:
    assert launched["folder"].out == f"4 ['a'] {folder / 'folder'} __main__\n"


# Training scripts


@dataclass(frozen=True)
class Run:
    """A finished training script and the folder it wrote to."""

    done: subprocess.CompletedProcess[str]
    output: Path

    def weights(self, name: str) -> dict[str, Tensor]:
        assert self.done.returncode == 0, self.done.stderr
        return load_file(self.output / f"{name}.safetensors")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vit") / "vit"
    torch.manual_seed(1)
    ViTForImageClassification(VIT).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def runs(predictor_folder: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    init = ["--init", f"local-dir:{predictor_folder}", "--init-kwargs", '{"seed": 3}']
    timm_script = [str(SCRIPTS / "train_timm.py"), "--output", "OUTPUT"]
    hf_script = [str(SCRIPTS / "train_transformers.py"), "--model_name_or_path", str(checkpoint)]
    hf_script += ["--num_labels", "7", "--ignore_mismatched_sizes", "True", "--output_dir", "OUTPUT"]
    hf_script += ["--use_cpu", "True", "--max_steps", "2", "--report_to", "none", "--disable_tqdm", "True"]
    commands = {
        "timm, python": [*PYTHON, *timm_script],
        "timm, launcher without init": [*LAUNCHER, *timm_script],
        "timm, two processes": [*TORCHRUN, *init, *timm_script],
        "transformers, accelerate": [*ACCELERATE, *init, *hf_script],
        "transformers, two processes": [*TORCHRUN, *init, *hf_script, "--ddp_backend", "gloo"],
    }
    folders = {name: tmp_path_factory.mktemp("run") for name in commands}

    def finish(name: str) -> Run:
        output = folders[name]
        return Run(start([str(output) if word == "OUTPUT" else word for word in commands[name]], output), output)

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(commands, pool.map(finish, commands), strict=True))


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], names: Iterator[str] | set[str]) -> None:
    names = set(names)
    assert names
    assert [name for name in names if not torch.equal(found[name], expected[name])] == []


def test_a_timm_script_in_two_processes_starts_and_ends_with_equal_weights(
    runs: dict[str, Run], predictor_folder: Path
) -> None:
    run = runs["timm, two processes"]
    model = hf_paraminit.create_model(
        "test_vit", num_classes=3, init=f"local-dir:{predictor_folder}", init_kwargs={"seed": 3}
    )
    predicted = set(model._hf_paraminit.predicted)
    assert len(predicted) > 70
    for rank in (0, 1):
        assert_equal(run.weights(f"start_{rank}"), model.state_dict(), predicted)
    end = run.weights("end_0")
    assert_equal(run.weights("end_1"), end, set(end))
    assert not torch.equal(end["head.weight"], model.state_dict()["head.weight"])
    assert (run.output / "last.pth.tar").is_file()
    assert run.done.stderr.count("paraminit: test_vit: ") == 1


def test_a_script_runs_the_same_without_the_launcher(runs: dict[str, Run]) -> None:
    plain, launched = runs["timm, python"], runs["timm, launcher without init"]
    for name in ("start_0", "end_0"):
        weights = plain.weights(name)
        assert_equal(launched.weights(name), weights, set(weights))


@pytest.mark.parametrize("name", ["transformers, accelerate", "transformers, two processes"])
def test_a_transformers_script_gets_a_predicted_head(
    name: str, runs: dict[str, Run], checkpoint: Path, predictor_folder: Path
) -> None:
    run = runs[name]
    loaded = ViTForImageClassification.from_pretrained(checkpoint).state_dict()
    expected = hf_paraminit.from_pretrained(
        AutoModelForImageClassification,
        checkpoint,
        config=AutoConfig.from_pretrained(checkpoint, num_labels=7),
        ignore_mismatched_sizes=True,
        init=f"local-dir:{predictor_folder}",
        init_kwargs={"seed": 3},
    )
    head = {"classifier.weight", "classifier.bias"}
    assert set(expected._hf_paraminit.predicted) == head
    ranks = ("0", "1") if "two" in name else ("0",)
    for rank in ranks:
        start = run.weights(f"start_{rank}")
        assert_equal(start, expected.state_dict(), head)
        assert_equal(start, loaded, set(loaded) - head)
    end = run.weights("end_0")
    assert_equal(run.weights(f"end_{ranks[-1]}"), end, set(end))
    assert not torch.equal(end["classifier.weight"], expected.classifier.weight)


# The environment


CHILD = """
import json, os, subprocess, sys
names = ["HF_PARAMINIT_INIT", "HF_PARAMINIT_INIT_KWARGS", "HF_PARAMINIT_SCOPE"]
print(json.dumps({name: os.environ.get(name) for name in names}), flush=True)
code = '''
import hf_paraminit, timm
models = [timm.create_model("test_resnet") for _ in range(2)]
print([model._hf_paraminit.seed if hasattr(model, "_hf_paraminit") else None for model in models])
'''
sys.exit(subprocess.run([sys.executable, "-c", code]).returncode)
"""


@pytest.fixture
def child(tmp_path: Path) -> Path:
    path = tmp_path / "child.py"
    path.write_text(textwrap.dedent(CHILD))
    return path


def test_child_processes_that_import_the_package_follow_the_request(child: Path) -> None:
    words = ["--init", "ghn3", "--init-kwargs", '{"seed": 4}', "--scope", "first", str(child)]
    done = start([*LAUNCHER, *words], child.parent, HF_PARAMINIT_INIT="ghn2")
    exported, models = done.stdout.splitlines()
    assert json.loads(exported) == {
        "HF_PARAMINIT_INIT": "ghn3",
        "HF_PARAMINIT_INIT_KWARGS": '{"seed": 4}',
        "HF_PARAMINIT_SCOPE": "first",
    }
    assert models == "[4, None]"
    assert done.returncode == 0


def test_the_switch_in_the_environment_wins(child: Path) -> None:
    done = start([*LAUNCHER, "--init", "ghn3", str(child)], child.parent, HF_PARAMINIT_DISABLE="1")
    assert done.stdout.splitlines()[1] == "[None, None]"
    assert "HF_PARAMINIT_DISABLE is set" in done.stderr


def test_other_verbs_do_not_follow_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_PARAMINIT_INIT", "no-such-initializer")
    assert main(["graph", "test_resnet", "--output", str(tmp_path / "graph.json")]) == 0
    assert timm.create_model("test_resnet") is not None  # nor does the rest of this process
