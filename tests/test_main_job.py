"""The main job on real models: `init="ghn3"` with the predictor that ships with the package, offline."""

import gc
import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
import timm
import torch
from torch import Tensor, nn

import hf_paraminit
from hf_paraminit.evaluation.batchnorm import recalibrate_batchnorm
from hf_paraminit.graphs.input_size import resolve_input_size

# Name of a timm model -> percent of its parameters that the predictor covers, rounded down. A smaller share than that
# means that the tracer has lost layers.
QUICK = {
    "resnet50": 100,
    "vit_base_patch16_224": 99,
    "convnext_tiny": 99,
    "swin_tiny_patch4_window7_224": 99,
    "efficientnet_b0": 100,
    "starnet_s050": 100,
    "dla46x_c": 100,
    "mobilevit_xxs": 100,
    "edgenext_xx_small": 99,
    "mobilenetv3_small_050": 100,
    "mobilenetv2_035": 100,
    "ese_vovnet19b_slim_dw": 100,
    "convnext_zepto_rms": 99,
    "ghostnet_050": 100,
    "regnetx_002": 100,
    "xcit_nano_12_p8_224": 99,
    "swiftformer_xs": 99,
    "pvt_v2_b0": 100,
    "fasternet_t0": 100,
    "fastvit_t8": 99,
    "pit_ti_224": 99,
    "resnet10t": 100,
    "coat_tiny": 99,
    "levit_128s": 99,
}
SLOW = {
    "efficientvit_m0": 99,
    "repghostnet_050": 100,
    "cspnext_tiny": 100,
    "iformer_t": 99,
    "cs3darknet_focus_s": 100,
    "efficientvit_b0": 100,
    "efficientformerv2_s0": 99,
    "lcnetv2_small": 100,
    "inception_next_atto": 99,
    "rexnet_100": 100,
    "mobileone_s1": 100,
    "hardcorenas_b": 100,
    "repvit_m1": 99,
    "convit_tiny": 99,
    "deit_tiny_patch16_224": 99,
    "gmlp_ti16_224": 100,
    "hgnetv2_b0": 99,
    "shvit_s1": 99,
    "vit_tiny_r_s16_p8_224": 99,
    "efficientvim_m1": 84,
    "crossvit_tiny_240": 98,
    "mambaout_femto": 100,
    "maxvit_pico_rw_256": 99,
    "densenet121": 100,
    "halonet_h1": 99,
    "nf_regnet_b0": 99,
    "dpn48b": 100,
    "visformer_tiny": 98,
    "resnest14d": 100,
    "resnetv2_18": 100,
    "legacy_seresnet18": 100,
    "poolformerv2_s12": 99,
    "cait_xxs24_224": 99,
    "skresnet18": 100,
    "gcvit_xxtiny": 99,
    "tiny_vit_5m_224": 99,
    "hrnet_w18_small": 100,
    "lowformer_b0": 88,
    "nest_tiny": 96,
    "convmixer_768_32": 100,
    "vitamin_small_224": 99,
    "legacy_xception": 100,
    "tnt_s_legacy_patch16_224": 99,
    "inception_v3": 100,
    "rdnet_tiny": 99,
    "twins_svt_small": 100,
    "mvitv2_tiny": 99,
    "res2next50": 100,
    "volo_d1_224": 99,
    "sam2_hiera_tiny": 99,
    "hiera_tiny_224": 98,
    "swinv2_cr_tiny_224": 99,
    "swinv2_tiny_window16_256": 99,
    "davit_tiny": 100,
    "focalnet_tiny_srf": 100,
    "beit_base_patch16_224": 99,
    "nasnetalarge": 100,
    "vgg11": 100,
}
TORCHVISION_QUICK = {"resnet18", "mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x0_5", "mnasnet0_5"}


@pytest.fixture(autouse=True)
def _free_memory() -> Iterator[None]:
    yield
    gc.collect()


def slow(*cases: str) -> list:
    return [pytest.param(case, marks=pytest.mark.slow) for case in cases]


def torchvision_names() -> list:
    from torchvision import models

    names = models.list_models(module=models)
    assert len(names) == 80
    assert set(names) >= TORCHVISION_QUICK
    return [*sorted(TORCHVISION_QUICK), *slow(*sorted(set(names) - TORCHVISION_QUICK))]


def create(name: str, *, host_seed: int) -> nn.Module:
    """The model as timm and we make it, with timm's own draws seeded."""
    torch.manual_seed(host_seed)
    return timm.create_model(name, init="ghn3")


def values_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def require_complete_report(model: nn.Module) -> None:
    """Each parameter has one fate, and the shares add up; tied names are listed, but counted once."""
    report = model._hf_paraminit
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    assert report.predicted.keys() | report.kept.keys() == names
    assert not report.predicted.keys() & report.kept.keys()
    assert not report.refused
    assert report.initializer == "ghn3:builtin"
    assert len(report.sha256) == 64
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    predicted = sizes.keys() & report.predicted.keys()
    assert report.coverage_tensors == pytest.approx(len(predicted) / len(sizes))
    assert report.coverage_elements == pytest.approx(sum(map(sizes.get, predicted)) / sum(sizes.values()))


def require_finite(model: nn.Module) -> None:
    assert [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()] == []


def require_layout_of(model: nn.Module, plain: nn.Module) -> None:
    """Names, shapes, dtypes and `requires_grad` as the host makes them."""

    def layout(model: nn.Module) -> dict[str, tuple]:
        return {name: (p.shape, p.dtype, p.requires_grad) for name, p in model.named_parameters()}

    assert layout(model) == layout(plain)
    assert model.training == plain.training


def require_finite_output(model: nn.Module) -> None:
    """In eval mode, with batch-norm statistics from the same images."""
    images = torch.randn(2, *resolve_input_size(model), generator=torch.Generator().manual_seed(0))
    recalibrate_batchnorm(model, [images])
    with torch.no_grad():
        output = model.eval()(images)
    assert len(output) == 2
    assert output.isfinite().all()
    assert not torch.equal(output[0], output[1])


def require_seed_changes_all_but_vectors(model: nn.Module, predicted: dict[str, Tensor]) -> None:
    """Norms and biases start from constants, at whatever scale; all else is drawn."""
    hf_paraminit.initialize(model, "ghn3", seed=1)
    for name, before in predicted.items():
        is_drawn = before.dim() > 1
        assert torch.equal(before, model.get_parameter(name).detach()) != is_drawn, name


@pytest.mark.parametrize("name", [*QUICK, *slow(*SLOW)])
def test_timm_model(name: str) -> None:
    model = create(name, host_seed=0)
    require_complete_report(model)
    require_finite(model)
    require_layout_of(model, timm.create_model(name, device="meta"))
    assert model._hf_paraminit.coverage_elements >= {**QUICK, **SLOW}[name] / 100

    values = values_of(model)
    predicted = {name: value for name, value in values.items() if name in model._hf_paraminit.predicted}
    del values
    require_finite_output(model)
    del model

    again = create(name, host_seed=1)
    assert [name for name, value in predicted.items() if not torch.equal(value, again.get_parameter(name))] == []
    require_seed_changes_all_but_vectors(again, predicted)


@pytest.mark.parametrize("name", torchvision_names())
def test_torchvision_model(name: str) -> None:
    from torchvision import models

    model = models.get_model(name, weights=None)
    report = hf_paraminit.initialize(model, "ghn3")
    assert report is model._hf_paraminit
    require_complete_report(model)
    require_finite(model)
    assert report.coverage_elements > 0.95


def test_at_least_forty_families() -> None:
    """The sweep is about different architectures, not sizes of the same one."""
    modules = {timm.model_entrypoint(name).__module__ for name in [*QUICK, *SLOW]}
    assert len(modules) >= 40


ANOTHER_PROCESS = """
import hashlib, json, socket, sys

def refuse(*arguments):
    raise AssertionError(f"a connection was opened: {arguments}")

socket.socket.connect = socket.getaddrinfo = refuse
import timm, torch
import hf_paraminit

digests = {}
for name in sys.argv[1:]:
    model = timm.create_model(name, init="ghn3")
    digest = hashlib.sha256()
    for key, value in model.named_parameters():
        if key in model._hf_paraminit.predicted:
            digest.update(key.encode() + value.detach().numpy().tobytes())
    digests[name] = digest.hexdigest()
print(json.dumps(digests))
"""


def test_two_processes_without_network_give_the_same_weights() -> None:
    names = ["test_resnet", "test_vit"]
    command = [sys.executable, "-c", ANOTHER_PROCESS, *names]
    first, second = (
        json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(2)
    )
    assert first == second
    assert set(first) == set(names)
    assert len(set(first.values())) == len(names)
