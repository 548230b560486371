"""The As-ViT model: recorded outputs, and what timm's own tests ask of a model."""

import subprocess
import sys
from collections.abc import Callable

import asvit_goldens
import pytest
import timm
import torch
from timm.models import group_parameters
from torch import nn

from hf_paraminit.asvit.architecture import SMALL, Architecture
from hf_paraminit.asvit.checkpoint import published_names
from hf_paraminit.asvit.errors import ArchitectureError
from hf_paraminit.asvit.model import AsViT, checkpoint_filter_fn

TINY = "6,2,2,1|3,2,3,1|4,2,2,2|2,1,2,1|8,8"
NAMES = ("asvit", "asvit_base", "asvit_large", "asvit_seed", "asvit_small")


def tiny(**kwargs) -> AsViT:
    return timm.create_model("asvit", **{"arch": TINY, "img_size": 64, "num_classes": 7, **kwargs})


def with_normal_weights(model: nn.Module) -> nn.Module:
    """Weights large enough that every part shows in the output."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("case", asvit_goldens.CASES)
def test_recorded_outputs(case: str) -> None:
    record, expected = asvit_goldens.read(case), asvit_goldens.tensors(case)
    model = asvit_goldens.network(record)
    names = [[name, list(value.shape)] for name, value in published_names(model.state_dict()).items()]
    assert names == record["keys"]
    images = asvit_goldens.images(asvit_goldens.LOGIT_INPUT, 2, record["img_size"])
    stages = []
    for stage in model.layers:
        stage.register_forward_hook(lambda _module, _inputs, output: stages.append(output.flatten(1, 2)))
    with torch.no_grad():
        torch.testing.assert_close(model(images), expected["logits"], rtol=0, atol=1e-5)
        for i, found in enumerate(stages):
            kept = found[:, :: max(1, found.shape[1] // 8)]
            torch.testing.assert_close(kept, expected[f"stage{i}"], rtol=1e-5, atol=1e-5)
        embedded = model.patch_embed(images).flatten(1, 2)
        kept = embedded[:, :: max(1, embedded.shape[1] // 16)]
        torch.testing.assert_close(kept, expected["embed"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.forward_features(images).mean(1), expected["feat_norm"], rtol=0, atol=1e-5)
        torch.testing.assert_close(model.forward_pooled(images), expected["feat_raw"], rtol=0, atol=1e-5)
        torch.testing.assert_close(model.double()(images.double()), expected["logits_f64"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_registered_sizes(name: str) -> None:
    assert timm.is_model(name)
    with torch.device("meta"):
        model = timm.create_model(name)
    arch = Architecture.parse(model.arch)
    pos_embed = 224 if name in ("asvit_small", "asvit_base", "asvit_large") else None
    assert sum(p.numel() for p in model.parameters()) == arch.num_params(pos_embed_img_size=pos_embed)
    assert model.default_cfg["architecture"] == name


def test_names_appear_with_timm_and_not_when_disabled() -> None:
    code = "import {}, timm; print(timm.list_models('asvit*'))"
    for modules, disabled, expected in (
        ("hf_paraminit", "0", sorted(NAMES)),
        ("timm, hf_paraminit", "0", sorted(NAMES)),
        ("hf_paraminit", "1", []),
    ):
        environment = {"HF_PARAMINIT_DISABLE": disabled, "PATH": "", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", code.format(modules)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == str(expected)


def test_forward_backward_reaches_every_parameter() -> None:
    model = tiny(pos_embed=True).train()
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_features_and_head_make_the_output() -> None:
    model = with_normal_weights(tiny()).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        tokens = model.forward_features(images)
        assert tokens.shape == (2, 4, model.num_features)
        torch.testing.assert_close(model.forward_head(tokens), model(images))
        pre_logits = model.forward_head(tokens, pre_logits=True)
        assert pre_logits.shape == (2, model.head_hidden_size)
        torch.testing.assert_close(model.get_classifier()(pre_logits), model(images))
        model.reset_classifier(0)
        torch.testing.assert_close(model(images), pre_logits)
        model.reset_classifier(0, "")
        assert model(images).shape == (2, 4, model.num_features)
        model.reset_classifier(5, "avg")
        assert model(images).shape == (2, 5)
    assert model.default_cfg["classifier"] == "head"
    assert f"{model.default_cfg['first_conv']}.weight" in model.state_dict()
    with pytest.raises(ArchitectureError, match="global_pool"):
        model.reset_classifier(5, "token")


def test_intermediates_are_tapped_before_merging() -> None:
    model = with_normal_weights(tiny()).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        tokens, features = model.forward_intermediates(images)
        torch.testing.assert_close(tokens, model.forward_features(images))
        assert [tuple(f.shape) for f in features] == [(1, 8, 16, 16), (1, 16, 8, 8), (1, 32, 4, 4), (1, 64, 2, 2)]
        (last,) = model.forward_intermediates(images, 1, norm=True, intermediates_only=True, output_fmt="NHWC")
        torch.testing.assert_close(last.flatten(1, 2), tokens)
        first = model.layers[0].blocks(model.patch_embed(images)).permute(0, 3, 1, 2)
        torch.testing.assert_close(features[0], first)
        early = model.forward_intermediates(images, [1], stop_early=True, intermediates_only=True)
        torch.testing.assert_close(early[0], features[1])
        body = tiny(features_only=True, out_indices=(1, 3)).eval()
        assert body.feature_info.channels() == [16, 64]
        assert body.feature_info.reduction() == [8, 32]
        assert [f.shape[1] for f in body(images)] == [16, 64]
        assert model.prune_intermediate_layers([0]) == [0]
        pruned = model.forward_intermediates(images, [0], intermediates_only=True)
        torch.testing.assert_close(pruned[0], features[0])


def test_script_save_and_load(tmp_path) -> None:
    model = with_normal_weights(tiny(pos_embed=True)).eval()
    images = torch.randn(1, 3, 64, 64)
    other = tiny(pos_embed=True).eval()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other.load_state_dict(torch.load(tmp_path / "model.pt"))
    exported = torch.export.export(model, (images,)).module()
    with torch.no_grad():
        expected = model(images)
        torch.testing.assert_close(other(images), expected, rtol=0, atol=0)
        torch.testing.assert_close(exported(images), expected)
        for stage in other.layers:
            for block in stage.blocks:
                block.attn.fused_attn = False
        torch.testing.assert_close(other(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_torchscript(script: Callable[[nn.Module], nn.Module]) -> None:
    model = with_normal_weights(tiny(pos_embed=True)).eval()
    images = torch.randn(1, 3, 80, 52)
    with torch.no_grad():
        torch.testing.assert_close(script(model)(images), model(images))


def test_gradient_checkpointing_changes_nothing() -> None:
    images = torch.randn(2, 3, 64, 64)
    model = tiny(drop_path_rate=0.0).train()
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(images).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(*gradients)


def test_parameter_groups_follow_depth() -> None:
    model = tiny(pos_embed=True)
    groups = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    depth_of = dict(groups)
    order = ["absolute_pos_embed", "layers.0.blocks.0.norm1.weight", "layers.0.downsample.norm.weight"]
    order += ["layers.2.blocks.1.norm1.weight", "layers.3.blocks.0.norm1.weight", "norm.weight", "head.weight"]
    assert [depth_of[name] for name in order] == sorted(depth_of[name] for name in order)
    assert len({depth_of[name] for name in order[:5]}) == 5
    assert set(depth_of) == dict(model.named_parameters()).keys()
    assert model.no_weight_decay() <= set(depth_of)


@pytest.mark.parametrize("size", [(64, 96), (60, 45), (33, 37), (4, 4)])
def test_any_image_size(size: tuple[int, int]) -> None:
    model = with_normal_weights(tiny(pos_embed=True)).train()
    output = model(torch.randn(2, 3, *size))
    assert output.shape == (2, 7)
    output.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_no_token_attends_to_padding() -> None:
    """A window that is padded gives what the same tokens give in a window of their own size."""
    attention = tiny().layers[1].blocks[0].attn.eval()  # two splits per side
    tokens = torch.randn(1, 5, 5, 16)
    with torch.no_grad():
        padded = attention(tokens)
        attention.splits = 1
        torch.testing.assert_close(padded[:, :3, :3], attention(tokens[:, :3, :3]))
        torch.testing.assert_close(padded[:, 3:, 3:], attention(tokens[:, 3:, 3:]))


def test_the_filter_reads_published_and_own_names() -> None:
    model, other = tiny(pos_embed=True), tiny(pos_embed=True, img_size=32)
    state = published_names(model.state_dict())
    assert {"head.0.weight", "head.2.bias"} <= set(state)
    polluted = {"state_dict": {f"module.{name}": value for name, value in state.items()}}
    polluted["state_dict"]["module.norm.total_ops"] = torch.zeros(1)
    for found in (polluted, model.state_dict(), {"model": state}):
        filtered = checkpoint_filter_fn(found, model)
        assert list(filtered) == list(model.state_dict())
    assert checkpoint_filter_fn(state, other)["absolute_pos_embed"].shape == other.absolute_pos_embed.shape


def test_start_is_as_published() -> None:
    model = timm.create_model("asvit_seed", num_classes=10)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.1)
            assert module.bias is None or not module.bias.any()
        elif isinstance(module, nn.LayerNorm):
            assert module.eps == 1e-5
            assert bool((module.weight == 1).all())
    rates = [block.drop_path1.drop_prob for block in tiny().layers[2].blocks]
    assert rates == pytest.approx([0.05, 0.075])


def test_overrides_and_refusals() -> None:
    model = tiny(embed_dim=16, depths=(1, 2, 1, 1))
    assert model.arch == "6,2,2,1|3,2,3,2|4,2,2,1|2,1,2,1|8,16"
    with pytest.raises(ArchitectureError, match="depths must have 4 numbers"):
        tiny(depths=(1, 2))
    with pytest.raises(ArchitectureError, match="leaves 0 channels"):
        tiny(embed_dim=8, arch="8,2,3|4,1,2|4,1,4|4,1,6|128")
    with pytest.raises(ArchitectureError, match="at least 1 pixel"):
        tiny(img_size=0)
    with pytest.raises(ArchitectureError, match="output_fmt"):
        tiny().forward_intermediates(torch.zeros(1, 3, 64, 64), output_fmt="NLC")


@pytest.mark.parametrize("fast", [True, False])
def test_predicted_weights(fast: bool) -> None:
    model = timm.create_model("asvit_small", init="ghn3", init_kwargs={"fast": fast})
    report = model._hf_paraminit
    assert model.arch == SMALL
    assert report.coverage_tensors == 1  # the position table too: the built-in reads native graphs
    assert any("were not drawn" in note for note in report.notes) == fast
    seed = timm.create_model("asvit_seed", num_classes=10, init="ghn3")
    assert seed._hf_paraminit.coverage_tensors == 1
