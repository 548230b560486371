"""`init="learngene-LeTs"` through timm, Transformers and `initialize`."""

import copy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lets_goldens
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import (
    AutoModelForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

import hf_paraminit
from hf_paraminit.errors import CheckpointError, InitializerConfigError, PredictionError, PredictorNotFoundError
from hf_paraminit.initializers import learngene_lets
from hf_paraminit.initializers.learngene_lets import LearngeneLeTs
from hf_paraminit.lets.aux_net import AuxNet
from hf_paraminit.lets.config import LeTsConfig, adjacent_pairs
from hf_paraminit.lets.generator import LeTsGenerator

CONFIG = LeTsConfig(
    embed_dim=32, num_heads=2, depth=4, aux_dim=96, pairs=adjacent_pairs(4, 4), img_size=64, num_classes=5
)
SMALL: dict[str, Any] = {"img_size": 64, "embed_dim": 64, "num_heads": 4, "depth": 6, "num_classes": 5}
EXACT: dict[str, Any] = {"class_token": False, "global_pool": "avg"}
HF = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 6,
    "intermediate_size": 256,
    "image_size": 64,
    "num_labels": 5,
}


@pytest.fixture(autouse=True)
def _clear_cache() -> Iterator[None]:
    yield
    hf_paraminit.clear_cache()


@pytest.fixture(scope="module")
def generator() -> LeTsGenerator:
    """No value is 0 or 1, so that no generated one is by chance what the model had."""
    generator = LeTsGenerator.new(CONFIG, seed=0).requires_grad_(False)
    draw = torch.Generator().manual_seed(0)
    for parameter in generator.parameters():
        parameter.add_(0.02 * torch.randn(parameter.shape, generator=draw))
    return generator


@pytest.fixture(scope="module")
def folder(generator: LeTsGenerator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lets") / "learngene"
    generator.save_pretrained(path)
    return path


def build(**settings: Any) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", **{**SMALL, **settings})


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_kept(model: nn.Module, before: dict[str, Tensor], names: set[str]) -> None:
    assert {name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])} == names


def test_an_exact_target_gets_everything_from_the_fast_construction(folder: Path) -> None:
    model = build(**EXACT, init=f"local-dir:{folder}")
    report = model._hf_paraminit
    assert report.coverage_tensors == report.coverage_elements == 1.0
    assert any("were not drawn" in note for note in report.notes)
    assert any("depth blocks of the layers: 0 1 1 2 2 3" in note for note in report.notes)
    assert {text.partition(", ")[2].partition("32, ")[2] for text in report.predicted.values()} <= {"generated", ""}
    slow = build(**EXACT, init="learngene-LeTs", init_kwargs={"source": str(folder), "fast": False})
    assert all(torch.equal(tensor, slow.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert slow._hf_paraminit.initializer == report.initializer == "learngene-LeTs"
    assert slow._hf_paraminit.predictor == str(folder)


def test_the_aux_nets_size_computes_what_the_aux_net_does(folder: Path, generator: LeTsGenerator) -> None:
    model = build(**EXACT, embed_dim=96, num_heads=6, depth=8, init=f"local-dir:{folder}").eval()
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model(images), AuxNet(generator).eval()(images), rtol=1e-5, atol=1e-6)


def test_tokens_and_their_rows_stay_as_the_model_made_them(generator: LeTsGenerator) -> None:
    model = build(reg_tokens=2, num_classes=7, init_values=1e-5)
    before = state(model)
    report = hf_paraminit.initialize(model, "learngene-LeTs", predictor=generator)
    assert_kept(model, before, {"cls_token", "reg_token", "head.weight", "head.bias"})
    assert set(report.kept) == {"cls_token", "reg_token", "head.weight", "head.bias"}
    assert report.kept["head.bias"] == "the learngene's head has 5 classes, the model's 7"
    assert report.predicted["pos_embed"].endswith("generated, but for 3 rows of tokens")
    assert torch.equal(model.pos_embed[:, :3], before["pos_embed"][:, :3])
    assert not torch.equal(model.pos_embed[:, 3:], before["pos_embed"][:, 3:])
    assert (model.blocks[0].ls1.gamma == 1).all()


def test_rows_of_tokens_that_were_never_drawn_start_small(folder: Path) -> None:
    settings = {"img_size": 224, "depth": 1, "init": f"local-dir:{folder}"}
    model, again = build(**settings), build(**settings)
    rows = model.pos_embed[0, 0]
    assert torch.equal(rows, again.pos_embed[0, 0])
    assert rows.std().item() == pytest.approx(0.02, rel=0.3)


def test_transformers_models_equal_timms(folder: Path) -> None:
    settings = {"init": "lets", "init_kwargs": {"source": str(folder)}}
    with pytest.warns(UserWarning, match="eps 1e-12"):
        vit = AutoModelForImageClassification.from_config(ViTConfig(**HF), **settings).eval()
    twin = build(class_token=True, norm_layer=lambda size, **kw: nn.LayerNorm(size, eps=1e-12, **kw))
    with pytest.warns(UserWarning, match="eps 1e-12"):
        hf_paraminit.initialize(twin, "lets", source=str(folder))
    with torch.no_grad():
        twin.cls_token.copy_(vit.vit.embeddings.cls_token)
        twin.pos_embed.copy_(vit.vit.embeddings.position_embeddings)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(vit(images).logits, twin.eval()(images), rtol=1e-4, atol=1e-5)
    report = vit._hf_paraminit
    assert set(report.kept) == {"vit.embeddings.cls_token"}
    assert any("eps 1e-12" in note for note in report.notes)


def test_deit_of_transformers_keeps_two_rows(folder: Path) -> None:
    config = DeiTConfig(**HF, layer_norm_eps=1e-6)
    model = hf_paraminit.from_config(DeiTForImageClassification, config, init=f"local-dir:{folder}")
    report = model._hf_paraminit
    assert set(report.kept) == {"deit.embeddings.cls_token", "deit.embeddings.distillation_token"}
    assert report.predicted["deit.embeddings.position_embeddings"].endswith("generated, but for 2 rows of tokens")


def test_a_checkpoints_new_head_is_left_to_the_model(folder: Path, tmp_path: Path) -> None:
    """Without its blocks a learngene's head would mean nothing."""
    ViTForImageClassification(ViTConfig(**{**HF, "num_labels": 3})).save_pretrained(tmp_path)
    model = AutoModelForImageClassification.from_pretrained(
        tmp_path, num_labels=5, ignore_mismatched_sizes=True, init=f"local-dir:{folder}"
    )
    assert set(model._hf_paraminit.kept) == {"classifier.weight", "classifier.bias"}
    assert not model._hf_paraminit.predicted


def test_half_precision_gets_rounded_values(generator: LeTsGenerator) -> None:
    model, half = build(**EXACT), build(**EXACT).bfloat16()
    for one in (model, half):
        hf_paraminit.initialize(one, LearngeneLeTs(predictor=generator))
    for name, parameter in half.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name).bfloat16()), name


def test_settings_reach_the_rules(generator: LeTsGenerator) -> None:
    def weight(**settings: Any) -> Tensor:
        model = build(**EXACT)
        hf_paraminit.initialize(model, "learngene-LeTs", predictor=generator, **settings)
        return model.get_parameter("blocks.1.attn.qkv.weight").detach().clone()

    plain = weight()
    assert torch.equal(plain, weight(blocks=[0, 1, 1, 2, 2, 3]))
    lists = {"mapping_layer": [0, 2, 3, 4, 5, 7], "mapping_layer_coeff": [0, 2, 2, 4, 4, 6]}
    assert torch.equal(plain, weight(**lists))
    assert not torch.equal(plain, weight(blocks=[3] * 6))
    drawn = [weight(select="random", seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("settings", [{"blocks": "012"}, {"blocks": [0.5]}, {"mapping_layer": [0]}, {"select": "best"}])
def test_bad_settings_are_refused_before_any_model_is_built(settings: dict[str, Any]) -> None:
    with pytest.raises(InitializerConfigError):
        LearngeneLeTs(**settings)


@pytest.mark.parametrize(
    ("changes", "settings", "word"),
    [
        ({"embed_dim": 16, "num_heads": 1}, {}, "below 32"),
        ({"embed_dim": 128, "num_heads": 8}, {}, "above 96"),
        ({"embed_dim": 60}, {}, "no multiple of 16"),
        ({"num_heads": 2}, {}, "num_heads=4"),
        ({"mlp_ratio": 2}, {}, "hidden channels"),
        ({"qk_norm": True}, {}, "q_norm"),
        ({"num_classes": 6}, {"head": "generate"}, "6 classes"),
        ({}, {"blocks": [0]}, "1 blocks"),
    ],
)
def test_models_that_do_not_fit_stay_as_they_were(
    changes: dict[str, Any], settings: dict[str, Any], word: str, generator: LeTsGenerator
) -> None:
    model = build(**changes)
    before = state(model)
    with pytest.raises(PredictionError, match=word):
        hf_paraminit.initialize(model, "learngene-LeTs", predictor=generator, **settings)
    assert_kept(model, before, set(before))


def test_a_convolutional_network_is_refused(generator: LeTsGenerator) -> None:
    with pytest.raises(PredictionError, match="no vision transformer"):
        timm.create_model("test_resnet", init=LearngeneLeTs(predictor=generator))


def test_without_a_learngene_the_error_names_the_ways_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learngene_lets, "BUILTIN_FOLDER", tmp_path / "nothing")
    ways = r"local-dir:PATH.*hf-hub:org/repo.*paraminit train learngene-LeTs"
    with pytest.raises(PredictorNotFoundError, match=ways):
        build(init="learngene-LeTs")


def test_damaged_and_exchanged_learngenes_are_refused(folder: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copy"
    copied.mkdir()
    for file in folder.iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    other = LeTsGenerator.new(CONFIG, seed=9).state_dict()
    LeTsGenerator.from_state_dict(other, CONFIG.to_dict()).save_pretrained(tmp_path / "other")
    model = build(**EXACT)
    before = state(model)
    for content in ((tmp_path / "other" / "model.safetensors").read_bytes(), b"\0" * 100):
        (copied / "model.safetensors").write_bytes(content)
        with pytest.raises(CheckpointError):
            hf_paraminit.initialize(model, f"local-dir:{copied}")
    assert_kept(model, before, set(before))


def test_a_published_file_is_a_source(tmp_path: Path) -> None:
    """At the published head size the sizes are read off the file; here of a narrower and shallower twin."""
    config = LeTsConfig(embed_dim=64, num_heads=1, depth=2, aux_dim=128, pairs=((0, 1), (0, 1)), img_size=32)
    generator = LeTsGenerator.new(config, seed=0)
    torch.save({"model": generator.to_published(), "epoch": 299}, tmp_path / "checkpoint.pth")
    model = build(**EXACT, init="lets", init_kwargs={"source": str(tmp_path / "checkpoint.pth")}, num_heads=1)
    expected = generator.materialize(64, [0, 0, 0, 1, 1, 1])["blocks.4.mlp.fc2.weight"]
    assert torch.equal(model.blocks[4].mlp.fc2.weight, expected)


def test_a_recorded_des_net_comes_out_of_create_model() -> None:
    recorded, des = lets_goldens.tensors("case_a/io"), lets_goldens.meta("case_a")["des"]["L9_d32_cls6"]
    generator = lets_goldens.generator("case_a").float()
    lists = {key: des[key] for key in ("mapping_layer", "mapping_layer_coeff")}
    model = timm.create_model(
        "deit_tiny_patch16_224",
        **EXACT,
        img_size=64,
        embed_dim=32,
        num_heads=4,
        depth=9,
        num_classes=6,
        init=LearngeneLeTs(predictor=generator, head="truncate", **lists),
    ).eval()
    torch.testing.assert_close(model(recorded["x"]), recorded["des_L9_d32_cls6_logits"], rtol=1e-4, atol=1e-4)


def test_a_given_learngene_is_never_changed(generator: LeTsGenerator) -> None:
    before = copy.deepcopy(generator.state_dict())
    model = build(**EXACT)
    hf_paraminit.initialize(model, "lets", predictor=generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in generator.state_dict().items())


def test_a_learngene_on_the_hub_is_a_source(generator: LeTsGenerator, hub: Any, tmp_path: Path) -> None:
    generator.save_pretrained(tmp_path / "learngene")
    code = f"""
import timm, hf_paraminit
from hf_paraminit.lets.generator import LeTsGenerator
LeTsGenerator.from_pretrained({str(tmp_path / "learngene")!r}).push_to_hub("me/learngene", token="hf_x")
model = timm.create_model("vit_tiny_patch16_224", **{SMALL!r}, init="hf-hub:me/learngene")
print(model._hf_paraminit.predictor, len(model._hf_paraminit.predicted))
"""
    done = hub.run(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-2:] == ["me/learngene", "79"]


def test_listing_initializers_does_not_import_timm() -> None:
    code = "import sys, hf_paraminit; hf_paraminit.list_initializers(); print('timm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_functional_calls_take_the_values(generator: LeTsGenerator) -> None:
    """The pure half: values without writing, as `predict` promises."""
    model = build(**EXACT)
    before = state(model)
    names = [name for name, _ in model.named_parameters()]
    values = LearngeneLeTs(predictor=generator).predict_isolated(model, names)
    assert list(values) == names
    assert functional_call(model, values, (torch.zeros(1, 3, 64, 64),)).shape == (1, 5)
    assert_kept(model, before, set(before))


def test_a_width_without_heads_gets_the_learngenes_heads(folder: Path) -> None:
    """As in the issue's own line: timm's default of 3 heads (12 of deit_base) would not divide the width."""
    sizes = {"img_size": 64, "embed_dim": 80, "depth": 3}
    for name in ("vit_tiny_patch16_224", "deit_tiny_patch16_224", "deit_base_distilled_patch16_224"):
        model = timm.create_model(name, **sizes, init=f"local-dir:{folder}")
        report = model._hf_paraminit
        assert model.blocks[0].attn.num_heads == 5
        assert "built with num_heads=5, which was not given" in report.notes
        assert {text.split(".")[0] for text in report.predicted} >= {"patch_embed", "pos_embed", "blocks"}
    rules = timm.create_model("vit_tiny_patch16_224", **sizes, init={"blocks.*": f"local-dir:{folder}", "*": "he"})
    assert rules.blocks[0].attn.num_heads == 5
    settings = {"of": {"init": "learngene-LeTs", "source": str(folder)}}
    control = timm.create_model("vit_tiny_patch16_224", **sizes, init="control:permuted", init_kwargs=settings)
    assert control.blocks[0].attn.num_heads == 5


def test_heads_that_were_given_are_left_as_they_are(folder: Path) -> None:
    with pytest.raises(PredictionError, match="it has 4 heads of 20 channels, expected num_heads=5 for width 80"):
        timm.create_model("vit_tiny_patch16_224", embed_dim=80, num_heads=4, depth=1, init=f"local-dir:{folder}")
    plain = timm.create_model("vit_tiny_patch16_224", img_size=64, embed_dim=96, depth=1, init="he")
    assert plain.blocks[0].attn.num_heads == 3, "other initializers ask for nothing"
    initializer = LearngeneLeTs(source=str(folder))
    deit = "timm.models.deit"
    assert initializer.host_arguments(deit, {"embed_dim": 96}) == {"num_heads": 6}
    assert initializer.host_arguments(deit, {"embed_dim": 96, "pretrained": True}) == {}, "its weights have their heads"
    assert initializer.host_arguments(deit, {"depth": 3}) == {}
    assert initializer.host_arguments("timm.models.swin_transformer", {"embed_dim": 96}) == {}


def test_a_width_that_no_heads_fit_is_refused_before_the_model_is_built(folder: Path) -> None:
    with pytest.raises(PredictionError, match=r"embed_dim=72, so it was not built.*16 channels"):
        timm.create_model("vit_tiny_patch16_224", embed_dim=72, init=f"local-dir:{folder}")
    with pytest.raises(PredictionError, match=r"width 448 is above 96; extend='cycle'"):
        timm.create_model("deit_base_patch16_224", depth=1, embed_dim=448, init=f"local-dir:{folder}")
    with pytest.warns(UserWarning, match="wider than the Aux-Net"):
        timm.create_model(
            "deit_base_patch16_224", depth=1, embed_dim=448, init=f"local-dir:{folder}", init_kwargs={"extend": "cycle"}
        )
