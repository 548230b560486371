"""The options of the command line are frozen in cli_surface.json: a new one is a decision, so edit that file for it."""

import argparse
import itertools
import json
import shlex
from pathlib import Path

import pytest

from hf_paraminit.cli.main import build_parser, find_verbs, main

SURFACE = json.loads((Path(__file__).parent / "cli_surface.json").read_text())


def parts_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    return {
        name: part
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for name, part in action.choices.items()
    }


def parser_of(verb: str) -> argparse.ArgumentParser:
    """Parser of a verb, or of a part as in "train ghn3"."""
    words = verb.split()
    parser = build_parser(words)
    for word in words:
        parser = parts_of(parser)[word]
    return parser


def options_of(verb: str) -> list[str]:
    """Positional arguments by their placeholder, options by all their long names; the hidden `--debug` is left out."""
    actions = [
        action
        for action in parser_of(verb)._actions
        if action.help != argparse.SUPPRESS and not isinstance(action, argparse._SubParsersAction)
    ]
    return sorted(itertools.chain.from_iterable(_long_names(action) for action in actions))


def _long_names(action: argparse.Action) -> list[str]:
    """A switch with a negation has two."""
    long_names = [option for option in action.option_strings if option.startswith("--")]
    return long_names or action.option_strings or [action.dest.upper()]


def test_the_verbs_are_the_recorded_ones() -> None:
    assert sorted(find_verbs()) == sorted(verb for verb in SURFACE if " " not in verb)


@pytest.mark.parametrize("verb", [verb for verb in SURFACE if " " not in verb])
def test_the_parts_of_a_verb_are_the_recorded_ones(verb: str) -> None:
    found = [f"{verb} {part}" for part in parts_of(parser_of(verb))]
    assert sorted(found) == sorted(other for other in SURFACE if other.startswith(f"{verb} "))


def test_the_options_before_the_verb() -> None:
    found = [action.option_strings[-1] for action in build_parser([])._actions if action.option_strings]
    assert sorted(found) == ["--debug", "--help", "--version"]


@pytest.mark.parametrize("verb", SURFACE)
def test_the_options_are_the_recorded_ones(verb: str) -> None:
    assert options_of(verb) == SURFACE[verb]


@pytest.mark.parametrize("verb", SURFACE)
def test_help_shows_examples_that_parse(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([*verb.split(), "--help"])
    assert exit_.value.code == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    examples = [line.partition("   ")[0] for line in lines if line.startswith(f"paraminit {verb} ")]
    examples += [line for line in lines if line == f"paraminit {verb}"]
    assert examples
    for example in examples:
        words = shlex.split(example.partition(" > ")[0])[1:]
        arguments = build_parser(words).parse_args(words)
        assert verb in (arguments.verb, f"{arguments.verb} {getattr(arguments, 'part', '')}")
