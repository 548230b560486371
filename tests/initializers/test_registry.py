import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from name_hash import NameHash, name_hash_values
from torch import Tensor, nn

from hf_paraminit.errors import DuplicateInitializerError, InitializerConfigError, UnknownInitializerError
from hf_paraminit.initializers import registry
from hf_paraminit.initializers.base import FunctionInitializer, Initializer, InitializerConfig
from hf_paraminit.initializers.initialize import initialize
from hf_paraminit.initializers.registry import create, initializer_info, list_initializers, register_initializer


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    registry.list_initializers()
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))


def define(name: str = "Test-Slices", **card: object) -> type[Initializer]:
    @register_initializer(name, **card)
    class Slices(NameHash):
        """Slices of something larger.

        Not in the summary.
        """

        variants = ("One", "two")

        @dataclass(frozen=True, kw_only=True, slots=True)
        class Config(InitializerConfig):
            variant: str = "One"
            donor: str = "none"

    return Slices


def test_decorated_class_is_found_in_any_spelling() -> None:
    slices = define(paper="2311.18823", aliases=("test_cuts",))
    for spelling in ("Test-Slices", "test_slices", "TEST-SLICES", "Test_Cuts", " test-slices "):
        assert type(create(spelling)) is slices
    assert slices.name == "Test-Slices"
    assert create("test-slices:TWO", donor="x").config == slices.Config(variant="two", donor="x")
    assert create("test-slices", variant="two").identifier == "Test-Slices:two"


def test_card() -> None:
    slices = define(paper="2311.18823", aliases=("test-cuts",))
    card = initializer_info("test_cuts:two")
    assert (card.name, card.summary, card.paper) == ("Test-Slices", "Slices of something larger.", "2311.18823")
    assert (card.aliases, card.variants, card.module) == (("test-cuts",), ("One", "two"), slices.__module__)
    assert card.settings == ("seed", "device", "variant", "donor")
    with pytest.raises(AttributeError):
        card.name = "other"


def test_card_of_a_function_names_its_settings() -> None:
    @register_initializer("test-function-settings")
    def halves(model: nn.Module, names: list[str], scale: float = 1.0, *, seed: int = 0, **rest: int) -> dict:
        return {}

    assert initializer_info("test-function-settings").settings == ("seed", "device", "scale")


def test_listing() -> None:
    define()
    define("test-hidden", listed=False)
    assert list_initializers("test*") == ["Test-Slices"]
    assert list_initializers("TEST_s*") == ["Test-Slices"]
    assert "Test-Slices" in list_initializers()
    assert list_initializers("zzz*") == []
    assert create("test-hidden").name == "test-hidden"


def test_duplicates_are_refused_also_against_aliases() -> None:
    define(aliases=("test-cuts",))

    def other(model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
        return {}

    for taken in ("test_slices", "TEST-CUTS"):
        with pytest.raises(DuplicateInitializerError, match="already registered as 'Test-Slices'"):
            register_initializer(taken)(other)
        with pytest.raises(DuplicateInitializerError):
            register_initializer("test-new", aliases=(taken,))(other)
    assert list_initializers("test*") == ["Test-Slices"]


def test_running_the_same_definition_again_replaces_it() -> None:
    first = define(aliases=("test-cuts",))
    second = define(aliases=("test-parts",))
    assert first is not second
    assert type(create("test-parts")) is second
    with pytest.raises(UnknownInitializerError):
        create("test-cuts")


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a=b", "org/x", "hf_hub", "Local-Dir"])
def test_names_that_could_not_be_written_are_refused(name: str) -> None:
    with pytest.raises(InitializerConfigError, match="cannot be an initializer's name"):
        register_initializer(name)


def test_unknown_names_and_variants_suggest_the_nearest() -> None:
    define()
    with pytest.raises(
        UnknownInitializerError, match=r"There is no initializer 'test-slcies'. Did you mean 'Test-Slices'"
    ):
        create("test-slcies")
    with pytest.raises(ValueError, match=r"Test-Slices has no variant 'tow'; it has One, two. Did you mean 'two'"):
        create("test-slices:tow")
    register_initializer("test-plain")(name_hash_values)
    with pytest.raises(UnknownInitializerError, match="test-plain has no variants"):
        create("test-plain:big")
    with pytest.raises(InitializerConfigError, match="contradict"):
        create("test-slices:two", variant="One")


@pytest.mark.parametrize("module", ["base", "report", "registry", "initialize"])
def test_infrastructure_files_are_no_initializers(module: str) -> None:
    assert module not in list_initializers()
    with pytest.raises(UnknownInitializerError):
        create(module)


@pytest.mark.parametrize("location", ["org/repo", "./folder", "~/x.safetensors", "C:\\models", "/abs/path"])
def test_bare_locations_are_told_their_prefix(location: str) -> None:
    with pytest.raises(UnknownInitializerError, match=r"'hf-hub:.* or 'local-dir:"):
        create(location)


@pytest.mark.parametrize(
    "source", ["hf-hub:", "hf-hub:repo", "hf-hub:org/repo@", "hf-hub:a b/c", "local-dir:", "local-dir: "]
)
def test_malformed_sources_are_refused(source: str) -> None:
    with pytest.raises(UnknownInitializerError):
        create(source)


@pytest.mark.parametrize(
    ("init", "source"),
    [
        ("hf-hub:org/my-ghn@v1.2", "hf-hub:org/my-ghn@v1.2"),
        ("HF_hub:Org/Repo", "hf-hub:Org/Repo"),
        ("local-dir:/a/B c", "local-dir:/a/B c"),
    ],
)
def test_sources_are_handed_to_the_predictor_initializer(
    init: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Predictor(NameHash):
        @dataclass(frozen=True, kw_only=True, slots=True)
        class Config(InitializerConfig):
            source: str

    card = registry.InitializerCard(name="predictor", summary="", paper=None, aliases=(), variants=(), module="m")
    monkeypatch.setitem(registry._entries, "predictor", registry._Entry(card=card, registered=Predictor, listed=False))
    assert create(init, seed=2).config == Predictor.Config(source=source, seed=2)


def test_objects_classes_and_functions() -> None:
    initializer = NameHash(seed=1)
    assert create(initializer) is initializer
    assert create(initializer, seed=2).config.seed == 2
    assert create(NameHash, seed=3).config.seed == 3
    assert isinstance(create(name_hash_values), FunctionInitializer)
    with pytest.raises(InitializerConfigError, match="does not take 'sede'"):
        create(initializer, sede=1)
    for nonsense in (3, ["ghn3"], b"ghn3"):
        with pytest.raises(UnknownInitializerError, match="init must be a name"):
            create(nonsense)


def test_a_function_can_be_registered() -> None:
    @register_initializer("test-constant")
    def constant(model: nn.Module, names: Sequence[str], value: float = 1.0) -> dict[str, Tensor]:
        """One number everywhere."""
        return {name: torch.full_like(parameter, value) for name, parameter in model.named_parameters()}

    model = nn.Linear(2, 2)
    report = initialize(model, "test_constant", value=3.0)
    assert report.initializer == "test-constant"
    assert initializer_info("test-constant").summary == "One number everywhere."
    assert torch.equal(model.bias, torch.full((2,), 3.0))


def write_distribution(folder: Path, name: str, module: str, entry_points: str) -> None:
    (folder / f"{name}.py").write_text(textwrap.dedent(module))
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[hf_paraminit.initializers]\n{entry_points}\n")


def test_entry_points_of_other_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_distribution(
        tmp_path,
        "third_party_good",
        """
        import torch
        from hf_paraminit.initializers.base import Initializer
        from hf_paraminit.initializers.registry import register_initializer

        class Plain(Initializer):
            "Ones."
            def predict(self, target, names):
                return {name: torch.ones(target.get_parameter(name).shape) for name in names}

        @register_initializer("third-decorated", summary="by decorator")
        class Decorated(Plain):
            pass
        """,
        "Third-Plain = third_party_good:Plain\nthird-decorated = third_party_good:Decorated",
    )
    write_distribution(tmp_path, "third_party_bad", "raise OSError('no licence')", "third-broken = third_party_bad:X")
    monkeypatch.syspath_prepend(str(tmp_path))

    assert list_initializers("third*") == ["third-broken", "third-decorated", "Third-Plain"]
    assert "third_party_good" not in sys.modules  # listing loads nothing
    model = nn.Linear(2, 2)
    assert initialize(model, "third_plain").initializer == "Third-Plain"
    assert torch.equal(model.weight, torch.ones(2, 2))
    assert "third_party_bad" not in sys.modules
    assert initializer_info("third-decorated").summary == "by decorator"
    with pytest.raises(UnknownInitializerError, match=r"announced as third_party_bad:X.*OSError: no licence"):
        create("third-broken")
    assert create("third-plain").name == "Third-Plain"


def test_a_name_announced_twice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("third_a", "third_b"):
        write_distribution(tmp_path, name, "def f(model, names): return {}", f"third-twice = {name}:f")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        DuplicateInitializerError, match="Several packages announce 'third-twice': third_a:f, third_b:f"
    ):
        create("third-twice")


def test_naming_an_initializer_opens_no_connection() -> None:
    code = """
    import socket
    def refuse(*args, **kwargs): raise AssertionError("network")
    socket.socket.connect = refuse
    import hf_paraminit
    from hf_paraminit.initializers.registry import create
    from hf_paraminit.errors import UnknownInitializerError
    for init in ("no-such-thing", "org/repo", "hf-hub:x"):
        try:
            create(init)
        except UnknownInitializerError:
            continue
        raise SystemExit(init)
    """
    root = Path(registry.__file__).parents[2]
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, cwd=root)
