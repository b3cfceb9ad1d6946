"""Scores of a model on studies: the one way in which a model is applied."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from medfusion.data.tensors import StudyTensors

_LARGEST_BATCH = 256


@torch.inference_mode()
def predict_logits(
    model: nn.Module, tensors: StudyTensors, device: torch.device, *, batch: int = _LARGEST_BATCH
) -> NDArray[np.float32]:
    """Return outputs in float32, the model in evaluation mode and left as it was.

    They are [N, W], of a detector [N, D, 6]. Without studies the network is not called: not every
    layer reads an empty batch.
    """
    if len(tensors) == 0:
        return np.zeros((0, *getattr(model, "output_shape", tensors.labels.shape[1:])), np.float32)
    training = model.training
    model.eval()
    parts = [
        model(tensors.inputs(index, device)).float().cpu()
        for index in torch.split(torch.arange(len(tensors)), batch)
    ]
    model.train(training)
    return torch.cat(parts).numpy()
