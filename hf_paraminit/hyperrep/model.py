"""A hyper-representation as it is stored: auto-encoder, layout of its zoo's architecture, statistics, and anchors."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from hf_paraminit.errors import CheckpointError
from hf_paraminit.hyperrep.autoencoder import SequenceAutoEncoder
from hf_paraminit.hyperrep.config import SequenceConfig
from hf_paraminit.hyperrep.sample import Sampling, best_anchors, draw_codes
from hf_paraminit.hyperrep.standardize import Standardization
from hf_paraminit.hyperrep.tokens import TokenLayout
from hf_paraminit.io.pretrained import PretrainedPredictor

# Legend: A anchors, N networks, T tokens, t weights per token, z code width, l layers.

NAME = "hyperrep-sample"
MAX_ANCHORS = 2**12  # a damaged config must not ask for endless tensors


@dataclass(frozen=True, kw_only=True)
class HyperRepresentationConfig:
    """What a stored hyper-representation is made of. `to_dict` gives plain JSON.

    Attributes:
        autoencoder: Its auto-encoder.
        layout: Layers of the zoo's architecture, in tokens.
        num_anchors: Networks of the zoo whose codes are kept.
        window: Tokens that are decoded at once; 0 for all. Best near the length of the training windows.
        halo: Tokens of context on either side of a window.
        norms: Whether scales and shifts of norm layers are tokens, as `TokenLayout.from_module` takes it.
        architecture: Name of the zoo's architecture, for messages.
    """

    autoencoder: SequenceConfig
    layout: TokenLayout
    num_anchors: int
    window: int = 0
    halo: int = 0
    norms: str = "skip"
    architecture: str = ""

    def __post_init__(self) -> None:
        numbers = {"window": self.window, "halo": self.halo, "num_anchors": self.num_anchors - 1}
        if bad := {name: value for name, value in numbers.items() if type(value) is not int or value < 0}:
            raise CheckpointError(f"Hyper-representation config: expected whole numbers that are not negative: {bad}.")
        if self.num_anchors > MAX_ANCHORS or self.norms not in ("skip", "packed", "channels"):
            raise CheckpointError(
                f"Hyper-representation config: num_anchors={self.num_anchors} (at most {MAX_ANCHORS}), "
                f"norms={self.norms!r} (skip, packed or channels). Is the file damaged?"
            )
        if self.autoencoder.token_dim != self.layout.token_dim:
            raise CheckpointError(
                f"Hyper-representation config: the auto-encoder reads tokens of {self.autoencoder.token_dim} weights, "
                f"the layout makes tokens of {self.layout.token_dim}. They are of different zoos."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        own = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        return {**own, "autoencoder": self.autoencoder.to_dict(), "layout": self.layout.to_dict()}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises:
            CheckpointError: Unknown or missing keys, or values that cannot be.
        """
        try:
            parts = {
                "autoencoder": SequenceConfig.from_dict(record["autoencoder"]),
                "layout": TokenLayout.from_dict(record["layout"]),
            }
            return cls(**{**record, **parts})
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"Hyper-representation config: {error!r}; found {sorted(record)}.") from error


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Sampled networks.

    Attributes:
        weights: (N, *shape) values by name.
        codes: (N, T, z) what they were decoded from.
    """

    weights: dict[str, Tensor]
    codes: Tensor


class HyperRepresentation(
    PretrainedPredictor[HyperRepresentationConfig], tags=["hyper-representation", "model-zoo"], pipeline_tag="other"
):
    """Samples networks of one architecture (arXiv 2209.14733, arXiv 2406.09997).

    Args:
        config: Parts and sizes.

    Attributes:
        anchors: (A, T, z) codes of zoo networks, float16.
        accuracies: (A,) validation accuracy of these networks, 0..1.
        shift, scale: (l,) what standardises the weights of each layer.
    """

    config_class = HyperRepresentationConfig
    anchors: Tensor
    accuracies: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(self, config: HyperRepresentationConfig) -> None:
        super().__init__(config)
        layout = config.layout
        self.autoencoder = SequenceAutoEncoder(config.autoencoder)
        size = (config.num_anchors, layout.num_tokens, config.autoencoder.latent_dim)
        self.register_buffer("anchors", torch.zeros(size, dtype=torch.float16))
        self.register_buffer("accuracies", torch.zeros(config.num_anchors))
        self.register_buffer("shift", torch.zeros(len(layout.layers)))
        self.register_buffer("scale", torch.ones(len(layout.layers)))
        self._kept_deviation: tuple[Any, Tensor] | None = None

    @property
    def paraminit_type(self) -> str:
        return NAME

    @property
    def layout(self) -> TokenLayout:
        """Layers of the zoo's architecture."""
        return self.config.layout

    @classmethod
    def of_zoo(
        cls,
        autoencoder: SequenceAutoEncoder,
        layout: TokenLayout,
        standardization: Standardization,
        anchors: Iterable[Mapping[str, Tensor]],
        accuracies: Sequence[float],
        **settings: Any,
    ) -> Self:
        """Put a trained auto-encoder and the networks that sampling starts from together.

        Args:
            autoencoder: Trained on the zoo.
            layout: Of the zoo's architecture.
            standardization: With which it was trained.
            anchors: State dicts, aligned like the training networks.
            accuracies: Of these networks, 0..1.
            **settings: Further fields of the config.

        Raises:
            CheckpointError: Anchors of another architecture, without accuracy, or with values that are not finite.
        """
        tokens_ATt = torch.stack([layout.tokenize(state) for state in anchors])
        if len(tokens_ATt) != len(accuracies):
            raise CheckpointError(f"{len(tokens_ATt)} anchors need as many accuracies, found {len(accuracies)}.")
        if spoiled := [row for row, tokens in enumerate(tokens_ATt) if not tokens.isfinite().all()]:
            raise CheckpointError(f"NaN or infinite values in the anchors {spoiled}. Clean the zoo first.")
        config = HyperRepresentationConfig(
            autoencoder=autoencoder.config, layout=layout, num_anchors=len(tokens_ATt), **settings
        )
        representation = cls(config).eval()
        representation.autoencoder.load_state_dict(autoencoder.state_dict())
        names = [layer.names[0] for layer in layout.layers]
        representation.shift.copy_(torch.tensor([standardization.shift[name] for name in names]))
        representation.scale.copy_(torch.tensor([standardization.scale[name] for name in names]))
        with torch.no_grad():
            representation.anchors.copy_(representation.encode_tokens(tokens_ATt))
        representation.accuracies.copy_(torch.tensor(accuracies))
        return representation

    @property
    def positions(self) -> Tensor:
        """(1, T, P) position of each token: its number, layer, output channel and, with four axes, chunk."""
        return token_positions(self.layout, self.config.autoencoder.position_axes)[None].to(self.scale.device)

    def _per_token(self, per_layer: Tensor) -> Tensor:
        """(T, 1) value of each token's layer."""
        return per_layer[self.layout.positions[:, 1].long().to(per_layer.device), None]

    def encode(self, state_dict: Mapping[str, Tensor]) -> Tensor:
        """Codes (N, T, z) of networks (N, *shape) of the zoo's architecture.

        Raises:
            CheckpointError: Another architecture; every difference is named.
        """
        return self.encode_tokens(self.layout.tokenize(state_dict))

    def encode_tokens(self, tokens_NTt: Tensor) -> Tensor:
        """Codes (N, T, z) of raw tokens (N, T, t)."""
        standard_NTt = (tokens_NTt.to(self.scale) - self._per_token(self.shift)) / self._per_token(self.scale)
        standard_NTt = standard_NTt * self.layout.mask.to(self.scale.device)
        return self.autoencoder.encode_haloed(standard_NTt, self.positions, self.config.window, self.config.halo)

    def decode(self, codes_NTz: Tensor) -> dict[str, Tensor]:
        """Weights (N, *shape) by name, of codes (N, T, z)."""
        codes_NTz = codes_NTz.to(self.scale)
        standard_NTt = self.autoencoder.decode_haloed(codes_NTz, self.positions, self.config.window, self.config.halo)
        return self.layout.detokenize(standard_NTt.mul_(self._per_token(self.scale)).add_(self._per_token(self.shift)))

    def draw_codes(self, num: int, sampling: Sampling, generator: torch.Generator) -> Tensor:
        """New codes (N, T, z) around the best anchors."""
        anchors_ATz = self.chosen_anchors(sampling)
        return draw_codes(anchors_ATz, num, sampling, generator, deviation_Tz=self._deviation(anchors_ATz, sampling))

    def _deviation(self, anchors_ATz: Tensor, sampling: Sampling) -> Tensor:
        """Standard deviation over the anchors, kept from draw to draw: for a large network it costs as much as one."""
        key = (sampling.best_share, id(self.anchors), self.anchors._version)
        if self._kept_deviation is None or self._kept_deviation[0] != key:
            self._kept_deviation = (key, anchors_ATz.std(0, correction=0))
        return self._kept_deviation[1]

    def chosen_anchors(self, sampling: Sampling) -> Tensor:
        """The anchors (A, T, z), float32, that a sampling starts from."""
        best = best_anchors(self.accuracies, sampling.best_share)
        return self.anchors[best].float().cpu()

    @torch.no_grad()
    def sample(self, num: int = 1, *, seed: int = 0, sampling: Sampling | None = None) -> Draw:
        """Draw networks.

        Args:
            num: N.
            seed: Start of the random draws; same seed, same networks.
            sampling: How; by default a kernel density of which each network follows one anchor.
        """
        sampling = sampling or Sampling()
        codes_NTz = self.draw_codes(num, sampling, torch.Generator().manual_seed(seed))
        return Draw(weights=self.decode(codes_NTz), codes=codes_NTz)


def token_positions(layout: TokenLayout, axes: int) -> Tensor:
    """(T, P) token, layer and output channel; the fourth axis is the token's place in its row."""
    if axes <= 3:
        return layout.positions[:, :axes].long()
    return torch.cat([layout.positions.long(), layout.chunks[:, None]], 1)
