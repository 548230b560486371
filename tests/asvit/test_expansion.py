"""Handing weights on along a growth series."""

import pytest
import timm
import torch
from torch import Tensor, nn

import hf_paraminit  # noqa: F401 (registers the models)
from hf_paraminit.asvit.architecture import Architecture
from hf_paraminit.asvit.errors import ScoreError
from hf_paraminit.asvit.expansion import Expansion, hand_on
from hf_paraminit.asvit.grow import growth_candidates
from hf_paraminit.asvit.model import AsViT
from hf_paraminit.asvit.probe import remove_norms

SMALL = Architecture.parse("5,2,2,1|3,1,2,2|2,1,3,1|3,1,2,1|16,8")
WIDER = SMALL.scaled(width=11)
DEEPER = SMALL.scaled(depths=(2, 2, 1, 3))
LARGER = SMALL.scaled(depths=(1, 2, 2, 1), width=9)


def model(arch: Architecture, **settings) -> AsViT:
    torch.manual_seed(arch.num_params())
    sizes = {"img_size": 32, "num_classes": 4, "pos_embed": True, "drop_path_rate": 0.0, **settings}
    built = timm.create_model("asvit", arch=str(arch), init_std=0.3, **sizes).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.dim() == 1:  # biases and norms start at constants, which would hide mistakes
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return built


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def handed_on(donor: AsViT, arch: Architecture, **settings) -> AsViT:
    target = model(arch)
    values = hand_on(target, list(dict(target.named_parameters())), donor=donor, **settings)
    assert values.keys() == dict(target.named_parameters()).keys()
    target.load_state_dict(values)
    return target


def test_no_growth_is_the_same_network() -> None:
    donor = model(SMALL)
    same = handed_on(donor, SMALL)
    for name, value in donor.state_dict().items():
        torch.testing.assert_close(same.state_dict()[name], value, rtol=1e-6, atol=0)


def test_added_blocks_do_nothing_yet_and_can_learn() -> None:
    donor, target = model(SMALL), handed_on(model(SMALL), DEEPER)
    torch.testing.assert_close(target(images()), donor(images()), rtol=1e-5, atol=1e-5)
    target(images()).square().sum().backward()
    added = target.layers[3].blocks[2]
    assert added.attn.proj.weight.grad.abs().sum() > 0
    assert added.mlps[0][1].fc2.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("arch", [WIDER, LARGER])
def test_without_norms_and_noise_the_function_stays(arch: Architecture) -> None:
    """Windows, heads of another size, kernels of several tokens and the two-layer head all keep their meaning."""
    donor = model(SMALL)
    target = handed_on(donor, arch, noise=0.0)
    for network in (donor, target):
        remove_norms(network)
    torch.testing.assert_close(target(images()), donor(images()), rtol=1e-4, atol=1e-4)


def test_any_rows_keep_what_is_linear() -> None:
    """Queries times keys, values into the projection, patches into the merging: undone exactly for any added rows."""
    growth = Expansion(model(SMALL), WIDER, noise=3.0)
    values = growth.materialize()
    small = growth.values
    block = "layers.1.blocks.1."
    heads = SMALL.stage_heads[1]

    def products(weights: dict[str, Tensor], stream: Tensor) -> tuple[Tensor, Tensor]:
        qkv = stream @ weights[f"{block}attn.qkv.weight"].T + weights[f"{block}attn.qkv.bias"]
        q, k, v = qkv.reshape(len(stream), 3, heads, -1).unbind(1)
        scores = torch.einsum("nhd,mhd->hnm", q, k) * q.shape[-1] ** -0.5
        out = torch.einsum("hnm,mhd->nhd", scores, v).flatten(1) @ weights[f"{block}attn.proj.weight"].T
        return scores, out

    stream = torch.randn(5, SMALL.dims[1])
    added = growth.rows["stage 1"]
    scores, out = products(small, stream)
    larger_scores, larger_out = products(values, torch.cat([stream, stream @ added.T], dim=1))
    torch.testing.assert_close(larger_scores, scores, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(larger_out[:, : SMALL.dims[1]], out, rtol=1e-3, atol=1e-3)


def test_every_candidate_of_a_growth_step_gets_all_its_weights() -> None:
    donor = model(SMALL.scaled(depths=(1, 1, 1, 1)))
    for depths, width in growth_candidates((1, 1, 1, 1), 8):
        handed_on(donor, SMALL.scaled(depths=depths, width=width))


def test_added_neurons_differ_from_those_they_copy() -> None:
    bias = Expansion(model(SMALL), WIDER, seed=2).materialize()["patch_embed.proj.bias"]
    assert len(set(bias.tolist())) == len(bias) == 11
    exact = Expansion(model(SMALL), WIDER, noise=0.0, seed=2).materialize()["patch_embed.proj.bias"]
    assert set(exact[8:].tolist()) <= set(exact[:8].tolist())


def test_rows_are_learned_and_seeds_repeat() -> None:
    donor, target = model(SMALL), model(LARGER)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    labels = torch.arange(3) % 4
    growth = Expansion(donor, LARGER)
    losses = growth.learn(target, lambda step: (images(), labels), steps=8, learning_rate=1e-2)
    assert losses[-1] < losses[0]
    assert all(torch.equal(before[name], value) for name, value in target.state_dict().items())
    settings = {"donor": donor, "steps": 2, "batches": lambda step: (images(), labels), "seed": 5}
    first, second = (hand_on(target, ["head.weight"], **settings)["head.weight"] for _ in range(2))
    assert torch.equal(first, second)


def test_create_model_takes_it_as_init() -> None:
    donor = model(SMALL)
    sizes = {"img_size": 32, "num_classes": 7, "pos_embed": True}
    grown = timm.create_model("asvit", arch=str(LARGER), init=hand_on, init_kwargs={"donor": donor}, **sizes)
    report = grown._hf_paraminit
    assert "hand_on" in str(report)
    assert set(report.kept) == {"head.weight", "head.bias"}  # for other classes
    assert not report.refused
    torch.testing.assert_close(grown.layers[0].blocks[0].norm1.weight[:8], donor.layers[0].blocks[0].norm1.weight)


def test_refusals() -> None:
    donor = model(SMALL)
    with pytest.raises(ScoreError, match="from one As-ViT to another, found a Linear"):
        hand_on(donor, [], donor=nn.Linear(2, 2))
    with pytest.raises(ScoreError, match="within one topology"):
        hand_on(model(Architecture.parse("4,2,2|2,1,2|2,1,2|2,1,2|16,8")), [], donor=donor)
    for arch in (SMALL.scaled(width=4), SMALL.scaled(depths=(1, 1, 1, 1))):
        with pytest.raises(ScoreError, match="to larger networks"):
            hand_on(model(arch), [], donor=donor)
    with pytest.raises(ScoreError, match="needs batches"):
        hand_on(model(LARGER), [], donor=donor, steps=3)
