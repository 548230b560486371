"""Losses of both hyper-representations: reconstruction with layer-wise normalisation, contrast, and their mix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_paraminit.errors import TrainingConfigError
from hf_paraminit.hyperrep.config import VectorLayer
from hf_paraminit.hyperrep.tokens import TokenLayout

# Legend: B views of networks, W weights of a network, T tokens, t weights per token, N networks of the training split.

_SMALLEST_SCALE = 1e-4  # floor of a layer's standard deviation, as published
_NO_CONTRAST = 1e-10  # a smaller share of the contrastive loss leaves it out, as published
Reduction = Literal["global_mean", "layer_mean"]
Normalisation = Literal["per_layer", "batch_masked"]


class LayerwiseReconstruction(nn.Module):
    """Squared error of flattened networks where every layer counts alike (arXiv 2209.14733, equation 2).

    Without the normalisation, layers with large weights decide, and decoded networks compute next to nothing.

    Args:
        layers: Parts of the vector.
        references_NW: (N, W) training networks, which give the layers' standard deviations and the baseline of R2.
        normalize: Whether to divide by the standard deviation of each layer.
        reduction: Divide a layer's error by the count of all weights ("global_mean") or of its own.
        threshold: Largest squared error of one weight; None for no limit.

    Attributes:
        scale: (W,) standard deviation of the weight's layer, or 1.
    """

    scale: Tensor

    def __init__(
        self,
        layers: Sequence[VectorLayer],
        references_NW: Tensor,
        *,
        normalize: bool = True,
        reduction: Reduction = "global_mean",
        threshold: float | None = None,
    ) -> None:
        super().__init__()
        self.layers, self.reduction, self.threshold = tuple(layers), reduction, threshold
        scales = [references_NW[:, layer.start : layer.stop].std().clamp(min=_SMALLEST_SCALE) for layer in self.layers]
        sizes = torch.tensor([layer.length for layer in self.layers])
        scale = torch.stack(scales).repeat_interleave(sizes) if normalize else references_NW.new_ones(int(sizes.sum()))
        self.register_buffer("scale", scale)
        mean_NW = references_NW.mean(0).expand_as(references_NW)
        self.baseline = {name: float(value) for name, value in self._losses(mean_NW, references_NW).items()}

    def forward(self, output_BW: Tensor, target_BW: Tensor) -> dict[str, Tensor]:
        """Return `loss_recon`, `rsq`, and of each layer `loss_recon_l<name>` (unweighted) and `rsq_l<name>`.

        R2 is against predicting the mean training network; its total weighs layers as the loss does.
        """
        losses = self._losses(output_BW, target_BW)
        scores = {
            name.replace("loss_recon", "rsq"): 1 - value.detach() / self.baseline[name]
            for name, value in losses.items()
        }
        return {**losses, **scores}

    def _losses(self, output_BW: Tensor, target_BW: Tensor) -> dict[str, Tensor]:
        errors_BW = ((output_BW - target_BW) / self.scale).square()
        if self.threshold is not None:
            errors_BW = errors_BW.clamp(max=self.threshold)
        batch, num_weights = errors_BW.shape
        losses = {}
        for layer in self.layers:
            counted = num_weights if self.reduction == "global_mean" else layer.length
            losses[f"loss_recon_l{layer.name}"] = errors_BW[:, layer.start : layer.stop].sum() / (batch * counted)
        total = sum(layer.loss_weight * losses[f"loss_recon_l{layer.name}"] for layer in self.layers)
        return {**losses, "loss_recon": torch.as_tensor(total)}


def nt_xent(codes_i: Tensor, codes_j: Tensor, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross entropy: each row has to find its other view among all rows of the batch.

    The published variant with positive pairs only pushes similarities to zero instead of one and is left out.

    Args:
        codes_i: (B, D) one view.
        codes_j: (B, D) the other.
        temperature: Of the cosine similarities.
    """
    rows = F.normalize(torch.cat([codes_i, codes_j]), dim=-1)
    similarities = rows @ rows.T / temperature
    similarities = similarities.masked_fill(torch.eye(len(rows), dtype=torch.bool, device=rows.device), -torch.inf)
    partners = torch.arange(len(rows), device=rows.device).roll(len(codes_i))
    return F.cross_entropy(similarities, partners)


def masked_reconstruction(
    output_BTt: Tensor,
    target_BTt: Tensor,
    mask_BTt: Tensor,
    *,
    normalisation: Normalisation = "per_layer",
    importance_T: Tensor | None = None,
    legacy: bool = False,
) -> Tensor:
    """Mean squared error over the real weights of tokens.

    Args:
        output_BTt: Reconstruction.
        target_BTt: Tokens, zero where there is padding.
        mask_BTt: True where there is a weight.
        normalisation: "per_layer" when the tokens were standardised beforehand; "batch_masked" maps both sides by mean
            and standard deviation of the batch's weights, for zoos of several architectures (arXiv 2504.10141).
        importance_T: (T,) weight of each token's errors, None for equal ones; see `layer_importance`.
        legacy: Divide by all elements, padding included, as published.
    """
    mask = mask_BTt.to(output_BTt.dtype)
    count = mask.sum().clamp(min=1)
    if normalisation == "batch_masked":
        mean = (target_BTt * mask).sum() / count
        deviation = (((target_BTt - mean) * mask).square().sum() / (count - 1).clamp(min=1)).sqrt() + _SMALLEST_SCALE
        output_BTt, target_BTt = (output_BTt - mean) / deviation, (target_BTt - mean) / deviation
    errors = ((output_BTt - target_BTt) * mask).square()
    if importance_T is not None:
        errors, count = errors * importance_T[:, None], (mask * importance_T[:, None]).sum()
    return errors.sum() / (mask.numel() if legacy else count)


def layer_importance(layout: TokenLayout) -> Tensor:
    """(T,) weights of tokens by which every layer counts alike, however many weights it has; mean 1 over weights.

    The same as the reduction "layer_mean" of the older loss. Small layers, a first convolution for instance, decide
    what a network computes as much as large ones.
    """
    sizes = torch.tensor([layer.num_rows * layer.num_columns for layer in layout.layers], dtype=torch.float32)
    return (sizes.mean() / sizes)[layout.positions[:, 1].long()]


def penalties(codes: Tensor) -> dict[str, Tensor]:
    """Mean length of the codes (B, D), and the mean over dimensions of their variance over the batch."""
    return {"z_norm": codes.norm(dim=-1).mean(), "z_var": codes.var(0).mean()}


def mix(
    reconstruction: Tensor,
    views: tuple[Tensor, Tensor] | None,
    *,
    gamma: float,
    temperature: float,
    penalised: Tensor | None = None,
    variance_penalty: float = 0.0,
    norm_penalty: float = 0.0,
) -> dict[str, Tensor]:
    """Return `loss`, `loss_recon`, `loss_contrast` unless its share is nothing, and what `penalties` gives.

    Args:
        reconstruction: Reconstruction loss.
        views: Projected codes (B, D) of two views of the same networks; None without contrast.
        gamma: Share of the contrastive loss, in 0..1.
        temperature: Of the contrastive loss.
        penalised: Codes (B, D) for the penalties: the first view, projected by SANE, unprojected by the older code.
        variance_penalty: Weight of the codes' variance.
        norm_penalty: Weight of the codes' length.

    Raises:
        TrainingConfigError: A share outside 0..1, or one without views.
    """
    if not 0 <= gamma <= 1 or (views is None and gamma >= _NO_CONTRAST):
        raise TrainingConfigError(f"gamma={gamma}: expected a share in 0..1, and 0 when there is only one view.")
    parts = {"loss": reconstruction, "loss_recon": reconstruction}
    if views is not None and gamma >= _NO_CONTRAST:
        parts["loss_contrast"] = nt_xent(*views, temperature)
        parts["loss"] = gamma * parts["loss_contrast"] + (1 - gamma) * reconstruction
    if penalised is not None:
        parts |= penalties(penalised)
        parts["loss"] = parts["loss"] + variance_penalty * parts["z_var"] + norm_penalty * parts["z_norm"]
    return parts
