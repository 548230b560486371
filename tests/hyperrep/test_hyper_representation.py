"""The stored hyper-representation: laws of encoding and drawing, the file format, damaged and foreign input."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_representation import tiny_net, tiny_representation

from hf_paraminit.errors import CheckpointError
from hf_paraminit.hyperrep.model import HyperRepresentation, HyperRepresentationConfig
from hf_paraminit.hyperrep.sample import Sampling


def test_a_stored_representation_draws_the_same_networks(tmp_path: Path) -> None:
    representation = tiny_representation()
    representation.save_pretrained(tmp_path / "r")
    loaded = HyperRepresentation.from_pretrained(tmp_path / "r")
    assert loaded.anchors.dtype is torch.float16
    assert loaded.config == representation.config
    assert loaded.provenance["sha256"]
    first, second = representation.sample(3, seed=5).weights, loaded.sample(3, seed=5).weights
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_sixteen_bit_storage_loads_and_draws_nearly_the_same(tmp_path: Path) -> None:
    representation = tiny_representation()
    expected = representation.sample(1, seed=5).weights
    representation.half().save_pretrained(tmp_path / "r")
    loaded = HyperRepresentation.from_pretrained(tmp_path / "r")
    assert loaded.scale.dtype is torch.float32
    found = loaded.sample(1, seed=5).weights
    assert all(torch.allclose(found[name], expected[name], atol=0.05, rtol=0.05) for name in expected)


def test_weights_have_the_shapes_of_the_network_and_differ_pairwise() -> None:
    weights = tiny_representation().sample(6, seed=1).weights
    network = tiny_net()
    assert set(weights) == {"0.weight", "0.bias", "3.weight", "6.weight", "6.bias"}
    for name, stacked in weights.items():
        assert stacked.shape == (6, *network.get_parameter(name).shape)
        for row in range(6):
            others = [other for other in range(6) if other != row]
            assert all(not torch.equal(stacked[row], stacked[other]) for other in others)


def test_a_batch_of_draws_starts_with_the_same_seed_and_leaves_the_global_stream_alone() -> None:
    representation, before = tiny_representation(), torch.get_rng_state()
    one, again, other = (representation.sample(2, seed=seed).weights["0.weight"] for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_bandwidth_a_draw_is_a_reconstructed_anchor() -> None:
    representation = tiny_representation()
    drawn = representation.sample(4, seed=0, sampling=Sampling(bandwidth=0.0))
    anchors = representation.anchors.float()
    assert all(any(torch.equal(code, anchor) for anchor in anchors) for code in drawn.codes)
    decoded = representation.decode(drawn.codes)
    assert torch.equal(decoded["0.weight"], drawn.weights["0.weight"])


def test_the_best_share_leaves_only_the_best_anchors() -> None:
    representation = tiny_representation(num_anchors=5)
    assert len(representation.chosen_anchors(Sampling(best_share=1.0))) == 5
    best = representation.chosen_anchors(Sampling(best_share=0.2))
    assert torch.equal(best, representation.anchors[4:].float())


def test_windows_that_cover_all_tokens_decode_as_no_windows() -> None:
    whole, windowed = tiny_representation(window=0, halo=0), tiny_representation(window=100, halo=7)
    assert torch.equal(whole.sample(2).weights["3.weight"], windowed.sample(2).weights["3.weight"])


def test_networks_of_another_architecture_cannot_be_encoded() -> None:
    with pytest.raises(CheckpointError, match=r"0\.weight is \(8, 3, 3, 3\), expected \(6, 3, 3, 3\)"):
        tiny_representation().encode(tiny_net(width=8).state_dict())


def test_anchors_of_another_zoo_are_refused() -> None:
    representation = tiny_representation()
    parts = (representation.autoencoder, representation.layout)
    standardization: Any = None
    with pytest.raises(CheckpointError, match=r"6\.weight is \(7, 6\), expected \(4, 6\)"):
        HyperRepresentation.of_zoo(*parts, standardization, [tiny_net(7).state_dict()], [0.5])
    spoiled = tiny_net().state_dict()
    spoiled["6.bias"] = torch.full((4,), torch.nan)
    with pytest.raises(CheckpointError, match=r"NaN or infinite values in the anchors \[1\]"):
        HyperRepresentation.of_zoo(*parts, standardization, [tiny_net().state_dict(), spoiled], [0.5, 0.5])
    with pytest.raises(CheckpointError, match="1 anchors need as many accuracies, found 2"):
        HyperRepresentation.of_zoo(*parts, standardization, [tiny_net().state_dict()], [0.5, 0.5])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_anchors": 0}, "num_anchors"),
        ({"num_anchors": 10**9}, "at most 4096"),
        ({"window": -1}, "window"),
        ({"norms": "maybe"}, "norms='maybe'"),
        ({"layout": {}}, "token layout"),
        ({"autoencoder": {"token_dim": 17}}, "of different zoos"),
        ({"autoencoder": {"token_dim": 16, "model_dim": 10**12}}, "model_dim"),
        ({"autoencoder": {"token_dim": 16, "blocks": "lstm"}}, "blocks='lstm'"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_damaged_config_is_named_and_allocates_nothing(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    tiny_representation().save_pretrained(tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())
    record["config"] |= change
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=message):
        HyperRepresentation.from_pretrained(tmp_path)


def test_a_layout_that_was_changed_by_hand_is_noticed(tmp_path: Path) -> None:
    tiny_representation().save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    record = json.loads(text)
    record["config"]["layout"]["layers"][0]["shapes"][0][0] = 7
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError):
        HyperRepresentation.from_pretrained(tmp_path)


def test_the_config_survives_json() -> None:
    config = tiny_representation().config
    assert HyperRepresentationConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
