"""Grad-CAM [1]_: which places of a network's maps speak for a label.

On the levels of MedFusionNet's feature pyramid, and on the last map of HyperFusion's encoder, of
two or three dimensions. It sees what passes through those maps alone: neither the transformer
stream's own tokens nor the linear path.

Shapes: B batch, [...] the axes of a map.

References
----------
.. [1] Selvaraju et al., "Grad-CAM: visual explanations from deep networks via gradient-based
   localization", ICCV 2017, arXiv 1610.02391; equations 1 and 2.
"""

from collections.abc import Sequence

import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn

from medfusion.explain.scores import ScoresOf, as_in_use
from medfusion.models.contract import Model
from medfusion.models.hyperfusion import HyperFusion
from medfusion.models.medfusion_net import MedFusionNet


def map_layers(model: Model) -> dict[str, nn.Module]:
    """Name the layers whose outputs are the maps, finest first; none where there is no map."""
    if "image" not in model.modalities:
        return {}
    if isinstance(model, MedFusionNet):
        smooth = model.image.streams.pyramid.smooth
        return {f"level {number}": layer for number, layer in enumerate(smooth, 1)}
    return {"last map": model.image} if isinstance(model, HyperFusion) else {}


def grad_cam(
    model: Model, inputs: dict[str, Tensor], labels: Sequence[int], *, exclusive: bool = False
) -> dict[str, Tensor]:
    """Return for each map what speaks for each of ``labels`` at each place: [B, labels, ...].

    Nothing is below 0: what speaks against a label is left out. ``exclusive``: see
    `medfusion.explain.scores.ScoresOf`.
    """
    image = inputs["image"].detach().requires_grad_()  # else nothing leads through frozen layers
    scores = ScoresOf(model, {**inputs, "image": image}, "image", exclusive=exclusive)
    found = {}
    for name, layer in map_layers(model).items():
        cam = LayerGradCam(scores, layer)
        with as_in_use(model):
            maps = [
                cam.attribute(
                    image,
                    target=label,
                    additional_forward_args=scores.others,
                    relu_attributions=True,
                ).detach()
                for label in labels
            ]
        found[name] = torch.cat(maps, dim=1)
    return found
