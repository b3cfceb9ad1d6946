"""One round of local training, private or not."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from medfusion.errors import FederationError
from medfusion.objectives.multilabel import mean_loss, per_sample_loss
from medfusion.privacy.plan import DpPlan
from medfusion.privacy.sampler import epoch_batches, poisson_batches
from medfusion.training.options import TrainingOptions

Precision = Literal["auto", "float32", "bfloat16"]


class TrainingStudies(Protocol):
    """A site's training studies as tensors.

    ``labels`` and ``known`` are float32 [N, L], ``patients`` int64 [N], all on the CPU.
    """

    @property
    def labels(self) -> Tensor: ...

    @property
    def known(self) -> Tensor: ...

    @property
    def patients(self) -> Tensor: ...

    def inputs(self, index: Tensor, device: torch.device) -> dict[str, Tensor]:
        """Return the model's inputs for the studies at ``index`` (int64 [B], on the CPU)."""
        ...


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
    run = _Run(
        model=model,
        studies=studies,
        trainable=trainable,
        optimizer=_optimizer(trainable, options),
        pull=_proximal_pull(trainable, proximal_mu) if proximal_mu else None,
        device=device,
        physical_batch=physical_batch,
        autocast=_autocast(precision, device),
        modality_dropout=modality_dropout,
    )
    try:
        if plan is None:
            batches = epoch_batches(
                studies.patients, batch_size=options.batch_size, steps=steps, generator=public
            )
            loss = _fit_openly(run, batches, public)
        else:
            loss = _fit_privately(run, plan, private)
    finally:
        run.clear_gradients()
        model.train(was_training)
    return FitResult(steps=steps, loss=loss, seconds=time.perf_counter() - began)


@dataclass
class _Run:
    """What both kinds of training share."""

    model: nn.Module
    studies: TrainingStudies
    trainable: list[nn.Parameter]
    optimizer: Optimizer
    pull: Callable[[], None] | None
    device: torch.device
    physical_batch: int
    autocast: Callable[[], AbstractContextManager[object]]
    modality_dropout: float

    def inputs(self, index: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the inputs of some studies, each of which may have lost modalities."""
        inputs = self.studies.inputs(index, self.device)
        if self.modality_dropout:
            from medfusion.models.fusion import drop_modalities

            inputs = drop_modalities(inputs, self.modality_dropout, generator)
        return inputs

    def targets(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return labels and known of some studies, each [B, L]."""
        labels, known = self.studies.labels[index], self.studies.known[index]
        if self.device.type == "cpu":
            return labels, known
        return labels.to(self.device), known.to(self.device)

    def logits(self, inputs: dict[str, Tensor]) -> Tensor:
        with self.autocast():
            logits = self.model(inputs)
        assert isinstance(logits, Tensor)
        return logits

    def clear_gradients(self) -> None:
        for parameter in self.trainable:  # a third of the time of Optimizer.zero_grad
            parameter.grad = None

    def halve(self) -> None:
        """Go on with half the physical batch, after a pass that ran out of memory."""
        if self.physical_batch == 1:
            raise FederationError("one study does not fit into GPU memory: use a smaller model")
        self.physical_batch //= 2
        torch.cuda.empty_cache()


def _fit_openly(run: _Run, batches: Iterator[Tensor], generator: torch.Generator) -> float | None:
    """Train without privacy; returns the mean loss."""
    losses, sizes = [], []
    for group in _grouped(batches, run.physical_batch):
        # One gather for several small batches: at a few studies a step, it halves the work.
        index = torch.cat(group)
        rows = [len(batch) for batch in group]
        inputs = {n: x.split(rows) for n, x in run.inputs(index, generator).items()}
        labels, known = (target.split(rows) for target in run.targets(index))
        for i in range(len(group)):
            batch = {name: tensors[i] for name, tensors in inputs.items()}
            losses.append(_open_step(run, batch, labels[i], known[i]))
        sizes += rows
    weights = torch.tensor(sizes, dtype=torch.float64)
    return float((torch.stack(losses).cpu().double() * weights).sum() / weights.sum())


def _grouped(batches: Iterator[Tensor], rows: int) -> Iterator[list[Tensor]]:
    """Yield runs of batches that together hold at most ``rows``, or a single larger one."""
    group: list[Tensor] = []
    size = 0
    for batch in batches:
        if group and size + len(batch) > rows:
            yield group
            group, size = [], 0
        group.append(batch)
        size += len(batch)
    if group:
        yield group


def _open_step(run: _Run, inputs: dict[str, Tensor], labels: Tensor, known: Tensor) -> Tensor:
    """Take one step on a batch; returns its mean loss, a scalar."""
    loss = None
    while loss is None:
        try:
            loss = _backward(run, inputs, labels, known)
        except torch.OutOfMemoryError:
            pass  # dealt with below, where the exception no longer holds the pass's tensors
        if loss is None:
            run.clear_gradients()
            run.halve()
    if run.pull is not None:
        run.pull()
    run.optimizer.step()
    run.clear_gradients()
    return loss


def _backward(run: _Run, inputs: dict[str, Tensor], labels: Tensor, known: Tensor) -> Tensor:
    """Leave the gradient of the batch's mean loss in ``grad``; returns that loss."""
    size, most = len(labels), run.physical_batch
    if size <= most:
        loss = mean_loss(run.logits(inputs), labels, known)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()
    total = torch.zeros((), device=run.device)
    for start in range(0, size, most):
        piece = slice(start, start + most)
        logits = run.logits({name: tensor[piece] for name, tensor in inputs.items()})
        loss = per_sample_loss(logits, labels[piece], known[piece]).sum() / size
        loss.backward()
        total += loss.detach()
    return total


def _fit_privately(run: _Run, plan: DpPlan, private: torch.Generator) -> float | None:
    """Train under a plan; returns the mean loss over those drawn, None if nobody was."""
    from medfusion.privacy.dp_sgd import PrivateSteps  # Opacus takes a second to import

    # Streams of their own, so that neither draws nor noise depend on how batches are cut.
    draws, dropout, noise = _spawn(private, torch.device("cpu"), torch.device("cpu"), run.device)

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


def _spawn(parent: torch.Generator, *devices: torch.device) -> list[torch.Generator]:
    """Return one generator per device, each seeded by the parent."""
    seeds = torch.randint(2**63 - 1, (len(devices),), generator=parent).tolist()
    return [
        torch.Generator(device).manual_seed(seed)
        for device, seed in zip(devices, seeds, strict=True)
    ]


def _optimizer(trainable: list[nn.Parameter], options: TrainingOptions) -> Optimizer:
    if options.optimizer == "sgd":
        return SGD(
            trainable,
            lr=options.learning_rate,
            momentum=options.momentum,
            weight_decay=options.weight_decay,
        )
    return AdamW(trainable, lr=options.learning_rate, weight_decay=options.weight_decay)


def _proximal_pull(trainable: list[nn.Parameter], mu: float) -> Callable[[], None]:
    """Return a function that adds ``mu * (w - w0)`` to each gradient, w0 being w as of now."""
    received = [parameter.detach().clone() for parameter in trainable]

    def pull() -> None:
        with torch.no_grad():
            for parameter, origin in zip(trainable, received, strict=True):
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                parameter.grad.add_(parameter - origin, alpha=mu)

    return pull


def _autocast(
    precision: Precision, device: torch.device
) -> Callable[[], AbstractContextManager[object]]:
    """Return what makes the context of a forward pass."""
    if precision == "bfloat16" or (precision == "auto" and device.type == "cuda"):
        return partial(torch.autocast, device.type, dtype=torch.bfloat16)
    return nullcontext
