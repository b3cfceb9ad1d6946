"""Cyclic weight transfer: the model goes from site to site [1]_.

In each round one site trains, and what it returns is the model. In a cycle each connected site
has one turn; the order is drawn anew for every cycle, or stays that of the names. A round needs
its one site's reply, so that the run's quorum is 1.

References
----------
.. [1] Chang et al., "Distributed deep learning networks among institutions for medical imaging",
   JAMIA 25:945-954, 2018.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from medfusion.strategies.patient_weighted import PatientWeighted, Vectors, model_of


class Cyclic(PatientWeighted):
    """The coordinator's part, which is all there is.

    Parameters
    ----------
    quorum
        1.
    shuffle
        Whether each cycle has an order of its own.
    order_seed
        Of the orders.
    """

    def __init__(self, *, quorum: int, shuffle: bool = True, order_seed: int = 0) -> None:
        super().__init__(quorum=quorum, fraction_train=1.0)
        self._shuffle = shuffle
        self._order_seed = order_seed

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the model to the site whose turn it is."""
        messages = {
            self.run.sites.names[message.metadata.dst_node_id]: message
            for message in super().configure_train(server_round, arrays, config, grid)
        }
        names = sorted(messages)
        cycle, turn = divmod(server_round - 1, len(names))
        if self._shuffle:
            names = list(np.random.default_rng([self._order_seed, cycle]).permutation(names))
        return [messages[names[turn]]]

    def combined(self, number: int, model: Vectors, replies: Mapping[str, Message]) -> Vectors:
        """Return the site's model as it is."""
        return model_of(next(iter(replies.values())))
