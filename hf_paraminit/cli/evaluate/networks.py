"""The networks that a command line names: splits of DeepNets-1M, torchvision, timm."""

import functools
import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import timm
from torch import nn

from hf_paraminit.deepnets.catalog import PREDEFINED, PREDEFINED_SPLIT, PredefinedNetworks, networks_of
from hf_paraminit.deepnets.dataset import find_file
from hf_paraminit.deepnets.described import DescribedNetworks
from hf_paraminit.deepnets.genotype import NAMED_GENOTYPES
from hf_paraminit.deepnets.network import DeepNetsNetwork
from hf_paraminit.deepnets.splits import SPLITS
from hf_paraminit.errors import MissingDependencyError, ParamInitError
from hf_paraminit.evaluation.hosts import build_network
from hf_paraminit.evaluation.nets import Net
from hf_paraminit.evaluation.network_cells import Network
from hf_paraminit.evaluation.small_images import adapt_to_small_images, is_adaptable
from hf_paraminit.initializers.suggest import did_you_mean

SMALL = 96  # images below this side need networks that keep their resolution
GENOTYPE_SIZES = {False: (36, 20), True: (48, 14)}  # width and cells of DARTS on CIFAR-10 and on ImageNet
_INDICES = re.compile(r"(\d+)(?:-(\d+))?")
_SIZES = re.compile(r"(\d+)x(\d+)")

SYNTAX = (
    f"a split ({', '.join(SPLITS)}, predefined), part of one (test:0, test:0-15), a genotype (DARTS, DARTS:48x14 for "
    "width x cells), torchvision:PATTERN, timm:PATTERN, or a name of timm"
)


def find_networks(
    selection: Sequence[str],
    *,
    num_classes: int,
    img_size: int,
    place: Path | None = None,
    pretrained: bool = False,
) -> list[Network]:
    """Find the networks of a selection, each once, without building any.

    Args:
        selection: See `SYNTAX`.
        num_classes: Classes of the networks.
        img_size: Side of their images; networks for larger ones are adapted.
        place: HDF5 file of DeepNets-1M, or its folder; None for networks that this package generates.
        pretrained: Take timm's published weights; only networks of timm have such.

    Raises:
        ParamInitError: A part of the selection names nothing.
    """
    find = functools.partial(_find, num_classes=num_classes, img_size=img_size, place=place, pretrained=pretrained)
    found = {network.title: network for part in selection for network in find(part)}
    if not found:
        raise ParamInitError(f"The selection of networks is empty. Name {SYNTAX}.")
    return list(found.values())


def _find(part: str, *, num_classes: int, img_size: int, place: Path | None, pretrained: bool) -> list[Network]:
    kind, _, rest = part.partition(":")
    if pretrained and (kind in SPLITS or kind in (PREDEFINED_SPLIT, "torchvision", *NAMED_GENOTYPES)):
        raise ParamInitError(f"Published weights (--pretrained) are read for networks of timm only, not for {part!r}.")
    if kind in SPLITS or kind == PREDEFINED_SPLIT:
        return _split_networks(kind, rest, num_classes, img_size, place)
    if kind in NAMED_GENOTYPES:
        return [_genotype_network(part, kind, rest, num_classes, img_size)]
    if kind == "torchvision":
        return _named("torchvision", rest, _torchvision_names(), num_classes, img_size, torchvision_network)
    build = functools.partial(timm_network, pretrained=True) if pretrained else timm_network
    pattern = rest if kind == "timm" else part
    return _named("timm", pattern, timm.list_models(), num_classes, img_size, build, "pretrained" * pretrained)


def _split_networks(split: str, rest: str, num_classes: int, img_size: int, place: Path | None) -> list[Network]:
    source = _source(split, place, num_classes, img_size)
    build = functools.partial(deepnets_network, split, place, num_classes, img_size)
    is_generated = place is None or split == PREDEFINED_SPLIT
    return [
        Network(
            group=split,
            name=PREDEFINED[index] if split == PREDEFINED_SPLIT else str(index),
            build=functools.partial(build, index),
            identity="generated" if is_generated else _file_identity(split, place),  # type: ignore[arg-type]
        )
        for index in _indices(f"{split}:{rest}", rest, len(source))
    ]


@functools.lru_cache(maxsize=16)
def _source(split: str, place: Path | None, num_classes: int, img_size: int) -> DescribedNetworks | PredefinedNetworks:
    options = {"device": "cpu"} if split == PREDEFINED_SPLIT else {}
    return networks_of(split, place, num_classes=num_classes, is_imagenet_input=img_size >= SMALL, **options)


def deepnets_network(split: str, place: Path | None, num_classes: int, img_size: int, index: int) -> nn.Module:
    """Build a network of a split with weights, as its constructor draws them."""
    source = _source(split, place, num_classes, img_size)
    return DeepNetsNetwork(**source.arguments(index)) if isinstance(source, DescribedNetworks) else source[index]


def _genotype_network(part: str, name: str, rest: str, num_classes: int, img_size: int) -> Network:
    sizes = _SIZES.fullmatch(rest)
    if rest and sizes is None:
        raise ParamInitError(f"{part!r} is no genotype with width and cells; write {name}:48x14.")
    is_large = img_size >= SMALL
    width, cells = map(int, sizes.groups()) if sizes else GENOTYPE_SIZES[is_large]
    build = functools.partial(genotype_network, name, width, cells, num_classes=num_classes, is_large=is_large)
    return Network(group="genotypes", name=f"{name} {width}x{cells}", build=build)


def genotype_network(name: str, width: int, cells: int, *, num_classes: int, is_large: bool) -> nn.Module:
    """Build a network of a published genotype."""
    return DeepNetsNetwork(
        C=width,
        num_classes=num_classes,
        genotype=NAMED_GENOTYPES[name],
        n_cells=cells,
        is_imagenet_input=is_large,
        stem_type=1 if is_large and name != "ViT" else 0,
        norm="bnorm",
    )


def _named(
    group: str,
    pattern: str,
    known: Sequence[str],
    num_classes: int,
    img_size: int,
    build: Callable[..., nn.Module],
    identity: str = "",
) -> list[Network]:
    names = [name for name in known if fnmatchcase(name, pattern)]
    if not names:
        raise ParamInitError(
            f"No network of {group} is called {pattern!r}.{did_you_mean(pattern, known)} Name {SYNTAX}."
        )
    return [
        Network(
            group=group,
            name=name,
            build=functools.partial(build, name, num_classes=num_classes, img_size=img_size),
            identity=identity,
        )
        for name in names
    ]


def torchvision_network(name: str, *, num_classes: int, img_size: int) -> nn.Module:
    """Build a classifier of torchvision without weights of others, adapted to small images."""
    from torchvision.models import get_model

    settings: dict[str, object] = {"num_classes": num_classes}
    if name.startswith("vit_"):
        settings["image_size"] = img_size
    if name in ("googlenet", "inception_v3"):
        settings["init_weights"] = False  # their own start takes minutes
    model = get_model(name, weights=None, **settings)
    return adapt_to_small_images(model, size=img_size) if img_size < SMALL else model


def timm_network(name: str, *, num_classes: int, img_size: int, pretrained: bool = False) -> nn.Module:
    """Build a classifier of timm, told the size of its images where it asks, else adapted to small ones."""
    net = Net(name=name, architecture=name, settings={"pretrained": True} if pretrained else {})
    model = build_network(net, num_classes=num_classes, in_chans=3, img_size=img_size)
    return adapt_to_small_images(model, size=img_size) if img_size < SMALL and is_adaptable(model) else model


def _torchvision_names() -> list[str]:
    try:
        from torchvision import models
    except ImportError as error:
        raise MissingDependencyError(
            "Networks of torchvision need it, and it is not installed: pip install torchvision."
        ) from error
    return models.list_models(module=models)


def _indices(part: str, text: str, length: int) -> list[int]:
    """Numbers of the networks that `text` selects: all, one, or a range with both ends."""
    if not text:
        return list(range(length))
    ends = _INDICES.fullmatch(text)
    if ends is None:
        raise ParamInitError(f"{part!r} selects nothing; write one number or a range, as test:0 or test:0-15.")
    first, last = int(ends[1]), int(ends[2] or ends[1])
    if not first <= last < length:
        raise ParamInitError(f"{part!r} is out of range: there are networks 0 to {length - 1}.")
    return list(range(first, last + 1))


def _file_identity(split: str, place: Path) -> str:
    file = find_file(split, place)
    return f"{file.name} {file.stat().st_size}"
