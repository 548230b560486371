import timm
import torch

import hf_paraminit  # noqa: F401  (init= of timm)
from hf_paraminit.initializers.learngene_lets import BUILTIN_FOLDER
from hf_paraminit.lets.generator import LeTsGenerator

MAX_BYTES = 12_000_000


def test_it_ships_with_its_card_and_is_small() -> None:
    assert sum(file.stat().st_size for file in BUILTIN_FOLDER.iterdir()) < MAX_BYTES
    card = (BUILTIN_FOLDER / "README.md").read_text()
    assert "paraminit train learngene-LeTs" in card
    assert "CPU-minutes" in card
    assert LeTsGenerator.from_pretrained(BUILTIN_FOLDER).metadata["training"]["data"] == "synthetic"


def test_usual_names_work_offline() -> None:
    images = torch.zeros(1, 3, 224, 224)
    for name, settings in (("deit_tiny_patch16_224", {}), ("vit_tiny_patch16_224", {"embed_dim": 128, "num_heads": 2})):
        model = timm.create_model(name, depth=2, init="learngene-LeTs", **settings).eval()
        report = model._hf_paraminit
        assert set(report.kept) == {"head.weight", "head.bias"}
        assert model(images).isfinite().all()


def test_depth_two_and_more_take_the_same_first_layer() -> None:
    shallow, deep = (timm.create_model("vit_tiny_patch16_224", depth=depth, init="learngene-LeTs") for depth in (4, 8))
    assert torch.equal(shallow.blocks[0].attn.qkv.weight, deep.blocks[1].attn.qkv.weight)
