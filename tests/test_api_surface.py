"""The public names, against a checked-in list: removing or adding one is a decision."""

import ast
from pathlib import Path

import hf_paraminit

STORED = Path(__file__).parent / "golden" / "api" / "public_names.txt"


def test_public_names_are_the_stored_ones() -> None:
    assert sorted(hf_paraminit.__all__) == STORED.read_text().split()


def test_every_public_name_can_be_imported_and_is_documented() -> None:
    for name in hf_paraminit.__all__:
        value = getattr(hf_paraminit, name)
        assert name in dir(hf_paraminit)
        assert name == "__version__" or value.__doc__, name


def test_type_checkers_see_the_same_names() -> None:
    """The imports under TYPE_CHECKING are the lazy table, spelled out."""
    tree = ast.parse(Path(hf_paraminit.__file__).read_text())
    block = next(
        node for node in tree.body if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
    )
    seen = {
        (node.module, alias.name) for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    table = {(f"hf_paraminit.{module}", name) for module, names in hf_paraminit._HOMES.items() for name in names}
    assert seen == table


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(hf_paraminit, "no_such_name")
