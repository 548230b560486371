"""Training a hyper-representation on a zoo: batches, preparation, the run, and probes of what codes tell."""

import dataclasses
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_representation import tiny_net

from hf_paraminit.errors import CheckpointError, PredictionError, TrainingConfigError
from hf_paraminit.hyperrep.config import SequenceConfig
from hf_paraminit.hyperrep.model import HyperRepresentation
from hf_paraminit.hyperrep.properties import LinearProbe, probe_scores, weight_statistics
from hf_paraminit.hyperrep.standardize import Mode
from hf_paraminit.hyperrep.tokens import TokenLayout
from hf_paraminit.hyperrep.train import (
    PreparedZoo,
    WindowBatches,
    best_networks,
    prepare_zoo,
    reconstruction_scores,
    train_representation,
)
from hf_paraminit.hyperrep.zoo import Zoo
from hf_paraminit.hyperrep.zoo_build import ZooPlan, build_zoo
from hf_paraminit.hyperrep.zoo_nets import ZooCNN
from hf_paraminit.hyperrep.zoo_training import ZooData
from hf_paraminit.training.loop import TrainingConfig

TOKEN_DIM = 32
LAUNCHED = """
import os, sys
import torch, torch.distributed as dist
from test_hyperrep_train import TOKEN_DIM, Zoo, prepare_zoo, trained_with
prepared = prepare_zoo(Zoo.open(sys.argv[1]), token_dim=TOKEN_DIM)
representation = trained_with(prepared, sys.argv[2], gradient_accumulation=1)
torch.save(representation.state_dict(), f"{sys.argv[2]}.rank{os.environ['RANK']}")
dist.barrier()
os._exit(0)  # without the interpreter's end, where gloo's threads now and then abort the process
"""


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    generator = torch.Generator().manual_seed(0)

    def block(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.arange(count) % 10
        images = torch.randn(count, 1, 8, 8, generator=generator)
        images.view(count, 64)[torch.arange(count), labels * 6] += 4
        return images, labels

    data = ZooData(name="bright pixels", train=block(128), validation=block(60), test=block(60))
    plan = ZooPlan.grid(range(8), epochs=3, learning_rate=3e-3)
    return build_zoo(tmp_path_factory.mktemp("zoo"), partial(ZooCNN, "cnn-tiny"), data, plan, architecture="cnn-tiny")


@pytest.fixture(scope="module")
def prepared(zoo: Zoo) -> PreparedZoo:
    return prepare_zoo(zoo, token_dim=TOKEN_DIM)


def architecture(window: int = 20) -> SequenceConfig:
    return SequenceConfig(
        token_dim=TOKEN_DIM, model_dim=32, num_heads=2, num_layers=1, latent_dim=16, window=window, position_axes=4
    )


def test_preparation_aligns_standardises_and_keeps_the_splits(zoo: Zoo, prepared: PreparedZoo) -> None:
    assert sum(map(len, prepared.tokens.values())) == len(zoo)
    values = prepared.tokens["train"][:, prepared.layout.mask]
    assert abs(float(values.mean())) < 0.2
    assert 0.8 < float(values.std()) < 1.3
    unaligned = prepare_zoo(zoo, token_dim=TOKEN_DIM, align=False)
    spread = [float(part.tokens["train"].var(0).sum()) for part in (prepared, unaligned)]
    assert spread[0] < spread[1]


def test_a_batch_is_a_function_of_its_index(prepared: PreparedZoo) -> None:
    batches = WindowBatches(
        tokens=prepared.tokens["train"], layout=prepared.layout, window=12, batch_size=4, num_views=2
    )
    first, again, other = batches(3), batches(3), batches(4)
    assert not torch.equal(dataclasses.replace(batches, seed=1)(3).targets, first.targets)
    assert torch.equal(first.inputs, again.inputs)
    assert first.inputs.shape == (2, 4, 12, TOKEN_DIM)
    assert first.positions.shape == (1, 12, 4)
    assert not torch.equal(first.targets, other.targets)
    assert not torch.equal(first.inputs[0], first.inputs[1])
    assert torch.equal(first.targets[0], first.targets[1])
    assert not first.inputs[..., ~first.mask].any()


def test_a_permuted_view_is_a_network_of_the_same_function(prepared: PreparedZoo) -> None:
    batches = WindowBatches(
        tokens=prepared.tokens["train"],
        layout=prepared.layout,
        window=prepared.layout.num_tokens,
        batch_size=1,
        num_views=2,
        noise=0.0,
        permutations=prepared.permutations,
    )
    canonical, permuted = batches(0).targets
    assert not torch.equal(canonical, permuted)
    images = torch.randn(2, 1, 8, 8)
    scores = []
    for tokens in (canonical, permuted):
        network = ZooCNN("cnn-tiny").eval()
        raw = prepared.standardization.invert(tokens, prepared.layout)
        network.load_state_dict({name: value[0] for name, value in prepared.layout.detokenize(raw).items()})
        scores.append(network(images))
    torch.testing.assert_close(scores[0], scores[1], atol=1e-4, rtol=1e-4)


def test_anchors_are_the_best_networks_of_the_last_epoch(prepared: PreparedZoo) -> None:
    states, accuracies = best_networks(prepared, 2)
    rows = [row for row in prepared.zoo["train"].rows if row.epoch == 3]
    known = sorted((row.validation_accuracy or 0.0 for row in rows), reverse=True)
    assert accuracies == known[: len(accuracies)]
    assert 1 <= len(states) <= 2


def test_training_learns_to_reconstruct_and_resumes_nothing_twice(prepared: PreparedZoo, tmp_path: Path) -> None:
    settings = TrainingConfig(output=str(tmp_path), steps=120, learning_rate=3e-3, warmup_steps=20, cpu=True)
    representation = train_representation(prepared, architecture(64), settings, batch_size=8, name="cnn-tiny")
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.85 * losses[0]
    scores = representation.metadata["reconstruction"]
    assert scores["train"]["all"] > scores["validation"]["all"]
    assert set(scores["train"]) == {"all", *(layer.names[0] for layer in prepared.layout.layers)}
    assert representation.config.window == 0  # the window held the whole network
    again = train_representation(prepared, architecture(64), settings, batch_size=8, name="cnn-tiny")
    assert torch.equal(again.anchors, representation.anchors)
    weights = representation.sample(2, seed=0).weights
    ZooCNN("cnn-tiny").load_state_dict({name: value[0] for name, value in weights.items()})


def test_contrast_on_permuted_windows_trains_too(prepared: PreparedZoo, tmp_path: Path) -> None:
    settings = TrainingConfig(output=str(tmp_path), steps=3, cpu=True)
    representation = train_representation(
        prepared, architecture(12), settings, batch_size=4, gamma=0.05, permute=True, halo=2
    )
    assert (representation.config.window, representation.config.halo) == (12, 2)
    records = (tmp_path / "metrics.jsonl").read_text()
    assert "loss_contrast" in records


def trained_with(prepared: PreparedZoo, output: str, *, gradient_accumulation: int) -> HyperRepresentation:
    """Six steps on windows with contrast, the same in every process."""
    settings = TrainingConfig(output=output, steps=6, gradient_accumulation=gradient_accumulation, cpu=True)
    return train_representation(prepared, architecture(12), settings, batch_size=4, gamma=0.05, permute=True, halo=2)


@pytest.mark.slow
def test_two_processes_train_together(zoo: Zoo, prepared: PreparedZoo, tmp_path: Path) -> None:
    """Two processes with one batch each equal one process that accumulates two."""
    script = tmp_path / "run.py"
    script.write_text(LAUNCHED)
    here = Path(__file__).parent
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    done = subprocess.run(
        [*command, str(zoo.folder), str(tmp_path / "two")],
        env={**os.environ, "PYTHONPATH": f"{here}:{here.parent}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    alone = trained_with(prepared, str(tmp_path / "one"), gradient_accumulation=2).state_dict()
    ranks = [torch.load(tmp_path / f"two.rank{rank}", weights_only=True) for rank in range(2)]
    for name, tensor in alone.items():
        assert torch.equal(ranks[0][name], ranks[1][name])
        torch.testing.assert_close(ranks[0][name], tensor, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("mode", ["std", "network"])
def test_standardising_the_whole_network_lets_large_weights_decide(zoo: Zoo, mode: Mode) -> None:
    prepared = prepare_zoo(zoo, token_dim=TOKEN_DIM, standardize=mode)
    tokens, layout = prepared.tokens["train"], prepared.layout
    spreads = [float(tokens[:, layer.tokens][:, layout.mask[layer.tokens]].std()) for layer in layout.layers]
    if mode == "std":
        assert max(spreads) < 1.5 * min(spreads)
    else:
        assert len(set(prepared.standardization.scale.values())) == 1
        assert max(spreads) > 1.5 * min(spreads)
    raw = prepared.standardization.invert(tokens, layout)
    torch.testing.assert_close(raw, layout.tokenize(prepared.states["train"]), atol=1e-5, rtol=1e-5)


def test_a_mean_network_scores_zero_and_a_perfect_copy_one(prepared: PreparedZoo, tmp_path: Path) -> None:
    settings = TrainingConfig(output=str(tmp_path), steps=1, cpu=True)
    representation = train_representation(prepared, architecture(64), settings, batch_size=2)
    with torch.no_grad():
        for parameter in representation.autoencoder.parameters():
            parameter.zero_()
    scores = reconstruction_scores(representation, prepared)["train"]
    assert scores["all"] <= 0  # zeros are the mean of each layer, not of each weight


def test_zoos_that_cannot_be_learned_from_are_refused(zoo: Zoo, prepared: PreparedZoo) -> None:
    with pytest.raises(CheckpointError, match="no checkpoints of the training split"):
        prepare_zoo(zoo.select(split="test"), token_dim=TOKEN_DIM)
    with pytest.raises(TrainingConfigError, match="batches of 0"):
        WindowBatches(tokens=prepared.tokens["train"], layout=prepared.layout, window=4, batch_size=0)


def test_a_linear_probe_finds_a_linear_property_and_ignores_unknown_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 5, generator=generator)
    targets = features @ torch.tensor([1.0, -2.0, 0.0, 3.0, 0.5]) + 7
    targets[3] = torch.nan
    probe = LinearProbe.fit(features[:40], targets[:40], (features[40:50], targets[40:50]))
    assert probe.score(features[50:], targets[50:]) > 0.999
    assert probe.penalty == 1e-5
    noise = torch.randn(40, generator=generator)
    validation = (features[40:50], torch.randn(10, generator=generator))
    assert LinearProbe.fit(features[:40], noise, validation).penalty > 1
    with pytest.raises(PredictionError, match="all targets are NaN"):
        LinearProbe.fit(features, torch.full((60,), torch.nan))


def test_weight_statistics_tell_the_scale_of_weights() -> None:
    layout = TokenLayout.from_module(tiny_net(), 16)
    scales = torch.linspace(0.5, 2, 40)[torch.randperm(40, generator=torch.Generator().manual_seed(0))]
    networks = [tiny_net().state_dict() for _ in scales]
    states = {
        name: torch.stack([scale * network[name] for scale, network in zip(scales, networks, strict=True)])
        for name in layout.names
    }
    features = weight_statistics(layout, states)
    assert features.shape == (40, 7 * len(layout.names))
    by_split = {"train": features[:25], "validation": features[25:32], "test": features[32:]}
    targets = {"train": scales[:25], "validation": scales[25:32], "test": scales[32:]}
    assert probe_scores(by_split, {"scale": targets})["scale"] > 0.8
