"""Laws of generation, and how a learngene starts, is stored and read."""

import copy
import dataclasses
from pathlib import Path
from typing import cast

import lets_goldens
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hf_paraminit.errors import CheckpointError, InitializerConfigError, UnsafeFileError
from hf_paraminit.lets.aux_net import AuxNet
from hf_paraminit.lets.checkpoint import infer_config, published_name
from hf_paraminit.lets.config import LeTsConfig, adjacent_pairs
from hf_paraminit.lets.depth import LayerSource
from hf_paraminit.lets.generator import BLOCK_MODULES, LeTsGenerator
from hf_paraminit.lets.transform import Expand, Mixture

CONFIG = LeTsConfig(
    embed_dim=16, num_heads=4, depth=4, aux_dim=40, pairs=adjacent_pairs(4, 4), img_size=32, num_classes=5
)


@pytest.fixture
def generator() -> LeTsGenerator:
    """Weights that differ everywhere, as trained ones do."""
    generator = LeTsGenerator.new(CONFIG, seed=1)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return generator.double()


def mix(coefficients: Tensor, tensors: list[Tensor]) -> Tensor:
    return Mixture(coefficients, tensors).sum()


def dense(generator: LeTsGenerator, kind: str, layer: int | None = None) -> Tensor:
    """The expansion as one matrix, [I; F]."""
    rows = generator.F.get_parameter(kind if layer is None else f"{layer}.{kind}")
    return torch.cat([torch.eye(rows.shape[1], dtype=rows.dtype), rows])


def test_the_operators_are_products_with_an_identity_on_top() -> None:
    rows = torch.randn(3, 4, dtype=torch.float64)
    matrix = torch.cat([torch.eye(4, dtype=torch.float64), rows])
    expand, weight, kernel = Expand(rows, 4), torch.randn(5, 4).double(), torch.randn(4, 3, 2, 2).double()
    torch.testing.assert_close(expand.into(weight), weight @ matrix.T)
    torch.testing.assert_close(expand.out(weight.T), matrix @ weight.T)
    torch.testing.assert_close(expand.out(weight[0]), matrix @ weight[0])
    torch.testing.assert_close(expand.out(kernel), torch.einsum("oi,ichw->ochw", matrix, kernel))
    tensors = [torch.randn(2, 2) for _ in range(3)]
    coefficients = torch.tensor([0.5, -1.0, 2.0])
    expected = 0.5 * tensors[0] - tensors[1] + 2 * tensors[2]
    torch.testing.assert_close(mix(coefficients, tensors), expected)
    Mixture(coefficients, tensors).sum_into(written := torch.empty(2, 2))
    torch.testing.assert_close(written, expected)


@pytest.mark.parametrize("width", [8, 16, 28, 40, 44])
def test_values_do_not_depend_on_whether_gradients_are_wanted(generator: LeTsGenerator, width: int) -> None:
    """Without gradients products are written to their place, and layers share what they share."""
    blocks = [0, 0, 1, 3]
    with_gradients = generator.materialize(width, blocks, "stepwise" if width <= 40 else "continuous")
    with torch.no_grad():
        without = generator.materialize(width, blocks, "stepwise" if width <= 40 else "continuous")
    assert without.keys() == with_gradients.keys()
    for name, tensor in without.items():
        torch.testing.assert_close(tensor, with_gradients[name].detach(), msg=lambda text, name=name: f"{name}: {text}")
        assert with_gradients[name].requires_grad
    name = "mlp.fc2.weight"
    assert without[f"blocks.0.{name}"].data_ptr() == without[f"blocks.1.{name}"].data_ptr()
    assert without[f"blocks.1.{name}"].data_ptr() != without[f"blocks.2.{name}"].data_ptr()


def test_every_module_follows_its_formula(generator: LeTsGenerator) -> None:
    """Width first, then depth, with dense matrices: sections 2.1 to 2.3 of the method, one by one."""
    slots = generator.materialize(blocks=[3])
    embed = dense(generator, "emb")
    sides = {
        "norm1": (embed, None), "norm2": (embed, None),
        "attn.q": ("q", embed), "attn.k": ("k", embed), "attn.v": ("v", embed), "attn.proj": (embed, "v"),
        "mlp.fc1": ("ffn", embed), "mlp.fc2": (embed, "ffn"),
    }  # fmt: skip
    assert set(sides) == set(BLOCK_MODULES)
    for name, (out, into) in sides.items():
        weights, biases = [], []
        for layer in (2, 3):
            module = generator.gene.get_submodule(f"{layer}.{name}")
            left, right = (dense(generator, side, layer) if isinstance(side, str) else side for side in (out, into))
            weight = left @ cast(Tensor, module.weight)
            weights.append(weight if right is None else weight @ right.T)
            biases.append(left @ cast(Tensor, module.bias))
        mixing = generator.G[3].get_submodule(name)
        torch.testing.assert_close(slots[f"blocks.0.{name}.weight"], mix(cast(Tensor, mixing.weight), weights))
        torch.testing.assert_close(slots[f"blocks.0.{name}.bias"], mix(cast(Tensor, mixing.bias), biases))
    gene = generator.gene
    torch.testing.assert_close(slots["head.weight"], gene.head.weight @ dense(generator, "cls").T)
    torch.testing.assert_close(slots["fc_norm.weight"], embed @ gene.fc_norm.weight)
    assert torch.equal(slots["head.bias"], gene.head.bias)
    assert torch.equal(slots["pos_embed"], generator.pos_embed)


def test_aux_layers_of_one_block_share_their_tensors(generator: LeTsGenerator) -> None:
    slots = generator.materialize()
    for layer in range(0, CONFIG.aux_depth, 2):
        for name in BLOCK_MODULES:
            assert slots[f"blocks.{layer}.{name}.weight"] is slots[f"blocks.{layer + 1}.{name}.weight"]
    assert not torch.equal(slots["blocks.1.attn.q.weight"], slots["blocks.2.attn.q.weight"])


def test_a_net_of_the_learngenes_width_does_not_depend_on_f(generator: LeTsGenerator) -> None:
    before = generator.materialize(16, [0, 1, 3])
    with torch.no_grad():
        for matrix in generator.F.parameters():
            matrix.normal_()
    after = generator.materialize(16, [0, 1, 3])
    assert all(torch.equal(before[slot], after[slot]) for slot in before)


@pytest.mark.parametrize("select", ["continuous", "stepwise", "random", "l1", "l2"])
def test_chosen_neurons_are_a_part_of_the_whole_net(generator: LeTsGenerator, select: str) -> None:
    """One set of places per axis: every tensor of a narrower net is a slice of the Aux-Net's."""
    whole, part = generator.materialize(), generator.materialize(28, None, select, seed=3)  # type: ignore[arg-type]
    columns = [(row == whole["pos_embed"][0].T).all(1).nonzero().item() for row in part["pos_embed"][0].T]
    assert columns[:16] == list(range(16))
    places = torch.tensor(columns)
    assert torch.equal(part["fc_norm.bias"], whole["fc_norm.bias"][places])
    torch.testing.assert_close(part["head.weight"], whole["head.weight"][:, places])
    torch.testing.assert_close(part["patch_embed.proj.weight"], whole["patch_embed.proj.weight"][places])
    hidden = [(whole["blocks.2.mlp.fc1.bias"] - bias).abs().argmin().item() for bias in part["blocks.2.mlp.fc1.bias"]]
    torch.testing.assert_close(part["blocks.2.mlp.fc1.weight"], whole["blocks.2.mlp.fc1.weight"][hidden][:, places])
    torch.testing.assert_close(part["blocks.2.mlp.fc2.weight"], whole["blocks.2.mlp.fc2.weight"][places][:, hidden])
    values = [(whole["blocks.2.attn.v.bias"] - bias).abs().argmin().item() for bias in part["blocks.2.attn.v.bias"]]
    for kind in ("q", "k", "v"):
        expected = whole[f"blocks.2.attn.{kind}.weight"][values][:, places]
        torch.testing.assert_close(part[f"blocks.2.attn.{kind}.weight"], expected)
    torch.testing.assert_close(part["blocks.2.attn.proj.weight"], whole["blocks.2.attn.proj.weight"][places][:, values])


def test_narrower_than_the_learngene_is_its_first_neurons(generator: LeTsGenerator) -> None:
    small, whole = generator.materialize(8, [1]), generator.materialize(16, [1])
    for slot, tensor in small.items():
        first = whole[slot][tuple(slice(size) for size in tensor.shape)]
        assert torch.equal(tensor, first), slot
    assert small["blocks.0.mlp.fc1.weight"].shape == (32, 8)


def test_wider_than_the_aux_net_repeats_added_neurons(generator: LeTsGenerator) -> None:
    wide, whole = generator.materialize(44, [1]), generator.materialize(40, [1])
    torch.testing.assert_close(wide["fc_norm.weight"][40:], whole["fc_norm.weight"][16:20])
    torch.testing.assert_close(wide["blocks.0.attn.q.weight"][40:, :40], whole["blocks.0.attn.q.weight"][16:20])


def test_crossed_sources_take_pair_and_coefficients_apart(generator: LeTsGenerator) -> None:
    slots = generator.materialize(16, [LayerSource((0, 2), 3)])
    weights = [cast(Tensor, generator.gene.get_parameter(f"{layer}.attn.q.weight")) for layer in (0, 2)]
    mixing = cast(Tensor, generator.G[3].get_parameter("attn.q.weight"))
    torch.testing.assert_close(slots["blocks.0.attn.q.weight"], mix(mixing, weights))


@pytest.mark.parametrize("width", [0, 3, 18, -16])
def test_widths_without_whole_heads_are_refused(generator: LeTsGenerator, width: int) -> None:
    with pytest.raises(InitializerConfigError, match="multiple of 4"):
        generator.materialize(width)


def test_a_class_token_is_cut_like_the_positions() -> None:
    generator = LeTsGenerator.new(dataclasses.replace(CONFIG, class_token=True), seed=0)
    assert generator.pos_embed.shape == (1, 5, 40)
    slots = generator.materialize(20, [0])
    assert torch.equal(slots["cls_token"], generator.cls_token[..., :20])  # type: ignore[index]
    assert AuxNet(generator)(torch.zeros(2, 3, 32, 32)).shape == (2, 5)


def test_published_start_prefers_the_first_layer_of_each_pair() -> None:
    """Both layers of a block count as even in the published code; `alternate_noisy` is the way around it."""
    published = LeTsGenerator.new(CONFIG, seed=0)
    alternate = LeTsGenerator.new(dataclasses.replace(CONFIG, depth_init="alternate_noisy"), seed=0)
    for block in range(4):
        assert published.G[block].get_parameter("attn.q.weight")[0] > 0.97
        assert alternate.G[block].get_parameter("attn.q.weight")[block % 2] > 0.97


def test_starts_have_the_scales_that_they_promise() -> None:
    config = LeTsConfig(embed_dim=64, num_heads=2, depth=2, aux_dim=96, pairs=((0, 1),), img_size=64)
    published = LeTsGenerator.new(config, seed=0)
    scaled = LeTsGenerator.new(dataclasses.replace(config, gene_init="scaled"), seed=0)
    for generator, deviation, positions in ((published, 0.02, 0.02), (scaled, 0.7 / 8, 0.2)):
        weight = cast(nn.Linear, generator.gene.get_submodule("0.mlp.fc1"))
        assert weight.weight.std().item() == pytest.approx(deviation, rel=0.05)
        assert not weight.bias.any()
        assert generator.pos_embed.std().item() == pytest.approx(positions, rel=0.1)
        torch.testing.assert_close(generator.F.emb.sum(1), torch.ones(32))
    assert (scaled.gene.patch_embed.weight.std() * 768**0.5).item() == pytest.approx(0.7, rel=0.05)


def test_fresh_transforms_leave_the_learngene() -> None:
    generator = LeTsGenerator.new(CONFIG, seed=0)
    before = copy.deepcopy(generator.state_dict())
    generator.reset_transforms()
    for name, tensor in generator.state_dict().items():
        assert torch.equal(tensor, before[name]) != name.startswith(("F.", "G.")), name


def test_a_seed_decides_and_torchs_generator_stays() -> None:
    state = torch.get_rng_state()
    first, again, other = (LeTsGenerator.new(CONFIG, seed=seed).pos_embed for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_aux_net_has_the_generators_parameters_alone_and_trains_them() -> None:
    net = AuxNet(LeTsGenerator.new(CONFIG, seed=0))
    assert {name.removeprefix("generator.") for name, _ in net.named_parameters()} == {
        name for name, _ in net.generator.named_parameters()
    }
    twin = copy.deepcopy(net)
    images = torch.randn(2, 3, 32, 32)
    net(images).square().sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.5)
    assert not torch.equal(twin.eval()(images), net.eval()(images))  # as an average of weights needs it
    dropping = AuxNet(twin.generator, drop_path_rate=0.9)
    assert torch.equal(dropping.eval()(images), twin(images)), "layers are dropped in train mode only"
    assert not torch.equal(dropping.train()(images), twin(images))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert net(images).dtype is torch.bfloat16


def test_saving_and_loading_gives_the_same_learngene(generator: LeTsGenerator, tmp_path: Path) -> None:
    generator = generator.float()
    generator.save_pretrained(tmp_path / "lets")
    loaded = LeTsGenerator.from_pretrained(tmp_path / "lets")
    assert loaded.config == CONFIG
    assert loaded.paraminit_type == "learngene-LeTs"
    assert all(torch.equal(tensor, generator.state_dict()[name]) for name, tensor in loaded.state_dict().items())


def test_weights_of_another_learngene_are_noticed(tmp_path: Path) -> None:
    for seed in (0, 1):
        LeTsGenerator.new(CONFIG, seed=seed).save_pretrained(tmp_path / str(seed))
    weights = tmp_path / "0" / "model.safetensors"
    weights.write_bytes((tmp_path / "1" / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="damaged or exchanged"):
        LeTsGenerator.from_pretrained(tmp_path / "0")
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError):
        LeTsGenerator.from_pretrained(tmp_path / "0")


def test_published_names_go_there_and_back(tmp_path: Path) -> None:
    stored = lets_goldens.tensors("case_c/learngene")
    generator = LeTsGenerator.from_state_dict(stored, {"num_heads": 2})
    published = generator.to_published()
    assert published.keys() == stored.keys()
    assert all(torch.equal(published[key], stored[key]) for key in stored)
    assert infer_config(stored, {"num_heads": 2}) == LeTsConfig(
        embed_dim=16, num_heads=2, aux_dim=56, img_size=48, num_classes=5
    )
    assert published_name("G.7.mlp.fc2.bias", 2) == "blocks.14.mlp.fc2.trans_depth_weight.trans_bias"


def test_files_of_the_published_code_are_read_without_running_them(tmp_path: Path) -> None:
    """The layout of its training script, with an argparse.Namespace, which plain torch.load refuses."""
    import argparse

    stored = lets_goldens.tensors("case_c/learngene")
    checkpoint = {
        "model": stored,
        "model_ema": stored,
        "optimizer": {"state": {0: {"step": 3, "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 5e-4}]},
        "lr_scheduler": {"base_values": [5e-4]},
        "epoch": 299,
        "scaler": {"scale": 65536.0},
        "args": argparse.Namespace(src_arch="deit_small_patch16_224_L8", lr=5e-4),
    }
    torch.save(checkpoint, tmp_path / "checkpoint.pth")
    generator = LeTsGenerator.from_file(tmp_path / "checkpoint.pth", {"num_heads": 2})
    assert all(torch.equal(tensor, stored[key]) for key, tensor in generator.to_published().items())
    assert generator.metadata["converted_from"] == "checkpoint.pth"
    torch.save({"model": stored, "args": Path}, tmp_path / "hostile.pth")
    with pytest.raises(UnsafeFileError):
        LeTsGenerator.from_file(tmp_path / "hostile.pth", {"num_heads": 2})
    save_file(stored, tmp_path / "tensors.safetensors")
    assert LeTsGenerator.from_file(tmp_path / "tensors.safetensors", {"num_heads": 2}).config == generator.config


def test_published_files_that_do_not_fit_are_refused() -> None:
    stored = lets_goldens.tensors("case_c/learngene")
    heads = {"num_heads": 2}
    with pytest.raises(CheckpointError, match="num_heads"):
        LeTsGenerator.from_state_dict(stored)
    with pytest.raises(CheckpointError, match=r"1 missing \(blocks\.3\.trans_width_q"):
        LeTsGenerator.from_state_dict(
            {key: tensor for key, tensor in stored.items() if "3.trans_width_q" not in key}, heads
        )
    with pytest.raises(CheckpointError, match=r"1 unknown \(extra\)"):
        LeTsGenerator.from_state_dict({**stored, "extra": torch.zeros(1)}, heads)
    swapped = {**stored, "trans_width_cls.trans_weight": stored["blocks.0.trans_width_ffn.trans_weight"]}
    with pytest.raises(CheckpointError, match=r"F\.cls"):
        LeTsGenerator.from_state_dict(swapped, heads)
    with pytest.raises(CheckpointError, match="NaN"):
        LeTsGenerator.from_state_dict({**stored, "pos_embed": stored["pos_embed"] * torch.nan}, heads)
    with pytest.raises(CheckpointError, match="no published checkpoint"):
        LeTsGenerator.from_state_dict({"__sm_0_norm1_weight": torch.zeros(3)}, heads)
    own = LeTsGenerator.new(CONFIG, seed=0).state_dict()
    with pytest.raises(CheckpointError, match="do not fit the configuration"):
        LeTsGenerator.from_state_dict(own, LeTsConfig().to_dict())
