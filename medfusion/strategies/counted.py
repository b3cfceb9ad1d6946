"""Which round of a site counted last: the one after which its memory goes on.

A reply that came late, was lost or was refused leaves no trace at the coordinator, so it must
leave none at the site: each request says from which round's memory to go on. So does a run that
is resumed from a checkpoint.
"""

from collections.abc import Iterable, Mapping
from typing import SupportsInt

import numpy as np
from flwr.app import ConfigRecord, Message
from numpy.typing import NDArray

from medfusion.strategies.patient_weighted import with_record
from medfusion.transport.requests import CONFIG, COUNTED_KEY

Counted = dict[str, NDArray[np.int64]]
"""Round of the last reply that counted, by site name; arrays, so that checkpoints keep them."""


def telling_what_counted(
    messages: Iterable[Message], counted: Mapping[str, SupportsInt], names: Mapping[int, str]
) -> list[Message]:
    """Return the messages, each with the round of its site that counted last, 0 for none."""
    told = []
    for message in messages:
        round_ = counted.get(names[message.metadata.dst_node_id], 0)
        config = ConfigRecord({**message.content.config_records[CONFIG], COUNTED_KEY: int(round_)})
        told.append(with_record(message, CONFIG, config))
    return told


def after(counted: Counted, number: int, names: Iterable[str]) -> Counted:
    """Return what counted last, once replies of round ``number`` did."""
    return counted | {name: np.array(number, np.int64) for name in names}
