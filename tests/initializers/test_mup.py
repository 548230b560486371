import pytest
import timm
import torch
from torch import nn

import hf_paraminit
from hf_paraminit.errors import InitializerConfigError
from hf_paraminit.initializers.mup import parameter_groups, width_roles
from hf_paraminit.structure.model import ModelStructure


def vit(embed_dim: int) -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=embed_dim, depth=2, num_heads=4, num_classes=10
    )


def test_roles_follow_the_fans_that_grow() -> None:
    roles = width_roles(ModelStructure(vit(64)), ModelStructure(vit(32)), 1.0)
    assert roles["patch_embed.proj.weight"] == "input"
    assert roles["head.weight"] == "output"
    assert {roles[name] for name in roles if name.startswith("blocks")} == {"hidden"}
    assert width_roles(ModelStructure(vit(64)), None, 2.0) == roles


def test_at_the_base_width_nothing_changes() -> None:
    model = vit(32)
    assert not hf_paraminit.initialize(model, "mup", base=vit(32)).predicted
    assert not hf_paraminit.initialize(model, "mup").predicted
    (group,) = parameter_groups(model, 1e-3, vit(32))
    assert group["lr"] == 1e-3
    assert len(group["params"]) == len(list(model.parameters()))


def test_standard_deviations_follow_the_table() -> None:
    model, base = vit(128), vit(32)
    hf_paraminit.initialize(model, "mup", base=base)

    def ratio(name: str) -> float:
        return (model.get_parameter(name).std(correction=0) / base.get_parameter(name).std(correction=0)).item()

    assert ratio("patch_embed.proj.weight") == pytest.approx(1, rel=1e-4)
    assert ratio("blocks.1.mlp.fc2.weight") == pytest.approx(0.5, rel=1e-4)
    assert ratio("head.weight") == pytest.approx(0.25, rel=1e-4)


def test_without_a_base_only_outputs_are_scaled() -> None:
    model = vit(64)
    before = model.head.weight.clone()
    report = hf_paraminit.initialize(model, "mup", width_multiplier=4.0)
    assert set(report.predicted) == {"head.weight"}
    torch.testing.assert_close(model.head.weight, before / 2)
    hf_paraminit.initialize(model, "mup", width_multiplier=4.0, zero_output=True)
    assert not model.head.weight.any()


def test_hidden_and_output_weights_learn_more_slowly() -> None:
    model, base = vit(64), vit(32)
    groups = {group["lr_multiplier"]: {id(p) for p in group["params"]} for group in parameter_groups(model, 1e-2, base)}
    assert set(groups) == {0.5, 1.0}
    assert id(model.head.weight) in groups[0.5]
    assert id(model.blocks[0].attn.qkv.weight) in groups[0.5]
    assert id(model.patch_embed.proj.weight) in groups[1.0]
    assert id(model.blocks[0].norm1.weight) in groups[1.0]


@pytest.mark.parametrize("settings", [{"base": "resnet18"}, {"width_multiplier": 0.0}])
def test_bad_settings_are_refused(settings: dict) -> None:
    with pytest.raises(InitializerConfigError, match="mup"):
        hf_paraminit.initialize(vit(32), "mup", **settings)
