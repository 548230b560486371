"""The name `ghn3` and its variants."""

import pytest
import timm
import torch

import hf_paraminit
from hf_paraminit.errors import UnknownInitializerError
from hf_paraminit.evaluation.batchnorm import normalize_inputs
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


@pytest.mark.parametrize("name", ["dla46_c", "mobilenetv3_small_050"])
def test_batch_norms_of_networks_never_taught_get_inputs_of_about_unit_variance(name: str) -> None:
    """What is learned shows: without any image, convolutions get the size that a calibration would give them."""
    images = torch.rand(16, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    medians = {}
    for init in (None, "ghn3"):
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=10, init=init)
        factors = torch.tensor(list(normalize_inputs(model, images).values()))
        medians[init] = factors.log().abs().median().item()  # 0 where no factor is needed
    assert medians["ghn3"] < 0.2
    assert medians["ghn3"] < medians[None] / 2
