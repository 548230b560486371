"""Generated nets against the recorded ones of the published code, at the tolerances of the recordings."""

import json

import lets_goldens
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from hf_paraminit.lets.aux_net import AuxNet, skeleton
from hf_paraminit.lets.checkpoint import published_name
from hf_paraminit.lets.config import LeTsConfig
from hf_paraminit.lets.depth import published_sources, spread_blocks
from hf_paraminit.lets.generator import LeTsGenerator
from hf_paraminit.lets.slots import find_vision_transformer
from hf_paraminit.lets.start import depth_start, width_start

DES_NETS = [(case, name) for case in lets_goldens.CASES for name in lets_goldens.meta(case)["des"]]


def run(config: LeTsConfig, slots: dict[str, Tensor], images: Tensor) -> Tensor:
    """Logits of the net that the slots make up, in eval mode."""
    width = slots["fc_norm.weight"].shape[0]
    depth = sum(name.endswith(".norm1.weight") for name in slots)
    net = skeleton(config, width=width, depth=depth).eval()
    with torch.no_grad():
        return functional_call(net, find_vision_transformer(net).to_state(slots), (images,), strict=True)


def des_net(generator: LeTsGenerator, des: dict) -> dict[str, Tensor]:
    sources = published_sources(generator.config, des["mapping_layer"], des["mapping_layer_coeff"])
    with torch.no_grad():
        slots = generator.materialize(des["embed_dim"], sources)
    # What the published code does where the data set has another number of classes.
    return slots | {f"head.{part}": slots[f"head.{part}"][: des["num_classes"]] for part in ("weight", "bias")}


@pytest.mark.parametrize("case", lets_goldens.CASES)
def test_the_aux_net_computes_the_recorded_logits(case: str) -> None:
    recorded = lets_goldens.tensors(f"{case}/io")
    generator = lets_goldens.generator(case)
    net = AuxNet(generator).eval()
    logits = net(recorded["x"].double())
    torch.testing.assert_close(logits, recorded["aux_logits"].double(), rtol=1e-6, atol=1e-6)
    single = AuxNet(generator.float()).eval()(recorded["x"])
    torch.testing.assert_close(single, recorded["aux_logits"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("case", "name"), DES_NETS)
def test_des_nets_compute_the_recorded_logits(case: str, name: str) -> None:
    recorded = lets_goldens.tensors(f"{case}/io")
    generator = lets_goldens.generator(case)
    slots = des_net(generator, lets_goldens.meta(case)["des"][name])
    logits = run(generator.config, slots, recorded["x"].double())
    torch.testing.assert_close(logits, recorded[f"des_{name}_logits"].double(), rtol=1e-6, atol=1e-6)


def test_a_des_net_has_the_recorded_weights() -> None:
    expected = lets_goldens.tensors("case_a/des_L10_d40")
    slots = des_net(lets_goldens.generator("case_a"), lets_goldens.meta("case_a")["des"]["L10_d40"])
    assert slots.keys() == expected.keys()
    for name, tensor in slots.items():
        lets_goldens.assert_weights(tensor, expected[name], name)


@pytest.mark.parametrize("case", lets_goldens.CASES)
def test_gradients_of_the_distillation_loss_are_the_recorded_ones(case: str) -> None:
    recorded, meta = lets_goldens.tensors(f"{case}/io"), lets_goldens.meta(case)
    generator = lets_goldens.generator(case)
    logits = AuxNet(generator).eval()(recorded["x"].double())
    teacher = recorded["teacher_logits"].double()
    divergence = F.kl_div(logits.log_softmax(1), teacher.log_softmax(1), log_target=True, reduction="sum")
    loss = divergence / logits.numel()  # over images and classes, as published
    assert loss.item() == pytest.approx(meta["losses"]["soft|alpha=1.0|tau=1.0"], rel=1e-6)
    loss.backward()
    stored = lets_goldens.tensors("case_a/grads_soft_a1_t1") if case == "case_a" else {}
    for name, parameter in generator.named_parameters():
        key = published_name(name, generator.config.repeat)
        gradient = parameter.grad
        assert gradient is not None, name
        if name.endswith("attn.k.bias"):  # shifting all scores of a query changes nothing
            assert gradient.abs().max() < 1e-6, name
            continue
        assert gradient.norm().item() == pytest.approx(meta["grad_norms_soft_a1_t1"][key], rel=1e-4), name
        if stored:
            torch.testing.assert_close(gradient, stored[key].double(), rtol=1e-4, atol=1e-7)


def test_the_full_size_has_the_recorded_parameters() -> None:
    generator = lets_goldens.full_size()
    assert generator.config == LeTsConfig()
    counts = json.loads((lets_goldens.LETS / "full_size_keys.json").read_text())["counts"]
    assert sum(parameter.numel() for parameter in generator.parameters()) == counts["total"] == 37_735_784


def test_a_full_size_des_net_has_the_recorded_statistics() -> None:
    record = json.loads((lets_goldens.LETS / "full_size_des_L10_H7.json").read_text())
    slots = des_net(lets_goldens.full_size(), record)
    lets_goldens.assert_statistics(slots, record["weights"], rtol=1e-4, atol=1e-5)
    assert sum(tensor.numel() for tensor in slots.values()) == record["n_params"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["L10_H7", "readme_L12_H12"])
def test_full_size_des_nets_compute_the_recorded_logits(name: str) -> None:
    record = json.loads((lets_goldens.LETS / f"full_size_des_{name}.json").read_text())
    slots = des_net(lets_goldens.full_size(), record)
    lets_goldens.assert_statistics(slots, record["weights"], rtol=1e-4, atol=1e-5)
    images = lets_goldens.filled("input", (1, 3, 224, 224), 1.0, 0.0).double()
    logits = run(LeTsConfig(), {name: tensor.double() for name, tensor in slots.items()}, images)
    expected = torch.tensor(record["logits_full"], dtype=torch.float64)
    torch.testing.assert_close(logits.flatten(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_full_size_aux_net_has_the_recorded_statistics_and_logits() -> None:
    record = json.loads((lets_goldens.LETS / "full_size_aux.json").read_text())
    with torch.no_grad():
        slots = lets_goldens.full_size().materialize()
    lets_goldens.assert_statistics(slots, record["weights"], rtol=1e-4, atol=1e-5)
    logits = run(LeTsConfig(), slots, lets_goldens.filled("input", (1, 3, 224, 224), 1.0, 0.0))
    torch.testing.assert_close(logits.flatten(), torch.tensor(record["logits_full"]), rtol=1e-4, atol=1e-4)


def test_the_documented_list_for_twelve_layers_is_the_depth_rule() -> None:
    generator = lets_goldens.generator("case_a")
    des = lets_goldens.meta("case_a")["des"]["readme_L12_d48"]
    sources = published_sources(generator.config, des["mapping_layer"], des["mapping_layer_coeff"])
    assert [source.block for source in sources] == spread_blocks(12, 8)
    assert all(source.pair == generator.config.pairs[source.block] for source in sources)


def test_rows_of_f_start_as_recorded() -> None:
    recorded = {key: value for key, value in lets_goldens.tensors("init_schemes").items() if key.startswith("width.")}
    assert len(recorded) == 4
    for key, expected in recorded.items():
        _, scheme, seed, sizes = key.split(".")
        large, small = (int(word.removeprefix("large").removeprefix("small")) for word in sizes.split("_"))
        torch.manual_seed(int(seed.removeprefix("seed")))
        found = width_start((large - small, small), scheme)  # type: ignore[arg-type]
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7, msg=key)


def test_coefficients_of_g_start_as_recorded_also_those_of_ligo() -> None:
    recorded = lets_goldens.tensors("init_schemes")
    weights = [key for key in recorded if "depth." in key and ".seed" in key and key.endswith(".weight")]
    assert len(weights) >= 30
    for key in weights:
        _, scheme, seed, layer, count, _ = key.split(".")
        torch.manual_seed(int(seed.removeprefix("seed")))
        for part in ("weight", "bias"):  # drawn in this order
            found = depth_start(int(layer.removeprefix("layer")), scheme, count=int(count.removeprefix("n")))
            expected = recorded[f"{key.removesuffix('weight')}{part}"]
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7, msg=key)
