"""Models as they are once trained a little: what starts at zero or small has much to say."""

import torch
from torch import nn


def woken(model: nn.Module, *, seed: int = 0) -> nn.Module:
    """Give random values to the projections that start at zero or small; returns the model."""
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        gathers = ".gather." in name and ".out." in name
        if gathers or (".to_map." in name and ".project." in name):
            nn.init.normal_(parameter.data, std=0.15, generator=draw)
    return model
