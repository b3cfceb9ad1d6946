"""The optimiser of a round: its learning rates follow from public numbers alone."""

from itertools import count
from math import cos, pi
from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from medfusion.models.parts import Part, part_of
from medfusion.training.options import TrainingOptions


def make_optimizer(
    model: nn.Module, options: TrainingOptions, *, steps: int, progress: float, rounds: int
) -> Optimizer:
    """Return a new optimiser, which remembers nothing of earlier rounds.

    Parameters
    ----------
    model
        Each of its trainable parameters is in exactly one group.
    options
        Kind of optimiser, rates and schedule.
    steps
        Steps of the round.
    progress
        Share of the run's rounds that lie behind, in [0, 1).
    rounds
        Rounds of the run.

    A multiplier for a part that the model lacks has nothing to act on: models of different
    modalities are compared under one config.
    """
    groups = _groups(model, options)
    rate, decay = options.learning_rate, options.weight_decay
    optimizer: Optimizer
    # Fused: one pass over each parameter, in place of one for each operation.
    if options.optimizer == "sgd":
        optimizer = SGD(groups, rate, momentum=options.momentum, weight_decay=decay, fused=True)
    else:
        optimizer = AdamW(groups, rate, weight_decay=decay, fused=True)
    if options.schedule == "cosine":
        _fall(optimizer, begin=progress, step=1 / (steps * rounds))
    return optimizer


def _groups(model: nn.Module, options: TrainingOptions) -> list[dict[str, Any]]:
    """Return the trainable parameters, in one group unless parts learn at rates of their own."""
    multipliers = options.rate_multipliers.given()
    parts: dict[Part, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parts.setdefault(part_of(name), []).append(parameter)
    if not multipliers:
        return [{"params": [p for p in model.parameters() if p.requires_grad]}]
    rate = options.learning_rate
    return [
        {"params": parameters, "lr": rate * multipliers.get(part, 1.0)}
        for part, parameters in parts.items()
    ]


def _fall(optimizer: Optimizer, *, begin: float, step: float) -> None:
    """Let each group's rate fall by half a cosine over the run, from step to step [1]_.

    References
    ----------
    .. [1] Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts", 2017
       (here without restarts).
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    taken = count()

    def set_rates(*_: object) -> None:
        done = begin + next(taken) * step
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (1 + cos(pi * done)) / 2

    optimizer.register_step_pre_hook(set_rates)
