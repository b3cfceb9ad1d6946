"""Measures of labels that are present or absent, each for itself.

Legend: as in `medfusion.evaluation.measures`; outputs are logits, W = L.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from medfusion.evaluation.held_out import held_out_json
from medfusion.evaluation.intervals import Resampled, patient_bootstrap
from medfusion.evaluation.measures import Measures
from medfusion.evaluation.metrics import FloatArray, check_logits
from medfusion.evaluation.score_histograms import (
    BINS,
    NOISED_BINS,
    consistent,
    metrics_from_histogram,
    score_histogram,
    score_sensitivity,
)


class MultilabelMeasures(Measures):
    """Discrimination and calibration of each label; a release is a score histogram [L, 2, S]."""

    by_label: ClassVar[Mapping[str, str]] = {"auroc": "auroc_macro", "auprc": "auprc_macro"}

    def release_shape(self, *, noised: bool) -> tuple[int, ...]:
        """Return (L, 2, S)."""
        return (len(self.names), 2, NOISED_BINS if noised else BINS)

    @property
    def sensitivity(self) -> float:
        """The square root of L."""
        return score_sensitivity(len(self.names))

    def release(
        self, outputs: NDArray[Any], labels: NDArray[Any], known: NDArray[Any], *, noised: bool
    ) -> FloatArray:
        """Count studies by label, class and bin of the logit."""
        bins = NOISED_BINS if noised else BINS
        return score_histogram(outputs, labels, known, bins=bins)

    def summary(self, total: NDArray[Any], *, noise: float = 0.0) -> dict[str, Any]:
        """Return AUROC, AUPRC, Brier score and calibration error."""
        return metrics_from_histogram(total, noise=noise).to_json(self.names)

    def scores(self, outputs: NDArray[Any]) -> FloatArray:
        """Return the outputs, which are logits."""
        logits: FloatArray = outputs.astype(np.float64)
        return logits

    def score_counts(self, total: NDArray[Any], *, noise: float = 0.0) -> FloatArray:
        """Return the histograms without negative cells."""
        return consistent(total, noise=noise)

    def held_out(
        self,
        outputs: NDArray[Any],
        labels: NDArray[Any],
        known: NDArray[Any],
        patients: NDArray[Any],
    ) -> dict[str, Any]:
        """Return counts and figures, overall and for each label."""
        return held_out_json(outputs, labels, known, patients, self.names)

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
        """Return AUROC and AUPRC within folds, and AUROC within folds and sites."""
        check_logits(outputs)
        in_fold, in_site = (
            patient_bootstrap(
                outputs, labels, known, patients, groups=groups[name], resamples=resamples
            )
            for name in ("fold", "site")
        )
        return {
            "auroc_macro": in_fold.auroc,
            "auroc_within_sites": in_site.auroc,
            "auprc_macro": in_fold.auprc,
        }
