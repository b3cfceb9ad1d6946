"""What two attackers learn of synthetic images, under a run's plan and without privacy.

*Membership*: whose loss is small was trained on [1]_. *Inversion*: in the update of one patient
the first linear layer's gradient is a product of the image and the gradient of the layer's
bias, so that one division gives the image back [2]_.

Both train through `medfusion.training.loop.fit`, on images that are drawn and show nobody.

References
----------
.. [1] Yeom et al., "Privacy risk in machine learning: analyzing the connection to overfitting",
   CSF 2018.
.. [2] Geiping et al., "Inverting gradients - how easy is it to break privacy in federated
   learning?", NeurIPS 2020, proposition 3.1.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medfusion.data.cohorts.synthetic_images import Scanner, draw_images
from medfusion.data.cohorts.synthetic_signal import IMAGE_FINDINGS
from medfusion.evaluation.metrics import auroc
from medfusion.models.seeding import seeded
from medfusion.objectives.multilabel import Multilabel, per_sample_loss
from medfusion.privacy.audit.canaries import SyntheticStudies
from medfusion.privacy.audit.keys import AuditKeys
from medfusion.privacy.plan import DpPlan
from medfusion.training.loop import fit
from medfusion.training.options import TrainingOptions

Floats = NDArray[np.float64]

_PATIENTS = 128  # members, and as many others
_MEMBER_SIZE, _MEMBER_WIDTH = 16, 64
_OPEN_STEPS = 600  # enough to know the members by heart
_INVERTED, _INVERTED_SIZE, _INVERTED_WIDTH = 4, 32, 16
_PHYSICAL_BATCH = 64
_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True, eq=False)
class Membership:
    """Losses [N] of those trained on and [N] of those not; ``auroc`` .5 tells nothing."""

    members: Floats
    others: Floats
    auroc: float

    def roc(self) -> tuple[Floats, Floats]:
        """Return false and true positive rates, from nobody to all called a member."""
        cuts = np.unique(np.concatenate([self.members, self.others]))
        rates = (
            np.concatenate([[0.0], np.searchsorted(np.sort(losses), cuts, side="right")])
            / len(losses)
            for losses in (self.others, self.members)
        )
        false, true = rates
        return false, true


@dataclass(frozen=True, kw_only=True, eq=False)
class Inversion:
    """Images [n, H, H] in [-1, 1] and what their updates give back.

    ``recovered`` has no fixed range. ``correlation`` is that of each image with its copy.
    """

    images: Floats
    recovered: Floats
    correlation: tuple[float, ...]


def membership(
    plan: DpPlan | None, keys: AuditKeys, on_round: Callable[[], None] | None = None
) -> Membership:
    """Train a small network on images with labels that only memory can give; attack its losses.

    Parameters
    ----------
    plan
        Followed to its last step; None trains without privacy until the labels are known.
    keys
        Where draws and noise come from.
    on_round
        Called after each round of the plan.
    """
    rng = np.random.default_rng(keys.seed)
    images = _images(2 * _PATIENTS, _MEMBER_SIZE, rng)
    labels = torch.from_numpy(rng.integers(0, 2, (2 * _PATIENTS, 1))).float()
    model = _network(_MEMBER_SIZE, _MEMBER_WIDTH, keys.seed)
    studies = _studies(images[:_PATIENTS], labels[:_PATIENTS])
    options = TrainingOptions(learning_rate=3e-3, batch_size=32)
    for number in range(1, 1 + (plan.rounds if plan else 1)):
        _train(model, studies, plan, keys, number, options, _OPEN_STEPS)
        if on_round is not None:
            on_round()
    with torch.no_grad():
        losses = per_sample_loss(model({"image": images}), labels, torch.ones_like(labels))
    members, others = losses.double().numpy().reshape(2, _PATIENTS)
    return Membership(members=members, others=others, auroc=_area(members, others))


def inversion(plan: DpPlan | None, keys: AuditKeys) -> Inversion:
    """Take one step on one image at a time, and read the image in the update.

    A batch of one patient is the worst there is for the patient. ``plan`` gives the clip and the
    noise of the step; None takes a plain step.
    """
    rng = np.random.default_rng(keys.seed)
    images = _images(_INVERTED, _INVERTED_SIZE, rng)
    if plan is not None:
        plan = replace(
            plan, patients_public=1, sample_rate=1.0, expected_batch=1.0, steps_per_round=1
        )
    options = TrainingOptions(optimizer="sgd", learning_rate=1.0, batch_size=1)
    found = []
    for number, image in enumerate(images, start=1):
        model = _network(_INVERTED_SIZE, _INVERTED_WIDTH, keys.seed)
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        studies = _studies(image.unsqueeze(0), torch.ones(1, 1))
        _train(model, studies, plan, keys, number, options, 1)
        weight, bias = (
            before[f"first.{name}"] - getattr(model.first, name).detach()
            for name in ("weight", "bias")
        )
        found.append((bias @ weight) / bias.square().sum())
    recovered = torch.stack(found).double().numpy().reshape(-1, _INVERTED_SIZE, _INVERTED_SIZE)
    originals = images.double().numpy().reshape(recovered.shape)
    pairs = zip(originals, recovered, strict=True)
    correlation = tuple(float(np.corrcoef(a.ravel(), b.ravel())[0, 1]) for a, b in pairs)
    return Inversion(images=originals, recovered=recovered, correlation=correlation)


class _Network(nn.Module):
    """Two layers on the pixels, to one logit."""

    def __init__(self, pixels: int, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(pixels, width)
        self.last = nn.Linear(width, 1)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        logits: Tensor = self.last(torch.tanh(self.first(inputs["image"])))
        return logits


def _network(size: int, width: int, seed: int) -> _Network:
    with seeded(seed):
        return _Network(size * size, width)


def _train(
    model: nn.Module,
    studies: SyntheticStudies,
    plan: DpPlan | None,
    keys: AuditKeys,
    number: int,
    options: TrainingOptions,
    open_steps: int,
) -> None:
    """Train for a round of the plan, or for ``open_steps`` without privacy."""
    fit(
        model,
        studies,
        options=options,
        objective=Multilabel(),
        plan=plan,
        steps=plan.steps_per_round if plan else open_steps,
        public=keys.public(number),
        private=keys.private(number),
        device=_CPU,
        physical_batch=_PHYSICAL_BATCH,
        precision="float32",
    )


def _studies(images: Tensor, labels: Tensor) -> SyntheticStudies:
    return SyntheticStudies({"image": images}, labels, torch.arange(0), canaries=0)


def _images(count: int, size: int, rng: np.random.Generator) -> Tensor:
    """Return drawn chests, float32 [count, size * size] in [-1, 1]."""
    findings = rng.random((count, len(IMAGE_FINDINGS))) < 0.5
    drawn = np.stack(list(draw_images(findings, Scanner(), size, rng)))
    return torch.from_numpy(drawn.reshape(count, -1).astype(np.float32) / 127.5 - 1)


def _area(members: Floats, others: Floats) -> float:
    """Return the AUROC of small losses as a sign of membership."""
    cuts = np.unique(np.concatenate([members, others]))
    counts = np.zeros((2, len(cuts)))
    for row, losses in enumerate((others, members)):
        np.add.at(counts[row], len(cuts) - 1 - np.searchsorted(cuts, losses), 1.0)
    area = auroc(counts)
    assert area is not None, "both kinds are there"
    return area
