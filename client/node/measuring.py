"""What a run measures at one site: the (noised) counts of patients who are held out."""

from collections.abc import Callable, Sequence

import numpy as np
from flwr.app import RecordDict
from numpy.typing import NDArray

from client.node.policy import groups_of_enough_patients, of_enough_patients
from client.node.selecting import one_per_patient
from medfusion.data.site_data import SiteData
from medfusion.data.tensors import StudyTensors
from medfusion.errors import FederationError
from medfusion.evaluation.held_out_parts import HeldOut, held_out_of
from medfusion.evaluation.kinds import measures_of
from medfusion.evaluation.subgroups import attributes_of
from medfusion.privacy.gaussian_noise import noised
from medfusion.privacy.keystream import Keystream
from medfusion.privacy.plan import DpPlan
from medfusion.transport.requests import RunSettings, histogram_reply

Floats = NDArray[np.float32]


class Measuring:
    """The figures of one run at one site.

    Parameters
    ----------
    plan
        None without privacy.
    outputs
        Returns the model's outputs for studies.
    min_patients
        Fewest patients that a figure may be of; 0 where noise hides each of them.
    """

    def __init__(
        self,
        data: SiteData,
        settings: RunSettings,
        plan: DpPlan | None,
        *,
        outputs: Callable[[StudyTensors], Floats],
        min_patients: int,
    ) -> None:
        self._data = data
        self._settings = settings
        self._plan = plan
        self._outputs = outputs
        self._min_patients = min_patients
        self._measures = measures_of(data.task)
        self._attributes = attributes_of(settings.subgroups, data.task)

    def held_out(self, number: int) -> HeldOut:
        """Return what the release after a round counts."""
        return held_out_of(number, rounds=self._settings.rounds, attributes=self._attributes)

    def reply(
        self, held_out: HeldOut, parts: Sequence[StudyTensors], keystream: Callable[[], Keystream]
    ) -> RecordDict:
        """Return the (noised) counts of the parts; ``keystream`` makes the stream of their noise.

        Raises
        ------
        FederationError
            If the plan pays for no metrics, or without privacy if the model diverged.
        """
        if self._plan is None:
            counts = self._counts(held_out, parts)
        elif self._plan.metrics_noise is None:
            raise FederationError("the run's plan pays for no metrics: refused")
        else:
            counts = noised(
                self._counts(held_out, parts),
                sensitivity=held_out.sensitivity(self._measures),
                noise_multiplier=self._plan.metrics_noise,
                keystream=keystream(),
            )
        return histogram_reply(counts, self._data.patients_public)

    def _counts(self, held_out: HeldOut, parts: Sequence[StudyTensors]) -> NDArray[np.float64]:
        """Return the counts of disjoint parts, then of the groups of the first, without noise."""
        read = [(self._finite(part), part.truth, part.known.numpy()) for part in parts]
        least, noisy = self._min_patients, self._plan is not None
        scored = [(o, truth, of_enough_patients(known, least)) for o, truth, known in read]
        outputs, truth, known = read[0]
        features = one_per_patient(self._data.part(held_out.parts[0])).features
        for attribute in held_out.attributes:
            groups = groups_of_enough_patients(known, attribute.members(features), least)
            scored += [(outputs, truth, each) for each in groups]
        return held_out.join([self._measures.release(*each, noised=noisy) for each in scored])

    def _finite(self, part: StudyTensors) -> Floats:
        outputs = self._outputs(part)
        # Under privacy a crafted model must not tell whose scores it broke.
        return outputs if self._plan is None else np.nan_to_num(outputs, nan=0.0)
