"""Measures of classes that exclude one another.

Each class against the rest is measured as a label is, by the log-odds of its probability; beside
that the most probable class is compared with the true one. The balanced accuracy is the mean
recall, the macro F1 the mean F1, both over the classes that occur.

Legend: as in `medfusion.evaluation.measures`; outputs are the logits of a softmax, W = L classes.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from medfusion.evaluation.intervals import Resampled, resampled_weights
from medfusion.evaluation.measures import Measures
from medfusion.evaluation.metrics import FloatArray, check_logits, mean_of_known
from medfusion.evaluation.multilabel_measures import MultilabelMeasures

_LARGEST = 1e6  # a logit beyond says no more, and infinities have no difference


def log_odds(logits: NDArray[Any]) -> FloatArray:
    """Return the log-odds of each class's softmax probability, [..., L] for logits [..., L]."""
    logits = np.clip(logits.astype(np.float64), -_LARGEST, _LARGEST)
    count = logits.shape[-1]
    rest = np.array([[i for i in range(count) if i != one] for one in range(count)])
    of_rest = logits[..., rest]  # [..., L, L - 1]
    highest = of_rest.max(axis=-1)
    sums = np.exp(of_rest - highest[..., None]).sum(axis=-1)
    found: FloatArray = logits - highest - np.log(sums)
    return found


def probabilities(logits: NDArray[Any]) -> FloatArray:
    """Return the probability of each class, [..., L]."""
    found: FloatArray = 1.0 / (1.0 + np.exp(np.minimum(-log_odds(logits), 700.0)))
    return found


def confusion(logits: NDArray[Any], labels: NDArray[Any], known: NDArray[Any]) -> FloatArray:
    """Count studies by true (rows) and most probable class, [L, L]; unknown ones nowhere."""
    count = logits.shape[-1]
    keep = known[:, 0] > 0
    cells = labels[keep].argmax(axis=1) * count + logits[keep].argmax(axis=1)
    return np.bincount(cells, minlength=count * count).reshape(count, count).astype(np.float64)


def recalls_and_f1(counts: FloatArray) -> tuple[list[float | None], list[float | None]]:
    """Return recall and F1 of each class of a confusion matrix; None where the class is absent."""
    hits, true, told = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    pairs = [
        (float(hit / n), float(2 * hit / (n + m))) if n > 0 else (None, None)
        for hit, n, m in zip(hits, true, told, strict=True)
    ]
    return [recall for recall, _ in pairs], [f1 for _, f1 in pairs]


class MulticlassMeasures(Measures):
    """A release is [L, 2 S + L]: for each class its score histogram, then its confusion row.

    A patient is in one cell of each class's histogram and in one of the confusion matrix.
    """

    released: ClassVar[str] = "score histograms and confusion matrices"
    by_label: ClassVar[Mapping[str, str]] = {
        **MultilabelMeasures.by_label,
        "recall": "balanced_accuracy",
        "f1": "f1_macro",
    }

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__(names)
        self._each = MultilabelMeasures(names)

    def release_shape(self, *, noised: bool) -> tuple[int, ...]:
        """Return (L, 2 S + L)."""
        count, _, bins = self._each.release_shape(noised=noised)
        return (count, 2 * bins + count)

    @property
    def sensitivity(self) -> float:
        """The square root of L + 1."""
        return math.sqrt(len(self.names) + 1)

    def release(
        self, outputs: NDArray[Any], labels: NDArray[Any], known: NDArray[Any], *, noised: bool
    ) -> FloatArray:
        """Count studies by class and bin of its log-odds, and by true and told class."""
        check_logits(outputs)
        histogram = self._each.release(log_odds(outputs), labels, known, noised=noised)
        rows = histogram.reshape(len(self.names), -1)
        return np.concatenate([rows, confusion(outputs, labels, known)], axis=1)

    def summary(self, total: NDArray[Any], *, noise: float = 0.0) -> dict[str, Any]:
        """Return the figures of each class against the rest, and those of the told class."""
        histogram, told = self._parts(total)
        each = self._each.summary(histogram, noise=noise)
        return {**each, **self._told_json(_without_noise(told, noise))}

    def scores(self, outputs: NDArray[Any]) -> FloatArray:
        """Return the log-odds of each class against the rest."""
        return log_odds(outputs)

    def score_counts(self, total: NDArray[Any], *, noise: float = 0.0) -> FloatArray:
        """Return the histograms of each class against the rest, without negative cells."""
        return self._each.score_counts(self._parts(total)[0], noise=noise)

    def held_out(
        self,
        outputs: NDArray[Any],
        labels: NDArray[Any],
        known: NDArray[Any],
        patients: NDArray[Any],
    ) -> dict[str, Any]:
        """Return what a multilabel task has, by class, and the figures of the told class."""
        check_logits(outputs)
        figures = told_figures(outputs[None, None], labels, known, patients, resamples=1000)
        told = self._told_json(confusion(outputs, labels, known))
        intervals = {name: figure.macro(0).to_json() for name, figure in figures.items()}
        each = self._each.held_out(log_odds(outputs), labels, known, patients)
        return {**each, **told, **intervals}

    def figures(
        self,
        outputs: NDArray[Any],
        labels: NDArray[Any],
        known: NDArray[Any],
        patients: NDArray[Any],
        *,
        groups: Mapping[str, NDArray[np.intp]],
        resamples: int,
    ) -> dict[str, Resampled]:
        """Return the ranking figures of each class, recall and F1."""
        check_logits(outputs)
        scores = log_odds(outputs)
        each = self._each.figures(
            scores, labels, known, patients, groups=groups, resamples=resamples
        )
        return {**each, **told_figures(outputs, labels, known, patients, resamples=resamples)}

    def counts(
        self, outputs: NDArray[Any], labels: NDArray[Any], known: NDArray[Any]
    ) -> dict[str, Any]:
        """Return the confusion matrix, mean over seeds."""
        each = [confusion(one, labels, known) for one in outputs]
        return {"confusion": np.mean(each, axis=0).tolist()}

    def _parts(self, total: NDArray[Any]) -> tuple[FloatArray, FloatArray]:
        count = len(self.names)
        histogram = total[:, :-count].reshape(count, 2, -1).astype(np.float64)
        return histogram, total[:, -count:].astype(np.float64)

    def _told_json(self, counts: FloatArray) -> dict[str, Any]:
        recall, f1 = recalls_and_f1(counts)
        return {
            "balanced_accuracy": mean_of_known(recall),
            "f1_macro": mean_of_known(f1),
            "recall": dict(zip(self.names, recall, strict=True)),
            "f1": dict(zip(self.names, f1, strict=True)),
            "confusion": counts.tolist(),
        }


def told_figures(
    outputs: NDArray[Any],
    labels: NDArray[Any],
    known: NDArray[Any],
    patients: NDArray[Any],
    *,
    resamples: int,
) -> dict[str, Resampled]:
    """Return recall and F1 of each class for outputs [A, S, N, L], over resampled patients."""
    arms, _, _, count = outputs.shape
    told, true = outputs.argmax(axis=-1), labels.argmax(axis=-1)
    answered = known[:, 0] > 0
    values = np.full((2, 1 + resamples, arms, count), np.nan)
    for part, weights in resampled_weights(patients, resamples=resamples):
        for label in range(count):
            is_true = answered & (true == label)
            is_told = answered & (told == label)  # [A, S, N]
            size = is_true @ weights  # [r]
            said, hits = is_told @ weights, (is_told & is_true) @ weights  # [A, S, r]
            for row, (above, below) in enumerate(
                ((hits, size + 0 * hits), (2 * hits, size + said))
            ):
                share = np.divide(above, below, out=np.full_like(above, np.nan), where=size > 0)
                values[row, part, :, label] = share.mean(axis=1).T
    return {"balanced_accuracy": Resampled(values[0]), "f1_macro": Resampled(values[1])}


def _without_noise(counts: FloatArray, noise: float) -> FloatArray:
    """Return counts without negative cells; a class that the noise hides has none."""
    detectable = counts.sum(axis=1, keepdims=True) > 2 * noise * math.sqrt(counts.shape[1])
    return np.where(detectable, np.clip(counts, 0.0, None), 0.0)
