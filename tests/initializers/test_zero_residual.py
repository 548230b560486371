import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetModel

import hf_paraminit


def branch_outputs(model: nn.Module, ends: list[str]) -> list[Tensor]:
    """What the named modules return on one batch."""
    outputs: list[Tensor] = []
    for end in ends:
        model.get_submodule(end).register_forward_hook(lambda module, inputs, output: outputs.append(output.clone()))
    with torch.no_grad():
        model(torch.randn(2, 3, 64, 64))
    return outputs


def test_every_branch_of_a_resnet_starts_at_zero() -> None:
    model = torchvision.models.resnet18()
    report = hf_paraminit.initialize(model, "zero-residual", input_size=64)
    ends = [f"layer{stage}.{block}.bn2" for stage in (1, 2, 3, 4) for block in (0, 1)]
    assert set(report.predicted) == {f"{end}.weight" for end in ends}
    assert all(not output.any() for output in branch_outputs(model, ends))


def test_a_transformers_resnet_is_read_the_same_way() -> None:
    model = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"))
    report = hf_paraminit.initialize(model, "zero-residual", input_size=64)
    assert set(report.predicted) == {
        f"encoder.stages.{stage}.layers.0.layer.1.normalization.weight" for stage in (0, 1)
    }


def test_branches_without_norm_have_their_last_layer_zeroed() -> None:
    model = timm.create_model("test_vit")
    report = hf_paraminit.initialize(model, "zero-residual")
    assert set(report.predicted) == {
        f"blocks.{block}.{end}.{leaf}"
        for block in range(6)
        for end in ("attn.proj", "mlp.fc2")
        for leaf in ("weight", "bias")
    }
    assert not any(model.get_parameter(name).any() for name in report.predicted)


def test_layer_scale_is_small_and_suits_the_depth() -> None:
    convnext = timm.create_model("test_convnext")
    hf_paraminit.initialize(convnext, "zero-residual")
    assert convnext.stages[0].blocks[0].gamma.eq(1e-6).all()
    vit = timm.create_model("test_vit", init_values=0.5)
    hf_paraminit.initialize(vit, "zero-residual")
    assert vit.blocks[0].ls1.gamma.eq(0.1).all()
    hf_paraminit.initialize(vit, "zero-residual", layer_scale=0.25)
    assert vit.blocks[0].ls2.gamma.eq(0.25).all()


def test_open_branches_are_those_of_zero_init_last_false() -> None:
    torch.manual_seed(0)
    opened = timm.create_model("test_resnet")
    torch.manual_seed(0)
    expected = timm.create_model("test_resnet", zero_init_last=False)
    assert not torch.equal(opened.layer1[0].bn2.weight, expected.layer1[0].bn2.weight)
    hf_paraminit.initialize(opened, "zero-residual", norm_scale=1.0)
    for name, parameter in opened.named_parameters():
        torch.testing.assert_close(parameter, expected.get_parameter(name), msg=name)


def test_a_network_without_shortcuts_is_refused_under_strict() -> None:
    with pytest.raises(hf_paraminit.PredictionError, match="applies to none"):
        hf_paraminit.initialize(torchvision.models.vgg11(), "zero-residual", strict=True, input_size=64)
