"""FedDyn: a dynamic regulariser brings the sites' optima to the common one [1]_.

A site minimises ``f_k(w) - <g_k, w> + mu_k / 2 |w - x|^2`` (eq. 1 of the paper, with g_k for the
gradient of its last solution), and then sets ``g_k <- g_k - mu_k (w_k - x)``, its gradient at
w_k to first order. The coordinator keeps h, the mean of the g_k over all sites, and returns the
mean of the models that came minus h / alpha.

Sites weigh as many patients as they declare, as in the authors' experiments: f_k is then
multiplied by w_k, patients over mean patients, which comes to ``mu_k = alpha / w_k`` for f_k as
it is. The coordinator keeps the sum of n_k g_k over all sites of the run, n_k being patients.
Both ends compute g_k from what was sent, so that under privacy it costs nothing.

References
----------
.. [1] Acar et al., "Federated learning based on dynamic regularization", ICLR 2021,
   arXiv 2111.04263, algorithm 1.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from medfusion.strategies.counted import Counted, after, telling_what_counted
from medfusion.strategies.patient_weighted import (
    PatientWeighted,
    Vectors,
    model_of,
    with_record,
)
from medfusion.strategies.site_rules import Round, State
from medfusion.transport.requests import CONFIG, MU_KEY


class FedDynSite:
    """The site's half; its memory is g_k. The pull towards the model is that of FedProx."""

    def shift(self, memory: State, given: Round) -> State:
        """Return -g_k."""
        return {name: -own for name, own in memory.items()}

    def next_memory(self, memory: State, given: Round, sent: State) -> State:
        """Return g_k once the round's model is known."""
        return {
            name: own - given.proximal_mu * (sent[name] - given.received[name])
            for name, own in memory.items()
        }


class FedDyn(PatientWeighted):
    """The coordinator's half.

    Parameters
    ----------
    quorum, fraction_train
        As `PatientWeighted`.
    alpha
        Strength of the regulariser, above 0: large values take small, sure steps.
    """

    def __init__(self, *, quorum: int, fraction_train: float = 1.0, alpha: float = 0.1) -> None:
        super().__init__(quorum=quorum, fraction_train=fraction_train)
        if not alpha > 0:
            raise ValueError(f"alpha = {alpha}: expected a number above 0")
        self._alpha = alpha
        self.gradient_sum: Vectors = {}
        self.counted: Counted = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the model, and to each site its mu and the round after which its g_k goes on."""
        messages = list(super().configure_train(server_round, arrays, config, grid))
        own = [self._with_mu(message) for message in messages]
        return telling_what_counted(own, self.counted, self.run.sites.names)

    def _with_mu(self, message: Message) -> Message:
        name = self.run.sites.names[message.metadata.dst_node_id]
        mu = self._alpha * self._mean_patients / self.run.sites.sites[name].patients_public
        config = ConfigRecord({**message.content.config_records[CONFIG], MU_KEY: mu})
        return with_record(message, CONFIG, config)

    @property
    def _mean_patients(self) -> float:
        return self.patients / len(self.run.sites.sites)

    def combined(self, number: int, model: Vectors, replies: Mapping[str, Message]) -> Vectors:
        """Return the mean of the sites' models, less what their gradients do not cancel."""
        step = {name: np.zeros_like(x) for name, x in model.items()}
        for reply in replies.values():
            for name, trained in model_of(reply).items():
                step[name] += trained - model[name]
        total = self.gradient_sum or {name: np.zeros_like(x) for name, x in model.items()}
        # n_k mu_k is the same for all sites.
        scale = self._alpha * self._mean_patients
        self.gradient_sum = {name: old - scale * step[name] for name, old in total.items()}
        self.counted = after(self.counted, number, replies)
        return {
            name: x
            + step[name] / len(replies)
            - self.gradient_sum[name] / (self.patients * self._alpha)
            for name, x in model.items()
        }
