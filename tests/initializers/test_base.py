from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch
from name_hash import NameHash, is_name_hashed, name_hash_values
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hf_paraminit.errors import InitializerConfigError, PredictionError, UnknownInitializerError
from hf_paraminit.initializers.base import FunctionInitializer, Initializer, InitializerConfig
from hf_paraminit.initializers.parameters import stage_values, write_values


class Noise(Initializer):
    """Draws from torch's global generator, as a careless third party would."""

    variants = ("small", "Big-One")

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(InitializerConfig):
        variant: str = "small"
        std: float = 1.0
        mode: Literal["normal", "uniform"] = "normal"
        steps: int | None = None

        def validate(self) -> None:
            if self.std <= 0:
                raise ValueError("std must be positive")

    config: Config

    def predict(self, target: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
        parameters = dict(target.named_parameters())
        return {name: torch.randn(parameters[name].shape) * self.config.std for name in names}


class TiedLanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 5)
        self.head.weight = self.embedding.weight


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict(keep_vars=False).items()}


def assert_unchanged(model: nn.Module, before: dict[str, Tensor]) -> None:
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


# Settings


def test_unknown_setting_is_named_with_the_accepted_ones() -> None:
    with pytest.raises(
        InitializerConfigError, match=r"'stdd'; it takes seed, device, variant, std.*Did you mean 'std'"
    ):
        Noise(stdd=2.0)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"seed": "1"}, "seed must be int, found '1'"),
        ({"seed": True}, "seed must be int"),
        ({"seed": -1}, "seed must be between 0"),
        ({"device": "gpu"}, "device must be one that torch knows"),
        ({"std": "wide"}, "std must be float"),
        ({"std": -1}, "std must be positive"),
        ({"mode": "cauchy"}, "mode must be"),
        ({"steps": 1.5}, "steps must be int | None"),
    ],
)
def test_wrong_values_are_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InitializerConfigError, match=complaint.replace("|", r"\|")) as caught:
        Noise(**settings)
    assert isinstance(caught.value, ValueError)


def test_right_values_are_taken() -> None:
    config = Noise(seed=2, device=torch.device("cpu"), std=2, steps=4, variant="big_one").config
    assert config == Noise.Config(seed=2, device="cpu", std=2, steps=4, variant="Big-One")


def test_variants() -> None:
    assert Noise().identifier == "Noise:small"
    with pytest.raises(UnknownInitializerError, match=r"has no variant 'smal'.*Did you mean 'small'"):
        Noise(variant="smal")
    with pytest.raises(UnknownInitializerError, match="has no variant"):
        Noise(Noise.Config(variant="none"))
    with pytest.raises(TypeError, match="needs a field 'variant'"):
        type("Bad", (NameHash,), {"variants": ("a",)})


def test_config_of_another_initializer_is_refused() -> None:
    with pytest.raises(InitializerConfigError, match=r"needs a Noise.Config, found a InitializerConfig"):
        Noise(InitializerConfig())


def test_with_config_makes_a_copy() -> None:
    first = Noise(std=2.0)
    second = first.with_config(seed=5)
    assert (second.config.std, second.config.seed, first.config.seed) == (2.0, 5, 0)


def test_apply_is_final() -> None:
    with pytest.raises(TypeError, match="must not override apply"):
        type("Bad", (NameHash,), {"apply": lambda self, model: None})


# Writing


def test_every_parameter_is_written_and_nothing_else() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    model[2].weight.requires_grad_(False)
    objects = {name: (id(p), p.data_ptr(), p.requires_grad) for name, p in model.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    report = NameHash().apply(model)
    for name, parameter in model.named_parameters():
        assert is_name_hashed(parameter, name)
        assert objects[name] == (id(parameter), parameter.data_ptr(), parameter.requires_grad)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[name])
    assert list(report.predicted) == list(objects)
    assert report.predicted["0.weight"] == "(4, 3, 3, 3) torch.float32"
    assert (report.coverage_tensors, report.coverage_elements, report.seed) == (1.0, 1.0, 0)
    assert set(report.seconds) == {"plan", "predict", "write"}


def test_uncovered_parameters_are_kept_with_the_initializers_reason() -> None:
    class OnlyBias(NameHash):
        def predict(self, target: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
            return name_hash_values(target, [name for name in names if name.endswith("bias")])

        def reason_kept(self, target: nn.Module, name: str) -> str:
            return "only biases are predicted"

        def provenance(self) -> dict[str, Any]:
            return {"predictor": "p", "revision": "r", "sha256": "s", "notes": ("n",), "seconds": {"trace": 1.0}}

    model = nn.Linear(3, 2)
    before = model.weight.clone()
    report = OnlyBias().apply(model)
    assert torch.equal(model.weight, before)
    assert report.kept == {"weight": "only biases are predicted"}
    assert (report.coverage_tensors, report.coverage_elements) == (0.5, 0.25)
    assert (report.predictor, report.revision, report.sha256, report.notes) == ("p", "r", "s", ("n",))
    assert report.seconds["trace"] == 1.0


def test_only_the_listed_names_are_offered_and_written() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    before = snapshot(model)
    seen: list[list[str]] = []

    def everything(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
        seen.append(names)
        return name_hash_values(model, [name for name, _ in model.named_parameters()])

    report = FunctionInitializer(everything).apply(model, ["1.bias", "1.weight"])
    assert seen == [["1.weight", "1.bias"]]
    assert torch.equal(model[0].weight, before["0.weight"])
    assert is_name_hashed(model[1].bias, "1.bias")
    assert report.refused == dict.fromkeys(["0.weight", "0.bias"], "parameter outside the offered names")
    assert report.coverage_tensors == 1.0


def test_no_name_listed_means_no_prediction() -> None:
    calls = NameHash.calls
    report = NameHash().apply(nn.Linear(2, 2), [])
    assert NameHash.calls == calls
    assert (report.predicted, report.coverage_tensors) == ({}, 0.0)
    assert "no parameter was offered" in report.notes[0]


def test_buffers_are_refused() -> None:
    model = nn.BatchNorm1d(3)
    report = FunctionInitializer(lambda m, n: {"running_mean": torch.ones(3)}).apply(model)
    assert report.refused == {"running_mean": "buffers are never written"}
    assert torch.equal(model.running_mean, torch.zeros(3))


def test_integer_parameters_are_refused_not_offered() -> None:
    model = nn.Linear(2, 2)
    model.table = nn.Parameter(torch.arange(3), requires_grad=False)
    report = NameHash().apply(model)
    assert report.refused == {"table": "int64 parameters are not predicted"}
    assert report.coverage_tensors == 1.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_values_are_cast_to_the_parameters_dtype(dtype: torch.dtype) -> None:
    model = nn.Linear(3, 2).to(dtype)
    NameHash().apply(model)
    assert model.weight.dtype == dtype
    assert is_name_hashed(model.weight, "weight")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.float8_e5m2])
def test_values_may_have_any_floating_dtype(dtype: torch.dtype) -> None:
    model = nn.Linear(2, 2)
    FunctionInitializer(lambda m, n: {"weight": torch.full((2, 2), -1.5).to(dtype)}).apply(model)
    assert torch.equal(model.weight, torch.full((2, 2), -1.5))
    with pytest.raises(PredictionError, match="holds NaN, infinity"):
        FunctionInitializer(lambda m, n: {"weight": torch.full((2, 2), -torch.inf).to(dtype)}).apply(model)


def test_memory_format_is_kept() -> None:
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    values = torch.randn(4, 3, 3, 3)
    FunctionInitializer(lambda m, n: {"weight": values}).apply(model)
    assert model.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(model.weight, values)


# Tied weights


def test_tied_weights_stay_tied_and_count_once() -> None:
    model = TiedLanguageModel()
    report = NameHash().apply(model)
    assert model.head.weight is model.embedding.weight
    assert is_name_hashed(model.head.weight, "embedding.weight")
    assert report.predicted["head.weight"] == "tied to embedding.weight"
    assert report.coverage_tensors == 1.0


def test_tensors_that_share_memory_without_being_one_object_are_tied_too() -> None:
    model = TiedLanguageModel()
    model.head.weight = nn.Parameter(model.embedding.weight.data)
    report = NameHash().apply(model)
    assert report.predicted["head.weight"] == "tied to embedding.weight"
    assert is_name_hashed(model.head.weight, "embedding.weight")


def test_an_alias_is_accepted_as_a_name_and_as_a_key() -> None:
    model = TiedLanguageModel()
    report = FunctionInitializer(lambda m, n: {"head.weight": torch.ones(5, 4)}).apply(model, ["head.weight"])
    assert torch.equal(model.embedding.weight, torch.ones(5, 4))
    assert list(report.predicted) == ["embedding.weight", "head.weight"]


def test_two_values_for_one_tensor_must_agree() -> None:
    model = TiedLanguageModel()
    before = snapshot(model)
    values = {"embedding.weight": torch.ones(5, 4), "head.weight": torch.zeros(5, 4)}
    with pytest.raises(PredictionError, match=r"head.weight: is tied to embedding.weight, but the two values differ"):
        FunctionInitializer(lambda m, n: values).apply(model)
    assert_unchanged(model, before)
    values["head.weight"] = torch.ones(5, 4, dtype=torch.float64)
    FunctionInitializer(lambda m, n: values).apply(model)
    assert torch.equal(model.head.weight, torch.ones(5, 4))


def test_values_made_of_the_models_own_memory_do_not_disturb_each_other() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    before = snapshot(model)
    FunctionInitializer(lambda m, n: {"a.weight": m["b"].weight, "b.weight": m["a"].weight}).apply(model)
    assert torch.equal(model["a"].weight, before["b.weight"])
    assert torch.equal(model["b"].weight, before["a.weight"])


# Refusals


def test_all_faults_come_in_one_error_and_nothing_is_written() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2), nn.BatchNorm1d(2))
    before = snapshot(model)
    values = {
        "0.weight": torch.ones(2, 3),
        "0.bias": torch.ones(3),
        "1.weight": torch.tensor([[1.0, float("nan")], [0.0, 0.0]]),
        "1.bias": torch.ones(2, dtype=torch.int64),
        "1.wieght": torch.ones(2, 2),
        "2.weight": [1.0, 1.0],
        "2.bias": torch.tensor([float("inf"), 0.0]),
    }
    with pytest.raises(PredictionError) as caught:
        FunctionInitializer(lambda m, n: values, "faulty").apply(model)
    message = str(caught.value)
    assert message.startswith("faulty gave values that do not fit Sequential; nothing was written. Faults: 6.")
    assert "0.bias: expected shape (2,), found (3,)" in message
    assert "1.weight: holds NaN" in message
    assert "1.bias: expected a dtype that converts to float32, found int64" in message
    assert "1.wieght: is no parameter of the model. Did you mean '1.weight'" in message
    assert "2.weight: expected a tensor, found a list" in message
    assert "2.bias: holds NaN, infinity" in message
    assert_unchanged(model, before)
    assert not hasattr(model, "_hf_paraminit")


def test_values_that_overflow_in_the_parameters_dtype_are_refused() -> None:
    model = nn.Linear(2, 2).half()
    with pytest.raises(PredictionError, match="beyond the range of float16"):
        FunctionInitializer(lambda m, n: {"weight": torch.full((2, 2), 1e6)}).apply(model)


@pytest.mark.parametrize("value", [torch.ones(2, 2, device="meta"), torch.ones(2, 2).to_sparse()])
def test_values_without_dense_content_are_refused(value: Tensor) -> None:
    with pytest.raises(PredictionError, match="expected a dense tensor"):
        FunctionInitializer(lambda m, n: {"weight": value}).apply(nn.Linear(2, 2))


def test_a_result_that_is_no_dict_is_refused() -> None:
    with pytest.raises(PredictionError, match="returned a NoneType for Linear, expected a dict"):
        FunctionInitializer(lambda m, n: None).apply(nn.Linear(2, 2))


def test_models_that_cannot_be_written_are_refused() -> None:
    with pytest.raises(PredictionError, match=r"needs a torch.nn.Module"):
        NameHash().apply({"weight": torch.ones(2)})
    with pytest.raises(PredictionError, match="Sequential has no parameters"):
        NameHash().apply(nn.Sequential(nn.ReLU()))
    with pytest.raises(PredictionError, match=r"0.weight: has no shape yet; run one forward pass"):
        NameHash().apply(nn.Sequential(nn.LazyLinear(3)))
    with pytest.raises(PredictionError, match=r"0.weight: is on the meta device.*\n.*0.bias"):
        NameHash().apply(nn.Sequential(nn.Linear(2, 2, device="meta"), nn.Linear(2, 2)))
    expanded = nn.Linear(2, 2)
    expanded.bias = nn.Parameter(torch.zeros(1).expand(2))
    with pytest.raises(PredictionError, match="bias: is expanded"):
        NameHash().apply(expanded)
    with torch.inference_mode():
        read_only = nn.Linear(2, 2)
    with pytest.raises(PredictionError, match="was made in inference mode"):
        NameHash().apply(read_only)


def test_quantized_and_sharded_tensors_are_refused() -> None:
    class Int8Weight(nn.Parameter):
        """Like the parameters of 8-bit libraries: an integer dtype behind a class of its own."""

    model = nn.Linear(2, 2)
    model.weight = Int8Weight(torch.zeros(2, 2, dtype=torch.int8), requires_grad=False)
    with pytest.raises(PredictionError, match="weight: is a Int8Weight; initialize before quantizing or sharding"):
        NameHash().apply(model)
    report = NameHash().apply(model, ["bias"])
    assert list(report.predicted) == ["bias"]


def test_unknown_names_are_refused_together() -> None:
    with pytest.raises(PredictionError, match=r"Faults: 2.\n  wieght: is no parameter. Did you mean 'weight'"):
        NameHash().apply(nn.Linear(2, 2), ["wieght", "bais", "bias"])
    with pytest.raises(PredictionError, match="not the single string"):
        NameHash().apply(nn.Linear(2, 2), "weight")


def test_meta_models_are_skipped_with_one_warning() -> None:
    calls = NameHash.calls
    model = nn.Linear(2, 2, device="meta")
    with pytest.warns(UserWarning, match="wrote nothing: Linear is on the meta device") as caught:
        report = NameHash().apply(model)
    assert len(caught) == 1
    assert NameHash.calls == calls
    assert report.skipped_reason == "meta"
    assert set(report.kept) == {"weight", "bias"}
    assert model._hf_paraminit is report


@pytest.mark.parametrize("interruption", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_a_failure_while_values_are_moved_leaves_the_model_as_it_was(interruption: BaseException) -> None:
    class Failing(Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is Tensor.to:
                raise interruption
            return super().__torch_function__(func, types, args, kwargs or {})

    model = nn.Linear(2, 2)
    before = snapshot(model)
    values = {"weight": torch.ones(2, 2), "bias": torch.ones(2).as_subclass(Failing)}
    parameters = dict(model.named_parameters())
    with pytest.raises(type(interruption)):
        write_values(parameters, stage_values(parameters, values))
    assert_unchanged(model, before)


def test_an_interrupt_cannot_split_the_writing() -> None:
    """Python runs signal handlers between bytecodes only; the copies are a single one."""

    class Operators(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    seen: list[str] = []
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).bfloat16())
    values = {name: torch.ones(parameter.shape) for name, parameter in model.named_parameters()}
    with Operators():
        parameters = dict(model.named_parameters())
        write_values(parameters, stage_values(parameters, values))
    assert seen == ["aten._foreach_copy_.default"]
    assert all(bool((parameter == 1).all()) for parameter in model.parameters())


# Surroundings


def test_a_seed_gives_the_same_weights_and_leaves_the_callers_random_stream_alone() -> None:
    state = torch.get_rng_state()
    results = []
    for seed in (0, 0, 1):
        model = nn.Linear(4, 4)
        torch.set_rng_state(state)
        torch.rand(7 * seed)
        before = torch.get_rng_state()
        Noise(seed=seed).apply(model)
        assert torch.equal(torch.get_rng_state(), before)
        results.append(model.weight.detach())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_the_surroundings_of_a_prediction_do_not_depend_on_the_caller() -> None:
    seen = {}

    def spy(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
        product = torch.ones(2, 2) @ torch.ones(2, 2)
        seen.update(
            dtype=product.dtype,
            device=product.device.type,
            grad=torch.is_grad_enabled(),
            inference=torch.is_inference_mode_enabled(),
        )
        return {"weight": torch.randn(2, 2)}

    model = nn.Linear(2, 2)
    FunctionInitializer(spy).apply(model)
    plain, expected = dict(seen), model.weight.detach().clone()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16), torch.device("meta"):
            FunctionInitializer(spy).apply(model)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert seen == plain == {"dtype": torch.float32, "device": "cpu", "grad": False, "inference": False}
    assert torch.equal(model.weight, expected)
    model(torch.ones(1, 2)).sum().backward()  # still an ordinary model
    assert model.weight.grad is not None


# Functions


def test_function_settings_are_passed_through() -> None:
    def scaled(model: nn.Module, names: list[str], *, scale: float = 1.0, seed: int = 9) -> dict[str, Tensor]:
        return {"bias": torch.tensor([scale, float(seed)])}

    model = nn.Linear(3, 2)
    initializer = FunctionInitializer(scaled, scale=2.0)
    initializer.apply(model)
    assert model.bias.tolist() == [2.0, 9.0]
    changed = initializer.with_config(seed=4)
    assert changed.apply(model).seed == 4
    assert model.bias.tolist() == [2.0, 4.0]
    assert changed.name == "scaled"


def test_function_settings_that_it_does_not_take_are_refused() -> None:
    with pytest.raises(InitializerConfigError, match="does not take 'scale'; it takes no settings"):
        FunctionInitializer(lambda model, names: {}, scale=2.0)
    FunctionInitializer(lambda model, names: {}, seed=2, device="cpu")  # these belong to every initializer


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_model_in_bfloat16_and_its_random_stream() -> None:
    on_cpu, on_gpu = nn.Linear(4, 4), nn.Linear(4, 4, device="cuda", dtype=torch.bfloat16)
    before = torch.cuda.get_rng_state()
    Noise().apply(on_cpu)
    Noise().apply(on_gpu)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert torch.equal(on_gpu.weight.cpu(), on_cpu.weight.bfloat16())
