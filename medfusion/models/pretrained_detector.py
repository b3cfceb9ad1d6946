"""``model.init`` of a detector: torchvision's MobileNetV3-small, from a file of this machine."""

import torch

from medfusion.data.task import Task
from medfusion.digests import file_sha256
from medfusion.errors import ConfigError
from medfusion.models.blocks.mobilenet import from_torchvision
from medfusion.models.contract import Model
from medfusion.models.initial_weights import InitialWeights
from medfusion.models.options import MdfNetOptions
from medfusion.models.pretrained import find_init, load_tensors

_TRUNK = "image."
_AFRESH = "image.pyramid."  # of which torchvision's network has nothing


def initialise_detector(
    model: Model, options: MdfNetOptions, task: Task, *, frozen_only: bool = False
) -> None:
    """Give the trunk of ``model`` the weights in ``options.init``; all others keep their values.

    Parameters
    ----------
    frozen_only
        Set only the frozen parameters, since the others will come from elsewhere.

    Raises
    ------
    ConfigError
        If the file is not there or not readable, or is of another network.
    """
    assert options.init is not None
    path = find_init(options.init)
    channels = task.image.channels if task.image else 1
    trunk = {
        name.removeprefix(_TRUNK): value
        for name, value in model.named_parameters()
        if name.startswith(_TRUNK) and not name.startswith(_AFRESH)
    }
    try:
        found = from_torchvision(load_tensors(path, options.init), image_channels=channels)
    except (KeyError, RuntimeError):
        found = {}
    if {n: v.shape for n, v in found.items()} != {n: v.shape for n, v in trunk.items()}:
        raise ConfigError(
            f"model.init = {options.init!r}: expected the weights of torchvision's "
            "mobilenet_v3_small, found those of another network"
        )
    with torch.no_grad():
        for name, value in trunk.items():
            if not (frozen_only and value.requires_grad):
                value.copy_(found[name])
    model.origin = f"{len(found)} weight tensors are from {path}; all others were drawn afresh"
    model.initial_weights = InitialWeights(kind="torchvision", sha256=file_sha256(path))
