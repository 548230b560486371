import pytest
import torch
from torch import nn

from hf_paraminit.evaluation.fingerprint import fingerprint, seen_in_training
from hf_paraminit.evaluation.hosts import build_network
from hf_paraminit.evaluation.nets import NETS
from hf_paraminit.evaluation.plain_vgg import PlainVGG


def vgg(widths: tuple[int, ...], **more: object) -> nn.Module:
    model = PlainVGG(widths, **more)
    model.expected_input_sz = (3, 32, 32)
    return model


BASE = (40, 0, 80)


def test_values_names_and_classes_do_not_count() -> None:
    torch.manual_seed(0)
    first = fingerprint(vgg(BASE))
    torch.manual_seed(1)
    assert fingerprint(vgg(BASE, num_classes=37)) == first
    wrapped = nn.Sequential(vgg(BASE))
    wrapped.expected_input_sz = (3, 32, 32)
    assert fingerprint(wrapped).structure == first.structure


@pytest.mark.parametrize(
    ("widths", "is_seen"), [((40, 0, 80), True), ((41, 0, 78), True), ((44, 0, 80), False), ((80, 0, 160), False)]
)
def test_widths_within_five_percent_count_as_seen(widths: tuple[int, ...], is_seen: bool) -> None:
    assert seen_in_training(fingerprint(vgg(widths)), [fingerprint(vgg(BASE))]) is is_seen


def test_the_digest_is_of_relative_widths() -> None:
    assert fingerprint(vgg((80, 0, 160))).structure == fingerprint(vgg(BASE)).structure
    assert fingerprint(vgg((40, 0, 160))).digest != fingerprint(vgg(BASE)).digest


@pytest.mark.parametrize("other", [vgg((40, 80)), vgg((40, 0, 80, 80)), vgg(BASE, batch_norm=True)])
def test_another_structure_is_another_network(other: nn.Module) -> None:
    assert fingerprint(other).structure != fingerprint(vgg(BASE)).structure
    assert not seen_in_training(fingerprint(other), [fingerprint(vgg(BASE))])


def test_kernels_count() -> None:
    wider = vgg(BASE)
    wider.features[0] = nn.Conv2d(3, 40, 5, padding=2)
    assert fingerprint(wider).structure != fingerprint(vgg(BASE)).structure


def test_no_benchmark_network_is_another_one() -> None:
    prints = {
        name: fingerprint(build_network(NETS[name], num_classes=10, in_chans=3, img_size=32))
        for name in ("R", "C", "W", "B", "N")
    }
    for name, found in prints.items():
        assert not seen_in_training(found, [other for key, other in prints.items() if key != name])
        assert seen_in_training(found, prints.values())
