"""The auto-encoders, losses and samplers against outputs recorded from the published code."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hf_paraminit.hyperrep.autoencoder import SequenceAutoEncoder, embedding
from hf_paraminit.hyperrep.config import GlobalConfig, SequenceConfig, layers_from_index
from hf_paraminit.hyperrep.global_autoencoder import GlobalAutoEncoder, GlobalProjectionHead
from hf_paraminit.hyperrep.loss import LayerwiseReconstruction, masked_reconstruction, mix, nt_xent
from hf_paraminit.hyperrep.sample import best_anchors, reference_codes

GOLDEN = Path(__file__).parents[1] / "golden" / "hyperrep"
ABSOLUTE, RELATIVE = 1e-5, 1e-4


def cases(folder: str) -> list[str]:
    found = sorted(path.stem for path in (GOLDEN / folder).glob("*.safetensors"))
    assert len(found) >= 2
    return found


def read(folder: str, case: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    path = GOLDEN / folder / f"{case}.json"
    return json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))


def state(tensors: dict[str, Tensor], prefix: str = "state.") -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def assert_near(found: Any, expected: Any) -> None:
    torch.testing.assert_close(
        torch.as_tensor(found), torch.as_tensor(expected), atol=ABSOLUTE, rtol=RELATIVE, check_dtype=False
    )


def assert_gradient_norms(module: torch.nn.Module, expected: dict[str, float]) -> None:
    parameters = dict(module.named_parameters())
    assert set(parameters) == set(expected)
    for name, parameter in parameters.items():
        assert parameter.grad is not None
        assert float(parameter.grad.norm()) == pytest.approx(expected[name], rel=1e-4, abs=1e-7), name


@pytest.mark.parametrize("case", cases("hr_ae"))
def test_global_autoencoder(case: str) -> None:
    record, tensors = read("hr_ae", case)
    model = GlobalAutoEncoder(GlobalConfig.from_dict(record["config"], record["index_dict"])).eval()
    model.load_state_dict(state(tensors))
    codes, output = model(tensors["in.x"])
    assert_near(codes, tensors["out.z"])
    assert_near(output, tensors["out.y"])
    assert_near(model.decode(tensors["in.z_uniform"]), tensors["out.y_uniform"])
    (output.square().mean() + codes.square().mean()).backward()
    assert_gradient_norms(model, record["grad_norms"])


def test_keys_of_the_published_mnist_autoencoder() -> None:
    record = json.loads((GOLDEN / "hr_ae" / "mnist_cnn_keys.json").read_text())
    model = GlobalAutoEncoder(GlobalConfig(layers=layers_from_index(record["index_dict"])))
    assert model.config.num_weights == record["n_weights"]
    assert model.config.num_tokens == record["n_tokens"]
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == record["keys"]


@pytest.mark.parametrize("case", cases("hr_loss"))
def test_reconstruction_with_layerwise_normalisation(case: str) -> None:
    record, tensors = read("hr_loss", case)
    layers = layers_from_index(record["index_dict"])
    seen = 0
    for name, expected in record["values"].items():
        if not name.startswith("recon|"):
            continue
        _, reduction, normalize, threshold = name.split("|")
        limit = threshold.removeprefix("threshold=")
        loss = LayerwiseReconstruction(
            layers,
            tensors["ref_weights"],
            normalize=normalize == "norm=True",
            reduction=reduction,
            threshold=None if limit == "None" else float(limit),
        )
        found = loss(tensors["output"], tensors["target"])
        assert set(found) == set(expected)
        for key, value in expected.items():
            assert found[key].item() == pytest.approx(value, rel=RELATIVE), (name, key)
        seen += 1
    assert seen >= 7
    loss = LayerwiseReconstruction(layers, tensors["ref_weights"])
    assert_near(loss.scale, tensors["norm_coeff"])
    for key, value in record["values"]["mean_loss_normed"].items():
        assert loss.baseline[key] == pytest.approx(value, rel=RELATIVE)


@pytest.mark.parametrize("case", cases("hr_loss"))
def test_contrast_and_mix_of_the_global_autoencoder(case: str) -> None:
    record, tensors = read("hr_loss", case)
    values, sizes = record["values"], record["projection_head"]
    for name, expected in values.items():
        if name.startswith("ntxent|"):
            found = nt_xent(tensors["z_i"], tensors["z_j"], float(name.removeprefix("ntxent|T=")))
            assert found.item() == pytest.approx(expected, rel=RELATIVE)
    head = GlobalProjectionHead(tensors["z_i"].shape[1], sizes["hdim"], sizes["odim"], sizes["layers"])
    loss = LayerwiseReconstruction(layers_from_index(record["index_dict"]), tensors["ref_weights"])
    for mode in ("train", "eval"):
        head.load_state_dict(state(tensors, "proj_state."))
        head.train(mode == "train")
        found = mix(
            loss(tensors["output"], tensors["target"])["loss_recon"],
            (head(tensors["z_i"]), head(tensors["z_j"])),
            gamma=record["gamma"],
            temperature=record["temperature"],
            penalised=tensors["z_i"],
            variance_penalty=record["z_var_penalty"],
            norm_penalty=record["z_norm_penalty"],
        )
        for key in found:
            assert found[key].item() == pytest.approx(values[f"combined_{mode}_mode"][key], rel=RELATIVE), (mode, key)


@pytest.mark.parametrize("case", cases("sane_ae"))
def test_sequence_autoencoder(case: str) -> None:
    record, tensors = read("sane_ae", case)
    model = SequenceAutoEncoder(SequenceConfig.from_dict(record["config"])).eval()
    model.load_state_dict(state(tensors))
    projected, outputs = [], []
    for view in ("i", "j"):
        codes, output = model(tensors[f"in.x_{view}"], tensors["in.pos"])
        assert_near(codes, tensors[f"out.z_{view}"])
        assert_near(output, tensors[f"out.y_{view}"])
        projected.append(model.project(codes))
        outputs.append(output)
        assert_near(projected[-1], tensors[f"out.zp_{view}"])
        if view == "i":
            assert_near(embedding(codes), tensors["out.embedding_i"])
    reconstruction = masked_reconstruction(
        torch.cat(outputs),
        torch.cat([tensors["in.x_i"], tensors["in.x_j"]]),
        torch.cat([tensors["in.mask"], tensors["in.mask"]]),
        legacy=True,
    )
    found = mix(
        reconstruction,
        (projected[0], projected[1]),
        gamma=record["gamma"],
        temperature=record["temperature"],
        penalised=projected[0],
        variance_penalty=record["z_var_penalty"],
    )
    expected = {key.partition("/")[2]: value for key, value in record["loss"].items()}
    for key in found:
        assert found[key].item() == pytest.approx(expected[key], rel=RELATIVE), key
    found["loss"].backward()
    assert_gradient_norms(model, record["grad_norms"])


def test_published_draws_of_whole_networks() -> None:
    record, tensors = read("kde", "per_dim_a")
    best = best_anchors(tensors["acc"], 1 - record["quantile"])
    assert best.tolist() == record["idx_best"]
    settings = {"mode": "individual", "bandwidth": record["bandwidth"], "seed": record["random_state"]}
    for anchors, expected in ((tensors["anchors"], "samples_all"), (tensors["anchors"][best], "samples_top30")):
        assert_near(reference_codes(anchors, record["n_samples"], **settings), tensors[expected])


@pytest.mark.parametrize("mode", ["individual", "token", "joint"])
@pytest.mark.parametrize("case", ["sequence_a", "sequence_b_halo"])
def test_published_draws_of_sequences_and_what_they_decode_to(case: str, mode: str) -> None:
    record, tensors = read("kde", case)
    codes = reference_codes(
        tensors["anchors_z"],
        record["n_samples"],
        mode=mode,
        bandwidth=record["bandwidth"],
        seed=record["random_state"],
    )
    assert_near(codes, tensors[f"{mode}.z"])
    model = SequenceAutoEncoder(SequenceConfig.from_dict(record["config"])).eval()
    model.load_state_dict(state(tensors))
    window, halo = record["halo"] or (0, 0)
    tokens = model.decode_haloed(codes[:2], tensors["pos"][None], window, halo)
    reference = state(tensors, "ref.")
    for row in range(2):
        for key, value in _detokenised(tokens[row], tensors["pos"], reference).items():
            assert_near(value, tensors[f"{mode}.ckpt{row}.{key}"])


def _detokenised(tokens: Tensor, positions: Tensor, reference: dict[str, Tensor]) -> dict[str, Tensor]:
    """Plain inverse of the published tokens, kept apart from the package's tokeniser on purpose."""
    found = {}
    weights = [key for key in reference if key.endswith("weight")]
    for layer, key in enumerate(weights):
        shape, bias = reference[key].shape, key.replace("weight", "bias")
        rows = tokens[positions[:, 1] == layer].reshape(shape[0], -1)
        width = reference[key][0].numel()
        found[key] = rows[:, :width].reshape(shape)
        found[bias] = rows[:, width]
    return found
