"""What the README shows is what works."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import hf_paraminit
from hf_paraminit.cli.main import find_verbs

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [line for line in README.splitlines() if line.startswith("python3.11 -m venv")]


def test_there_are_two_set_up_commands_and_two_python_blocks() -> None:
    assert len(COMMANDS) == 2
    assert len(PYTHON_BLOCKS) == 2


@pytest.mark.parametrize("block", PYTHON_BLOCKS, ids=["opening", "quick start"])
def test_python_blocks_run(block: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_verb_and_initializer_is_described() -> None:
    for name in [*find_verbs(), *hf_paraminit.list_initializers()]:
        assert re.search(rf"[`\"]{re.escape(name)}[`\":]", README), name


def test_every_linked_file_exists() -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
