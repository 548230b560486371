"""The request for models that are built without `init=`: of a block, of the process, of the environment."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from name_hash import NameHash, is_name_hashed, name_hash_values
from timm.models._hub import save_for_hf
from torch import Tensor, nn
from transformers import (
    AutoModelForImageClassification as Auto,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    GPT2Config,
    PreTrainedModel,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTForImageClassification,
)

import hf_paraminit
from hf_paraminit import Initializer, default_init, initialize, install, load_predictor, uninstall
from hf_paraminit.errors import InitializerConfigError, TracingError, UnknownInitializerError
from hf_paraminit.hooks.default_request import (
    DefaultRequest,
    claim_default,
    default_from_environment,
    set_default_of_process,
)

GHN3 = Path(__file__).parents[1] / "golden" / "checkpoints" / "ghn3_micro_joblib.pt"
SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
VIT = ViTConfig(**SIZES, image_size=32, patch_size=8, num_labels=5)
NAME = "test_resnet"


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    NameHash.calls = 0
    install()
    yield
    set_default_of_process(None)
    uninstall()
    install()


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vit")
    ViTForImageClassification(VIT).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def timm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("timm")
    save_for_hf(timm.create_model(NAME), str(folder), safe_serialization=True)
    return folder


def hashed(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if is_name_hashed(parameter, name)}


def all_names(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters()}


def build_timm() -> nn.Module:
    return timm.create_model(NAME)


def build_from_config() -> nn.Module:
    return Auto.from_config(VIT)


def build_directly() -> nn.Module:
    return ViTForImageClassification(VIT)


def build_wrapped_timm() -> nn.Module:
    return TimmWrapperForImageClassification(TimmWrapperConfig(architecture=NAME, num_labels=5))


DOORS = (build_timm, build_from_config, build_directly)


# A block


@pytest.mark.parametrize("build", DOORS)
def test_a_block_reaches_every_door_and_ends(build: Any) -> None:
    with default_init(NameHash, {"seed": 4}):
        inside = build()
    assert hashed(inside) == all_names(inside)
    assert inside._hf_paraminit.seed == 4
    assert NameHash.calls == 1
    assert not hasattr(build(), "_hf_paraminit")


@pytest.mark.parametrize("build", DOORS)
def test_a_block_works_while_the_hooks_are_not_installed(build: Any) -> None:
    uninstall()
    with default_init(NameHash):
        inside = build()
    assert hashed(inside) == all_names(inside)
    assert not hasattr(build(), "_hf_paraminit")


@pytest.mark.parametrize("build", DOORS)
def test_models_outside_are_the_hosts_own(build: Any) -> None:
    torch.manual_seed(5)
    expected, state = build().state_dict(), torch.get_rng_state()
    with default_init(NameHash):
        build()
        with default_init(None):
            torch.manual_seed(5)
            found = build().state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert NameHash.calls == 1


def test_leaving_the_block_restores_the_same_objects() -> None:
    places = [
        (PreTrainedModel, "__init__"),
        (PreTrainedModel, "__init_subclass__"),
        (type(build_directly()), "__init__"),
    ]
    before = [vars(owner)[name] for owner, name in places]
    with default_init(NameHash):
        assert [vars(owner)[name] is old for (owner, name), old in zip(places, before, strict=True)] == [False] * 3

        class DefinedInside(ViTForImageClassification):
            def __init__(self, config: ViTConfig) -> None:
                super().__init__(config)

    assert [vars(owner)[name] is old for (owner, name), old in zip(places, before, strict=True)] == [True] * 3
    assert not hasattr(vars(DefinedInside)["__init__"], "__wrapped__")


def test_a_class_that_adds_to_another_is_written_when_it_is_finished() -> None:
    class WithExtra(ViTForImageClassification):
        def __init__(self, config: ViTConfig) -> None:
            super().__init__(config)
            self.extra = nn.Linear(2, 3)
            self.post_init()

    with default_init(NameHash):
        model = WithExtra(VIT)
    assert hashed(model) == all_names(model) > {"extra.weight"}
    assert NameHash.calls == 1


def test_blocks_nest_and_a_request_of_the_caller_wins() -> None:
    def zeros(model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
        return {name: torch.zeros_like(model.get_parameter(name)) for name in names}

    with default_init(zeros):
        with default_init(NameHash):
            assert hashed(build_timm())
        outer = build_timm()
        own = timm.create_model(NAME, init=NameHash)
        own_from_transformers = Auto.from_config(VIT, init=NameHash)
    assert not any(parameter.any() for parameter in outer.parameters())
    assert hashed(own) == all_names(own)
    assert hashed(own_from_transformers) == all_names(own_from_transformers)


def test_other_threads_are_not_in_the_block() -> None:
    found: list[bool] = []
    with default_init(NameHash):
        for build in DOORS:
            thread = threading.Thread(target=lambda build=build: found.append(hasattr(build(), "_hf_paraminit")))
            thread.start()
            thread.join()
    assert found == [False] * len(DOORS)


def test_a_failing_prediction_leaves_nothing_behind() -> None:
    def fail(model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
        raise RuntimeError("no prediction")

    with default_init(fail):
        for build in DOORS:
            with pytest.raises(RuntimeError, match="no prediction"):
                build()
        with default_init(NameHash):
            assert hashed(build_directly())
    assert claim_default() is None


# Only the outermost model


def encoder_decoder() -> VisionEncoderDecoderConfig:
    decoder = GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=50, add_cross_attention=True, is_decoder=True)
    return VisionEncoderDecoderConfig.from_encoder_decoder_configs(VIT, decoder)


def default_of_process() -> AbstractContextManager[None]:
    set_default_of_process(DefaultRequest(NameHash))
    install()
    return nullcontext()


@pytest.mark.parametrize("default", [lambda: default_init(NameHash), default_of_process], ids=["block", "process"])
def test_parts_belong_to_the_whole(default: Any) -> None:
    with default():
        composite = VisionEncoderDecoderModel(encoder_decoder())
        assert NameHash.calls == 1
        wrapped = build_wrapped_timm()
        assert NameHash.calls == 2
    assert hashed(composite) == all_names(composite)
    assert not hasattr(composite.encoder, "_hf_paraminit")
    assert hashed(wrapped.timm_model) == all_names(wrapped.timm_model)


class ToolBuilder(Initializer):
    """Builds models for itself, as initializers that read from a donor do."""

    def predict(self, target: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
        assert not any(hasattr(build(), "_hf_paraminit") for build in DOORS)
        return name_hash_values(target, names)


@pytest.mark.parametrize("build", DOORS)
def test_models_that_an_initializer_builds_are_left_alone(build: Any) -> None:
    with default_init(ToolBuilder):
        assert hashed(build())
    model = build()
    with default_init(NameHash):
        initialize(model, ToolBuilder)
    assert hashed(model) == all_names(model)
    assert NameHash.calls == 0


# Scopes


def test_loaded_models_get_what_their_checkpoint_lacks(vit_folder: Path, timm_folder: Path) -> None:
    with default_init(NameHash):
        teacher = timm.create_model(f"local-dir:{timm_folder}", pretrained=True)
        student = timm.create_model(f"local-dir:{timm_folder}", pretrained=True, num_classes=7)
        complete = Auto.from_pretrained(vit_folder)
        resized = Auto.from_pretrained(vit_folder, num_labels=7, ignore_mismatched_sizes=True)
    assert hashed(teacher) == hashed(complete) == set()
    assert hashed(student) == {"fc.weight", "fc.bias"}
    assert hashed(resized) == {"classifier.weight", "classifier.bias"}


def test_scope_all(vit_folder: Path) -> None:
    with default_init(NameHash, scope="all"):
        model = Auto.from_pretrained(vit_folder)
    assert hashed(model) == all_names(model)


def test_scope_head_writes_the_classifier_unless_it_was_loaded(vit_folder: Path, timm_folder: Path) -> None:
    fc, classifier = {"fc.weight", "fc.bias"}, {"classifier.weight", "classifier.bias"}
    with default_init(NameHash, scope="head"):
        assert hashed(build_timm()) == fc
        assert hashed(build_directly()) == hashed(build_from_config()) == classifier
        assert hashed(build_wrapped_timm().timm_model) == fc
        assert hashed(timm.create_model(f"local-dir:{timm_folder}", pretrained=True)) == set()
        assert hashed(Auto.from_pretrained(vit_folder)) == set()
        deeper = Auto.from_pretrained(vit_folder, num_hidden_layers=2, num_labels=7, ignore_mismatched_sizes=True)
        assert hashed(deeper) == classifier
        assert hashed(timm.create_model("test_vit")) == {"head.weight", "head.bias"}
    explicit = timm.create_model(NAME, init=NameHash, init_kwargs={"scope": "head"})
    assert hashed(explicit) == fc


def test_scope_head_without_a_classifier_says_so() -> None:
    with pytest.warns(UserWarning, match=r"scope is 'head', and FeatureListNet declares no classifier"):
        model = timm.create_model(NAME, features_only=True, init=NameHash, init_kwargs={"scope": "head"})
    assert hashed(model) == set()


@pytest.mark.parametrize("build", DOORS)
def test_scope_first_leaves_later_models_alone(build: Any) -> None:
    with default_init(NameHash, scope="first"):
        student, teacher = build(), build_timm()
        assert claim_default() is None
    assert hashed(student) == all_names(student)
    assert not hasattr(teacher, "_hf_paraminit")


def test_a_model_with_its_own_request_counts_as_the_first() -> None:
    with default_init(NameHash, scope="first"):
        own = timm.create_model(NAME, init=NameHash, init_kwargs={"seed": 9})
        assert own._hf_paraminit.seed == 9
        assert not hasattr(build_timm(), "_hf_paraminit")
    with default_init(NameHash, scope="first"):
        Auto.from_config(VIT, init=NameHash)
        assert not hasattr(build_timm(), "_hf_paraminit")


@pytest.mark.parametrize(
    ("init", "init_kwargs", "scope", "error", "message"),
    [
        ("ghn33", None, None, UnknownInitializerError, "Did you mean 'ghn3'"),
        ("ghn3", {"sed": 1}, None, InitializerConfigError, "does not take 'sed'"),
        ("ghn3", {}, "heads", InitializerConfigError, "missing, all, head, first; found 'heads'"),
        ("ghn3", {"scope": "all"}, "all", InitializerConfigError, "are both given"),
        ("ghn3", {"scope": "first"}, None, InitializerConfigError, "scope must be one of"),
        ("ghn3", 3, "all", InitializerConfigError, "init_kwargs must be a dict"),
    ],
)
def test_wrong_requests_fail_at_the_start_of_the_block(
    init: str, init_kwargs: Any, scope: str | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message), default_init(init, init_kwargs, scope=scope):
        pytest.fail("the block was entered")


# Models that take more than images


@pytest.fixture(scope="module")
def ghn() -> Initializer:
    return load_predictor(GHN3)


def test_the_image_encoder_of_a_composite_model_is_predicted(ghn: Initializer) -> None:
    parts = {"vision_config": {**SIZES, "image_size": 32, "patch_size": 8}, "text_config": {**SIZES, "vocab_size": 50}}
    torch.manual_seed(0)
    plain = CLIPModel(CLIPConfig(**parts))
    torch.manual_seed(0)
    model = CLIPModel._from_config(CLIPConfig(**parts), init=ghn, init_kwargs={"fast": False})
    report = model._hf_paraminit
    assert len(report.predicted) > 20
    assert all(name.startswith("vision_model.") for name in report.predicted)
    assert set(report.predicted) | set(report.kept) == all_names(model)
    assert report.kept["logit_scale"] == "outside the image encoder 'vision_model'"
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    share = sum(sizes[name] for name in report.predicted) / sum(sizes.values())
    assert report.coverage_elements == pytest.approx(share)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]) == (name not in report.predicted), name


def test_only_missing_values_of_the_image_encoder_are_written(ghn: Initializer) -> None:
    state = VisionEncoderDecoderModel(encoder_decoder()).state_dict()
    left_out = {"encoder.layernorm.weight", "decoder.transformer.ln_f.weight"}
    kept = {name: tensor for name, tensor in state.items() if name not in left_out}
    model = VisionEncoderDecoderModel.from_pretrained(
        None, config=encoder_decoder(), state_dict=kept, init=ghn, init_kwargs={"fast": False}
    )
    assert set(model._hf_paraminit.predicted) == {"encoder.layernorm.weight"}
    assert set(model._hf_paraminit.kept) == {"decoder.transformer.ln_f.weight"}
    assert model._hf_paraminit.coverage_tensors == 0.5
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in kept.items())


def test_a_model_without_images_gives_a_clear_error(ghn: Initializer) -> None:
    with pytest.raises(TracingError, match=r"Cannot initialize BertModel .* takes 'input_ids', .*default_init\(None\)"):
        BertModel._from_config(BertConfig(**SIZES, vocab_size=50), init=ghn, init_kwargs={"fast": False})


# The environment


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_from_environment() is None
    monkeypatch.setenv("HF_PARAMINIT_INIT", "GHN3:builtin")
    monkeypatch.setenv("HF_PARAMINIT_INIT_KWARGS", '{"seed": 3, "distributed": "off"}')
    monkeypatch.setenv("HF_PARAMINIT_SCOPE", "first")
    default = default_from_environment()
    assert default is not None
    request = default.claim()
    assert request is not None
    assert (request.initializer.identifier, request.initializer.config.seed) == ("ghn3:builtin", 3)
    assert (request.scope, request.distributed) == ("missing", "off")
    assert default.claim() is None


@pytest.mark.parametrize(
    ("variable", "value", "error"),
    [
        ("HF_PARAMINIT_INIT", "ghn33", UnknownInitializerError),
        ("HF_PARAMINIT_INIT", "ghn3:tm9", UnknownInitializerError),
        ("HF_PARAMINIT_INIT_KWARGS", "{", InitializerConfigError),
        ("HF_PARAMINIT_INIT_KWARGS", "[1]", InitializerConfigError),
        ("HF_PARAMINIT_INIT_KWARGS", '{"sed": 1}', InitializerConfigError),
        ("HF_PARAMINIT_SCOPE", "heads", InitializerConfigError),
    ],
)
def test_wrong_values_are_reported_with_their_variable(
    variable: str, value: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_PARAMINIT_INIT", "ghn3")
    monkeypatch.setenv(variable, value)
    with pytest.raises(error, match=variable):
        default_from_environment()


PROCESS = """
import json, sys
{imports}
found = []
for build in (
    lambda: timm.create_model("test_resnet"),
    lambda: ViTForImageClassification(ViTConfig(num_hidden_layers=1, hidden_size=32, num_attention_heads=2,
                                                intermediate_size=64, image_size=32, patch_size=8)),
):
    try:
        model = build()
        found.append(model._hf_paraminit.initializer if hasattr(model, "_hf_paraminit") else None)
    except ValueError as error:
        found.append(str(error).partition(' must')[0])
print(json.dumps(found))
"""
HOSTS = "import timm\nfrom transformers import ViTConfig, ViTForImageClassification"
OURS = "import hf_paraminit"
BAD_VALUE = "The environment variable HF_PARAMINIT_INIT_KWARGS"


@pytest.mark.parametrize(
    ("imports", "environment", "expected"),
    [
        (f"{OURS}\n{HOSTS}", {}, ["ghn3:builtin"] * 2),
        (f"{HOSTS}\n{OURS}", {"HF_PARAMINIT_INIT_KWARGS": "{"}, [BAD_VALUE] * 2),
        (f"{OURS}\n{HOSTS}", {"HF_PARAMINIT_DISABLE": "1"}, [None, None]),
    ],
    ids=["host later", "wrong value", "disabled"],
)  # fmt: skip
def test_a_plain_import_follows_the_environment(
    imports: str, environment: dict[str, str], expected: list[str | None]
) -> None:
    root = Path(hf_paraminit.__file__).parents[1]
    variables = {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "HF_PARAMINIT_INIT": "ghn3", **environment}
    done = subprocess.run(
        [sys.executable, "-c", PROCESS.format(imports=imports)],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == expected
