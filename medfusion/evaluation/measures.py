"""How good a model is, for each kind of task: from raw outputs, and from what sites release.

A site releases one array of fixed shape, to which each patient adds through one study; arrays of
sites add up, and the federation's figures come from the sum. So the same code serves a site, a
federation, and (with noise of the array's sensitivity) a private run.

Legend: A arms, S seeds, N studies, W outputs of a model for a study, L labels.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from medfusion.evaluation.intervals import Resampled
from medfusion.evaluation.metrics import FloatArray

NOTHING_KNOWN: Mapping[str, Any] = {
    "auroc_macro": None,
    "auprc_macro": None,
    "auroc": {},
    "brier": None,
    "ece": None,
}
"""The keys that every ``summary.json`` has."""


@dataclass(frozen=True)
class Headline:
    """The one figure that stands for a model where there is room for one.

    ``key`` is its key in JSON files, ``name`` what people read.
    """

    key: str
    name: str
    lower_is_better: bool = False


class Measures(ABC):
    """The figures of one task.

    Attributes
    ----------
    headline
        The figure shown first.
    released
        In words, what a site releases.
    by_label
        In ``compare.json``: key of a figure's values by label -> key of their mean.
    names
        The L labels.
    """

    headline: ClassVar[Headline] = Headline("auroc_macro", "macro AUROC")
    released: ClassVar[str] = "score histograms"
    by_label: ClassVar[Mapping[str, str]]

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    @abstractmethod
    def release_shape(self, *, noised: bool) -> tuple[int, ...]:
        """Return the shape of what a site releases."""

    @property
    @abstractmethod
    def sensitivity(self) -> float:
        """Most that one patient adds to a release, in the L2 norm."""

    @abstractmethod
    def release(
        self, outputs: NDArray[Any], labels: NDArray[Any], known: NDArray[Any], *, noised: bool
    ) -> FloatArray:
        """Return what a site releases, of `release_shape`, before any noise.

        Parameters
        ----------
        outputs, labels, known
            [N, W], [N, L], [N, L]; **one study of each patient**. A label counts where ``known``
            is not 0.
        noised
            Noise will fall on each number, so fewer of them tell more.

        Raises
        ------
        FederationError
            If an output is NaN: the model diverged.
        """

    @abstractmethod
    def summary(self, total: NDArray[Any], *, noise: float = 0.0) -> dict[str, Any]:
        """Return the figures in ``summary.json`` from the sum of the sites' releases.

        ``noise`` is the (public) standard deviation of the noise on each number.
        """

    @abstractmethod
    def scores(self, outputs: NDArray[Any]) -> FloatArray | None:
        """Return each label's logit in a study, [..., L], as a release counts it.

        None where nothing is told of labels.
        """

    @abstractmethod
    def score_counts(self, total: NDArray[Any], *, noise: float = 0.0) -> FloatArray | None:
        """Return score histograms [L, 2, S] without negative cells; None if there are none."""

    @abstractmethod
    def held_out(
        self,
        outputs: NDArray[Any],
        labels: NDArray[Any],
        known: NDArray[Any],
        patients: NDArray[Any],
    ) -> dict[str, Any]:
        """Return counts and figures of one site's raw outputs, with intervals over patients."""

    @abstractmethod
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
        """Return the figures of several arms by their keys, all over the same resamples.

        Parameters
        ----------
        outputs
            [A, S, N, W] for the same studies.
        labels, known, patients
            As in `medfusion.evaluation.intervals.patient_bootstrap`.
        groups
            ``fold`` and ``site`` [N]: scores of models from different folds say nothing about
            which of two studies ranks above the other, so ranks are taken within groups.
        """

    def counts(
        self, outputs: NDArray[Any], labels: NDArray[Any], known: NDArray[Any]
    ) -> dict[str, Any]:
        """Return what an arm's JSON holds beside the figures; ``outputs`` are [S, N, W]."""
        return {}
