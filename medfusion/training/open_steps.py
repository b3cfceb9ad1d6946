"""Steps of ordinary training, without privacy."""

from collections.abc import Iterator

import torch
from torch import Tensor

from medfusion.training.device import as_fits
from medfusion.training.local_run import LocalRun, Streams


def fit_openly(run: LocalRun, batches: Iterator[Tensor], streams: Streams) -> float:
    """Train without privacy; returns the mean loss."""
    losses, sizes = [], []
    for group in _grouped(batches, run.studies_at_once):
        # One gather for several small batches: at a few studies a step, it halves the work.
        index = torch.cat(group)
        rows = [batch.numel() for batch in group]  # len() of a tensor takes ten times as long
        of_inputs = [row * run.views for row in rows]
        inputs = {n: torch.split(x, of_inputs) for n, x in run.inputs(index, streams).items()}
        labels, known = (torch.split(target, rows) for target in run.targets(index))
        for i, size in enumerate(rows):
            batch = {name: tensors[i] for name, tensors in inputs.items()}
            losses.append(_open_step(run, size, batch, labels[i], known[i]))
        sizes += rows
    weights = torch.tensor(sizes, dtype=torch.float64)
    return float((torch.stack(losses).cpu().double() * weights).sum() / weights.sum())


def _grouped(batches: Iterator[Tensor], rows: int) -> Iterator[list[Tensor]]:
    """Yield runs of batches that together hold at most ``rows``, or a single larger one."""
    group: list[Tensor] = []
    size = 0
    for batch in batches:
        more = batch.numel()
        if group and size + more > rows:
            yield group
            group, size = [], 0
        group.append(batch)
        size += more
    if group:
        yield group


def _open_step(
    run: LocalRun, size: int, inputs: dict[str, Tensor], labels: Tensor, known: Tensor
) -> Tensor:
    """Take one step on a batch; returns its mean loss, a scalar."""

    def backward(physical_batch: int) -> Tensor:
        run.physical_batch = physical_batch
        return _backward(run, size, inputs, labels, known)

    loss, _ = as_fits(backward, run.physical_batch, clear=run.clear_gradients)
    if run.pull is not None:
        run.pull()
    run.optimizer.step()
    run.clear_gradients()
    return loss


def _backward(
    run: LocalRun, size: int, inputs: dict[str, Tensor], labels: Tensor, known: Tensor
) -> Tensor:
    """Leave the gradient of the batch's mean loss in ``grad``; returns that loss."""
    most = run.studies_at_once
    if size <= most and run.plain:
        loss = run.objective.mean_loss(run.logits(inputs), labels, known)
        torch.autograd.backward(loss)
        return loss.detach()
    total = torch.zeros((), device=run.device)
    for start in range(0, size, most):
        piece = slice(start, start + most)
        views = slice(start * run.views, (start + most) * run.views)
        part = {name: tensor[views] for name, tensor in inputs.items()}
        loss = run.losses(part, labels[piece], known[piece]).sum() / size
        torch.autograd.backward(loss)
        total += loss.detach()
    return total
