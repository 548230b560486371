import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

import hf_paraminit
import hf_paraminit.cli as verb_package
from hf_paraminit.cli import list as list_verb
from hf_paraminit.cli.main import find_verbs, main
from hf_paraminit.errors import PredictionError

VERB = '''
"""Greet somebody.

More about it.
"""
from hf_paraminit.cli.arguments import verb_parser

def add_parser(subparsers):
    verb_parser(subparsers, "say-hello", __doc__, examples="paraminit say-hello Ann").add_argument("name")

def run(arguments):
    print(f"hello {arguments.name}")
'''


def run_process(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hf_paraminit", *words], capture_output=True, text=True, check=False, **options
    )


def test_the_module_runs_as_a_process_and_lists_its_verbs() -> None:
    done = run_process("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for verb in ("convert", "graph", "info", "init", "list"):
        assert f"\n    {verb} " in done.stdout


def test_help_imports_no_host() -> None:
    code = (
        "import sys\nfrom hf_paraminit.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print([n for n in ('timm', 'huggingface_hub', 'networkx', 'matplotlib', 'scipy') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"hf_paraminit {hf_paraminit.__version__}\n"


@pytest.mark.parametrize(
    "words", [[], ["nonsense"], ["list", "--nonsense"], ["info"], ["--nonsense"], ["list", "--js"]]
)
def test_wrong_arguments_exit_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(words)
    assert exit_.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: paraminit")


def test_a_failure_is_one_line_without_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: object) -> None:
        raise PredictionError("first line\n  second line")

    monkeypatch.setattr(list_verb, "run", fail)
    assert main(["list"]) == 1
    assert capsys.readouterr() == ("", "paraminit: error: first line second line\n")


@pytest.mark.parametrize("words", [["--debug", "info", "nonsense"], ["info", "nonsense", "--debug"]])
def test_debug_adds_the_traceback(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Traceback")
    assert err.splitlines()[-1].startswith("paraminit: error: There is no initializer 'nonsense'.")


def test_a_bug_is_not_disguised_as_an_expected_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(arguments: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(list_verb, "run", fail)
    with pytest.raises(ZeroDivisionError):
        main(["list"])


def test_an_interrupt_is_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(list_verb, "run", interrupt)
    assert main(["list"]) == 130
    assert capsys.readouterr() == ("", "")


def test_a_reader_that_goes_away_is_no_error() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "hf_paraminit", "list"], stdout=write_end, stderr=subprocess.PIPE, check=False
        )
    finally:
        os.close(write_end)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_verb_is_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "say_hello.py").write_text(VERB)
    (tmp_path / "shared_part.py").write_text("raise RuntimeError('only imported by verbs that need it')")
    monkeypatch.setattr(verb_package, "__path__", [*verb_package.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "hf_paraminit.cli.say_hello", raising=False)
    assert find_verbs()["say-hello"] == "Greet somebody."
    assert "shared-part" not in find_verbs()
    assert main(["say-hello", "Ann"]) == 0
    assert capsys.readouterr().out == "hello Ann\n"


def test_a_verb_that_was_launched_leaves_its_process_group() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert main(["list"]) == 0
        assert not dist.is_initialized()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
