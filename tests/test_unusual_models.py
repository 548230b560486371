"""Models that tracing and `initialize` were not made for: they work, or one clear error leaves them bit-identical."""

import dataclasses
import functools
import hashlib
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

import hf_paraminit
from hf_paraminit.errors import ParamInitError, PredictionError, TracingError


class Net(nn.Module):
    """Takes 16 x 16 images; `change` computes its scores from the pooled features."""

    expected_input_sz = (3, 16, 16)

    def __init__(self, change: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)
        self.change = change or plain_scores

    def features(self, images: Tensor) -> Tensor:
        return self.norm(self.conv(images)).relu().mean((2, 3))

    def forward(self, images: Tensor) -> Any:
        return self.change(self, images)


def plain_scores(net: Net, images: Tensor) -> Tensor:
    return net.fc(net.features(images))


def net_with(change: Callable[[Net], None]) -> Net:
    net = Net()
    change(net)
    return net


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """All that tracing must leave alone: tensors, their places and gradients, modes, hooks, objects, random numbers."""
    state: dict[str, Any] = {
        "generators": (torch.get_rng_state().tolist(), repr(np.random.get_state()), random.getstate()),  # noqa: NPY002
        "switches": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype()),
    }
    for path, module in model.named_modules():
        tensors = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
        state[path] = (
            {name: of_tensor(tensor) for name, tensor in tensors.items()},
            {name: of_value(value) for name, value in vars(module).items() if name not in ("_parameters", "_buffers")},
        )
    return state


def of_tensor(tensor: Tensor) -> tuple[Any, ...]:
    version = None if tensor.is_inference() else tensor._version
    grad = None if tensor.grad is None else digest(tensor.grad)
    return id(tensor), digest(tensor), tensor.shape, tensor.stride(), tensor.requires_grad, version, grad


def digest(tensor: Tensor) -> str:
    if tensor.is_meta:
        return "meta"
    values = torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()
    return hashlib.sha256(values.contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()


def of_value(value: Any, depth: int = 0) -> Any:
    if isinstance(value, Tensor):
        return digest(value)
    if isinstance(value, torch.Generator):
        return digest(value.get_state())
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    if depth < 4 and isinstance(value, dict):
        return [(str(key), of_value(content, depth + 1)) for key, content in value.items()]
    if depth < 4 and isinstance(value, (list, tuple)):
        return [of_value(content, depth + 1) for content in value]
    if depth < 4 and hasattr(value, "__dict__") and not isinstance(value, nn.Module) and not callable(value):
        return of_value(vars(value), depth + 1)
    return value if isinstance(value, (bool, int, float, str, type(None))) else id(value)


# --- Models that work: (model, parameters predicted of those offered) ------------------------------------------------


class Rich:
    """Holds what cannot be copied, and counts."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.count = 0


class Uncopyable:
    def __deepcopy__(self, memo: Any) -> Any:
        raise RuntimeError("there is only one of me")


@dataclasses.dataclass
class Scores:
    logits: Tensor
    extra: Any = None


class Shared(Net):
    """One linear layer at two names, another used twice, and two weights that are one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.second = nn.Linear(8, 8)
        self.third, self.fourth = nn.Linear(8, 8), nn.Linear(8, 8)
        self.fourth.weight = self.third.weight

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.second(self.first(self.features(images)).relu())
        return self.fc(self.fourth(self.third(self.third(hidden))))


class Autoencoder(nn.Module):
    """The decoder is the transposed encoder."""

    expected_input_sz = (3, 4, 4)

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(48, 10)
        self.bias = nn.Parameter(torch.zeros(48))

    def forward(self, images: Tensor) -> Tensor:
        return F.linear(self.encoder(images.flatten(1)).relu(), self.encoder.weight.t(), self.bias)


class Writing(Net):
    """Writes into its buffers, attributes and plain objects, and draws from generators of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("average", torch.zeros(8))
        self.history: dict[str, list[Tensor]] = {"features": []}
        self.rich = Rich()
        self.own = torch.Generator().manual_seed(3)
        self.other = np.random.default_rng(0)

    def forward(self, images: Tensor) -> Tensor:
        features = self.features(images)
        self.calls += 1
        self.average.copy_(features.detach().mean(0))
        self.history["features"].append(features)
        self.last = features
        with self.rich.lock:
            self.rich.count += 1
        noise = torch.rand(8, generator=self.own) + float(self.other.random())
        return self.fc(features + noise.to(features.device))


class Unsettling(Net):
    """Changes what is global."""

    def forward(self, images: Tensor) -> Tensor:
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(True)
        return plain_scores(self, images)


def with_function(wrap: Callable[[Net], Callable[[Tensor], Tensor]]) -> Net:
    """A net that reaches its own layers through a function in an attribute."""
    net = Net(lambda net, images: net.fc(net.function(images)))
    net.function = wrap(net)
    return net


def with_closure(net: Net) -> Callable[[Tensor], Tensor]:
    def outer(images: Tensor) -> Tensor:
        return inner(images)

    def inner(images: Tensor) -> Tensor:
        return net.features(images)

    return outer


def quantized() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(Net(), {nn.Linear}, dtype=torch.qint8)


def pruned() -> nn.Module:
    net = Net()
    prune.l1_unstructured(net.conv, "weight", 0.5)
    prune.random_structured(net.fc, "weight", 0.5, dim=0)
    return net


def has_run(model: nn.Module) -> nn.Module:
    model(torch.randn(2, 3, 16, 16)).sum().backward()
    return model


def with_hooks() -> Net:
    net = Net()
    net.log = []
    net.register_forward_hook(lambda module, args, output: net.log.append("forward"))
    net.conv.register_forward_pre_hook(lambda module, args: net.log.append("before"))
    net.fc.register_full_backward_hook(lambda *args: net.log.append("backward"))
    net.register_state_dict_pre_hook(lambda *args: net.log.append("state dict"))
    return net


def set_fc_weight(weight: Tensor, **more: Any) -> Callable[[], nn.Module]:
    def change(net: Net) -> None:
        net.fc.weight = nn.Parameter(weight)
        for name, tensor in more.items():
            setattr(net.fc, name, nn.Parameter(tensor))

    return lambda: net_with(change)


def views_of_one_tensor() -> nn.Module:
    flat = torch.randn(45)
    return set_fc_weight(flat[:40].view(5, 8), bias=flat[40:])()


def empty_parameters() -> nn.Module:
    net = Net(lambda net, images: torch.cat([plain_scores(net, images), net.nothing(net.features(images))], 1))
    net.nothing = nn.Linear(8, 0)
    net.unused = nn.Parameter(torch.zeros(0, 3))
    return net


def bare_parameters() -> nn.Module:
    net = Net(lambda net, images: net.fc((net.features(images) @ net.matrix + net.token) * net.scale))
    net.matrix = nn.Parameter(torch.randn(8, 8))
    net.token, net.scale = nn.Parameter(torch.zeros(1, 8)), nn.Parameter(torch.tensor(1.0))
    return net


def complex_numbers() -> nn.Module:
    net = Net(lambda net, images: net.fc((net.features(images).to(torch.complex64) @ net.matrix).abs()))
    net.matrix = nn.Parameter(torch.randn(8, 8, dtype=torch.complex64))
    return net


def sized(model: nn.Module) -> nn.Module:
    model.expected_input_sz = (3, 16, 16)
    return model


def with_lazy_layer() -> nn.Module:
    model = sized(nn.Sequential(nn.Flatten(), nn.LazyLinear(4)))
    model(torch.randn(2, 3, 16, 16))
    return model


WORKING: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "item": (lambda: Net(lambda net, x: net.fc(net.features(x) * net.features(x).mean().item())), 6, 6),
    "condition": (lambda: Net(lambda net, x: net.fc(f * 2 if (f := net.features(x)).mean() > 0 else f)), 6, 6),
    "numpy": (lambda: Net(lambda net, x: net.fc(net.features(x) * float(np.mean(x.detach().numpy())))), 6, 6),
    "selection": (lambda: Net(lambda net, x: net.fc((f := net.features(x))[f.sum(1) > -1e9])), 6, 6),
    "dict output": (lambda: Net(lambda net, x: {"a": [plain_scores(net, x), {"b": (x, None)}]}), 6, 6),
    "dataclass output": (lambda: Net(lambda net, x: Scores(plain_scores(net, x), {"x": x})), 6, 6),
    "object output": (lambda: Net(lambda net, x: type("Result", (), {"__init__": result})(plain_scores(net, x))), 6, 6),
    "generator output": (lambda: Net(lambda net, x: (scores for scores in (plain_scores(net, x),))), 6, 6),
    "loss": (lambda: Net(lambda net, x: plain_scores(net, x).sum()), 6, 6),
    "bare parameters": (bare_parameters, 7, 9),
    "shared layers": (Shared, 11, 11),
    "transposed tying": (Autoencoder, 2, 3),
    "block without parameters": (lambda: net_with(lambda net: net.add_module("block", nn.Sequential())), 6, 6),
    "branch without parameters": (
        lambda: Net(lambda net, x: torch.cat([plain_scores(net, x), x.mean((2, 3))], 1)),
        6,
        6,
    ),
    "no elements": (empty_parameters, 6, 6),
    "quantized": (quantized, 4, 4),
    "compiled": (lambda: torch.compile(Net(), backend="eager"), 6, 6),
    "compiled and run": (lambda: has_run(torch.compile(Net(), backend="eager")), 6, 6),
    "compiled layer": (lambda: net_with(lambda net: net.conv.compile(backend="eager")), 6, 6),
    "compiled method": (lambda: with_function(lambda net: torch.compile(net.features, backend="eager")), 6, 6),
    "lambda": (lambda: with_function(lambda net: lambda images: net.features(images)), 6, 6),
    "closures": (lambda: with_function(with_closure), 6, 6),
    "bound method": (lambda: with_function(lambda net: net.features), 6, 6),
    "partial function": (lambda: with_function(lambda net: functools.partial(net.features)), 6, 6),
    "weight norm": (lambda: net_with(lambda net: parametrizations.weight_norm(net.conv)), 6, 7),
    "spectral norm": (lambda: net_with(lambda net: parametrizations.spectral_norm(net.conv)), 6, 6),
    "orthogonal": (lambda: net_with(lambda net: parametrizations.orthogonal(net.fc)), 6, 6),
    "old spectral norm": (lambda: net_with(lambda net: nn.utils.spectral_norm(net.conv)), 6, 6),
    "pruned": (pruned, 6, 6),
    "lazy layer that has run": (with_lazy_layer, 2, 2),
    "frozen": (lambda: Net().requires_grad_(False), 6, 6),
    "bfloat16": (lambda: Net().bfloat16(), 6, 6),
    "float64": (lambda: Net().double(), 6, 6),
    "complex": (complex_numbers, 6, 7),
    "channels last": (lambda: Net().to(memory_format=torch.channels_last), 6, 6),
    "transposed memory": (set_fc_weight(torch.randn(8, 5).t()), 6, 6),
    "views of one tensor": (views_of_one_tensor, 6, 6),
    "sparse": (lambda: net_with(lambda net: setattr(net, "table", nn.Parameter(torch.eye(4).to_sparse()))), 6, 6),
    "hooks": (with_hooks, 6, 6),
    "gradients": (lambda: has_run(Net()), 6, 6),
    "data parallel": (lambda: nn.DataParallel(Net()), 6, 6),
    "averaged": (lambda: AveragedModel(Net()), 6, 6),
    "checkpointing": (lambda: Net(lambda net, x: net.fc(checkpoint(net.features, x, use_reentrant=False))), 6, 6),
    "writes": (Writing, 6, 6),
    "global changes": (Unsettling, 6, 6),
    "uncopyable": (lambda: net_with(lambda net: setattr(net, "one", Uncopyable())), 6, 6),
    "refers to itself": (lambda: net_with(lambda net: net.__dict__.update(parent=net, all=[net])), 6, 6),
    "odd config": (lambda: net_with(lambda net: setattr(net, "config", {"image_size": "16"})), 6, 6),
    "part under no_grad": (lambda: Net(lambda net, x: net.fc(net.features(x).detach())), 2, 6),
}


def result(self: Any, logits: Tensor) -> None:
    self.logits = logits


@pytest.fixture(autouse=True)
def _default_dtype() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", WORKING)
def test_models_that_work(case: str) -> None:
    make, num_predicted, num_offered = WORKING[case]
    torch.manual_seed(0)
    model = make()
    before = without_hidden_values(model) if case == "sparse" else fingerprint(model)
    for mode in ("native", "auto"):
        hf_paraminit.trace(model, mode=mode)
        assert (without_hidden_values(model) if case == "sparse" else fingerprint(model)) == before
    report = hf_paraminit.initialize(model, "ghn3")
    tied = sum(reason.startswith("tied to") for reason in report.predicted.values())
    assert (len(report.predicted) - tied, len(report.predicted) - tied + len(report.kept)) == (
        num_predicted,
        num_offered,
    )
    assert all(torch.isfinite(model.get_parameter(name)).all() for name in report.predicted)


def without_hidden_values(model: nn.Module) -> dict[str, Any]:
    """The fingerprint of all but sparse parameters, which have no flat memory to read."""
    return {name: id(parameter) for name, parameter in model.named_parameters()}


def test_a_fingerprint_shows_each_kind_of_change() -> None:
    def changed(change: Callable[[Writing], object]) -> bool:
        net = Writing()
        before = fingerprint(net)
        change(net)
        return fingerprint(net) != before

    assert not changed(lambda net: None)
    for change in (
        lambda net: net.conv.weight.data.add_(1),
        lambda net: setattr(net.conv, "weight", nn.Parameter(net.conv.weight.detach())),
        lambda net: net.norm.running_mean.add_(1),
        lambda net: has_run(Net()) and net(torch.randn(2, 3, 16, 16)).sum().backward(),
        lambda net: net.fc.eval(),
        lambda net: net.fc.register_forward_hook(print),
        lambda net: setattr(net.rich, "count", 1),
        lambda net: torch.rand(1),
        lambda net: net.other.random(),
    ):
        assert changed(change)


def test_a_function_in_an_attribute_runs_on_the_copy() -> None:
    """The graph is that of the plain net: nothing is hidden behind the function."""
    expected = hf_paraminit.trace(Net(), mode="native")
    for wrap in (
        with_closure,
        lambda net: lambda images: net.features(images),
        lambda net: torch.compile(net.features),
    ):
        assert hf_paraminit.trace(with_function(wrap), mode="native").nodes == expected.nodes


def test_buffers_reached_by_a_global_name_are_put_back() -> None:
    everywhere = Net()
    globals()["_everywhere"] = everywhere  # beyond what a copy can follow
    outer = Net(_by_global_name)
    outer.add_module("inner", everywhere)
    before = fingerprint(outer)
    hf_paraminit.trace(outer, mode="native")
    after = fingerprint(outer)
    assert everywhere.norm.num_batches_tracked == 0
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert after["inner.norm"][0][name][:5] == before["inner.norm"][0][name][:5]


def _by_global_name(net: Net, images: Tensor) -> Tensor:
    return net.fc(net.features(images) + _everywhere.features(images).detach())  # type: ignore[name-defined] # noqa: F821


def test_a_distributed_wrapper_is_traced_without_it(tmp_path: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(Net())
        graph = hf_paraminit.trace(model, mode="native")
        assert graph.primitives == hf_paraminit.trace(Net(), mode="native").primitives
        assert {name.partition(".")[0] for name in graph.parameter_names} == {"module"}
        assert len(hf_paraminit.initialize(model, "ghn3").predicted) == 6
        model(torch.randn(2, 3, 16, 16)).sum().backward()  # its own machinery still runs
    finally:
        torch.distributed.destroy_process_group()


def test_two_thousand_layers() -> None:
    layers = [nn.Conv2d(4, 4, 1, bias=False) for _ in range(2000)]
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), *layers)
    model.expected_input_sz = (3, 4, 4)
    graph = hf_paraminit.trace(model, mode="auto", virtual_edge_cutoff=1)
    assert len(graph) == 2002


# --- Models that are refused -----------------------------------------------------------------------------------------


def draws_from_a_generator() -> nn.Module:
    net = Net(lambda net, images: plain_scores(net, images) * next(net.numbers))
    net.numbers = (number for number in range(3))
    return net


def in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return Net()


def contains_itself() -> nn.Module:
    net = Net()
    net.fc.add_module("up", net)
    return net


def partly_on_meta() -> nn.Module:
    return net_with(lambda net: setattr(net, "fc", nn.Linear(8, 5, device="meta")))


REFUSED: dict[str, tuple[Callable[[], nn.Module], type[ParamInitError], list[str]]] = {
    "token ids": (lambda: nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2)), TracingError, ["example_inputs="]),
    "vectors": (lambda: nn.Sequential(nn.Linear(20, 4), nn.Linear(4, 2)), TracingError, ["example_inputs="]),
    "sounds": (lambda: nn.Sequential(nn.Conv1d(1, 4, 9), nn.Flatten()), TracingError, ["example_inputs="]),
    "two inputs": (lambda: nn.Bilinear(3, 3, 2), TracingError, ["example_inputs=", "'input2'"]),
    "no forward pass": (lambda: nn.ModuleDict({"a": nn.Linear(3, 3)}), TracingError, ["forward"]),
    "no gradient": (lambda: Net(torch.no_grad()(plain_scores)), TracingError, ["no_grad"]),
    "re-entrant checkpointing": (
        lambda: Net(lambda net, x: net.fc(checkpoint(net.features, x, use_reentrant=True))),
        TracingError,
        ["use_reentrant=False"],
    ),
    "scripted layer": (
        lambda: sized(nn.Sequential(torch.jit.script(nn.Conv2d(3, 4, 3)))),
        TracingError,
        ["TorchScript"],
    ),
    "generator": (draws_from_a_generator, TracingError, ["'numbers'", "cannot be copied"]),
    "inference mode": (in_inference_mode, PredictionError, ["read-only", "outside torch.inference_mode()"]),
    "expanded": (set_fc_weight(torch.randn(1, 8).expand(5, 8)), PredictionError, ["fc.weight", "share memory"]),
    "contains itself": (contains_itself, PredictionError, ["contains itself"]),
    "partly on meta": (partly_on_meta, PredictionError, ["fc.weight", "materialise"]),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("case", REFUSED)
def test_models_that_are_refused(case: str) -> None:
    make, error, parts = REFUSED[case]
    model = make()
    before = fingerprint(model)
    with pytest.raises(error) as raised:
        hf_paraminit.initialize(model, "ghn3")
    assert [part for part in parts if part not in str(raised.value)] == []
    assert fingerprint(model) == before


def test_a_failed_attempt_is_not_logged(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TracingError):
        hf_paraminit.trace(nn.Linear(20, 4), mode="auto")
    assert caplog.records == []
    assert capfd.readouterr().err == ""


def test_overlapping_parameters_are_left_alone() -> None:
    flat = torch.randn(45)
    model = set_fc_weight(flat[:40].view(5, 8), bias=flat[38:43])()
    report = hf_paraminit.initialize(model, "ghn3", names=["fc.bias", "conv.weight"])
    assert report.refused == {"fc.bias": "shares some of its elements with fc.weight"}
    assert list(report.predicted) == ["conv.weight"]


def test_complex_parameters_are_kept_with_a_reason() -> None:
    report = hf_paraminit.initialize(complex_numbers(), "ghn3")
    assert report.kept == {"matrix": "complex numbers are not predicted"}


# --- Example inputs --------------------------------------------------------------------------------------------------


class Named(Net):
    def forward(self, *, pixel_values: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.fc(self.features(pixel_values if mask is None else pixel_values * mask))


class Two(Net):
    def forward(self, first: Tensor, rest: list[Tensor], scale: float) -> Tensor:
        return self.fc(self.features(first) + self.features(rest[0]) * scale)


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.fc = nn.Embedding(100, 16), nn.Linear(16, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.fc(self.table(ids).mean(1))


def pooled(convolution: nn.Module, pooling: nn.Module) -> nn.Module:
    return nn.Sequential(convolution, nn.ReLU(), pooling, nn.Flatten(), nn.Linear(8, 3))


IMAGES = torch.ones(2, 3, 16, 16)
EXAMPLES: dict[str, tuple[Callable[[], nn.Module], Any, int]] = {
    "images": (Net, IMAGES, 6),
    "one image": (Net, IMAGES[:1], 6),
    "images in half precision": (Net, IMAGES.bfloat16(), 6),
    "token ids": (Words, torch.ones(2, 7, dtype=torch.int64), 3),
    "patches": (lambda: nn.Sequential(nn.Linear(48, 8), nn.Linear(8, 3)), torch.ones(2, 9, 48), 4),
    "sound": (lambda: pooled(nn.Conv1d(1, 8, 9), nn.AdaptiveAvgPool1d(1)), torch.ones(2, 1, 400), 4),
    "video": (lambda: pooled(nn.Conv3d(3, 8, 3), nn.AdaptiveAvgPool3d(1)), torch.ones(2, 3, 8, 16, 16), 4),
    "vectors": (lambda: nn.Linear(20, 3), torch.ones(2, 20), 2),
    "named": (Named, {"pixel_values": IMAGES}, 6),
    "image and mask": (Named, {"pixel_values": IMAGES, "mask": torch.ones(2, 1, 16, 16, dtype=torch.bool)}, 6),
    "several": (Two, (IMAGES, [torch.ones(2, 3, 9, 9)], 2.0), 6),
}


@pytest.mark.parametrize("mode", ["auto", "native"])
@pytest.mark.parametrize("case", EXAMPLES)
def test_example_inputs(case: str, mode: str) -> None:
    make, example_inputs, num_predicted = EXAMPLES[case]
    model = make()
    before = fingerprint(model)
    graph = hf_paraminit.trace(model, mode=mode, example_inputs=example_inputs)
    assert fingerprint(model) == before
    assert graph.primitives[0] == "input"
    assert {source for source, _ in graph.edges.tolist()} >= {0}
    report = hf_paraminit.initialize(model, "ghn3", mode=mode, example_inputs=example_inputs)
    assert (len(report.predicted), report.kept) == (num_predicted, {})


def test_an_example_gives_the_graph_of_a_default_image() -> None:
    for mode in ("native", "compat"):
        example = hf_paraminit.trace(Net(), mode=mode, example_inputs=IMAGES)
        assert example.nodes == hf_paraminit.trace(Net(), mode=mode).nodes
        assert example.input_size is None


def test_examples_are_not_changed() -> None:
    images = torch.randn(2, 3, 16, 16, requires_grad=True)
    before = images.detach().clone()
    hf_paraminit.trace(Net(lambda net, x: plain_scores(net, x.mul_(0))), mode="native", example_inputs=images)
    assert torch.equal(images, before)
    assert images.grad is None


def test_values_of_an_example_decide_where_the_model_looks_at_them() -> None:
    net = Net(lambda net, x: net.fc(net.features(x)) if x.mean().item() > 0.5 else net.features(x))
    assert hf_paraminit.trace(net, mode="native", example_inputs=IMAGES).parameter_names[-1] == "fc.bias"
    assert "fc.bias" not in hf_paraminit.trace(net, mode="native", example_inputs=0 * IMAGES).parameter_names


@pytest.mark.parametrize(
    ("example_inputs", "message"),
    [
        ("images", "is a str; expected a tensor, a tuple of arguments"),
        ([IMAGES], "is a list"),
        ({1: IMAGES}, "is a dict; expected .* a dict of keyword arguments"),
        ((), "holds no tensor"),
        ({"images": 3}, "holds no tensor"),
        ((IMAGES, 2), r"example_inputs \(\(2, 3, 16, 16\) torch.float32, 2\), on meta"),
        ({"pictures": IMAGES}, r"pictures=\(2, 3, 16, 16\) torch.float32"),
    ],
)
def test_wrong_examples_are_refused(example_inputs: Any, message: str) -> None:
    model = Net()
    before = fingerprint(model)
    with pytest.raises(TracingError, match=message):
        hf_paraminit.initialize(model, "ghn3", example_inputs=example_inputs)
    assert fingerprint(model) == before


def test_an_example_and_a_size_exclude_each_other() -> None:
    with pytest.raises(TracingError, match="not both"):
        hf_paraminit.trace(Net(), input_size=16, example_inputs=IMAGES)
