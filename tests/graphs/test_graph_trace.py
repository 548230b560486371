"""Laws and refusals of `trace`."""

import random
import sys
from collections import OrderedDict

import numpy as np
import pytest
import timm
import torch
from torch import nn

from hf_paraminit.errors import ParamInitError, TracingError
from hf_paraminit.graphs.graph import ComputationalGraph
from hf_paraminit.graphs.trace import trace


def small_net() -> nn.Module:
    net = nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(3, 8, 3, padding=1, bias=False),
            norm=nn.BatchNorm2d(8),
            act=nn.ReLU(),
            drop=nn.Dropout(0.5),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            head=nn.Linear(8, 5),
        )
    )
    net.expected_input_sz = (3, 16, 16)
    return net


def same(first: ComputationalGraph, second: ComputationalGraph) -> bool:
    return first.to_dict() == second.to_dict() and torch.equal(first.distances, second.distances)


class LayerAndForward(nn.Module):
    """A linear layer with a forward pass of the test's own."""

    expected_input_sz = (3, 4, 4)

    def __init__(self, forward):
        super().__init__()
        self.fc = nn.Linear(48, 5)
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


# --- The model stays as it is ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["explicit", "fused"])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_model_and_random_numbers_stay_as_they_are(name, attention):
    model = timm.create_model(name, drop_rate=0.1)
    model.conv_of_someone_else = nn.Linear(2, 2)
    next(model.children()).eval()
    next(model.parameters()).requires_grad_(False)
    calls = []
    model.register_forward_hook(lambda *args: calls.append(args))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    identities = {key: id(value) for key, value in model.named_parameters()}
    flags = [module.training for module in model.modules()]
    frozen = [parameter.requires_grad for parameter in model.parameters()]
    attributes = {path: set(vars(module)) for path, module in model.named_modules()}
    random_states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002

    trace(model, attention=attention)

    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert identities == {key: id(value) for key, value in model.named_parameters()}
    assert flags == [module.training for module in model.modules()]
    assert frozen == [parameter.requires_grad for parameter in model.parameters()]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert attributes == {path: set(vars(module)) for path, module in model.named_modules()}
    assert calls == []
    assert torch.equal(torch.get_rng_state(), random_states[0])
    assert random.getstate() == random_states[1]
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), random_states[2], strict=True))  # noqa: NPY002
    assert torch.is_grad_enabled()


def test_no_memory_for_weights_is_needed():
    with torch.device("meta"):
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 224 * 224, 10**6), nn.ReLU(), nn.Linear(10**6, 10**6))
    assert trace(model).parameter_names == ("1.weight", "1.bias", "3.weight", "3.bias")


def test_recursion_limit_is_unchanged_on_a_net_far_deeper_than_it():
    depth = 3000
    assert depth > 2 * sys.getrecursionlimit()
    limit = sys.getrecursionlimit()
    model = nn.Sequential(*[nn.Conv2d(1, 1, 1) for _ in range(depth)])
    graph = trace(model, input_size=(1, 2, 2), virtual_edge_cutoff=1)
    assert len(graph) == 2 * depth + 1
    assert len(graph.edges) == 2 * depth
    assert sys.getrecursionlimit() == limit


# --- The graph does not depend on the circumstances ------------------------------------------------------------------


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu")])
def test_surrounding_modes_do_not_matter(context):
    model = timm.create_model("test_vit")
    expected = trace(model)
    with context():
        assert same(trace(model), expected)


def test_models_born_in_inference_mode_trace():
    with torch.inference_mode():
        model = small_net()
        inside = trace(model)
    assert same(inside, trace(small_net()))
    assert same(trace(model), inside)


def test_frozen_parameters_keep_their_nodes():
    model = small_net()
    expected = trace(model)
    assert same(trace(model.requires_grad_(False)), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_precision_does_not_matter(dtype):
    model = timm.create_model("test_vit")
    expected = trace(model)
    assert same(trace(model.to(dtype)), expected)


def test_same_graph_each_time():
    model = timm.create_model("test_efficientnet", drop_path_rate=0.2)
    assert same(trace(model), trace(model))


def test_random_control_flow_gives_the_same_graph_each_time():
    def forward(self, x):
        x = self.fc(x.flatten(1))
        for _ in range(8):
            x = x + x.relu() if random.random() + float(torch.rand(())) + np.random.rand() > 1.5 else x  # noqa: NPY002
        return x

    model = LayerAndForward(forward)
    assert same(trace(model), trace(model))


def test_instance_functions_do_not_lead_back_to_the_original():
    """A closure over the model, and a compiled wrapper of it, must not run the model itself."""
    expected = trace(small_net())
    patched = small_net()
    run = patched.forward
    patched.forward = lambda x: run(x)
    assert same(trace(patched), expected)
    assert patched.norm.num_batches_tracked == 0
    model = small_net()
    compiled = torch.compile(model)
    compiled.expected_input_sz = model.expected_input_sz
    assert trace(compiled).primitives == expected.primitives
    assert model.norm.num_batches_tracked == 0


def test_hooks_that_compute_weights_still_do():
    layer = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3))
    with pytest.warns(FutureWarning):
        old_layer = nn.utils.weight_norm(nn.Conv2d(4, 4, 3))
    graph = trace(nn.Sequential(layer, old_layer), input_size=9)
    assert {"1.weight_g", "1.weight_v"} <= set(graph.parameter_names)


def test_tensors_in_plain_attributes_move_along():
    def forward(self, x):
        return self.fc(x.flatten(1) * self.table["scale"][0]) + self.offset

    model = LayerAndForward(forward)
    model.offset = torch.ones(5)
    model.table = {"scale": [torch.ones(48), nn.Parameter(torch.ones(2))]}
    assert trace(model).parameter_names == ("fc.weight", "fc.bias")
    assert not model.table["scale"][0].is_meta


def test_value_dependent_models_fall_back_to_real_tensors():
    def forward(self, x):
        x = self.fc(x.flatten(1))
        return x.relu() if self.fc.weight.sum().item() < 1e9 else x * 2 + x

    model = LayerAndForward(forward)
    assert trace(model).parameter_names == ("fc.weight", "fc.bias")
    assert model.fc.weight.grad is None


# --- Parameters ------------------------------------------------------------------------------------------------------


def test_tied_parameter_goes_by_its_listed_name():
    class Tied(nn.Module):
        expected_input_sz = (3, 4, 4)

        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 3, 1)
            self.second = nn.Conv2d(3, 3, 1)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(self.first(x).relu())

    graph = trace(Tied())
    assert sorted(graph.parameter_names) == ["first.bias", "first.weight", "second.bias"]
    assert "second.weight" in [node.name for node in graph.nodes]
    assert graph.warnings  # the weight is used twice: a cycle
    assert graph.nodes[graph.input_index].primitive == "input"


def test_subclasses_count_as_their_base_class():
    class Conv(nn.Conv2d):
        pass

    class Act(nn.BatchNorm2d):
        def forward(self, x):
            return torch.relu(super().forward(x))

    class ScaledConv(nn.Conv2d):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1))

        def forward(self, x):
            return nn.functional.conv2d(x, self.weight * self.gain, self.bias)

    graph = trace(nn.Sequential(Conv(3, 4, 3), Act(4), ScaledConv(4, 6, 3)), input_size=16)
    assert sorted(zip(graph.primitives, [node.parameters for node in graph.nodes], strict=True)) == [
        ("bias", ("0.bias",)),
        ("bias", ("2.bias",)),
        ("bn", ("1.weight", "1.bias")),
        ("conv", ("0.weight",)),
        ("conv", ("2.weight",)),
        ("input", ()),
    ]


def test_classifier_is_found_by_position():
    graph = trace(small_net())
    assert graph.nodes[graph.class_weight_index].parameters == ("head.weight",)
    assert graph.nodes[graph.class_bias_index].parameters == ("head.bias",)
    headless = trace(small_net()[:1], input_size=16)
    assert (headless.class_weight_index, headless.class_bias_index) == (None, None)


def test_multihead_attention_projections():
    class Attention(nn.Module):
        expected_input_sz = (3, 4, 4)

        def __init__(self):
            super().__init__()
            self.attn = nn.MultiheadAttention(3, 1, batch_first=True)

        def forward(self, x):
            x = x.flatten(2).transpose(1, 2)
            return self.attn(x, x, x, need_weights=False)[0]

    names = {"attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight", "attn.out_proj.bias"}
    explicit, fused = trace(Attention()), trace(Attention(), attention="fused")
    assert set(explicit.parameter_names) == set(fused.parameter_names) == names
    assert explicit.primitives.count("msa") == 1
    assert "msa" not in fused.primitives


# --- Structure -------------------------------------------------------------------------------------------------------


def test_exponentially_many_paths_take_no_exponential_time():
    class Ladder(nn.Module):
        """2**80 paths from the projections to the softmax, and as many behind it."""

        expected_input_sz = (3, 4, 4)

        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(3, 9, bias=False)
            self.out = nn.Linear(3, 3)
            self.steps = nn.ModuleList(nn.Linear(3, 3) for _ in range(160))

        def climb(self, x, steps):
            for first, second in zip(steps[::2], steps[1::2], strict=True):
                x = first(x) + second(x)
            return x

        def forward(self, x):
            q, k, v = self.qkv(x.flatten(2).transpose(1, 2)).chunk(3, -1)
            q, v = self.climb(q, self.steps[:80]), self.climb(v, self.steps[80:])
            for _ in range(3):
                v = v + self.out((q @ k.transpose(1, 2)).softmax(-1) @ v)
            return v

    graph = trace(Ladder())
    assert "msa" in graph.primitives
    assert set(graph.parameter_names) >= {f"steps.{index}.weight" for index in range(160)}


def test_layer_used_twice_gives_a_cyclic_graph_with_the_input_last():
    class Loop(nn.Module):
        expected_input_sz = (3, 4, 4)

        def __init__(self):
            super().__init__()
            self.conv, self.other = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.conv(self.other(self.conv(x)))

    graph = trace(Loop())
    assert graph.input_index == len(graph) - 1
    assert graph.warnings


def test_networkx_view():
    graph = trace(small_net())
    view = graph.to_networkx()
    assert sorted(view.edges) == [tuple(edge) for edge in graph.edges.tolist()]
    assert [view.nodes[index]["primitive"] for index in view] == list(graph.primitives)
    assert view.graph["input_index"] == graph.input_index


def test_dict_round_trip():
    graph = trace(timm.create_model("test_vit"), virtual_edge_cutoff=7)
    assert int(graph.distances.max()) == 7
    assert same(ComputationalGraph.from_dict(graph.to_dict()), graph)


def test_output_containers():
    def outputs(wrap):
        return trace(LayerAndForward(lambda self, x: wrap(self.fc(x.flatten(1)))))

    expected = outputs(lambda y: y)
    for wrap in (lambda y: (y, None), lambda y: [None, y], lambda y: {"logits": y, "mask": y.detach()}):
        assert same(outputs(wrap), expected)


# --- Input size ------------------------------------------------------------------------------------------------------


def test_input_sizes():
    assert trace(small_net()).input_size == (3, 16, 16)
    assert trace(small_net(), input_size=8).input_size == (3, 8, 8)
    assert trace(small_net(), input_size=[3, 8, 12]).input_size == (3, 8, 12)
    assert trace(nn.Conv2d(3, 4, 3)).input_size == (3, 224, 224)
    assert trace(nn.Conv2d(5, 4, 3)).input_size == (5, 224, 224)
    assert trace(timm.create_model("test_resnet", in_chans=1)).input_size == (1, 160, 160)
    vit = timm.create_model("test_vit", img_size=64, in_chans=4)
    assert trace(vit).input_size == (4, 64, 64)
    unregistered = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2
    )
    assert trace(unregistered).input_size == (3, 32, 32)


# --- Refusals --------------------------------------------------------------------------------------------------------


def raise_value_error(self, x):
    raise ValueError("this model is not in the mood")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.ReLU(), "no parameters"),
        (LayerAndForward(lambda self, x: self.fc(x.flatten(1)).detach()), "can be differentiated"),
        (LayerAndForward(lambda self, x: x), "can be differentiated"),
        (LayerAndForward(lambda self, x: "no tensor"), "can be differentiated"),
        (LayerAndForward(raise_value_error), "not in the mood"),
        (LayerAndForward(lambda self, x: self.fc(x)), "Pass input_size="),
        (nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), "1.weight"),
        (torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(3, 3))), "TorchScript"),
        ("resnet50", "torch.nn.Module"),
    ],
)
def test_untraceable_models_are_refused(model, message):
    with pytest.raises(TracingError, match=message) as caught:
        trace(model)
    assert isinstance(caught.value, ParamInitError)


def test_failure_of_the_forward_pass_is_chained():
    with pytest.raises(TracingError) as caught:
        trace(LayerAndForward(raise_value_error))
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize(
    "arguments",
    [
        {"mode": "published"},
        {"attention": "flash"},
        {"input_size": (3, 8)},
        {"input_size": 0},
        {"input_size": 8.5},
        {"input_size": (3, 8, -8)},
    ],
)
def test_bad_arguments_are_refused(arguments):
    with pytest.raises(TracingError, match=str(next(iter(arguments))).replace("_", ".")):
        trace(small_net(), **arguments)


def test_random_state_survives_a_failure():
    model = LayerAndForward(raise_value_error)
    before = torch.get_rng_state()
    with pytest.raises(TracingError):
        trace(model)
    assert torch.equal(torch.get_rng_state(), before)


class TwiceLinear(nn.Module):
    """Uses a linear layer once or twice, with an activation between."""

    def __init__(self, num_uses: int) -> None:
        super().__init__()
        self.num_uses = num_uses
        self.shared, self.fc = nn.Linear(12, 12), nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)
        for _ in range(self.num_uses):
            x = self.shared(x).relu()
        return self.fc(x)


@pytest.mark.parametrize(("num_uses", "mode"), [(1, "compat"), (2, "native"), (3, "native")])
def test_auto_sees_a_linear_layer_that_is_used_again(num_uses, mode):
    model = TwiceLinear(num_uses)
    warnings = trace(model, input_size=(3, 2, 2)).warnings
    assert warnings == (() if num_uses == 1 else (f"shared.weight is used {num_uses} times, but has one node",))
    graph = trace(model, input_size=(3, 2, 2), mode="auto")
    assert graph.mode == mode
    assert sum("shared.weight" in node.parameters for node in graph.nodes) == num_uses
