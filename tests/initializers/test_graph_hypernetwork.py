"""Graph hypernetworks as initializers: what reaches a user's model, and what never does."""

import copy
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from accelerate.state import PartialState
from torch import Tensor, nn

import hf_paraminit
from hf_paraminit.errors import CheckpointError, InitializerConfigError, PredictionError, PredictorNotFoundError
from hf_paraminit.ghn.config import GHNConfig
from hf_paraminit.ghn.model import GHN
from hf_paraminit.initializers.ghn3 import GHN3
from hf_paraminit.initializers.graph_hypernetwork import _departures, load_ghn

CONFIG = GHNConfig(hidden_dim=16, num_layers=2, num_heads=4, max_shape=(16, 16, 11, 11), num_classes=10)


@pytest.fixture(autouse=True)
def _clear_cache() -> Iterator[None]:
    hf_paraminit.clear_cache()
    yield
    hf_paraminit.clear_cache()


@pytest.fixture
def ghn() -> GHN:
    return GHN(CONFIG).eval()


@pytest.fixture
def init(ghn: GHN) -> GHN3:
    return GHN3(predictor=ghn)


@pytest.fixture
def folder(ghn: GHN, tmp_path: Path) -> Path:
    ghn.save_pretrained(tmp_path / "predictor")
    return tmp_path / "predictor"


def make_model(num_classes: int = 10) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, bias=False),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Conv2d(24, 32, 3, groups=4),
        nn.GroupNorm(4, 32),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, num_classes),
    )


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_unchanged(model: nn.Module, before: dict[str, Tensor]) -> None:
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


# What is written


def test_report_and_model_agree(init: GHN3) -> None:
    model = make_model()
    before = snapshot(model)
    report = hf_paraminit.initialize(model, init.with_config(mode="compat"))  # which leaves group norms out
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert set(report.predicted) >= changed
    assert set(report.predicted) == {"0.weight", "1.weight", "1.bias", "3.weight", "3.bias", "7.weight", "7.bias"}
    assert report.kept == dict.fromkeys(("4.weight", "4.bias"), "no node in the computational graph stands for it")
    assert report.refused == {}
    assert report.coverage_tensors == pytest.approx(7 / 9)
    assert report.initializer == "ghn3"
    assert report.seed == 0
    assert report.predictor is None  # weights given, not read from anywhere
    assert set(report.seconds) >= {"load", "trace", "decode"}
    assert "compat mode" in report.notes[0]
    assert model._hf_paraminit is report


def test_values_are_those_of_the_network(ghn: GHN, init: GHN3) -> None:
    model = make_model()
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    with torch.no_grad():
        expected = ghn.predict(ghn.trace(model), shapes)
    hf_paraminit.initialize(model, init)
    for name, tensor in expected.items():
        torch.testing.assert_close(model.get_parameter(name).detach(), tensor)


def test_same_weights_on_every_call_and_no_random_numbers_used(init: GHN3) -> None:
    first, second = make_model(), make_model()
    random_state = torch.get_rng_state()
    hf_paraminit.initialize(first, init)
    hf_paraminit.initialize(second, init)
    assert torch.equal(torch.get_rng_state(), random_state)
    for name in ("0.weight", "1.bias", "7.weight"):
        assert torch.equal(first.get_parameter(name), second.get_parameter(name))


@pytest.mark.parametrize("training", [True, False])
def test_mode_of_the_model_does_not_matter(init: GHN3, training: bool) -> None:
    model, reference = make_model().train(training), make_model()
    hf_paraminit.initialize(model, init)
    hf_paraminit.initialize(reference, init)
    assert model.training == training
    for name in ("0.weight", "1.bias", "7.weight"):
        assert torch.equal(model.get_parameter(name), reference.get_parameter(name))


def test_buffers_gradients_and_objects_stay(init: GHN3) -> None:
    model = make_model()
    model(torch.randn(4, 3, 16, 16)).sum().backward()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    parameters = dict(model.named_parameters())
    gradient = parameters["0.weight"].grad
    hf_paraminit.initialize(model, init)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert model[0].weight.grad is gradient


def test_frozen_parameters_are_written_and_stay_frozen(init: GHN3) -> None:
    model = make_model().requires_grad_(False)
    report = hf_paraminit.initialize(model, init)
    reference = make_model()
    assert set(report.predicted) == set(hf_paraminit.initialize(reference, init).predicted)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(model[0].weight, reference[0].weight)


def test_bfloat16_model_gets_rounded_values(init: GHN3) -> None:
    model, reference = make_model().bfloat16(), make_model()
    hf_paraminit.initialize(model, init)
    hf_paraminit.initialize(reference, init)
    assert model[0].weight.dtype == torch.bfloat16
    assert torch.equal(model[0].weight, reference[0].weight.bfloat16())


def test_model_with_nan_weights_gets_finite_ones(init: GHN3) -> None:
    model = make_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    hf_paraminit.initialize(model, init.with_config(mode="compat"))
    assert model[0].weight.isfinite().all()
    assert model[4].weight.isnan().all()  # kept as it was


def test_names_restrict_what_is_written(init: GHN3) -> None:
    model = make_model()
    before = snapshot(model)
    report = hf_paraminit.initialize(model, init, names=["7.weight"])
    assert set(report.predicted) == {"7.weight"}
    assert not torch.equal(model[7].weight, before["7.weight"])
    before["7.weight"] = model[7].weight.detach().clone()
    assert_unchanged(model, before)


def test_class_layers_can_be_left_out(init: GHN3) -> None:
    report = hf_paraminit.initialize(make_model(), init, predict_class_layers=False)
    assert {"7.weight", "7.bias"} <= set(report.kept)


def test_seed_moves_only_class_token_rows(init: GHN3) -> None:
    vision_transformers = [timm_free_vit() for _ in range(3)]
    for model, seed in zip(vision_transformers, (1, 1, 2), strict=True):
        assert hf_paraminit.initialize(model, init, seed=seed, input_size=32).seed == seed
    first, same, other = (model.encoder.pos_embedding.detach() for model in vision_transformers)
    assert torch.equal(first, same)
    assert not torch.equal(first[:, 0], other[:, 0])
    assert torch.equal(first[:, 1:], other[:, 1:])


def timm_free_vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(32, 8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=10)


# Meta device


def test_meta_model_is_skipped_and_the_network_keeps_its_weights(ghn: GHN, init: GHN3) -> None:
    with torch.device("meta"):
        model = make_model()
    with pytest.warns(UserWarning, match="on the meta device"):
        report = hf_paraminit.initialize(model, init)
    assert report.skipped_reason == "meta"
    assert report.predicted == {}
    assert ghn.device.type == "cpu"


def test_pure_prediction_for_a_meta_model_has_values(ghn: GHN, init: GHN3) -> None:
    with torch.device("meta"):
        model = make_model()
    with torch.no_grad():
        values = init.predict(model, [name for name, _ in model.named_parameters()])
    assert ghn.device.type == "cpu"
    assert values["0.weight"].isfinite().all()
    reference = make_model()
    hf_paraminit.initialize(reference, init)
    assert torch.equal(values["0.weight"], reference[0].weight)


# Refusals


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_prediction_that_is_not_finite_leaves_the_model(ghn: GHN, init: GHN3, value: float) -> None:
    with torch.no_grad():
        ghn.decoder.conv[2].weight[:, 0] = value
    model = make_model()
    before = snapshot(model)
    with pytest.raises(PredictionError, match="nothing was written") as caught:
        hf_paraminit.initialize(model, init)
    assert "0.weight" in str(caught.value)
    assert_unchanged(model, before)
    assert not hasattr(model, "_hf_paraminit")


def test_model_without_parameters_is_refused(init: GHN3) -> None:
    with pytest.raises(PredictionError, match="no parameters"):
        hf_paraminit.initialize(nn.Sequential(nn.ReLU()), init)


def test_model_that_cannot_be_traced_is_left_as_it_was(init: GHN3) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("needs text")

    model = Recurrent()
    before = snapshot(model)
    with pytest.raises(hf_paraminit.TracingError):
        hf_paraminit.initialize(model, init)
    assert_unchanged(model, before)


@pytest.mark.parametrize(
    "settings",
    [{"colour": 1}, {"attention": "sparse"}, {"input_size": "large"}, {"predict_class_layers": "no"}, {"seed": -1}],
)
def test_wrong_settings_are_refused_before_any_prediction(init: GHN3, settings: dict[str, object]) -> None:
    model = make_model()
    before = snapshot(model)
    with pytest.raises(InitializerConfigError, match=next(iter(settings))):
        hf_paraminit.initialize(model, init, **settings)  # type: ignore[arg-type]
    assert_unchanged(model, before)


@pytest.mark.parametrize("name", ["ghn1", "ghn-mlp", "ghn2:cifar10"])
def test_unpublished_variants_say_where_to_get_them(name: str) -> None:
    model = make_model()
    before = snapshot(model)
    with pytest.raises(PredictorNotFoundError, match="load_predictor"):
        hf_paraminit.initialize(model, name)
    assert_unchanged(model, before)


def test_damaged_source_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x00" * 64)
    model = make_model()
    before = snapshot(model)
    with pytest.raises(CheckpointError):
        hf_paraminit.initialize(model, "ghn3", source=str(folder))
    assert_unchanged(model, before)


# Sources and the cache


def test_source_is_read_once_and_forgotten_on_request(folder: Path) -> None:
    model = make_model()
    report = hf_paraminit.initialize(model, "ghn3", source=str(folder))
    assert report.initializer == "ghn3"
    assert report.predictor == str(folder)
    assert len(report.sha256) == 64
    hf_paraminit.initialize(make_model(), "ghn3", source=str(folder))
    assert load_ghn.cache_info().misses == 1
    assert load_ghn.cache_info().hits >= 1
    hf_paraminit.clear_cache()
    assert load_ghn.cache_info().currsize == 0


def test_cached_network_is_not_changed_by_predictions(ghn: GHN, init: GHN3) -> None:
    before = copy.deepcopy(ghn.state_dict())
    hf_paraminit.initialize(make_model(), init)
    assert all(torch.equal(tensor, before[name]) for name, tensor in ghn.state_dict().items())
    assert all(parameter.grad is None for parameter in ghn.parameters())


def test_settings_of_a_copy_keep_the_network(ghn: GHN, init: GHN3) -> None:
    changed = init.with_config(predict_class_layers=False, seed=4)
    assert changed.predictor is ghn
    assert (changed.config.seed, changed.config.predict_class_layers) == (4, False)
    assert init.config.seed == 0


# Devices and memory

SECOND_GPU = torch.device("cuda:1")


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> list[tuple[GHN, torch.device]]:
    """Where networks were asked to go. There is no GPU here, so the copies share the original's weights on the CPU."""
    asked: list[tuple[GHN, torch.device]] = []
    original = GHN.placed

    def placed(self: GHN, device: torch.device, decoder_dtype: torch.dtype = torch.float32) -> GHN:
        asked.append((self, device))
        return original(self, torch.device("cpu"), decoder_dtype)

    monkeypatch.setattr(GHN, "placed", placed)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    return asked


def test_predictor_goes_where_it_runs_best(
    folder: Path, places: list[tuple[GHN, torch.device]], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_default = GHN3(source=str(folder))
    by_default.predict(make_model(), ["0.weight"])
    GHN3(source=str(folder), device="cuda:1").predictor_for(torch.device("cpu"))
    by_default.predictor_for(torch.device("cuda:0"))
    monkeypatch.setitem(PartialState._shared_state, "device", SECOND_GPU)
    by_default.predict(make_model(), ["0.weight"])
    by_default.predict(make_model(), ["0.weight"])
    by_default.load()
    GHN3(source=str(folder), device="cpu").predict(make_model(), ["0.weight"])
    # Once for each device, although some were needed again.
    assert [device for _, device in places] == [torch.device("cpu"), SECOND_GPU, torch.device("cuda:0")]
    assert load_ghn.cache_info().currsize == 3
    hf_paraminit.clear_cache()
    assert load_ghn.cache_info().currsize == 0


def test_a_predictor_that_is_forgotten_is_freed(folder: Path) -> None:
    network = weakref.ref(GHN3(source=str(folder)).predictor)
    gc.collect()
    assert network() is not None  # the cache holds it
    hf_paraminit.clear_cache()
    gc.collect()
    assert network() is None


def test_a_given_network_stays_where_it_is(ghn: GHN, places: list[tuple[GHN, torch.device]]) -> None:
    before = [(id(parameter), parameter.device) for parameter in ghn.parameters()]
    for device in ("cuda:1", None, "cpu"):
        GHN3(predictor=ghn, device=device).predictor_for(torch.device("cpu"))
    GHN3(predictor=ghn).predictor_for(torch.device("cuda:0"))
    assert [device.type for _, device in places] == ["cuda", "cpu", "cpu", "cuda"]
    assert all(network is ghn for network, _ in places)
    assert [(id(parameter), parameter.device) for parameter in ghn.parameters()] == before


def test_autocast_of_the_callers_device_does_not_reach_the_predictor(
    init: GHN3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base class turns it off where the model is; a predictor can be elsewhere."""
    monkeypatch.setattr(GHN, "device", SECOND_GPU)
    monkeypatch.setattr(GHN, "predict", lambda *args, **kwargs: {"on": torch.is_autocast_enabled("cuda")})
    torch.set_autocast_enabled("cuda", True)
    try:
        assert init.predict(make_model(), []) == {"on": False}
        assert torch.is_autocast_enabled("cuda")
    finally:
        torch.set_autocast_enabled("cuda", False)


def test_the_report_says_where_and_how_it_was_predicted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(hf_paraminit.initialize(make_model(), "ghn3", source=str(folder)).notes) == 1
    report = hf_paraminit.initialize(make_model(), "ghn3", source=str(folder), decoder_dtype="bfloat16")
    assert report.notes[1:] == ("decoder in bfloat16",)
    ghn = GHN.from_pretrained(folder)
    monkeypatch.setattr(GHN, "device", SECOND_GPU)
    assert _departures(ghn, torch.device("cpu")) == ["predicted on cuda:1"]
    assert _departures(ghn, SECOND_GPU) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_bfloat16_decoder_fills_models_of_any_dtype(ghn: GHN, init: GHN3, dtype: torch.dtype) -> None:
    model, exact = make_model().to(dtype), make_model()
    before = copy.deepcopy(ghn.state_dict())
    report = hf_paraminit.initialize(model, init, decoder_dtype="bfloat16")
    assert report.predicted.keys() == hf_paraminit.initialize(exact, init).predicted.keys()
    for name in report.predicted:
        found, expected = model.get_parameter(name), exact.get_parameter(name)
        assert found.dtype == dtype
        assert found.isfinite().all()
        # The bound is that of the golden predictions, and one more rounding on copy.
        assert (found.float() - expected).norm() <= 11**0.5 * 2.0**-8 * expected.norm(), name
    assert not torch.equal(model[0].weight.float(), exact[0].weight)
    # Vectors come from the other decoder.
    assert torch.equal(model[1].weight, exact[1].weight.to(dtype))
    assert all(torch.equal(tensor, before[name]) for name, tensor in ghn.state_dict().items())


def test_bfloat16_decoder_takes_half_the_memory_and_holds_on_to_nothing_of_the_original(ghn: GHN) -> None:
    half = ghn.placed(torch.device("cpu"), torch.bfloat16)
    for name, tensor in half.state_dict().items():
        original = ghn.state_dict()[name]
        if name.startswith("decoder."):
            assert 2 * tensor.nbytes == original.nbytes
            assert torch.equal(tensor, original.bfloat16())
        else:
            assert torch.equal(tensor, original)
        assert tensor.untyped_storage().data_ptr() != original.untyped_storage().data_ptr()
    assert half.placed(torch.device("cpu"), torch.bfloat16) is half
    assert ghn.placed(torch.device("cpu")) is ghn


@pytest.mark.parametrize("source", ["ghn3", "local-dir:{folder}"])
def test_automatic_device_map_gives_the_same_values(source: str, folder: Path) -> None:
    init = source.format(folder=folder)
    spread, whole = make_model(), make_model()
    hf_paraminit.initialize(spread, init, device="auto")
    assert load_ghn.cache_info().currsize == 1
    hf_paraminit.initialize(spread, init, device_map="auto")
    assert load_ghn.cache_info().currsize == 1
    report = hf_paraminit.initialize(whole, init)
    for name in report.predicted:
        assert torch.equal(spread.get_parameter(name), whole.get_parameter(name)), name


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"decoder_dtype": "float16"}, "decoder_dtype must be"),
        ({"decoder_dtype": torch.bfloat16}, "decoder_dtype must be"),
        ({"device_map": "balanced"}, "device_map must be"),
        ({"device": "auto", "decoder_dtype": "bfloat16"}, "neither with another device nor with decoder_dtype"),
        ({"device": "cpu", "device_map": "auto"}, "neither with another device nor with decoder_dtype"),
    ],
)
def test_settings_of_memory_are_checked(settings: dict[str, object], complaint: str) -> None:
    model = make_model()
    before = snapshot(model)
    with pytest.raises(InitializerConfigError, match=complaint):
        hf_paraminit.initialize(model, "ghn3", **settings)
    assert_unchanged(model, before)


def test_a_given_network_is_not_spread(ghn: GHN, init: GHN3) -> None:
    with pytest.raises(InitializerConfigError, match=r"given as an object.*spread\(\)"):
        hf_paraminit.initialize(make_model(), init, device="auto")
    assert not hasattr(ghn, "hf_device_map")


# Hosts


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_timm_model(init: GHN3, name: str) -> None:
    hf_paraminit.install()
    built = timm.create_model(name, num_classes=7, init=init)
    reference = timm.create_model(name, num_classes=7)
    hf_paraminit.initialize(reference, init)
    assert built._hf_paraminit.coverage_elements > 0.9
    for key in built._hf_paraminit.predicted:
        assert torch.equal(built.get_parameter(key), reference.get_parameter(key)), key
    assert built(torch.randn(1, 3, 64, 64)).isfinite().all()
