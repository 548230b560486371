"""Random networks of timm's families: they run, are traced in full, and are the same for the same number."""

import hashlib

import pytest
import torch

from hf_paraminit.deepnets.families import DEFAULT_FAMILIES, FAMILIES, SHARES, FamilyNetworks, draw_pool
from hf_paraminit.deepnets.genotype import ArchitectureError
from hf_paraminit.evaluation.fingerprint import fingerprint, seen_in_training
from hf_paraminit.evaluation.hosts import build_network
from hf_paraminit.evaluation.nets import ALL_NETS
from hf_paraminit.graphs.trace import trace


def shapes(network: torch.nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(parameter.shape)) for name, parameter in network.named_parameters()]


@pytest.mark.parametrize("family", FAMILIES)
def test_networks_run_and_learn(family: str) -> None:
    source = FamilyNetworks(7, families=(family,), seed=1)
    for index in range(2):
        network = source[index]
        assert source.family(index) == family
        assert network.expected_input_sz == (3, 32, 32)
        assert sum(parameter.numel() for parameter in network.parameters()) <= 1_200_000
        output = network(torch.randn(2, 3, 32, 32))
        for logits in output if isinstance(output, tuple) else (output,):
            assert logits.shape == (2, 7)
            assert logits.isfinite().all()
            logits.square().sum().backward(retain_graph=True)
        assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_nearly_all_elements_have_a_node(family: str) -> None:
    network = FamilyNetworks(7, families=(family,), seed=2)[0]
    covered = set(trace(network, mode="auto").parameter_names)
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    left_out = sum(size for name, size in sizes.items() if name not in covered)
    assert left_out < 0.02 * sum(sizes.values())


def test_every_family_can_be_drawn() -> None:
    source = FamilyNetworks()
    assert set(DEFAULT_FAMILIES) == set(FAMILIES)
    assert {source.family(index) for index in range(400)} == set(FAMILIES)


def test_networks_depend_on_seed_and_number_alone() -> None:
    source = FamilyNetworks(families=("resnet", "vit", "mixer"))
    torch_state = torch.get_rng_state()
    first = [source[index] for index in (0, 1, 2)]
    again = [source[index] for index in (2, 1, 0)][::-1]
    assert torch.equal(torch_state, torch.get_rng_state())
    for one, other in zip(first, again, strict=True):
        assert shapes(one) == shapes(other)
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    others = FamilyNetworks(families=("resnet", "vit", "mixer"), seed=1)
    assert [shapes(others[index]) for index in (0, 1, 2)] != [shapes(network) for network in first]


def test_networks_of_one_family_differ() -> None:
    source = FamilyNetworks(families=("convnext",))
    assert len({str(shapes(source[index])) for index in range(8)}) >= 7


def test_weights_decide() -> None:
    source = FamilyNetworks(families={"vit": 3.0, "swin": 1.0, "resnet": 0.0})
    drawn = [source.family(index) for index in range(1000)]
    assert set(drawn) == {"vit", "swin"}
    assert 700 < drawn.count("vit") < 800  # standard deviation 14


@pytest.mark.parametrize(
    ("families", "message"),
    [
        (("convnxt",), "no family 'convnxt'; did you mean 'convnext'"),
        (("xyz",), "known are resnet, resnext"),
        ((), "found {}"),
        ({"vit": -1.0}, "at least 0"),
        ({"vit": 0.0}, "one of them positive"),
    ],
)
def test_impossible_families_are_refused(families: tuple[str, ...] | dict[str, float], message: str) -> None:
    with pytest.raises(ArchitectureError, match=message):
        FamilyNetworks(families=families)


def test_a_budget_that_no_network_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_paraminit.deepnets.families.MAX_CANDIDATES", 3)
    with pytest.raises(ArchitectureError, match=r"family 'vgg' has at most 100 parameters.*Raise max_parameters"):
        FamilyNetworks(families=("vgg",), max_parameters=100)[0]


def test_the_pool_of_the_built_in_predictor_stays_what_it_was() -> None:
    """Its model card promises that the evaluation networks are not among these 48 (20 classes, seed 0)."""
    assert set(SHARES) == {"resnet", "regnet", "convnext", "mobile", "densenet", "vit"}
    pool = draw_pool(48, 20, seed=0, max_parameters=1_200_000)
    digest = hashlib.sha256("".join(str(shapes(network)) for network in pool).encode()).hexdigest()
    assert digest[:16] == "32800fb839dbd93e"


@pytest.mark.slow
def test_no_benchmark_network_is_drawn() -> None:
    drawn = [
        fingerprint(FamilyNetworks(10, families=(family,), seed=seed)[index])
        for family in FAMILIES
        for seed in range(2)
        for index in range(4)
    ]
    for net in ALL_NETS.values():
        model = build_network(net, num_classes=10, in_chans=3, img_size=32)
        assert not seen_in_training(fingerprint(model), drawn), net.name
