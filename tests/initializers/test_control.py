import pytest
import timm
import torch

import hf_paraminit
from hf_paraminit.errors import InitializerConfigError, UnknownInitializerError

NAMES = ["blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight"]


def written(init: object, **settings: object) -> dict[str, torch.Tensor]:
    model = timm.create_model("test_vit")
    hf_paraminit.initialize(model, init, **settings)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def test_permuted_keeps_the_values_of_each_tensor_and_moves_them() -> None:
    original, control = written("he", seed=2), written("control:permuted", of="he", seed=2)
    for name in NAMES:
        assert torch.equal(control[name].flatten().sort().values, original[name].flatten().sort().values)
        assert (control[name] == original[name]).float().mean() < 0.01


def test_matched_keeps_mean_and_deviation_only() -> None:
    original, control = written("ghn3"), written("control:matched", of="ghn3")
    for name in NAMES:
        count = original[name].numel() ** 0.5
        assert control[name].std().item() == pytest.approx(original[name].std().item(), rel=5 / count)
        assert (control[name].mean() - original[name].mean()).abs() < 5 * original[name].std() / count
        joint = torch.stack([control[name].flatten(), original[name].flatten()])
        assert joint.corrcoef()[0, 1].abs() < 5 / count


def test_constants_stay_constant() -> None:
    for variant in ("permuted", "matched"):
        assert torch.equal(written(f"control:{variant}", of="he")["norm.weight"], torch.ones(64))


def test_same_seed_same_noise_and_other_tensors_other_noise() -> None:
    first, second, other = (written("control:matched", of="he", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first[NAMES[0]], second[NAMES[0]])
    assert not torch.equal(first[NAMES[0]], other[NAMES[0]])
    assert not torch.equal(first["blocks.0.attn.qkv.weight"], first["blocks.1.attn.qkv.weight"])


def test_what_is_controlled_may_have_settings_and_is_reported() -> None:
    model = timm.create_model("test_vit")
    report = hf_paraminit.initialize(model, "control:permuted", of={"init": "trunc02", "std": 0.5})
    assert report.initializer == "control:permuted of trunc02"
    assert model.head.weight.std().item() == pytest.approx(0.5, rel=0.05)
    assert "truncated normal" in report.predicted["head.weight"]


def test_a_control_of_a_composition() -> None:
    report = hf_paraminit.initialize(timm.create_model("test_vit"), "control:matched", of={"*attn*": "he"})
    assert report.predicted
    assert all("attn" in name for name in report.predicted)


def test_a_control_names_what_it_controls_before_any_model_is_built() -> None:
    with pytest.raises(InitializerConfigError, match="of"):
        timm.create_model("test_vit", init="control:permuted")
    with pytest.raises(UnknownInitializerError, match="mimetik"):
        timm.create_model("test_vit", init="control:permuted", init_kwargs={"of": "mimetik"})
    with pytest.raises(UnknownInitializerError, match="permuted, matched"):
        timm.create_model("test_vit", init="control:shuffled", init_kwargs={"of": "he"})
