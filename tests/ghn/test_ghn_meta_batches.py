"""Meta-batches: drawn from sources of architectures, shared out to processes, halved, limited in size; and recipes."""

import dataclasses
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from test_ghn_train import SmoothNetwork, constant_images
from torch import Tensor, nn

from hf_paraminit.deepnets.described import GeneratedNetworks
from hf_paraminit.deepnets.network import DeepNetsNetwork
from hf_paraminit.errors import TrainingConfigError
from hf_paraminit.ghn.config import GHNConfig
from hf_paraminit.ghn.model import GHN
from hf_paraminit.ghn.recipes import published_recipe
from hf_paraminit.ghn.train import MetaBatch, MetaBatches, MetaTraining, TargetNetwork, TargetNetworks
from hf_paraminit.graphs.graph import ComputationalGraph
from hf_paraminit.training.loop import TrainingConfig, train

CONFIG = GHNConfig(hidden_dim=16, num_layers=1, num_heads=2, max_shape=(16, 16, 11, 11), num_classes=10)


class SmoothNetworks:
    """A source of small networks that have to be traced."""

    def __init__(self) -> None:
        self.built: list[int] = []

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> nn.Module:
        self.built.append(index)
        torch.manual_seed(index)
        network = SmoothNetwork(8 + 4 * (index % 3), 1 + index % 4)
        network.expected_input_sz = (3, 8, 8)  # type: ignore[assignment]
        return network

    def graph(self, index: int) -> ComputationalGraph | None:
        return None


def images_at(index: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(index)
    return torch.randn(6, 3, 8, 8, generator=generator), torch.randint(10, (6,), generator=generator)


# Sources


def test_networks_are_made_when_asked_for_and_kept() -> None:
    source = SmoothNetworks()
    networks = TargetNetworks(source, kept=2)
    assert len(networks) == 8
    first = networks[3]
    assert networks[3] is first
    assert networks.num_nodes(3) == len(first.graph)
    assert source.built == [3]
    _ = networks[4], networks[5]
    assert networks[3] is not first
    assert [network.shapes for network in networks[3:5]] == [first.shapes, networks[4].shapes]


def test_described_networks_run_on_predicted_weights_alone() -> None:
    """Graphs come from the records and skeletons stay on meta; the result is that of the real module."""
    source = GeneratedNetworks("train", num_classes=10)
    ghn, images = GHN.new(CONFIG, seed=0), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    networks = TargetNetworks(source)
    for index in (7, 8):
        target = networks[index]
        assert not target.defaults
        with torch.no_grad():
            weights = {name: weight.double() for name, weight in ghn.predict(target.graph, target.shapes).items()}
            torch.manual_seed(0)  # drop-out
            found = target.forward(weights, images)
            module = DeepNetsNetwork(**source.arguments(index)).double()
            for layer in module.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.track_running_stats = False
            torch.manual_seed(0)
            expected, _ = torch.func.functional_call(module, weights, (images,))
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


# Sharing out


@pytest.fixture
def networks() -> Sequence[TargetNetwork]:
    return TargetNetworks(SmoothNetworks())


def test_shards_of_a_step_hold_all_its_networks_and_the_same_images(networks: Sequence[TargetNetwork]) -> None:
    whole = MetaBatches(networks=networks, images_at=constant_images, meta_batch=4, seed=5)
    shared = dataclasses.replace(whole, shards=2)
    for step in range(5):
        parts = [shared(2 * step), shared(2 * step + 1)]
        assert {id(network) for part in parts for network in part.networks} == set(map(id, whole(step).networks))
        assert all(len(part) == 2 and torch.equal(part.images, whole(step).images) for part in parts)


def test_uneven_shards_are_refused(networks: Sequence[TargetNetwork]) -> None:
    with pytest.raises(TrainingConfigError, match="4 networks cannot be shared out to 3"):
        MetaBatches(networks=networks, images_at=constant_images, meta_batch=4, shards=3)


def settings(output: Path, **changes: Any) -> TrainingConfig:
    values: dict[str, Any] = {"steps": 3, "learning_rate": 1e-2, "warmup_steps": 1, "log_every": 1, "cpu": True}
    return TrainingConfig(output=str(output), **{**values, **changes})


def meta_train(networks: Sequence[TargetNetwork], config: TrainingConfig, shards: int) -> GHN:
    batches = MetaBatches(networks=networks, images_at=images_at, meta_batch=4, shards=shards)
    ghn = train(MetaTraining(GHN.new(CONFIG, seed=0)), batches, config).ghn
    assert isinstance(ghn, GHN)
    return ghn


def test_accumulated_shards_equal_the_whole_meta_batch(networks: Sequence[TargetNetwork], tmp_path: Path) -> None:
    whole = meta_train(networks, settings(tmp_path / "whole", steps=1), 1)
    shared = meta_train(networks, settings(tmp_path / "shared", steps=1, gradient_accumulation=2), 2)
    # Adam's first step is the sign of the gradient, whatever its size: compare what is not rounding noise.
    moved = torch.cat([(a - b).abs().flatten() for a, b in zip(whole.parameters(), shared.parameters(), strict=True)])
    assert (moved > 1e-4).float().mean() < 1e-3


def test_meta_batch_that_does_not_fit_is_halved(networks: Sequence[TargetNetwork], tmp_path: Path) -> None:
    class Small(MetaTraining):
        def forward(self, batch: MetaBatch) -> dict[str, Tensor]:
            if len(batch) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
            return super().forward(batch)

    batches = MetaBatches(networks=networks, images_at=images_at, meta_batch=4)
    train(Small(GHN.new(CONFIG, seed=0)), batches, settings(tmp_path, steps=1))
    assert '"halved": 1, "dropped": 0' in (tmp_path / "metrics.jsonl").read_text()


def test_halves(networks: Sequence[TargetNetwork]) -> None:
    batch = MetaBatch(networks[:3], *images_at(0))
    first, second = batch.halves()
    assert [*first.networks, *second.networks] == networks[:3]
    assert first.halves() == ()
    assert second.images is batch.images


def test_killed_meta_training_continues_bit_exactly(networks: Sequence[TargetNetwork], tmp_path: Path) -> None:
    straight = meta_train(networks, settings(tmp_path / "straight", steps=4, checkpoint_every=2), 1)

    def killed_at_three(index: int) -> tuple[Tensor, Tensor]:
        if index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return images_at(index)

    if not (child := os.fork()):
        try:
            batches = MetaBatches(networks=networks, images_at=killed_at_three, meta_batch=4)
            train(MetaTraining(GHN.new(CONFIG, seed=0)), batches, settings(tmp_path / "k", steps=4, checkpoint_every=2))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    resumed = meta_train(networks, settings(tmp_path / "k", steps=4, checkpoint_every=2), 1)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))


# Limits


def test_meta_batches_stay_below_the_node_limit(networks: Sequence[TargetNetwork]) -> None:
    batches = MetaBatches(networks=networks, images_at=constant_images, meta_batch=2, seed=1)
    sizes = [sum(len(network.graph) for network in batches(index).networks) for index in range(30)]
    limit = sorted(sizes)[15]
    limited = dataclasses.replace(batches, max_nodes=limit)
    found = [sum(len(network.graph) for network in limited(index).networks) for index in range(30)]
    assert max(found) <= limit
    assert all(after == before for before, after in zip(sizes, found, strict=True) if before <= limit)
    with pytest.raises(TrainingConfigError, match="had more than 3 nodes"):
        dataclasses.replace(batches, max_nodes=3)(0)


def test_metrics_of_few_classes(networks: Sequence[TargetNetwork]) -> None:
    images, labels = images_at(0)
    ghn = GHN.new(CONFIG, seed=0)
    metrics = MetaTraining(ghn)(MetaBatch(networks[:2], images, labels))
    assert 0 <= metrics["accuracy"] <= metrics["top5"] <= 1
    with torch.no_grad():
        logits = networks[0].forward(ghn.predict(networks[0].graph, networks[0].shapes), images)
    alone = MetaTraining(ghn)(MetaBatch(networks[:1], images, labels))
    expected = [label in row for label, row in zip(labels, logits.argsort(1)[:, -5:], strict=True)]
    assert alone["top5"] == pytest.approx(sum(expected) / 6)


# Recipes


@pytest.mark.parametrize(
    ("name", "size", "millions"),
    [("ghn3", "tiny", 6.906632), ("ghn3", "xl", 654.365184), ("ghn2", "tiny", 2.319720), ("ghn1", "tiny", 2.319624)],
)
def test_published_models_have_the_published_size(name: str, size: str, millions: float) -> None:
    recipe = published_recipe(name, size=size, image_size=224)
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in GHN(recipe.model).parameters()) == round(millions * 1e6)


def test_published_recipes() -> None:
    ghn3, ghn1 = published_recipe("ghn3", size="xl", image_size=224), published_recipe("ghn1")
    assert (ghn3.epochs, ghn3.batch_size, ghn3.meta_batch, ghn3.max_nodes) == (75, 128, 16, 4400)
    assert (ghn3.norm_penalty, ghn3.label_smoothing, ghn3.schedule) == (3e-5, 0.1, "cosine-warmup")
    assert (ghn1.meta_batch, ghn1.max_nodes, ghn1.norm_penalty, ghn1.label_smoothing) == (1, 2200, 0, 0)
    assert ghn1.model.max_shape == (64, 64, 11, 11)
    assert GHN(ghn1.model).paraminit_type == "ghn1"
    assert GHN(published_recipe("ghn-mlp").model).paraminit_type == "ghn-mlp"
    assert isinstance(ghn1.new_optimizer()(nn.Linear(1, 1)), torch.optim.Adam)
    assert isinstance(ghn3.new_optimizer()(nn.Linear(1, 1)), torch.optim.AdamW)


@pytest.mark.parametrize(("name", "size"), [("ghn4", "tiny"), ("ghn3", "base"), ("ghn1", "large")])
def test_unknown_recipes_are_refused(name: str, size: str) -> None:
    with pytest.raises(TrainingConfigError, match="No recipe"):
        published_recipe(name, size=size)
