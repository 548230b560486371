"""Every seeded fault is found, and the same model without it is silent; healthy models of timm are silent too."""

import copy
import json
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hf_paraminit
from hf_paraminit.errors import PredictionError, TracingError
from hf_paraminit.evaluation import explain as explain_module
from hf_paraminit.evaluation.explain import explain
from hf_paraminit.evaluation.explanation import Explanation, Finding
from hf_paraminit.evaluation.faults import RULES


class Plain(nn.Module):
    """Convolutions without norms, a hidden layer, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, stride=2)
        self.conv2 = nn.Conv2d(32, 64, 3, stride=2)
        self.hidden = nn.Linear(64, 64)
        self.classifier = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(self.conv2(F.relu(self.conv1(images)))).mean((2, 3))
        return self.classifier(F.relu(self.hidden(features)))


class Deep(nn.Sequential):
    """A long row of layers without norms, whose scales multiply; He's gain keeps them."""

    def __init__(self) -> None:
        layers = [nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(16)]
        super().__init__(nn.Conv2d(3, 64, 8, stride=8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), *layers)
        self.classifier = nn.Linear(64, 10)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)


class Tied(nn.Module):
    """Scores by the table of embeddings, as language models do."""

    _tied_weights_keys = {"decoder.weight": "encoder.weight"}  # noqa: RUF012 (as in Transformers)

    def __init__(self) -> None:
        super().__init__()
        self.config = type("Config", (), {"tie_word_embeddings": True, "num_channels": 3, "image_size": 32})()
        self.stem = nn.Conv2d(3, 16, 8, stride=8)
        self.encoder = nn.Linear(16, 16, bias=False)
        self.decoder = nn.Linear(16, 16, bias=False)
        self.decoder.weight = self.encoder.weight

    def forward(self, images: Tensor) -> Tensor:
        return self.decoder(self.encoder(self.stem(images).mean((2, 3))))


def predicted_network() -> nn.Module:
    model = Plain()
    hf_paraminit.initialize(model, "ghn3")
    return model


def trained_resnet() -> nn.Module:
    """With running statistics of its own activations."""
    model = timm.create_model("test_resnet")
    with torch.no_grad():
        for _ in range(12):
            model(torch.randn(4, 3, 32, 32))
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": Plain,
    "deep": Deep,
    "tied": Tied,
    "resnet": lambda: timm.create_model("test_resnet"),
    "vit": lambda: timm.create_model("test_vit", img_size=64),
    "trained": trained_resnet,
    "predicted": predicted_network,
}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]()


@cache
def healthy(name: str) -> Explanation:
    return explain(build(name))


# --- Seeded faults ---------------------------------------------------------------------------------------------------


def scale(factor: float, *paths: str) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            if name in paths or (not paths and parameter.dim() >= 2):
                parameter.mul_(factor)

    return change


def fill(value: float, *paths: str) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        for path in paths:
            tensors[path].fill_(value)

    return change


def put(value: float, path: str) -> Callable[[nn.Module], None]:
    return lambda model: dict(model.named_parameters())[path].view(-1)[5:6].fill_(value) and None


def draw(path: str, make: Callable[[Tensor], Tensor]) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        parameter = dict(model.named_parameters())[path]
        parameter.copy_(make(parameter.detach().clone()))

    return change


def repeat_units(model: nn.Module) -> None:
    """The second half of the hidden units repeats the first, in what they receive and in what they send."""
    model.hidden.weight[32:] = model.hidden.weight[:32]
    model.hidden.bias[32:] = model.hidden.bias[:32]
    model.classifier.weight[:, 32:] = model.classifier.weight[:, :32]


def zero_half_of_the_units(model: nn.Module) -> None:
    model.conv2.weight[32:] = 0


def add_unused_layer(model: nn.Module) -> None:
    model.forgotten = nn.Linear(8, 8)


def freeze(model: nn.Module) -> None:
    model.requires_grad_(False)


def freeze_a_zero_classifier(model: nn.Module) -> None:
    model.head.weight.zero_()
    model.head.weight.requires_grad_(False)


def move_one_tensor_to_meta(model: nn.Module) -> None:
    model.hidden.weight = nn.Parameter(torch.empty(64, 64, device="meta"))


def add_lazy_layer(model: nn.Module) -> None:
    model.late = nn.LazyLinear(4)


def untie(model: nn.Module) -> None:
    model.decoder.weight = nn.Parameter(model.encoder.weight.clone())


def initialise_again(model: nn.Module) -> None:
    nn.init.kaiming_normal_(model.conv2.weight)


def overflow_in_half_precision(model: nn.Module) -> None:
    scale(2.5)(model)
    model.half()


FAULTS: dict[str, tuple[str, Callable[[nn.Module], None], str, str]] = {
    "a NaN": ("vit", put(float("nan"), "blocks.0.attn.qkv.weight"), "not_finite", "blocks.0.attn.qkv.weight"),
    "an infinity": ("plain", put(float("inf"), "hidden.bias"), "not_finite", "hidden.bias"),
    "a NaN in a buffer": ("resnet", fill(float("nan"), "bn1.running_mean"), "not_finite", "bn1.running_mean"),
    "numbers of 1e38": ("plain", put(1e38, "conv2.weight"), "uninitialised_memory", "conv2.weight"),
    "denormal numbers": (
        "plain",
        draw("conv2.weight", lambda w: torch.where(torch.rand_like(w) < 0.1, 1e-42, w)),
        "uninitialised_memory",
        "conv2.weight",
    ),
    "a tensor on meta": ("plain", move_one_tensor_to_meta, "never_materialised", "hidden.weight"),
    "a lazy parameter": ("plain", add_lazy_layer, "never_materialised", "late.weight"),
    "a huge position table": ("vit", scale(1e6, "pos_embed"), "huge_values", "pos_embed"),
    "a huge bias": ("plain", put(200.0, "conv1.bias"), "huge_values", "conv1.bias"),
    "a constant matrix": ("vit", fill(0.02, "blocks.1.mlp.fc1.weight"), "constant_kernel", "blocks.1.mlp.fc1.weight"),
    "weights of one sign": ("plain", draw("conv2.weight", lambda w: w.abs()), "shifted_mean", "conv2.weight"),
    "a gain 100 times too large": ("resnet", scale(100, "conv1.3.weight"), "extreme_gain", "conv1.3.weight"),
    "a gain 1e5 times too small": ("resnet", scale(1e-5, "conv1.3.weight"), "extreme_gain", "conv1.3.weight"),
    "units that never separate": ("plain", repeat_units, "duplicate_rows", "hidden.weight"),
    "a partial write": ("plain", zero_half_of_the_units, "partly_zero", "conv2.weight"),
    "rank one": ("vit", draw("head.weight", lambda w: w[:, :1] @ w[:1] * 50), "rank_one", "head.weight"),
    "two zero layers in a row": (
        "plain",
        fill(0, "hidden.weight", "hidden.bias", "classifier.weight"),
        "dead",
        "hidden.weight",
    ),
    "a frozen zero classifier": ("vit", freeze_a_zero_classifier, "dead", "blocks.0.attn.qkv.weight"),
    "an unused layer": ("plain", add_unused_layer, "unused", "forgotten.weight"),
    "everything frozen": ("plain", freeze, "frozen", ""),
    "growth with depth": ("deep", scale(3), "exploding_activations", "18.0"),
    "decay with depth": ("deep", scale(0.1), "vanishing_activations", "18.0"),
    "gradients that explode": ("deep", scale(3), "exploding_gradient", "0.weight"),
    "dead rectifiers": ("plain", fill(-40, "hidden.bias"), "dead_rectifiers", ""),
    "layers behind dead rectifiers": ("plain", fill(-40, "hidden.bias"), "dead", "conv1.weight"),
    "saturated attention": ("vit", scale(100, "blocks.0.attn.qkv.weight"), "saturated_attention", "blocks.0.attn"),
    "negative norm weights": ("resnet", fill(-1, "bn1.weight"), "negative_norm_weights", "bn1.weight"),
    "a zero norm in the trunk": ("vit", fill(0, "norm.weight"), "blind", ""),
    "a running variance of zero": ("resnet", fill(0, "bn1.running_var"), "invalid_running_statistics", "bn1"),
    "a negative running variance": ("trained", fill(-1, "bn1.running_var"), "invalid_running_statistics", "bn1"),
    "an infinite running mean": ("trained", fill(torch.inf, "bn1.running_mean"), "invalid_running_statistics", "bn1"),
    "a stale running variance": ("trained", fill(1e4, "bn1.running_var"), "stale_running_statistics", "bn1"),
    "a stale running mean": ("trained", fill(1e3, "bn1.running_mean"), "stale_running_statistics", "bn1"),
    "scores that are too large": ("vit", scale(100, "head.weight"), "large_initial_loss", ""),
    "a bias that decides": ("vit", put(30.0, "head.bias"), "one_class_by_bias", ""),
    "tied tensors that came apart": ("tied", untie, "untied", "decoder.weight"),
    "a second initialisation": ("predicted", initialise_again, "overwritten", "conv2.weight"),
    "overflow in float16": ("deep", overflow_in_half_precision, "half_precision_overflow", "classifier"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_seeded_fault_is_found_and_the_healthy_twin_is_silent(fault: str) -> None:
    name, seed_fault, rule, subject = FAULTS[fault]
    model = build(name)
    with torch.no_grad():
        seed_fault(model)
    found = explain(model)
    assert (rule, subject) in {(finding.rule, finding.subject) for finding in found.faults}, found
    assert f"fault: {rule}: " in str(found)
    assert healthy(name).faults == ()
    assert rule not in {finding.rule for finding in healthy(name).notes}


def test_every_rule_that_can_find_a_fault_has_a_seed() -> None:
    """Copied layers may be meant (teachers, towers), so their rule only makes notes."""
    assert {rule.__name__ for rule in RULES} - {seed[2] for seed in FAULTS.values()} == {"equal_kernels"}
    assert len(FAULTS) >= 20


# --- Notes -----------------------------------------------------------------------------------------------------------


def test_frozen_copied_and_unused_tensors_are_noted() -> None:
    model = build("plain")
    model.conv1.requires_grad_(False)
    model.teacher = copy.deepcopy(model.hidden)
    model.mask_token = nn.Parameter(torch.zeros(1, 1, 8))
    notes = {(finding.rule, finding.subject) for finding in explain(model).notes}
    assert notes == {
        ("frozen", "conv1.weight"),
        ("frozen", "conv1.bias"),
        ("equal_kernels", "teacher.weight"),
        ("unused", "mask_token"),
        ("unused", "teacher.bias"),
    }


def test_repeated_units_that_gradients_tell_apart_are_noted() -> None:
    model = build("plain")
    with torch.no_grad():
        for start in range(8, 64, 8):
            model.hidden.weight[start : start + 8] = model.hidden.weight[:8]
    found = explain(model)
    assert found.faults == ()
    assert found.notes == (Finding("duplicate_rows", "note", "hidden.weight", found.notes[0].message),)


def test_norm_weights_that_drifted_from_zero_in_training_are_healthy() -> None:
    model = build("trained")
    with torch.no_grad():
        model.layer1[0].bn2.weight.normal_(mean=-0.05, std=0.05)
    assert explain(model).findings == ()


def test_equal_rows_of_a_classifier_are_noted_since_every_class_has_its_own_labels() -> None:
    model = build("plain")
    model.classifier = nn.Linear(64, 100)
    with torch.no_grad():
        model.classifier.weight[10:] = model.classifier.weight[:10].repeat(9, 1)
    found = explain(model)
    assert found.faults == ()
    assert [(finding.rule, finding.subject) for finding in found.notes] == [("duplicate_rows", "classifier.weight")]


def test_zero_started_branches_and_classifiers_are_healthy() -> None:
    """The gradient of all but the classifier is zero at first, and reaches the innermost layers after three steps."""
    model = build("resnet")
    nn.init.zeros_(model.fc.weight)
    found = explain(model)
    rows = {row.name: row for row in found.tensors}
    assert rows["layer1.0.conv1.weight"].gradient == 0
    assert rows["layer1.0.conv1.weight"].is_stuck is False
    assert found.findings == ()


# --- The record ------------------------------------------------------------------------------------------------------


def test_rows_say_role_writer_and_scale() -> None:
    model = build("vit")
    report = hf_paraminit.initialize(model, "ghn3", names=[n for n, _ in model.named_parameters() if n != "norm.bias"])
    found = explain(model)
    rows = {row.name: row for row in found.tensors}
    assert found.init == report.summary
    roles = {
        "cls_token": "vector",
        "pos_embed": "position table",
        "patch_embed.proj.weight": "conv",
        "patch_embed.proj.bias": "bias",
        "blocks.0.norm1.weight": "norm weight",
        "blocks.0.norm1.bias": "norm bias",
        "head.weight": "classifier weight",
        "head.bias": "classifier bias",
    }
    assert {name: rows[name].role for name in roles} == roles
    assert rows["head.weight"].writer == "predicted by ghn3:builtin"
    assert rows["cls_token"].writer == f"the model itself: {report.kept['cls_token']}"
    assert rows["norm.bias"].writer == "loaded, or the model itself: not offered to ghn3:builtin"
    weight = model.blocks[0].mlp.fc2.weight.detach()
    row = rows["blocks.0.mlp.fc2.weight"]
    assert row.shape == tuple(weight.shape)
    assert row.fan_in == weight.shape[1]
    assert row.mean == pytest.approx(weight.mean().item(), rel=1e-4)
    assert row.std == pytest.approx(weight.std(correction=0).item(), rel=1e-4)
    assert row.gain == pytest.approx(weight.std(correction=0).item() * weight.shape[1] ** 0.5, rel=1e-4)
    assert row.max_abs == weight.abs().max().item()
    assert row.zeros == 0


def test_without_a_report_the_writer_is_unknown() -> None:
    assert {row.writer for row in healthy("plain").tensors} == {"unknown"}
    assert healthy("plain").init is None
    assert "no report" in str(healthy("plain"))


def test_gains_follow_the_axes_of_the_layer() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 4, 2, groups=2), nn.Conv2d(4, 8, 3, groups=4))
    fan_ins = {row.name: row.fan_in for row in explain(model).tensors if row.is_kernel}
    # an output pixel of the transposed layer sums over 4 channels of its group and, at stride 1, 4 taps
    assert fan_ins == {"0.weight": 27, "1.weight": 16, "2.weight": 9}


@pytest.mark.parametrize("name", ["plain", "predicted"])
def test_the_record_is_json_and_comes_back(name: str) -> None:
    text = json.dumps(healthy(name).to_dict(), allow_nan=False)
    assert Explanation.from_dict(json.loads(text)) == healthy(name)


def test_numbers_that_json_does_not_know_come_back_too() -> None:
    model = build("deep")
    with torch.no_grad():
        scale(1e3)(model)
        model.classifier.bias.fill_(float("nan"))
    record = explain(model).to_dict()
    text = json.dumps(record, allow_nan=False)
    assert Explanation.from_dict(json.loads(text)).to_dict() == record


def test_the_text_shows_every_tensor_and_counts_the_findings() -> None:
    model = build("plain")
    model.conv1.weight.requires_grad_(False)
    text = str(explain(model))
    for name, _ in model.named_parameters():
        assert f"\n{name} " in text
    assert text.endswith("0 faults, 1 note")
    assert "frozen" in text


# --- The model stays as it was ---------------------------------------------------------------------------------------


def state_of(model: nn.Module) -> dict[str, object]:
    return {
        "tensors": {name: (id(t), t._version, t.clone()) for name, t in model.state_dict(keep_vars=True).items()},
        "gradients": {name: p.grad if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        "trainable": [p.requires_grad for p in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].copy(),  # noqa: NPY002
        "python": random.getstate(),
        "grad mode": torch.is_grad_enabled(),
    }


def assert_equal(first: object, second: object) -> None:
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_equal(first[key], second[key])
    elif isinstance(first, (tuple, list)):
        for left, right in zip(first, second, strict=True):
            assert_equal(left, right)
    elif isinstance(first, (Tensor, np.ndarray)):
        assert np.array_equal(
            np.asarray(first.detach() if isinstance(first, Tensor) else first),
            np.asarray(second.detach() if isinstance(second, Tensor) else second),
        )
    else:
        assert first == second


@pytest.mark.parametrize("name", ["trained", "predicted", "vit", "tied"])
def test_the_model_and_all_random_states_stay_as_they_were(name: str) -> None:
    model = build(name)
    model(torch.rand(2, 3, 64, 64)).sum().backward()
    next(iter(model.children())).eval()
    before = state_of(model)
    explain(model)
    assert_equal(before, state_of(model))


def test_a_failing_forward_pass_leaves_the_model_as_it_was_too() -> None:
    model, inputs = build("plain"), torch.rand(2, 7, 8, 8)
    before = state_of(model)
    found = explain(model, example_inputs=inputs)
    assert "forward pass of a copy fails" in " ".join(found.remarks)
    assert_equal(before, state_of(model))


def test_two_calls_say_the_same_whatever_the_random_state() -> None:
    model = nn.Sequential(build("plain"), nn.Dropout(0.5))
    first = explain(model)
    torch.manual_seed(17)
    assert explain(model) == first


# --- Bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [nn.Identity(), nn.Sequential(nn.ReLU()), "resnet18", None])
def test_what_has_no_parameters_is_refused(model: object) -> None:
    with pytest.raises(PredictionError, match=r"Cannot explain a|nothing to explain"):
        explain(model)


@pytest.mark.parametrize("input_size", [0, -3, "big", (3, 32)])
def test_an_input_size_that_is_none_is_refused(input_size: object) -> None:
    with pytest.raises(TracingError, match="input size"):
        explain(build("plain"), input_size=input_size)


def test_a_model_on_meta_is_described_and_not_run() -> None:
    with torch.device("meta"):
        model = timm.create_model("test_resnet")
    found = explain(model)
    assert {finding.rule for finding in found.faults} == {"never_materialised"}
    assert len(found.faults) == len(found.tensors)
    assert {row.role for row in found.tensors} >= {"conv", "norm weight", "classifier weight"}
    assert "47 of 47 tensors cannot be read" in found.remarks[0]


def test_a_compiled_model() -> None:
    found = explain(torch.compile(build("plain")))
    assert found.output is not None
    assert found.findings == ()
    assert found.tensors[0].name == "_orig_mod.conv1.weight"


def test_inference_mode_inside_and_outside() -> None:
    with torch.inference_mode():
        model = build("plain")
        inside = explain(model)
    assert inside.output is not None
    assert inside.faults == explain(model).faults == ()


def test_packed_integer_parameters_are_described_and_not_run() -> None:
    model = build("plain")
    model.hidden.weight = nn.Parameter(torch.zeros(64, 64, dtype=torch.int8), requires_grad=False)
    found = explain(model)
    row = next(row for row in found.tensors if row.name == "hidden.weight")
    assert (row.problem, row.std) == ("holds int8", None)
    assert found.output is None
    assert found.findings == ()


class Choosing(nn.Module):
    """Data-dependent control flow, and a dict for output."""

    def __init__(self) -> None:
        super().__init__()
        self.body = build("plain")

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        scores = self.body(images)
        return {"logits": scores if scores.sum() > 0 else scores.tanh(), "count": torch.tensor(3)}


def test_control_flow_and_dicts() -> None:
    found = explain(Choosing())
    assert found.output is not None
    assert found.findings == ()
    assert all(row.is_used for row in found.tensors)


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.head(self.table(tokens).mean(1))


def test_a_model_of_something_else_than_images_needs_example_inputs() -> None:
    found = explain(Reader())
    assert found.output is None
    assert found.faults == ()
    assert "roles go by the layer's class" in found.remarks[0]
    assert "pass example_inputs=" in found.remarks[1]
    assert {row.name: row.role for row in found.tensors} == {
        "table.weight": "position table",
        "head.weight": "conv",
        "head.bias": "bias",
    }


@pytest.mark.parametrize("make", [lambda t: t, lambda t: (t, None), lambda t: {"tokens": t}])
def test_example_inputs_of_all_kinds(make: Callable[[Tensor], object]) -> None:
    found = explain(Reader(), example_inputs=make(torch.arange(40).reshape(4, 10)))
    assert found.output is not None
    assert found.output.num_classes == 5
    assert found.output.batch == (4, 10)
    assert {row.name: row.role for row in found.tensors}["head.weight"] == "classifier weight"
    assert found.remarks == ()
    assert found.findings == ()


@pytest.mark.parametrize("arguments", [{"example_inputs": 5}, {"example_inputs": {}}, {"input_size": 32}])
def test_example_inputs_that_are_none_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(TracingError, match="example_inputs"):
        explain(Reader(), **{"example_inputs": torch.zeros(2, 3, dtype=torch.int64), **arguments})


def test_run_is_skipped_on_request_and_for_large_models(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("plain")
    with torch.no_grad():
        model.conv2.weight.fill_(0.1)
    found = explain(model, run=False)
    assert found.output is None
    assert found.layers == ()
    assert found.remarks == ("scales by depth and gradients: run=False",)
    assert [finding.rule for finding in found.faults] == ["constant_kernel"]
    monkeypatch.setattr(explain_module, "MAX_RUN_ELEMENTS", 100)
    assert "ask with run=True" in explain(model).remarks[0]
    assert explain(model, run=True).output is not None


# --- Healthy models --------------------------------------------------------------------------------------------------

QUICK = (
    "test_byobnet",
    "test_convnext",
    "test_convnext2",
    "test_convnext3",
    "test_efficientnet",
    "test_efficientnet_evos",
    "test_mambaout",
    "test_nfnet",
    "test_resnet",
    "test_vit",
    "test_vit2",
    "test_vit3",
    "test_vit4",
    "lcnet_050",
    "starnet_s050",
    "mobilenetv3_small_050",
)


@pytest.mark.parametrize("name", QUICK)
def test_no_false_alarm_on_a_small_healthy_model(name: str) -> None:
    assert_healthy(name)


# The smallest model of nearly every module of timm, and further ones for their way of starting: layer scale, norms and
# classifiers that start at zero, distilled heads, relative position tables, standardised weights, gates. Left out are
# modules whose smallest model has over 1.4e8 parameters or reads images of 768 pixels or more.
SWEPT = (Path(__file__).parent / "healthy_timm_models.txt").read_text().split()


@pytest.mark.slow
@pytest.mark.parametrize("name", SWEPT)
def test_no_false_alarm_on_a_healthy_model(name: str) -> None:
    assert_healthy(name)


def test_the_sweep_has_a_hundred_models() -> None:
    assert len({*QUICK, *SWEPT}) >= 100
    covered = [module for module in timm.list_modules() if not {*timm.list_models(module=module)}.isdisjoint(SWEPT)]
    assert len(covered) > 80


def assert_healthy(name: str) -> None:
    found = explain(timm.create_model(name))
    assert found.findings == (), f"{name}\n{found}"
    assert found.output is not None, found.remarks
