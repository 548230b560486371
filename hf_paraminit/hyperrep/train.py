"""Training a hyper-representation on a model zoo (arXiv 2406.09997, section 3.2; arXiv 2209.14733, section 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hf_paraminit.errors import CheckpointError, TrainingConfigError
from hf_paraminit.hyperrep.align import PermutationSpec
from hf_paraminit.hyperrep.augment import NOISE, add_noise
from hf_paraminit.hyperrep.autoencoder import SequenceAutoEncoder
from hf_paraminit.hyperrep.config import SequenceConfig
from hf_paraminit.hyperrep.loss import Normalisation, layer_importance, masked_reconstruction, mix
from hf_paraminit.hyperrep.model import HyperRepresentation, token_positions
from hf_paraminit.hyperrep.standardize import Mode, Standardization
from hf_paraminit.hyperrep.tokens import TokenLayout
from hf_paraminit.hyperrep.windows import random_window
from hf_paraminit.hyperrep.zoo import Zoo
from hf_paraminit.seeds import seeded_generator
from hf_paraminit.training.loop import TrainingConfig, train

# Legend: R checkpoints, B windows of a batch, T tokens, w tokens of a window, t weights per token, P position axes.

ANCHOR_SHARE = 0.3  # "30" in the paper's names: sampling starts from the best 30 % of the zoo
_MAX_ROW_BYTES = 2**33  # of the tokens that training keeps in memory


@dataclass(frozen=True, eq=False)
class WindowBatch:
    """What one step learns from.

    Attributes:
        inputs: (V, B, w, t) V views of the same windows, with noise.
        targets: (V, B, w, t) the same without noise.
        mask: (w, t) True where there is a weight.
        positions: (1, w, P) of the tokens.
        importance: (w,) weight of each token's errors.
    """

    inputs: Tensor
    targets: Tensor
    mask: Tensor
    positions: Tensor
    importance: Tensor


class WindowTraining(nn.Module):
    """The training objective: reconstruction of the clean window, mixed with contrast between two views.

    The published code reconstructs the noisy view and counts padding; `legacy` brings the second back.

    Args:
        autoencoder: To train.
        gamma: Share of the contrastive loss; 0 leaves it out, which sampling does not need (SANE: 0.05).
        temperature: Of the contrastive loss.
        normalisation: As `masked_reconstruction` takes it.
        legacy: Likewise.
    """

    def __init__(
        self,
        autoencoder: SequenceAutoEncoder,
        *,
        gamma: float = 0.0,
        temperature: float = 0.1,
        normalisation: Normalisation = "per_layer",
        legacy: bool = False,
    ) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.gamma, self.temperature = gamma, temperature
        self.normalisation: Normalisation = normalisation
        self.legacy = legacy

    def forward(self, batch: WindowBatch) -> dict[str, Tensor]:
        """Return `loss`, and for the record its parts."""
        device = self.autoencoder.tokenizer.weight.device
        inputs, targets = batch.inputs.to(device), batch.targets.to(device)
        views, windows = inputs.shape[:2]
        flat = inputs.flatten(0, 1)
        codes, output = self.autoencoder(flat, batch.positions.to(device).expand(len(flat), -1, -1))
        reconstruction = masked_reconstruction(
            output,
            targets.flatten(0, 1),
            batch.mask.to(device).expand_as(output),
            normalisation=self.normalisation,
            importance_T=batch.importance.to(device),
            legacy=self.legacy,
        )
        if views == 1 or not self.gamma:
            return mix(reconstruction, None, gamma=0.0, temperature=self.temperature)
        first, second = self.autoencoder.project(codes).split(windows)
        return mix(reconstruction, (first, second), gamma=self.gamma, temperature=self.temperature)


@dataclass(frozen=True, eq=False, kw_only=True)
class WindowBatches:
    """Pure function from a batch index to a batch of windows, for the training loop.

    All windows of a batch start at the same token, as published, so that they share their positions.

    Attributes:
        tokens: (R, T, t) standardised tokens of all checkpoints.
        layout: What they are.
        window: Tokens of a window; all when there are fewer.
        batch_size: Checkpoints per batch.
        num_views: Views of each window; 2 for contrast.
        noise: Relative standard deviation of the noise on the inputs.
        position_axes: Axes of the auto-encoder's positions.
        balance_layers: Let every layer count alike in the loss, instead of every weight.
        permutations: Hidden units that may change places: the second view is seen under a permutation that is drawn
            for the batch, the first one in the order of the zoo. None leaves both as they are.
        seed: Decides everything.
    """

    tokens: Tensor
    layout: TokenLayout
    window: int
    batch_size: int
    num_views: int = 1
    noise: float = NOISE
    position_axes: int = 4
    balance_layers: bool = False
    permutations: PermutationSpec | None = None
    seed: int = 0
    _positions: Tensor = field(init=False, repr=False)
    _importance: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_positions", token_positions(self.layout, self.position_axes))
        equal = torch.ones(self.layout.num_tokens)
        object.__setattr__(self, "_importance", layer_importance(self.layout) if self.balance_layers else equal)
        if len(self.tokens) == 0 or self.batch_size < 1 or self.window < 1:
            raise TrainingConfigError(
                f"Windows of {self.window} tokens in batches of {self.batch_size} from {len(self.tokens)} checkpoints: "
                "expected at least one of each."
            )

    def __call__(self, index: int) -> WindowBatch:
        generator = seeded_generator(self.seed, "windows", str(index))
        rows = torch.randint(len(self.tokens), (self.batch_size,), generator=generator)
        part = random_window(self.layout.num_tokens, self.window, generator)
        mask = self.layout.mask[part]
        targets = torch.stack([self._view(view, rows, part, generator) for view in range(self.num_views)])
        inputs = add_noise(targets, mask, generator, sigma=self.noise) if self.noise else targets
        return WindowBatch(inputs, targets, mask, self._positions[None, part], self._importance[part])

    def _view(self, view: int, rows: Tensor, part: slice, generator: torch.Generator) -> Tensor:
        """(B, w, t); the first view keeps the order of the zoo."""
        if self.permutations is None or view == 0:
            return self.tokens[rows, part]
        index = self.permutations.token_index(self.layout, self.permutations.draw(generator))
        width = self.layout.token_dim
        found = self.tokens.flatten(1)[rows[:, None], index[part.start * width : part.stop * width]]
        return found.unflatten(1, (-1, width))


@dataclass(frozen=True, eq=False, kw_only=True)
class PreparedZoo:
    """A zoo, ready for training.

    Attributes:
        layout: Of its architecture.
        standardization: From the training split.
        tokens: (R, T, t) standardised tokens by split.
        zoo: The checkpoints by split.
        states: State dicts, aligned, stacked (R, *shape), by split.
        permutations: Hidden units that may change places, if any are known.
    """

    layout: TokenLayout
    standardization: Standardization
    tokens: dict[str, Tensor]
    zoo: dict[str, Zoo]
    states: dict[str, dict[str, Tensor]]
    permutations: PermutationSpec | None


def prepare_zoo(
    zoo: Zoo,
    *,
    token_dim: int | None = None,
    norms: str = "skip",
    align: bool = True,
    standardize: Mode = "std",
    max_abs: float | None = None,
    seed: int = 0,
) -> PreparedZoo:
    """Clean, align, standardise and tokenise a zoo.

    Args:
        zoo: The checkpoints to learn from, of one architecture.
        token_dim: Weights per token; None for the longest row.
        norms: Whether scales and shifts of norm layers are tokens, as `TokenLayout.from_module` takes it.
        align: Permute each network's hidden units to resemble the first one's, where permutations are known.
        standardize: How weights are standardised, as `Standardization.fit` takes it.
        max_abs: Leave out checkpoints with larger weights.
        seed: Of the alignment.

    Raises:
        CheckpointError: No training checkpoints are left, or too many to keep in memory.
    """
    zoo = zoo.clean(max_abs=max_abs)
    policy: Any = norms
    layout = TokenLayout.from_tensors(zoo.tensors, token_dim, norms=policy)
    size = len(zoo) * layout.num_tokens * layout.token_dim * 4
    if size > _MAX_ROW_BYTES:
        raise CheckpointError(
            f"The {len(zoo)} checkpoints of {zoo.folder} are {size / 2**30:.0f} GiB of tokens, more than the "
            f"{_MAX_ROW_BYTES / 2**30:.0f} that training keeps in memory. Select fewer epochs or models."
        )
    spec = zoo.permutations
    found = zoo.align(seed=seed) if align and spec is not None else {}
    splits = {name: zoo.select(split=name) for name in ("train", "validation", "test")}
    if not splits["train"].rows:
        raise CheckpointError(f"The zoo {zoo.folder} has no checkpoints of the training split left to learn from.")
    states = {}
    for name, part in splits.items():
        rows = [spec.apply(state, found[row.model_id]) if found and spec else state for row, state in part]
        states[name] = {key: torch.stack([row[key] for row in rows]) for key in rows[0]} if rows else {}
    standardization = Standardization.fit(layout, [states["train"]], standardize)
    tokens = {
        name: standardization.apply(layout.tokenize(state), layout)
        if state
        else torch.zeros(0, layout.num_tokens, layout.token_dim)
        for name, state in states.items()
    }
    return PreparedZoo(
        layout=layout, standardization=standardization, tokens=tokens, zoo=splits, states=states, permutations=spec
    )


def train_representation(
    prepared: PreparedZoo,
    architecture: SequenceConfig,
    config: TrainingConfig,
    *,
    batch_size: int = 64,
    gamma: float = 0.0,
    temperature: float = 0.1,
    noise: float = NOISE,
    permute: bool = False,
    balance_layers: bool = False,
    max_anchors: int = 15,
    halo: int = 0,
    norms: str = "skip",
    name: str = "",
) -> HyperRepresentation:
    """Train an auto-encoder on a zoo and keep the codes of its best networks.

    Args:
        prepared: The zoo.
        architecture: Of the auto-encoder; its `token_dim` is the layout's.
        config: Length, optimiser and output folder of the run.
        batch_size: Windows per step and process.
        gamma: Share of the contrastive loss.
        temperature: Of the contrastive loss.
        noise: On the inputs, relative.
        permute: Show the second view under random permutations of hidden units.
        balance_layers: Let every layer count alike in the loss, instead of every weight.
        max_anchors: Most codes to keep, of the best 30 % of the training networks at their last epoch.
        halo: Context of a window when encoding and decoding, in tokens.
        norms: As the zoo was prepared.
        name: What messages call the zoo's architecture.

    Returns:
        In eval mode; `metadata["training"]` and `metadata["reconstruction"]` record what was done and R2 per layer.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        autoencoder = SequenceAutoEncoder(architecture)
    batches = WindowBatches(
        tokens=prepared.tokens["train"],
        layout=prepared.layout,
        window=architecture.window,
        batch_size=batch_size,
        num_views=2 if gamma or permute else 1,
        noise=noise,
        position_axes=architecture.position_axes,
        balance_layers=balance_layers,
        permutations=prepared.permutations if permute else None,
        seed=config.seed,
    )
    objective = WindowTraining(autoencoder, gamma=gamma, temperature=temperature)
    trained = train(objective, batches, config).cpu().eval()
    assert isinstance(trained, WindowTraining)
    anchors, accuracies = best_networks(prepared, max_anchors)
    covers_all = architecture.window >= prepared.layout.num_tokens
    representation = HyperRepresentation.of_zoo(
        trained.autoencoder,
        prepared.layout,
        prepared.standardization,
        anchors,
        accuracies,
        window=0 if covers_all else architecture.window,
        halo=0 if covers_all else halo,
        norms=norms,
        architecture=name,
    )
    representation.metadata = {"reconstruction": reconstruction_scores(representation, prepared)}
    return representation


def best_networks(prepared: PreparedZoo, most: int) -> tuple[list[dict[str, Tensor]], list[float]]:
    """The training networks with the highest validation accuracy at their last epoch: the best 30 %, at most so many.

    Returns:
        State dicts, aligned, and accuracies 0..1; the best first.
    """
    rows = prepared.zoo["train"].rows
    newest = {row.model_id: row.epoch for row in sorted(rows, key=lambda row: row.epoch)}
    scored = []
    for index, row in enumerate(rows):
        accuracy = row.test_accuracy if row.validation_accuracy is None else row.validation_accuracy
        if row.epoch == newest[row.model_id]:
            scored.append((-1.0 if accuracy is None else accuracy, index))
    scored.sort(key=lambda pair: (-pair[0], pair[1]))
    count = min(most, max(1, round(ANCHOR_SHARE * len(scored))))
    states = prepared.states["train"]
    chosen = [{key: tensor[index] for key, tensor in states.items()} for _, index in scored[:count]]
    return chosen, [max(0.0, accuracy) for accuracy, _ in scored[:count]]


@torch.no_grad()
def reconstruction_scores(representation: HyperRepresentation, prepared: PreparedZoo) -> dict[str, dict[str, float]]:
    """R2 of each layer's standardised weights by split, against the mean training network; "all" counts all weights.

    A network that repeats the mean has 0, a perfect one 1.
    """
    layout, mask = prepared.layout, prepared.layout.mask
    mean_Tt = prepared.tokens["train"].mean(0)
    scores: dict[str, dict[str, float]] = {}
    for split, tokens_RTt in prepared.tokens.items():
        if len(tokens_RTt) < 2:
            continue
        errors, spreads = torch.zeros(layout.num_tokens), torch.zeros(layout.num_tokens)
        for part_RTt in tokens_RTt.split(8):
            output_RTt = _reconstruct(representation, part_RTt)
            errors += ((output_RTt - part_RTt) * mask).square().sum((0, 2))
            spreads += (part_RTt - mean_Tt).square().sum((0, 2))
        named: Sequence[tuple[str, slice]] = [
            ("all", slice(None)), *((layer.names[0], layer.tokens) for layer in layout.layers)
        ]  # fmt: skip
        scores[split] = {
            name: round(1 - float(errors[part].sum() / spreads[part].sum().clamp(min=1e-12)), 4) for name, part in named
        }
    return scores


def _reconstruct(representation: HyperRepresentation, standard_RTt: Tensor) -> Tensor:
    config, positions = representation.config, representation.positions
    autoencoder = representation.autoencoder
    codes = autoencoder.encode_haloed(standard_RTt, positions, config.window, config.halo)
    return autoencoder.decode_haloed(codes, positions, config.window, config.halo)
