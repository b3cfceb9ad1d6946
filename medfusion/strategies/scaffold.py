"""SCAFFOLD: control variates take the drift out of local steps [1]_, Option II.

A site's control variate c_i estimates its gradient, c that of all: steps follow
``g(y) - c_i + c`` (eq. 3). After K steps at rate eta from x to y_i, Option II (eq. 4) sets

    c_i+ = c_i - c + (x - y_i) / (K eta)

K and eta are those of the run's settings: plain SGD at a constant rate. Both ends compute the
variates from what was sent: nothing travels but c, beside the model, and under
privacy it costs nothing. Option I would take a gradient that nobody paid for.

Differences from the paper: sites weigh as many patients as they declare, so that the optimum is
that of all patients alike; with equal sites it is the paper's. The coordinator keeps the sum of
``n_i c_i`` over all sites of the run, which stays right when sites come later.

References
----------
.. [1] Karimireddy et al., "SCAFFOLD: stochastic controlled averaging for federated learning",
   ICML 2020, arXiv 1910.06378.
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
    patients_of,
    to_float32,
    vectors,
    with_record,
)
from medfusion.strategies.site_rules import Round, State, travel_of
from medfusion.transport.requests import GUIDE


class ScaffoldSite:
    """The site's half; its memory is c_i, its guide is c."""

    def shift(self, memory: State, given: Round) -> State:
        """Return c - c_i."""
        return {name: given.guide[name] - own for name, own in memory.items()}

    def next_memory(self, memory: State, given: Round, sent: State) -> State:
        """Return c_i+ of Option II."""
        return {
            name: own - given.guide[name] + (given.received[name] - sent[name]) / given.travel
            for name, own in memory.items()
        }


class Scaffold(PatientWeighted):
    """The coordinator's half.

    Parameters
    ----------
    quorum, fraction_train
        As `PatientWeighted`.
    server_learning_rate
        Of the step towards the mean of the sites' models (eta_g).
    """

    def __init__(
        self,
        *,
        quorum: int,
        fraction_train: float = 1.0,
        server_learning_rate: float = 1.0,
    ) -> None:
        super().__init__(quorum=quorum, fraction_train=fraction_train)
        self._server_learning_rate = server_learning_rate
        # c of the round under way; in a tuple, so that checkpoints leave it out.
        self._control: tuple[Vectors] | None = None
        self.control_sum: Vectors = {}
        self.counted: Counted = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send model and c, and to each site the round after which its c_i goes on."""
        messages = list(super().configure_train(server_round, arrays, config, grid))
        self.control_sum = self.control_sum or {
            n: np.zeros_like(x) for n, x in vectors(arrays).items()
        }
        control = to_float32({n: total / self.patients for n, total in self.control_sum.items()})
        self._control = (vectors(control),)
        guided = [with_record(message, GUIDE, control) for message in messages]
        return telling_what_counted(guided, self.counted, self.run.sites.names)

    def combined(self, number: int, model: Vectors, replies: Mapping[str, Message]) -> Vectors:
        """Move model and control variates by what the sites' updates say."""
        assert self._control is not None, "sent with the model"
        (control,) = self._control
        step = {name: np.zeros_like(x) for name, x in model.items()}
        answered = sum(patients_of(reply) for reply in replies.values())
        for reply in replies.values():
            patients = patients_of(reply)
            travel = travel_of(self.run.training, patients)
            for name, trained in model_of(reply).items():
                update = trained - model[name]
                step[name] += patients / answered * update
                self.control_sum[name] += patients * (-control[name] - update / travel)
        self.counted = after(self.counted, number, replies)
        rate = self._server_learning_rate
        return {n: x + rate * step[n] for n, x in model.items()}
