"""Permutations: the recorded ones, the law that the function stays, and matching."""

import json
import logging
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hf_paraminit.errors import CheckpointError
from hf_paraminit.hyperrep.align import PermutationSpec, keeps_function, permutation_spec, weight_matching
from hf_paraminit.hyperrep.augment import permute_tokens
from hf_paraminit.hyperrep.tokens import TokenLayout, legacy_layout
from hf_paraminit.hyperrep.zoo_nets import ZooCNN

GOLDEN = Path(__file__).parents[1] / "golden" / "hyperrep"
REBASIN = sorted((GOLDEN / "rebasin").glob("*.json"))
VECTORS = sorted((GOLDEN / "zoo_vec").glob("*.json"))
PUBLISHED_NAMES = {"CNN": "cnn-small", "CNN2": "cnn-medium", "CNN3": "cnn-large"}


def chain_axes(layers: list[list], state_dict: dict[str, Tensor], groups: set[str]) -> dict:
    """Axes of a stack of layers in the recorded naming."""
    axes, inputs = {}, None
    for index, _ in layers:
        outputs = f"layer_{index}" if f"layer_{index}" in groups else None
        axes[f"module_list.{index}.weight"] = (outputs, inputs)
        axes[f"module_list.{index}.bias"] = (outputs,)
        inputs = outputs
    return axes


@pytest.mark.parametrize("path", REBASIN, ids=lambda path: path.stem)
def test_published_matching(path: Path) -> None:
    record, tensors = json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))
    reference, other, aligned = (
        {name[len(part) :]: tensor for name, tensor in tensors.items() if name.startswith(part)}
        for part in ("a.", "b.", "aligned.")
    )
    spec = PermutationSpec.of(record["axes_to_perm"], {name: tensor.shape for name, tensor in reference.items()})
    found = weight_matching(reference, other, spec)
    assert {group: order.tolist() for group, order in found.items()} == record["found_permutation"]
    inverse = {group: torch.tensor(order) for group, order in record["applied_permutation_to_make_b"].items()}
    assert all(torch.equal(spec.inverse(found)[group], order) for group, order in inverse.items())
    ours = spec.apply(other, found)
    assert aligned
    assert all(torch.equal(ours[name], tensor) for name, tensor in aligned.items())


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_published_vectors_and_permutations(path: Path) -> None:
    record, tensors = json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))
    state_dict = {name: tensors[f"ckpt.{name}"] for name in record["order"]}
    layout = legacy_layout(state_dict)
    assert layout.num_values == record["n_params"]
    assert torch.equal(layout.to_vector(state_dict), tensors["vec"])
    axes = chain_axes(record["layer_lst"], state_dict, set(record["permutation"]))
    spec = PermutationSpec.of(axes, {name: tensor.shape for name, tensor in state_dict.items()})
    orders = {group: torch.tensor(order) for group, order in record["permutation"].items()}
    assert torch.equal(layout.to_vector(spec.apply(state_dict, orders)), tensors["vec_permuted"])
    numbers = layout.from_vector(torch.arange(layout.num_values, dtype=torch.float32))
    assert torch.equal(layout.to_vector(spec.apply(numbers, orders)).long(), tensors["perm_index"].long())


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_published_networks_compute_the_recorded_logits(path: Path) -> None:
    record, tensors = json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))
    images = tensors["in.x"]
    model = ZooCNN(
        PUBLISHED_NAMES[record["arch"]], in_chans=record["channels_in"], img_size=images.shape[-1],
        activation=record["nlin"], dropout=record["dropout"],
    ).eval()  # fmt: skip
    layout = TokenLayout.from_module(model)
    for vector, logits in (("vec", "out.logits"), ("vec_permuted", "out.logits_permuted")):
        model.load_state_dict(layout.from_vector(tensors[vector]))
        torch.testing.assert_close(model(images), tensors[logits], atol=1e-5, rtol=1e-4)


VIT = {"img_size": 32, "embed_dim": 24, "depth": 2}
NO_TOKEN = {
    "class_token": False, "global_pool": "avg", "qkv_bias": False, "qk_norm": True, "init_values": 0.1, "reg_tokens": 1,
}  # fmt: skip


def networks() -> dict[str, tuple[nn.Module, tuple[int, ...], int]]:
    """Network, its image shape, and how many groups it has."""
    torch.manual_seed(0)  # matching finds the best order of most networks, not of all
    plain = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
                          nn.Linear(24, 5), nn.Tanh(), nn.Linear(5, 4))  # fmt: skip
    small = {"layers": (2, 1, 1, 1), "channels": (8, 8, 12, 12), "num_classes": 4}
    return {
        "cnn-small": (ZooCNN("cnn-small"), (1, 28, 28), 4),
        "batch norm and flatten": (plain, (3, 16, 16), 2),
        "resnet18": (timm.create_model("resnet18", **small), (3, 16, 16), 5 + 5),  # streams, and one in each block
        "resnet18d": (timm.create_model("resnet18d", **small), (3, 16, 16), 5 + 5 + 2),
        "resnet26": (timm.create_model("resnet26", **small), (3, 16, 16), 5 + 10),
        "resnet10t": (timm.create_model("resnet10t", channels=(8, 8, 12, 12), stem_width=4), (3, 32, 32), 4 + 4 + 2),
        "test_vit": (timm.create_model("test_vit", img_size=32), (3, 32, 32), 1 + 6 + 6),  # stream, heads, hidden units
        "vit without class token": (timm.create_model("vit_tiny_patch16_224", **VIT, **NO_TOKEN), (3, 32, 32), 5),
        "deit": (timm.create_model("deit_tiny_distilled_patch16_224", **VIT), (3, 32, 32), 5),
        "vit with attention pooling": (timm.create_model("test_vit3", img_size=32), (3, 32, 32), 10),  # perceptrons
        "test_convnext": (timm.create_model("test_convnext"), (3, 32, 32), 9),
    }


NETWORKS = networks()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_permuted_network_computes_the_same_function(name: str) -> None:
    model, shape, num_groups = NETWORKS[name]
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(3, *shape, generator=generator)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    spec = permutation_spec(model, images)
    assert spec is not None
    assert len(spec.sizes) == num_groups
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    expected = model.eval()(images)
    orders = spec.draw(generator)
    permuted = spec.apply(model.state_dict(), orders)
    assert any(not torch.equal(permuted[key], before[key]) for key in before)
    model.load_state_dict(permuted)
    try:
        torch.testing.assert_close(model(images), expected, atol=3e-6, rtol=1e-4)
    finally:
        model.load_state_dict(before)
    restored = spec.apply(permuted, spec.inverse(orders))
    assert all(torch.equal(restored[key], tensor) for key, tensor in before.items())
    assert PermutationSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize("token_dim", [None, 20])
@pytest.mark.parametrize("name", ["cnn-small", "resnet18", "test_vit"])
def test_permuting_tokens_is_permuting_the_network(name: str, token_dim: int | None) -> None:
    model, shape, _ = NETWORKS[name]
    spec = permutation_spec(model, torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)))
    assert spec is not None
    layout = TokenLayout.from_module(model, token_dim, norms="packed", statistics="packed")
    orders = spec.draw(torch.Generator().manual_seed(2))
    tokens = layout.tokenize(model.state_dict())
    index = spec.token_index(layout, orders)
    assert torch.equal(index.sort().values, torch.arange(layout.num_tokens * layout.token_dim))
    permuted = layout.tokenize(spec.apply(model.state_dict(), orders))
    assert torch.equal(permute_tokens(tokens, index), permuted)
    assert torch.equal(permute_tokens(tokens.expand(2, 3, -1, -1), index), permuted.expand(2, 3, -1, -1))


def test_a_wrong_specification_is_noticed() -> None:
    """Even where a layer that starts at zero would hide it."""
    model = ZooCNN("cnn-tiny")
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    images = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    forgotten = PermutationSpec.of({"module_list.0.weight": ("P0",), "module_list.0.bias": ("P0",)}, shapes)
    assert not keeps_function(model, forgotten, images)
    complete = PermutationSpec.of({**forgotten.axes, "module_list.2.weight": (None, "P0")}, shapes)
    assert keeps_function(model, complete, images)


def test_unknown_architectures_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) * self.b(x)

    with caplog.at_level(logging.WARNING, "hf_paraminit"):
        assert permutation_spec(Product(), torch.randn(2, 4, generator=torch.Generator().manual_seed(0))) is None
    assert "No permutations of hidden units are known for Product" in caplog.text


def test_matching_undoes_a_permutation_in_a_stack_of_checkpoints() -> None:
    model, shape, _ = NETWORKS["resnet18"]
    spec = permutation_spec(model, torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)))
    assert spec is not None
    reference = model.state_dict()
    orders = spec.draw(torch.Generator().manual_seed(3))
    found = weight_matching(reference, spec.apply(reference, orders), spec)
    aligned = spec.apply(spec.apply(reference, orders), found)
    assert all(torch.equal(aligned[name], tensor) for name, tensor in reference.items())
    stacked = {name: torch.stack([tensor, 2 * tensor]) for name, tensor in reference.items()}
    permuted = spec.apply(stacked, orders)
    assert all(torch.equal(permuted[name][0], tensor) for name, tensor in spec.apply(reference, orders).items())


def test_matching_undoes_a_permutation_of_heads_and_of_the_residual_stream() -> None:
    model, shape, _ = NETWORKS["deit"]
    spec = permutation_spec(model, torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)))
    assert spec is not None
    reference = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    orders = spec.draw(torch.Generator().manual_seed(3))
    assert not torch.equal(orders["P_blocks.0.attn"], torch.arange(3))
    found = weight_matching(reference, spec.apply(reference, orders), spec)
    assert all(torch.equal(found[group], order) for group, order in spec.inverse(orders).items())


def test_axes_that_do_not_fit_are_all_named() -> None:
    axes = {"a.weight": ("P", "Q"), "b.weight": (None, "P"), "c.bias": ("P", "P"), "gone": ("P",)}
    shapes = {"a.weight": (4, 3), "b.weight": (2, 6), "c.bias": (4,)}
    with pytest.raises(CheckpointError, match=r"gone is no tensor; c\.bias has .*b\.weight has an axis of 6"):
        PermutationSpec.of(axes, shapes)
    with pytest.raises(CheckpointError, match="axis of 12, no multiple of 15 for the 5 units of H"):
        PermutationSpec.of({"qkv.weight": ("H",)}, {"qkv.weight": (12, 4)}, sizes={"H": 5}, repeats={"qkv.weight": 3})
    with pytest.raises(CheckpointError, match="Cannot read the permutations"):
        PermutationSpec.from_dict({"axes": 3})
