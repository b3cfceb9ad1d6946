"""What the strategies of this package share: Flower's FedAvg on our records, in float64."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray

from medfusion.training.options import TrainingOptions
from medfusion.transport.requests import ARRAYS, CONFIG, METRICS, WEIGHT_KEY, SiteDescription

Vectors = dict[str, NDArray[np.float64]]
"""Arrays by the names of the parameters they belong to."""


class KnownSites(Protocol):
    """The sites of a run, which may grow in number.

    ``sites`` are the public facts by site name, of those that are away as well; ``names`` the
    names of those that a node stands for, by node id.
    """

    @property
    def sites(self) -> Mapping[str, SiteDescription]:
        """Public facts by site name."""
        ...

    @property
    def names(self) -> Mapping[int, str]:
        """Site names by node id."""
        ...


@dataclass(frozen=True)
class RunFacts:
    """What a strategy may know of a run.

    Attributes
    ----------
    sites
        Who takes part.
    training
        What each site does in a round.
    labels
        Names of the task's labels.
    label_rows
        Parameters that travel with a row for each label (`medfusion.models.label_rows`).
    """

    sites: KnownSites
    training: TrainingOptions
    labels: tuple[str, ...]
    label_rows: frozenset[str]


class PatientWeighted(FedAvg):
    """Flower's FedAvg, told what run it serves; a base for strategies of this package.

    Sums run in float64 and in the order of the sites' names: the result does not depend on the
    order in which replies come.

    Parameters
    ----------
    quorum
        Fewest sites of a round.
    fraction_train
        Share of the connected sites that train in a round.
    """

    def __init__(self, *, quorum: int, fraction_train: float = 1.0) -> None:
        super().__init__(
            fraction_train=fraction_train,
            min_train_nodes=quorum,
            min_evaluate_nodes=quorum,
            min_available_nodes=quorum,
            weighted_by_key=WEIGHT_KEY,
            arrayrecord_key=ARRAYS,
            configrecord_key=CONFIG,
        )
        self._run: RunFacts | None = None
        # The model of the round under way; in a tuple, so that checkpoints leave it out.
        self._sent: tuple[Vectors] | None = None

    def serve(self, run: RunFacts) -> None:
        """Take note of the run; before its first round."""
        self._run = run

    @property
    def run(self) -> RunFacts:
        """The run; raises `ValueError` if nobody told."""
        if self._run is None:
            raise ValueError("Expected serve() before the first round.")
        return self._run

    @property
    def patients(self) -> int:
        """Declared patients of all sites of the run, also of those that are away."""
        return sum(site.patients_public for site in self.run.sites.sites.values())

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the model."""
        self._sent = (vectors(arrays),)
        messages: Iterable[Message] = super().configure_train(server_round, arrays, config, grid)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return what the replies combine to; no metrics, since the run loop reads none."""
        named = self.in_order(replies)
        if not named or self._sent is None:
            return None, None
        (model,) = self._sent
        return to_float32(self.combined(server_round, model, named)), MetricRecord()

    @abstractmethod
    def combined(self, number: int, model: Vectors, replies: Mapping[str, Message]) -> Vectors:
        """Return the model after a round.

        Parameters
        ----------
        number
            The round.
        model
            What the sites were sent.
        replies
            The good ones by site name, in the order of the names; never none.
        """

    def in_order(self, replies: Iterable[Message]) -> dict[str, Message]:
        """Return the good replies by site name, in the order of the names."""
        good, _ = self._check_and_log_replies(list(replies), is_train=True)
        named = {self.run.sites.names[reply.metadata.src_node_id]: reply for reply in good}
        return {name: named[name] for name in sorted(named)}


def with_record(message: Message, name: str, record: ArrayRecord | ConfigRecord) -> Message:
    """Return a message that is not sent yet, with one more record or another one in its place."""
    content = RecordDict({**message.content, name: record})
    return Message(content, message.metadata.dst_node_id, message.metadata.message_type)


def vectors(record: ArrayRecord) -> Vectors:
    """Return a record's arrays in float64."""
    return {name: array.numpy().astype(np.float64) for name, array in record.items()}


def model_of(reply: Message) -> Vectors:
    """Return the model that a reply carries."""
    return vectors(reply.content.array_records[ARRAYS])


def patients_of(reply: Message) -> int:
    """Return the declared patients of the site that replied."""
    return int(str(reply.content.metric_records[METRICS][WEIGHT_KEY]))


def to_float32(model: Mapping[str, NDArray[np.float64]]) -> ArrayRecord:
    """Return arrays as they travel."""
    # numpy makes scalars of 0-d arrays
    return ArrayRecord({name: Array(np.asarray(model[name], np.float32)) for name in model})
