"""Native graphs: laws, refusals, and agreement with compat graphs where those have no defect."""

import json
from collections import OrderedDict

import pytest
import timm
import torch
from ghn_goldens import load_hypernetwork
from graph_goldens import GOLDEN, KEYS, build
from torch import Tensor, nn

import hf_paraminit
from hf_paraminit.errors import TracingError
from hf_paraminit.ghn.model import GHN
from hf_paraminit.graphs import forward_pass, native
from hf_paraminit.graphs.graph import ComputationalGraph
from hf_paraminit.graphs.trace import trace

# Where native differs from compat, and why.
DIFFERENT = {
    "custom_BiasFreeMlp": "bias-free linears stay in the data flow",
    "custom_SigmoidGate": "the gate is found whatever its neighbours are called",
    "custom_TinyAttention": "the bare position table has a node",
    "custom_TwoHeads": "the classifier is the declared one, not the one at the end of the list",
    "custom_Unsupported": "group norms have nodes",
    "geno_g01": "hard-swish gates are gates",
    "geno_g04": "hard-swish gates are gates",
    "geno_g08": "hard-swish gates are gates",
    "tv_maxvit_t": "the classifier without bias is a classifier",
    "tv_squeezenet1_0": "pooling stays behind the classifier, where the network has it",
}
LARGE = {"tv_vgg11_bn", "tv_vit_b_16"}  # half a minute of decoding; smaller ones of their kinds remain


def native_graph(model: nn.Module, size: tuple[int, ...] | None = None, **options) -> ComputationalGraph:
    return trace(model, input_size=size, mode="native", **options)


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def node_of(graph: ComputationalGraph, name: str) -> int:
    return next(index for index, node in enumerate(graph.nodes) if name in node.parameters)


def has_edge(graph: ComputationalGraph, source: str, target: str) -> bool:
    return [node_of(graph, source), node_of(graph, target)] in graph.edges.tolist()


@pytest.fixture(scope="module")
def ghn() -> GHN:
    return load_hypernetwork("ghn3_tiny")


@torch.no_grad()
def predict(ghn: GHN, graph: ComputationalGraph, model: nn.Module) -> dict[str, Tensor]:
    return ghn.predict(graph, shapes_of(model))


# --- Agreement with the published graph ------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The default weight initialization of GoogleNet")
@pytest.mark.parametrize(
    "key",
    [pytest.param(key, marks=pytest.mark.slow if key in LARGE else ()) for key in sorted(set(KEYS) - DIFFERENT.keys())],
)
def test_same_values_as_from_the_compat_graph(key, ghn):
    record = json.loads((GOLDEN / f"{key}.json").read_text())
    model = build(record).train(record["mode"] == "train")
    expected = predict(ghn, trace(model), model)
    found = predict(ghn, native_graph(model), model)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize("key", sorted(DIFFERENT))
def test_known_differences_lose_no_parameter(key):
    record = json.loads((GOLDEN / f"{key}.json").read_text())
    model = build(record).train(record["mode"] == "train")
    assert set(native_graph(model).parameter_names) >= set(trace(model).parameter_names)


# --- Data flow -------------------------------------------------------------------------------------------------------


def test_bias_free_linears_stay_in_the_data_flow():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8, bias=False), nn.ReLU(), nn.Linear(8, 4, bias=False))
    graph = native_graph(model, (3, 2, 2))
    assert graph.primitives == ("input", "conv", "conv")
    assert graph.edges.tolist() == [[0, 1], [1, 2]]


def test_one_node_per_use_of_a_shared_layer(ghn):
    layer = nn.Conv2d(3, 3, 3, padding=1)
    model = nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU(), nn.Flatten(), nn.Linear(12, 4))
    graph = native_graph(model, (3, 2, 2))
    assert [node.name for node in graph.nodes] == ["input", *["0.weight", "0.bias"] * 2, "5.weight", "5.bias"]
    assert graph.edges.tolist() == [[index, index + 1] for index in range(6)]
    assert trace(model, input_size=(3, 2, 2)).warnings  # the compat graph is cyclic
    assert trace(model, input_size=(3, 2, 2), mode="auto").mode == "native"
    assert predict(ghn, graph, model).keys() == shapes_of(model).keys()


class Loop(nn.Module):
    """Runs one layer again and again, as a recurrent network does."""

    def __init__(self, num_steps: int) -> None:
        super().__init__()
        self.num_steps = num_steps
        self.first, self.step, self.last = nn.Linear(12, 6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(1))
        for _ in range(self.num_steps):
            x = x + self.step(x).tanh()
        return self.last(x)


@pytest.mark.parametrize("num_steps", [3, 3000])
def test_long_loops_are_merged_and_short_ones_are_not(num_steps):
    graph = native_graph(Loop(num_steps), (3, 2, 2))
    is_merged = num_steps == 3000
    assert len(graph) == (7 if is_merged else 5 + 3 * num_steps) < native.MAX_NODES
    assert (graph.edges[:, 0] < graph.edges[:, 1]).all()
    assert has_edge(graph, "first.bias", "step.weight")
    assert graph.distances[0, 1:].gt(0).all()


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_layer_is_one_operation(kind):
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.rows, self.fc = kind(24, 6, num_layers=2, bidirectional=True, batch_first=True), nn.Linear(12, 4)

        def forward(self, x):
            return self.fc(self.rows(x.transpose(1, 2).flatten(2))[0][:, -1])

    graph = native_graph(Reader(), (3, 8, 8))
    assert len(graph) == 1 + 16 + 2
    assert graph.primitives.count("conv") == 9
    assert not graph.kept_reasons


def test_squeeze_and_excitation_by_structure():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Linear(8, 4)

        def forward(self, x):
            x = self.a(x)
            return self.c((x * self.b(x.mean((2, 3), keepdim=True)).sigmoid()).mean((2, 3)))

    graph = native_graph(Gated(), (3, 8, 8))
    assert graph.primitives == ("input", "conv", "bias", "conv", "bias", "cse", "glob_avg", "conv", "bias")
    assert [2, 5] in graph.edges.tolist()  # past the gate
    assert [4, 5] in graph.edges.tolist()  # through it


def test_separate_projections_lead_to_the_softmax():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v, self.out = (nn.Linear(3, 3) for _ in range(4))

        def forward(self, x):
            x = x.flatten(2).transpose(1, 2)
            return self.out((self.q(x) @ self.k(x).mT).softmax(-1) @ self.v(x))

    graph = native_graph(Attention(), (3, 4, 4))
    softmax = graph.primitives.index("msa")
    sources = {graph.nodes[source].name for source, target in graph.edges.tolist() if target == softmax}
    assert sources == {"q.bias", "k.bias", "v.bias"}
    assert [source for source, target in graph.edges.tolist() if target == node_of(graph, "out.weight")] == [softmax]


def test_a_skip_connection_from_the_input_is_an_edge():
    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return x + self.conv(x)

    graph = native_graph(Skip(), (3, 4, 4))
    assert graph.primitives == ("input", "conv", "bias", "sum")
    assert graph.edges.tolist() == [[0, 1], [0, 3], [1, 2], [2, 3]]


# --- Types -----------------------------------------------------------------------------------------------------------


class GainedConv(nn.Conv2d):
    """Weight standardization with a gain."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1))

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(x, self.gain * weight, self.bias)


class RootMeanSquare(nn.Module):
    """A norm that only its name tells."""

    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return x * x.square().mean(-1, keepdim=True).rsqrt() * self.weight


class MyRmsNorm(RootMeanSquare):
    pass


class BareMatrix(nn.Module):
    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.zeros(6, 6))

    def forward(self, x):
        return x @ self.matrix


LAYERS = {
    "subclass": (GainedConv(3, 6, 3), ["conv", "bias"]),
    "transposed": (nn.ConvTranspose2d(3, 6, 3), ["conv", "bias"]),
    "depthwise": (nn.Conv2d(3, 6, 3, groups=3), ["sep_conv", "bias"]),
    "dilated depthwise": (nn.Conv2d(3, 6, 3, groups=3, dilation=2), ["dil_conv", "bias"]),
    "1d": (nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 6, 5), nn.BatchNorm1d(6)), ["conv", "bias", "bn"]),
    "3d": (nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv3d(1, 6, 3), nn.BatchNorm3d(6)), ["conv", "bias", "bn"]),
    "group norm": (nn.GroupNorm(1, 3), ["ln"]),
    "instance norm": (nn.InstanceNorm2d(3, affine=True), ["bn"]),
    "rms norm": (nn.RMSNorm(8), ["ln"]),
    "own rms norm": (MyRmsNorm(8), ["ln"]),
    "bare matrix": (nn.Sequential(nn.Conv2d(3, 3, 3), BareMatrix()), ["conv", "bias", "conv"]),
    "weight norm": (nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 6, 3)), ["conv", "bias"]),
    "old weight norm": (nn.utils.weight_norm(nn.Conv2d(3, 6, 3)), ["conv", "bias"]),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("case", LAYERS)
def test_layers_are_typed_and_filled(case, ghn):
    layer, primitives = LAYERS[case]
    model = nn.Sequential(OrderedDict(layer=layer, flat=nn.Flatten(), fc=nn.LazyLinear(4)))
    model(torch.zeros(2, 3, 8, 8))
    graph = native_graph(model, (3, 8, 8))
    assert sorted(graph.primitives) == sorted(["input", *primitives, "conv", "bias"])
    prediction = predict(ghn, graph, model)
    for name, shape in shapes_of(model).items():
        if name in graph.kept_reasons:
            assert name not in prediction
            assert "bare vector" in graph.kept_reasons[name]
        else:
            assert prediction[name].shape == shape
            assert prediction[name].isfinite().all()
            assert prediction[name].std() > 0 or prediction[name].numel() == 1


def test_a_deep_kernel_is_a_flat_one_repeated(ghn):
    model = nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv3d(1, 6, 3), nn.Flatten(), nn.Linear(216, 4))
    kernel = predict(ghn, native_graph(model, (3, 8, 8)), model)["1.weight"]
    torch.testing.assert_close(kernel, kernel[:, :, :1].expand_as(kernel))
    assert kernel[0, 0, 0].std() > 0


class WithTable(nn.Module):
    """Adds a position table to a (2, 16, 6) sequence, with `num_prefix` tokens in front."""

    def __init__(self, *shape: int, num_prefix: int = 0) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 6, 2, 2)
        self.tokens = nn.Parameter(torch.zeros(1, num_prefix, 6))
        self.pos_embed = nn.Parameter(torch.zeros(shape))
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.tokens.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        return self.fc(x.mean(1))


@pytest.mark.parametrize(("shape", "num_prefix"), [((1, 16, 6), 0), ((1, 17, 6), 1), ((1, 18, 6), 2), ((16, 6), 0)])
def test_position_tables_have_a_node(shape, num_prefix, ghn):
    model = WithTable(*shape, num_prefix=num_prefix)
    graph = native_graph(model, (3, 8, 8))
    table = graph.nodes[node_of(graph, "pos_embed")]
    assert table.primitive == "pos_enc"
    assert [graph.nodes[t].primitive for s, t in graph.edges.tolist() if graph.nodes[s] is table] == ["sum"]
    assert predict(ghn, graph, model)["pos_embed"].shape == shape
    assert set(graph.kept_reasons) == {"tokens"}


def test_a_position_table_without_a_square_grid_is_kept():
    graph = native_graph(WithTable(1, 15, 6), (3, 6, 10))
    assert "no square grid" in graph.kept_reasons["pos_embed"]


@pytest.mark.parametrize("name", ["test_vit", "test_convnext2", "test_nfnet", "test_efficientnet_gn", "test_vit4"])
def test_every_parameter_is_covered_or_has_a_reason(name):
    model = timm.create_model(name)
    model.stray = nn.Linear(2, 2)
    graph = native_graph(model)
    covered, kept = set(graph.parameter_names), set(graph.kept_reasons)
    assert covered | kept == set(shapes_of(model))
    assert not covered & kept
    assert all(graph.kept_reasons.values())
    assert graph.kept_reasons["stray.weight"] == "the output does not depend on it"


# --- Classifiers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("test_resnet", {"fc.weight"}),
        ("test_vit", {"head.weight"}),
        ("test_mambaout", {"head.fc.fc2.weight", "head.fc.weight"}),
        ("deit_tiny_distilled_patch16_224", {"head.weight", "head_dist.weight"}),
    ],
)
def test_classifiers_are_those_that_timm_declares(name, weights, ghn):
    model = timm.create_model(name)
    graph = native_graph(model)
    left_out = set(predict(ghn, graph, model)) - set(
        ghn.predict(graph, shapes_of(model), predict_class_layers=False).keys()
    )
    assert {key for key in left_out if key.endswith("weight")} == weights & set(shapes_of(model))


def test_a_headless_model_has_no_classifier():
    graph = native_graph(timm.create_model("test_resnet", num_classes=0))
    assert graph.class_weight_index is graph.class_bias_index is None


def test_a_linear_layer_behind_which_the_model_goes_on_is_no_classifier():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 5), nn.Tanh())
    assert native_graph(model, (3, 4, 4)).class_weight_index is None


def test_an_undeclared_classifier_is_the_linear_layer_at_the_end():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 5, bias=False))
    graph = native_graph(model, (3, 4, 4))
    assert graph.nodes[graph.class_weight_index].name == "2.weight"
    assert graph.class_bias_index is None


# --- Ways around a forward pass that meta tensors cannot take --------------------------------------------------------


def test_data_dependent_control_flow_runs_on_real_tensors():
    class Decides(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)

        def forward(self, x):
            x = self.a(x)
            return self.b(x if x.sum().item() > 1e9 else x.relu()).mean((2, 3))

    model = Decides()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    graph = native_graph(model, (3, 8, 8))
    assert set(graph.parameter_names) == set(shapes_of(model))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_weights_beyond_memory_are_never_copied(monkeypatch):
    monkeypatch.setattr(forward_pass, "MAX_REAL_ELEMENTS", 10)
    with pytest.raises(TracingError, match="15 parameters would take"):
        native_graph(nn.Linear(4, 3), (3, 8, 8))  # whose forward pass fails on such a sample


@pytest.mark.parametrize("has_run", [False, True])
def test_transformers_backbones_record_their_hidden_states(has_run):
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28)
    model = transformers.Dinov2Backbone(config)
    if has_run:
        model(torch.zeros(1, 3, 28, 28))
    graph = native_graph(model, (3, 28, 28))
    assert "encoder.layer.1.mlp.fc2.weight" in graph.parameter_names
    assert graph.class_weight_index is None


def test_a_model_may_write_into_its_input():
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            x.mul_(2)
            return self.a(x)

    assert native_graph(Writes(), (3, 4, 4)).primitives == ("input", "conv", "bias")


# --- The choice ------------------------------------------------------------------------------------------------------


def test_auto_takes_compat_unless_it_leaves_something_out():
    assert trace(timm.create_model("test_resnet"), mode="auto").mode == "compat"
    group_normed = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(32, 4))
    graph = trace(group_normed, input_size=(3, 2, 2), mode="auto")
    assert graph.mode == "native"
    assert "1.weight" in graph.parameter_names


def test_the_report_says_which_graph_was_used_and_why_a_tensor_was_kept(ghn):
    model = nn.Sequential(OrderedDict(table=WithTable(1, 17, 6, num_prefix=1)))
    initializer = hf_paraminit.load_predictor(ghn.state_dict(), config=ghn.config.to_dict())
    report = hf_paraminit.initialize(model, initializer, input_size=8)
    assert "native mode" in report.notes[0]
    assert "layer scale" in report.kept["table.tokens"]


def test_a_native_graph_survives_being_stored():
    graph = native_graph(timm.create_model("test_vit"))
    stored = ComputationalGraph.from_dict(json.loads(json.dumps(graph.to_dict())))
    assert stored.to_dict() == graph.to_dict()
    assert torch.equal(stored.distances, graph.distances)


def test_equal_graphs_on_every_call():
    first, second = (native_graph(timm.create_model("test_convnext")) for _ in range(2))
    assert first.to_dict() == second.to_dict()


# --- All of timm -----------------------------------------------------------------------------------------------------

# Families whose main tables have a layout that no decoder makes.
LESS_COVERED = {"gemma4_vit_167m": 0.90}


@pytest.mark.slow
@pytest.mark.parametrize("module", timm.list_modules())
def test_one_model_of_every_timm_module(module):
    name = next(iter(timm.list_models(module=module)), None)
    if name is None:
        pytest.skip("the module registers no model")
    with torch.device("meta"):
        model = timm.create_model(name)
    graph = native_graph(model)
    sizes = {key: parameter.numel() for key, parameter in model.named_parameters()}
    covered = sum(sizes[key] for key in set(graph.parameter_names)) / sum(sizes.values())
    assert covered >= LESS_COVERED.get(name, 0.96)
    assert (graph.edges[:, 0] < graph.edges[:, 1]).all()
    assert len(graph) <= native.MAX_NODES
