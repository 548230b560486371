"""The options of the command line are frozen in cli_surface.json: a new one is a decision, so edit that file for it."""

import argparse
import json
import shlex
from pathlib import Path

import pytest

from hf_paraminit.cli.main import build_parser, find_verbs, main

SURFACE = json.loads((Path(__file__).parent / "cli_surface.json").read_text())


def options_of(verb: str) -> list[str]:
    """Positional arguments by their placeholder, options by their long names; the hidden `--debug` is left out."""
    (subparsers,) = (a for a in build_parser([verb])._actions if isinstance(a, argparse._SubParsersAction))
    actions = [a for a in subparsers.choices[verb]._actions if a.help != argparse.SUPPRESS]
    return sorted(action.option_strings[-1] if action.option_strings else action.dest.upper() for action in actions)


def test_the_verbs_are_the_recorded_ones() -> None:
    assert sorted(find_verbs()) == sorted(SURFACE)


def test_the_options_before_the_verb() -> None:
    found = [action.option_strings[-1] for action in build_parser([])._actions if action.option_strings]
    assert sorted(found) == ["--debug", "--help", "--version"]


@pytest.mark.parametrize("verb", SURFACE)
def test_the_options_are_the_recorded_ones(verb: str) -> None:
    assert options_of(verb) == SURFACE[verb]


@pytest.mark.parametrize("verb", SURFACE)
def test_help_shows_examples_that_parse(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([verb, "--help"])
    assert exit_.value.code == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    examples = [line.partition("   ")[0] for line in lines if line.startswith(f"paraminit {verb} ")]
    examples += [line for line in lines if line == f"paraminit {verb}"]
    assert examples
    for example in examples:
        words = shlex.split(example.partition(" > ")[0])[1:]
        assert build_parser(words).parse_args(words).verb == verb
