"""One round of local training, private or not."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medfusion.objectives.multilabel import per_sample_loss
from medfusion.privacy.plan import DpPlan
from medfusion.privacy.sampler import epoch_batches, poisson_batches
from medfusion.randomness import spawn
from medfusion.training.local_run import (
    LocalRun,
    Precision,
    TrainingStudies,
    make_autocast,
    make_optimizer,
    make_proximal_pull,
)
from medfusion.training.open_steps import fit_openly
from medfusion.training.options import TrainingOptions


@dataclass(frozen=True)
class FitResult:
    """What a round of local training says of itself.

    ``loss`` is the mean over the studies drawn, None if none was. No plan accounts for it: it
    stays at the site.
    """

    steps: int
    loss: float | None
    seconds: float


def fit(
    model: nn.Module,
    studies: TrainingStudies,
    *,
    options: TrainingOptions,
    plan: DpPlan | None,
    steps: int,
    public: torch.Generator,
    private: torch.Generator,
    device: torch.device,
    physical_batch: int,
    precision: Precision = "auto",
    proximal_mu: float = 0.0,
    modality_dropout: float = 0.0,
) -> FitResult:
    """Train ``model`` in place for one round.

    Parameters
    ----------
    model
        Maps inputs to logits [B, L]. Parameters that require no gradient stay as they are.
    plan
        Makes every step private; None trains on shuffled patients without privacy.
    steps
        Optimiser steps of the round; under a plan, exactly ``plan.steps_per_round``.
    public
        CPU generator of shuffles and modality dropout without privacy.
    private
        CPU generator of all that is random under a plan: draws, choice of study, modality
        dropout and noise. Dropout is among them because a mask from a public stream would
        depend on who else was drawn.
    physical_batch
        Most studies in one forward and backward pass; halved when they do not fit into GPU
        memory. The logical batch stays what ``options`` and ``plan`` say.
    precision
        Of forward and backward passes; ``auto`` is bfloat16 on a GPU, else float32. Weights,
        losses, norms and sums are float32 always.
    proximal_mu
        FedProx [1]_: adds ``proximal_mu * (w - w_received)`` to the gradient, after clipping
        and noise.
    modality_dropout
        Probability with which a sample loses each modality in training.

    Raises
    ------
    DataError
        If there is nothing to train on (without privacy; under a plan that would be told).
    FederationError
        If the model cannot be trained privately, or one study does not fit into GPU memory.

    References
    ----------
    .. [1] Li et al., "Federated optimization in heterogeneous networks", MLSys 2020.
    """
    if plan is not None and steps != plan.steps_per_round:
        raise ValueError(f"Expected steps={steps} to be the plan's {plan.steps_per_round}.")
    began = time.perf_counter()
    was_training = model.training
    model.to(device).train()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    run = LocalRun(
        model=model,
        studies=studies,
        trainable=trainable,
        optimizer=make_optimizer(trainable, options),
        pull=make_proximal_pull(trainable, proximal_mu) if proximal_mu else None,
        device=device,
        physical_batch=physical_batch,
        autocast=make_autocast(precision, device),
        modality_dropout=modality_dropout,
    )
    loss: float | None
    try:
        if plan is None:
            batches = epoch_batches(
                studies.patients, batch_size=options.batch_size, steps=steps, generator=public
            )
            loss = fit_openly(run, batches, public)
        else:
            loss = _fit_privately(run, plan, private)
    finally:
        run.clear_gradients()
        model.train(was_training)
    return FitResult(steps=steps, loss=loss, seconds=time.perf_counter() - began)


def _fit_privately(run: LocalRun, plan: DpPlan, private: torch.Generator) -> float | None:
    """Train under a plan; returns the mean loss over those drawn, None if nobody was."""
    from medfusion.privacy.dp_sgd import PrivateSteps  # Opacus takes a second to import

    # Streams of their own, so that neither draws nor noise depend on how batches are cut.
    cpu = torch.device("cpu")
    draws, dropout, noise = (spawn(private, device) for device in (cpu, cpu, run.device))

    def losses(index: Tensor) -> Tensor:
        logits = run.logits(run.inputs(index, dropout))
        return per_sample_loss(logits, *run.targets(index))

    total, drawn = torch.zeros((), device=run.device), 0
    batches = poisson_batches(
        run.studies.patients,
        sample_rate=plan.sample_rate,
        steps=plan.steps_per_round,
        generator=draws,
    )
    with PrivateSteps(
        run.model,
        run.optimizer,
        plan,
        generator=noise,
        physical_batch=run.physical_batch,
        before_update=run.pull,
    ) as private_steps:
        for index in batches:
            total += private_steps.step(index, losses)
            drawn += len(index)
    return float(total) / drawn if drawn else None
