"""The name `ghn3` and its variants."""

import pytest

import hf_paraminit
from hf_paraminit.errors import UnknownInitializerError
from hf_paraminit.ghn.config import PUBLISHED_CONFIGS
from hf_paraminit.initializers.ghn3 import GHN3
from hf_paraminit.initializers.registry import create


@pytest.mark.parametrize("text", ["ghn3", "GHN3", "ghn-3", "ghn_3", "ghn3:builtin", "ghn3:Builtin"])
def test_spellings_of_the_default(text: str) -> None:
    initializer = create(text)
    assert isinstance(initializer, GHN3)
    assert initializer.identifier == "ghn3:builtin"


def test_published_variants_name_their_files() -> None:
    assert GHN3.variants == ("builtin", "builtin-values", *PUBLISHED_CONFIGS)
    for variant in PUBLISHED_CONFIGS:
        file = GHN3.files[variant]
        assert (file.repository, file.filename) == ("SamsungSAILMontreal/ghn3", f"ghn3{variant}.pt")


def test_unknown_variant_suggests_the_nearest() -> None:
    with pytest.raises(UnknownInitializerError, match="xlm16"):
        create("ghn3:xlm8")


def test_card() -> None:
    card = hf_paraminit.initializer_info("ghn3")
    assert card.paper == "2303.04143"
    assert card.variants == GHN3.variants
    assert "ghn3" in hf_paraminit.list_initializers("ghn*")
