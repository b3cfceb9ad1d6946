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
    """Return logits [N, L] in float32, the model in evaluation mode and left as it was."""
    training = model.training
    model.eval()
    parts = [
        model(tensors.inputs(index, device)).float().cpu()
        for index in torch.split(torch.arange(len(tensors)), batch)
    ]
    model.train(training)
    width = tensors.labels.shape[1]
    return torch.cat(parts).numpy() if parts else np.zeros((0, width), np.float32)
