"""Sends a round's update compressed, and keeps what that lost for the next one."""

from collections.abc import Callable

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, RecordDict

from client.node.strategy_memory import StrategyMemory
from medfusion.transport.compress import Codec
from medfusion.transport.requests import ARRAYS, Received, RunSettings
from medfusion.transport.updates import moved_by, size_of, update_of

_LOST = "lost"


def compressed(
    reply: RecordDict,
    request: Received,
    settings: RunSettings,
    memory: StrategyMemory,
    draws: Callable[[], torch.Generator],
) -> tuple[RecordDict, ArrayRecord]:
    """Return a training reply as it travels, and the model that the coordinator reads from it.

    Parameters
    ----------
    reply
        With the trained model; under privacy it was charged, and what follows is computed from
        nothing else.
    memory
        What the updates of earlier rounds lost.
    draws
        Makes the generator of random rounding: the same one whenever the round is asked for.

    Raises
    ------
    FederationError
        If what was lost is not in the site's state any more.
    """
    trained, received = reply.array_records[ARRAYS], request.arrays
    assert received is not None
    codec = Codec.of(settings.compression, size_of(received))
    if codec.level == "none":
        return reply, trained
    update = update_of(trained, received).astype(np.float32)
    if settings.compression.error_feedback:
        like = {_LOST: torch.zeros(codec.size)}
        update = update + memory.after(request.counted, like)[_LOST].numpy()
    sent = codec.send(update, draws())
    if settings.compression.error_feedback:
        lost = {_LOST: torch.from_numpy(sent.lost)}
        memory.keep(request.round, lost, counted=request.counted)
    arrays = ArrayRecord({name: Array(array) for name, array in sent.arrays.items()})
    return RecordDict({**reply, ARRAYS: arrays}), moved_by(received, sent.read)
