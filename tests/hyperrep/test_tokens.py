"""Tokens against the recordings of the published tokeniser, and the law that nothing is lost."""

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hf_paraminit.errors import CheckpointError
from hf_paraminit.hyperrep.tensors import KINDS, describe_module, describe_state_dict
from hf_paraminit.hyperrep.tokens import TokenLayout, legacy_layout
from hf_paraminit.hyperrep.zoo_nets import ZooCNN

GOLDEN = Path(__file__).parents[1] / "golden" / "hyperrep"
TOKENS = sorted(path for path in (GOLDEN / "sane_tok").glob("*.json") if path.with_suffix(".safetensors").exists())
STATISTICS = json.loads((GOLDEN / "sane_tok" / "full_size_statistics.json").read_text())
TIMM = ("test_resnet", "test_vit", "test_convnext", "test_efficientnet", "test_nfnet")
SMALL_RESNET = timm.create_model("resnet18", channels=(6, 8, 8, 12), num_classes=5)


class Unusual(nn.Module):
    """What a tokeniser may meet besides linear layers and convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.attention = nn.MultiheadAttention(6, 2)
        self.up = nn.ConvTranspose2d(4, 4, 2)
        self.norm = nn.LayerNorm((3, 2))
        self.group = nn.GroupNorm(2, 4)
        self.plain = nn.BatchNorm1d(4, affine=False)
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.cls_token = nn.Parameter(torch.randn(1, 1, 6))
        self.gamma = nn.Parameter(torch.randn(6))
        self.half = nn.Linear(5, 3).half()
        self.precise = nn.Linear(5, 3).double()
        self.register_buffer("index", torch.arange(5))
        self.register_buffer("frequencies", torch.randn(4))
        self.empty = nn.Parameter(torch.empty(0, 3))
        self.head = nn.Linear(6, 11)
        self.head.weight = self.table.weight


def randomized(model: nn.Module) -> dict[str, Tensor]:
    """Weights without a regularity, special values among them."""
    generator = torch.Generator().manual_seed(0)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data = torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
            tensor.data.view(-1)[:2] = torch.tensor([-0.0, float("inf")], dtype=tensor.dtype)[: tensor.numel()]
    return model.state_dict()


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b) and torch.equal(a.signbit(), b.signbit())


@pytest.mark.parametrize("case", ["no_bn", "with_bn"])
@pytest.mark.parametrize("path", TOKENS, ids=lambda path: path.stem)
def test_published_tokens(path: Path, case: str) -> None:
    record, tensors = json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))
    state_dict = {name: tensors[f"sd.{name}"] for name in record["state_dict_order"]}
    layout = legacy_layout(state_dict, record["requested_tokensize"], ignore_batchnorm=case == "no_bn")
    expected = record["result"][case]
    assert (layout.token_dim, layout.num_tokens) == (expected["tokensize"], expected["n_tokens"])
    assert torch.equal(layout.tokenize(state_dict), tensors[f"{case}.tokens"])
    assert torch.equal(layout.mask, tensors[f"{case}.mask"].bool())
    assert torch.equal(layout.positions.long(), tensors[f"{case}.pos"].long())
    assert str(layout.positions.dtype) == expected["pos_dtype"]
    assert int(layout.mask.sum()) == expected["mask_true"]
    assert [layer.num_tokens for layer in layout.layers] == expected["tokens_per_layer"]
    assert [layer.names[0] for layer in layout.layers] == expected["layer_keys"]
    restored = layout.detokenize(layout.tokenize(state_dict))
    assert restored
    assert all(torch.equal(tensor, state_dict[name]) for name, tensor in restored.items())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * ("|ts=64|" in name)) for name in STATISTICS]
)
def test_published_statistics_of_real_networks(name: str) -> None:
    """Counts for full-size networks; values do not matter, so the meta device does."""
    network, size, ignore = name.split("|")
    classes = {"resnet18_cifar10": 10, "resnet18_cifar100": 100, "resnet18_tiny200": 200}
    with torch.device("meta"):
        architecture = "resnet18" if network in classes else network.removeprefix("timm.")
        model = timm.create_model(architecture, num_classes=classes.get(network, 10))
        if network in classes:
            model.conv1 = nn.Conv2d(3, 64, 3, bias=False)
    expected = STATISTICS[name]
    layout = legacy_layout(model.state_dict(), int(size[3:]), ignore_batchnorm=ignore.endswith("True"))
    assert layout.num_tokens == expected["n_tokens"]
    assert layout.positions.amax(0).tolist() == expected["pos_max"]
    assert layout.num_values == expected["mask_true"]
    assert layout.token_dim == expected.get("tokensize", 288)
    assert layout.num_values / (layout.num_tokens * layout.token_dim) == pytest.approx(expected["fill"], abs=1e-6)


@pytest.mark.parametrize("model", [ZooCNN("cnn-large"), SMALL_RESNET], ids=["cnn", "resnet"])
def test_modules_give_the_published_tokens_where_those_are_sound(model: nn.Module) -> None:
    state_dict = model.state_dict()
    ours, published = TokenLayout.from_module(model, 289), legacy_layout(state_dict, 289)
    assert torch.equal(ours.tokenize(state_dict), published.tokenize(state_dict))
    assert torch.equal(ours.positions, published.positions)


@pytest.mark.parametrize("policy", ["skip", "packed", "channels"])
@pytest.mark.parametrize(
    ("name", "token_dim"),
    [*((name, 64) for name in TIMM), ("test_resnet", 7), ("unusual", None), ("unusual", 1), ("unusual", 7)],
)
def test_nothing_is_lost(name: str, token_dim: int | None, policy: str) -> None:
    model = Unusual() if name == "unusual" else timm.create_model(name)
    state_dict = randomized(model)
    layout = TokenLayout.from_module(model, token_dim, norms=policy, statistics=policy)
    tokens = layout.tokenize(state_dict)
    assert tokens.shape == layout.mask.shape == (layout.num_tokens, layout.token_dim)
    restored = layout.detokenize(tokens)
    assert {*restored} | {*layout.skipped} == {*state_dict}
    assert not {*restored} & {*layout.skipped}
    assert all(same_bits(tensor, state_dict[name]) for name, tensor in restored.items())
    if policy != "skip":
        assert set(layout.skipped.values()) <= {"no floating-point values"}
    assert bool((tokens[~layout.mask] == 0).all())
    assert int(layout.mask.sum()) == layout.num_values == layout.to_vector(state_dict).numel()


def test_tokens_of_unusual_modules() -> None:
    model = Unusual()
    layout = TokenLayout.from_module(model, 16)
    layers = {layer.names: layer for layer in layout.layers}
    assert ("attention.in_proj_weight", "attention.in_proj_bias") in layers
    assert ("up.weight",) in layers  # the rows of a transposed convolution are inputs, its bias counts outputs
    assert layers[("cls_token",)].num_rows == layers[("scale",)].num_rows == 1
    assert layout.tied == {"head.weight": "table.weight"}
    assert ("head.bias",) in layers
    kinds = {spec.name: spec.kind for spec in describe_module(model)}
    assert kinds["norm.weight"] == kinds["norm.bias"] == kinds["group.bias"] == "norm"
    assert kinds["frequencies"] == "statistic"
    assert kinds["index"] == kinds["empty"] == "other"
    assert kinds["gamma"] == "vector"


def test_a_convolution_named_like_a_batch_norm_is_kept() -> None:
    """`downsample.1` of ConvNeXt, which the published rules take for a batch norm."""
    model = timm.create_model("convnext_atto")
    names = TokenLayout.from_module(model, 288).names
    assert "stages.1.downsample.1.weight" in names
    assert "stages.1.downsample.1.weight" not in legacy_layout(model.state_dict(), 288).names


def test_stacked_checkpoints_are_tokenised_together() -> None:
    model = ZooCNN("cnn-tiny")
    layout = TokenLayout.from_module(model, 20)
    single = [randomized(ZooCNN("cnn-tiny")) for _ in range(6)]
    stacked = {name: torch.stack([one[name] for one in single]).unflatten(0, (2, 3)) for name in single[0]}
    tokens = layout.tokenize(stacked)
    assert tokens.shape == (2, 3, layout.num_tokens, 20)
    assert torch.equal(tokens[1, 2], layout.tokenize(single[5]))
    assert torch.equal(layout.detokenize(tokens)["module_list.0.weight"], stacked["module_list.0.weight"])
    assert torch.equal(
        layout.from_vector(layout.to_vector(stacked))["module_list.8.bias"], stacked["module_list.8.bias"]
    )


def test_positions_of_the_other_fields() -> None:
    layout = TokenLayout.from_module(ZooCNN("cnn-tiny"), 20, norms="packed")
    first, second = layout.layers[:2]
    assert (first.num_chunks, second.num_chunks) == (1, 4)
    assert layout.chunks[second.tokens][:5].tolist() == [0, 1, 2, 3, 0]
    assert layout.positions[second.tokens][:5, 2].tolist() == [0, 0, 0, 0, 1]
    assert {KINDS[kind] for kind in layout.kinds.tolist()} == {"matrix"}
    assert layout.depths[0] == 0
    assert layout.depths[-1] == 1


def test_positions_widen_only_when_they_must() -> None:
    small = TokenLayout.from_module(nn.Linear(4, 32768, bias=False, device="meta"))
    large = TokenLayout.from_module(nn.Linear(4, 32769, bias=False, device="meta"))
    assert (small.positions.dtype, large.positions.dtype) == (torch.int16, torch.int32)


def test_large_embeddings_are_left_out() -> None:
    model = nn.Sequential(nn.Embedding(50, 4), nn.Linear(4, 2))
    layout = TokenLayout.from_module(model, max_embedding_rows=49)
    assert layout.skipped == {"0.weight": "an embedding of 50 rows, more than 49"}
    assert TokenLayout.from_module(model, max_embedding_rows=50).skipped == {}


def test_heads_are_found() -> None:
    heads = {
        name: [spec.name for spec in describe_module(timm.create_model(name)) if spec.is_head and spec.kind == "matrix"]
        for name in ("test_resnet", "test_vit", "levit_128s")
    }
    assert heads == {
        "test_resnet": ["fc.weight"],
        "test_vit": ["head.weight"],
        "levit_128s": ["head.linear.weight", "head_dist.linear.weight"],
    }
    plain = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    assert [spec.name for spec in describe_module(plain) if spec.is_head] == ["2.weight", "2.bias"]
    assert [spec.name for spec in describe_state_dict(plain.state_dict()) if spec.is_head] == ["2.weight", "2.bias"]


def test_fingerprints_name_the_body() -> None:
    ten, five = (TokenLayout.from_module(timm.create_model("test_resnet", num_classes=n), 64) for n in (10, 5))
    assert ten.fingerprint == five.fingerprint
    assert ten.differences(five, with_head=False) == []
    (line,) = ten.differences(five)
    assert line.startswith("fc.weight (5, ")
    assert "expected fc.weight (10, " in line
    other = TokenLayout.from_module(ZooCNN("cnn-tiny", in_chans=3), 64)
    first = TokenLayout.from_module(ZooCNN("cnn-tiny"), 64)
    assert first.fingerprint != other.fingerprint
    (line,) = first.differences(other)
    assert line == (
        "module_list.0.weight (8, 3, 3, 3), module_list.0.bias (8,), expected module_list.0.weight (8, 1, 3, 3), "
        "module_list.0.bias (8,)"
    )
    assert "tokens are 32 wide, expected 64" in first.differences(TokenLayout.from_module(ZooCNN("cnn-tiny"), 32))[0]


def test_layouts_survive_json() -> None:
    layout = TokenLayout.from_module(Unusual(), 16, norms="packed", statistics="channels")
    values = json.loads(json.dumps(layout.to_dict()))
    assert TokenLayout.from_dict(values) == layout
    assert TokenLayout.from_tensors(describe_module(Unusual()), 16, norms="packed", statistics="channels") == layout
    values["layers"][0]["shapes"][0] = [12, 6]
    with pytest.raises(CheckpointError, match="fingerprint"):
        TokenLayout.from_dict(values)
    for broken in ({}, {**layout.to_dict(), "layers": 3}, {**layout.to_dict(), "format_version": 99}):
        with pytest.raises(CheckpointError, match="Cannot read a token layout"):
            TokenLayout.from_dict(broken)


def test_weights_of_another_network_are_refused_by_name() -> None:
    layout = TokenLayout.from_module(ZooCNN("cnn-tiny"))
    wrong = ZooCNN("cnn-tiny", in_chans=3).state_dict()
    del wrong["module_list.8.bias"]
    with pytest.raises(CheckpointError, match=r"module_list\.0\.weight .*expected.*module_list\.8\.bias \(10,\) is"):
        layout.tokenize(wrong)
    with pytest.raises(CheckpointError, match="this layout has 40 tokens of width 73"):
        layout.detokenize(torch.zeros(41, 73))
    with pytest.raises(CheckpointError, match="none of 0 tensors"):
        TokenLayout.from_module(nn.Identity())
    with pytest.raises(CheckpointError, match="token_dim of at least 1"):
        TokenLayout.from_module(nn.Linear(2, 2), 0)
