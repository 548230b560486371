"""Which room of the package may import which."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "hf_paraminit"
METHOD_ROOMS = {"ghn", "lets", "hyperrep", "asvit"}
ROOMS = {
    "cli": {
        "deepnets",
        "evaluation",
        "graphs",
        "hooks",
        "initializers",
        "io",
        "plots",
        "structure",
        "training",
        *METHOD_ROOMS,
    },
    "evaluation": {"graphs", "initializers", "structure", "training", "io"},
    "hooks": {"initializers", "graphs"},
    "initializers": {"graphs", "resizing", "structure", "training", "io", *METHOD_ROOMS - {"asvit"}},
    "structure": {"graphs"},
    "resizing": set(),
    "ghn": {"graphs", "training", "io"},
    "lets": {"resizing", "structure", "training", "io"},
    "hyperrep": {"training", "io"},
    "asvit": {"initializers", "training", "io"},  # scores start from initializers, never is one
    "deepnets": {"graphs", "training", "io"},
    "training": {"io"},
    "plots": set(),
    "graphs": set(),
    "io": set(),
}
# Hosts are imported where they are used, and nowhere else.
HOST_HOMES = {
    "timm": {
        "hooks/timm.py",
        "deepnets/families.py",
        "evaluation/hosts.py",
        "evaluation/small_mvit.py",
        "training/augmentation.py",
        "training/classifier.py",
        "training/stored_images.py",
        "asvit/model.py",
        "asvit/tokenization.py",
        "lets/aux_net.py",
        "lets/des_net.py",
        "lets/images.py",
        "lets/train.py",
    },
    "transformers": {"evaluation/pixel_bert.py", "hooks/transformers.py", "asvit/trainer_callback.py"},
}
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def imported_modules(node: ast.AST) -> Iterator[str]:
    for child in ast.walk(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            yield from (f"{child.module}.{alias.name}" for alias in child.names)


def tree_of(file: str) -> ast.Module:
    return ast.parse((PACKAGE / file).read_text())


def test_every_folder_is_a_known_room() -> None:
    assert {file.split("/")[0] for file in FILES if "/" in file} == set(ROOMS)


@pytest.mark.parametrize("file", [file for file in FILES if "/" in file])
def test_rooms_import_only_what_stands_to_their_right(file: str) -> None:
    room = file.split("/")[0]
    for module in imported_modules(tree_of(file)):
        parts = module.split(".")
        if parts[0] == "hf_paraminit" and parts[1] not in {"__version__", "errors", "seeds", room}:
            assert parts[1] in ROOMS[room], f"{file} imports {module}"


@pytest.mark.parametrize("file", FILES)
def test_hosts_are_imported_only_where_they_are_used(file: str) -> None:
    for module in imported_modules(tree_of(file)):
        homes = HOST_HOMES.get(module.split(".")[0])
        assert homes is None or file in homes or file.startswith("cli/"), f"{file} imports {module}"


@pytest.mark.parametrize("file", FILES)
def test_no_import_of_our_own_hides_in_a_function(file: str) -> None:
    """Such an import would be the sign of a circle. The command line may: it loads a verb when it is chosen."""
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.FunctionDef) and not file.startswith("cli/"):
            own = [module for module in imported_modules(node) if module.startswith("hf_paraminit")]
            assert not own, f"{file}: {node.name} imports {own}"


def test_training_never_sees_the_evaluation_data() -> None:
    """scikit-learn's digits are for reporting only: nothing that trains a predictor may read them."""
    trainers = [file for file in FILES if file.split("/")[0] in {"training", "deepnets", *METHOD_ROOMS}]
    assert len(trainers) > 10
    for file in trainers:
        assert not any(module.startswith("sklearn") for module in imported_modules(tree_of(file))), file
        assert "load_digits" not in (PACKAGE / file).read_text(), file
