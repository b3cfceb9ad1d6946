"""Label-aware averaging: what belongs to one label is averaged over those who record it.

A site that never records a label sends back the label's parameters as it got them, and a plain
mean counts that as an opinion. Here each site declares (``[site] label_coverage``) for what share
of its patients each label is known; rows of the model that one label alone owns are averaged
with patients times share as weights, all else with patients. Rows of a label that no site of the
round records stay as they were. The shares are declared, not counted: they are as public as the
number of patients, and nothing is learned from patients off the ledger. With full coverage
everywhere it is FedAvg. `server.local_selection` does the like for features.
"""

from collections.abc import Mapping

import numpy as np
from flwr.app import Message
from numpy.typing import NDArray

from medfusion.errors import ConfigError
from medfusion.strategies.patient_weighted import (
    PatientWeighted,
    RunFacts,
    Vectors,
    model_of,
    patients_of,
)


class LabelAware(PatientWeighted):
    """The coordinator's part; sites train as with FedAvg."""

    def serve(self, run: RunFacts) -> None:
        """Take note of the run; raises `ConfigError` if no row that travels is of one label."""
        if not run.label_rows:
            raise ConfigError(
                "strategy.name = 'label_aware' would be 'fedavg': nothing that travels of this "
                "model belongs to one label alone; expected another model, another strategy, or "
                "personalisation.local without 'head'"
            )
        super().serve(run)

    def combined(self, number: int, model: Vectors, replies: Mapping[str, Message]) -> Vectors:
        """Average each label's rows over the sites that record the label."""
        answered = sum(patients_of(reply) for reply in replies.values())
        known = {site: self._recorded(site, patients_of(reply)) for site, reply in replies.items()}
        recorded = np.sum(list(known.values()), axis=0)
        moved = {name: x.copy() for name, x in model.items()}
        for site, reply in replies.items():
            share = patients_of(reply) / answered
            label_shares = np.divide(
                known[site], recorded, out=np.zeros_like(recorded), where=recorded > 0
            )
            for name, trained in model_of(reply).items():
                weight: float | NDArray[np.float64] = share
                if name in self.run.label_rows:
                    weight = label_shares.reshape(-1, *(1,) * (trained.ndim - 1))
                moved[name] += weight * (trained - model[name])
        return moved

    def _recorded(self, site: str, patients: int) -> NDArray[np.float64]:
        """Return, for each label, the patients [L] of whom a site declares to know it."""
        shares = self.run.sites.sites[site].label_coverage or (1.0,) * len(self.run.labels)
        return patients * np.array(shares)
