"""What a run selects at one site: the histograms it releases, and the features it reads."""

from collections.abc import Callable

import numpy as np
from flwr.app import RecordDict
from numpy.typing import NDArray

from medfusion.data.labels import binary_labels
from medfusion.data.site_data import SiteData
from medfusion.data.split import TRAIN
from medfusion.data.studies import Studies
from medfusion.data.thresholds import (
    Selection,
    feature_label_histograms,
    first_study_per_patient,
    select_features,
    selection_sensitivity,
)
from medfusion.errors import FederationError
from medfusion.models.registry import modalities_of
from medfusion.privacy.gaussian_noise import noised
from medfusion.privacy.keystream import Keystream
from medfusion.privacy.plan import DpPlan
from medfusion.transport.requests import RunSettings, histogram_reply, read_histograms


class Selecting:
    """The selection of one run at one site.

    Parameters
    ----------
    plan
        None without privacy.
    keystream
        Makes the stream of the histograms' noise.
    release
        Returns the reply that its argument computes, which under privacy is paid for first
        and kept.
    """

    def __init__(
        self,
        data: SiteData,
        settings: RunSettings,
        plan: DpPlan | None,
        *,
        keystream: Callable[[], Keystream],
        release: Callable[[Callable[[], RecordDict]], RecordDict],
    ) -> None:
        self._data = data
        self._settings = settings
        self._plan = plan
        self._keystream = keystream
        self._release = release
        self._own: Selection | None = None

    def reply(self) -> RecordDict:
        """Return the (noised) histograms of the training patients, released once.

        Raises
        ------
        FederationError
            If the plan pays for none.
        """
        patients = self._data.patients_public
        return self._release(lambda: histogram_reply(self._histograms(), patients))

    def own(self) -> Selection | None:
        """Return what this site selects by itself, from its (noised) histograms."""
        if "tabular" not in modalities_of(self._settings.model, self._data.task):
            return None
        if self._own is None:
            multiplier = (self._plan.selection_noise or 0.0) if self._plan else 0.0
            self._own = select_features(
                read_histograms(self.reply()),
                self._data.task,
                self._settings.selection.top_n,
                noise=selection_sensitivity(self._data.task) * multiplier,
            )
        return self._own

    def mask(self, selection: Selection | None) -> list[int]:
        """Which model-input columns a selection holds, as 0 and 1; without one, all."""
        chosen = selection.features if selection else tuple(self._data.task.features)
        return [int(column.feature in chosen) for column in self._data.task.columns]

    def _histograms(self) -> NDArray[np.float64]:
        """Count one study of each training patient, with noise under privacy."""
        studies = one_per_patient(self._data.part(TRAIN))
        task = self._data.task
        histograms = feature_label_histograms(
            studies.features, binary_labels(studies.labels, task), task
        )
        if self._plan is None:
            return histograms
        if self._plan.selection_noise is None:
            raise FederationError("the run's plan pays for no selection: refused")
        return noised(
            histograms,
            sensitivity=selection_sensitivity(task),
            noise_multiplier=self._plan.selection_noise,
            keystream=self._keystream(),
        )


def one_per_patient(studies: Studies) -> Studies:
    """Return each patient's first study."""
    return studies.take(first_study_per_patient(studies.patient_ids))
