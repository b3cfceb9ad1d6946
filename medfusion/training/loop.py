"""One round of local training, private or not."""

import time
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from medfusion.objectives.objective import Objective
from medfusion.privacy import dp_sgd
from medfusion.privacy.adaptive_norm import AdaptiveNorm, split_noise
from medfusion.privacy.keystream import Keystream
from medfusion.privacy.plan import DpPlan
from medfusion.privacy.sampler import epoch_batches, poisson_batches
from medfusion.randomness import spawn
from medfusion.training.local_run import (
    LocalRun,
    Precision,
    Streams,
    TrainingStudies,
    make_autocast,
    make_pull,
)
from medfusion.training.memory_layout import channels_last
from medfusion.training.open_steps import fit_openly
from medfusion.training.optimizer import make_optimizer
from medfusion.training.options import TrainingOptions
from medfusion.training.public_studies import PublicStudies
from medfusion.training.turns import in_turns


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
    objective: Objective,
    plan: DpPlan | None,
    steps: int,
    public: torch.Generator,
    private: Keystream,
    device: torch.device,
    physical_batch: int,
    precision: Precision = "auto",
    proximal_mu: float = 0.0,
    gradient_shift: Mapping[str, Tensor] | None = None,
    modality_dropout: float = 0.0,
    auxiliary_heads: float = 0.0,
    masked_labels: float = 0.0,
    progress: float = 0.0,
    rounds: int = 1,
    own: AbstractSet[str] = frozenset(),
    own_steps: int = 0,
) -> FitResult:
    """Train ``model`` in place for one round.

    Parameters
    ----------
    model
        Maps inputs to outputs [B, W]. Parameters that require no gradient stay as they are.
    objective
        What is minimised; ``options.loss`` is not read here.
    plan
        Makes every step private; None trains on shuffled patients without privacy.
    steps
        Optimiser steps of the round; under a plan, exactly ``plan.steps_per_round``.
    public
        CPU generator of shuffles, augmentation, modality dropout and told labels without
        privacy. Under a plan, of the studies on which the model is looked at.
    private
        Gives all that is random under a plan: draws, choice of study, augmentation, modality
        dropout, told labels and noise. What changes a study is among them because draws from
        a public stream would depend on who else was drawn. For this round alone: a second
        use is refused.
    physical_batch
        Most studies in one forward and backward pass; halved when they do not fit into GPU
        memory. The logical batch stays what ``options`` and ``plan`` say.
    precision
        Of forward and backward passes; ``auto`` is bfloat16 on a GPU, else float32. Weights,
        losses, norms and sums are float32 always.
    proximal_mu
        FedProx [1]_: adds ``proximal_mu * (w - w_received)`` to the gradient, after clipping
        and noise.
    gradient_shift
        Added to the gradient as well, tensors by the name of the trainable parameter: the
        correction of a strategy (see `medfusion.strategies.site_rules`).
    modality_dropout
        Probability with which a sample loses each modality in training.
    auxiliary_heads
        Weight of the loss of each modality's own head; see `Model.outputs`.
    masked_labels
        Probability with which a sample is told some of its labels, and trained on the others.
    progress
        Share of the run's rounds that lie behind, in [0, 1).
    rounds
        Rounds of the run.
    own, own_steps
        Names of parameters that alone move in the first ``own_steps`` steps, and not afterwards;
        with 0 all move in every step. See `medfusion.training.turns`.

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
    trainable = {name: value for name, value in model.named_parameters() if value.requires_grad}
    pull = make_pull(trainable, mu=proximal_mu, shift=gradient_shift)
    run = LocalRun(
        model=model,
        studies=studies,
        trainable=list(trainable.values()),
        optimizer=make_optimizer(model, options, steps=steps, progress=progress, rounds=rounds),
        pull=in_turns(pull, trainable, own=own, own_steps=own_steps) if own_steps else pull,
        device=device,
        physical_batch=physical_batch,
        autocast=make_autocast(precision, device),
        modality_dropout=modality_dropout,
        auxiliary_heads=auxiliary_heads,
        masked_labels=masked_labels,
        objective=objective,
        augmented=options.augmentation != "none",
        views=options.views,
        small_images=progress < options.small_images,
    )
    loss: float | None
    try:
        if plan is None:
            batches = epoch_batches(
                studies.patients, batch_size=options.batch_size, steps=steps, generator=public
            )
            with channels_last(model):
                loss = fit_openly(run, batches, _open_streams(run, public))
        else:
            loss = _fit_privately(run, plan, private, public)
    finally:
        run.clear_gradients()
        model.train(was_training)
    return FitResult(steps=steps, loss=loss, seconds=time.perf_counter() - began)


def _open_streams(run: LocalRun, public: torch.Generator) -> Streams:
    """Return streams of their own for what training hides and tells, if it does so at all."""
    if not (run.augmented or run.modality_dropout or run.masked_labels):
        return Streams(changes=public, modalities=public, labels=public)
    changes, modalities, labels = (spawn(public) for _ in range(3))
    return Streams(changes=changes, modalities=modalities, labels=labels)


def _adaptive_norm(plan: DpPlan, keystream: Keystream) -> AdaptiveNorm | None:
    if plan.clip_quantile is None:
        return None
    return AdaptiveNorm(
        plan.max_grad_norm,
        quantile=plan.clip_quantile,
        count_noise=split_noise(plan.noise_multiplier)[1],
        expected_batch=plan.expected_batch,
        keystream=keystream,
    )


def _before_update(
    run: LocalRun, plan: DpPlan, adaptive: AdaptiveNorm | None
) -> Callable[[], None] | None:
    """Return what changes the noised mean gradient before it moves the weights, if anything."""
    if not plan.unit_norm:
        return run.pull

    def rescale_and_pull() -> None:
        norm = adaptive.value if adaptive else plan.max_grad_norm  # of the step under way
        for parameter in run.trainable:
            if parameter.grad is not None:
                parameter.grad.div_(norm)
        if run.pull is not None:
            run.pull()

    return rescale_and_pull


def _public_losses(run: LocalRun, generator: torch.Generator, rows: int) -> Tensor:
    """Return the losses [rows] of studies that are no patient's, changed as training wants it."""
    studies = PublicStudies(run.studies, rows=rows, generator=generator)
    # Whoever may be told labels is, so that what reads them is seen at work; nothing is dropped.
    told = 1.0 if run.masked_labels else 0.0
    public = replace(run, studies=studies, masked_labels=told, modality_dropout=0.0)
    index = torch.arange(rows)
    streams = Streams(changes=generator, modalities=generator, labels=generator)
    return public.losses(public.inputs(index, streams), *public.targets(index))


def _fit_privately(
    run: LocalRun, plan: DpPlan, private: Keystream, public: torch.Generator
) -> float | None:
    """Train under a plan; returns the mean loss over those drawn, None if nobody was."""
    # Streams of their own, so that neither draws nor noise depend on how batches are cut.
    streams = Streams(
        changes=private.torch_generator("augmentation"),
        modalities=private.torch_generator("modality dropout"),
        labels=private.torch_generator("told labels"),
    )

    def losses(index: Tensor) -> Tensor:
        return run.losses(run.inputs(index, streams), *run.targets(index))

    total, drawn = torch.zeros((), device=run.device), 0
    batches = poisson_batches(
        run.studies.patients,
        sample_rate=plan.sample_rate,
        steps=plan.steps_per_round,
        keystream=private.child("sampling"),
    )
    adaptive = _adaptive_norm(plan, private.child("count of short gradients"))
    with dp_sgd.PrivateSteps(
        run.model,
        run.optimizer,
        plan,
        keystream=private.child("noise"),
        physical_batch=run.studies_at_once,
        public_losses=partial(_public_losses, run, public),
        before_update=_before_update(run, plan, adaptive),
        adaptive=adaptive,
    ) as private_steps:
        for index in batches:
            total += private_steps.step(index, losses)
            drawn += len(index)
    return float(total) / drawn if drawn else None
