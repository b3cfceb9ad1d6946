"""The model's way down in fewer bytes: what the sites hold already, and a step from there.

Let x be the model that the sites hold: the coordinator knows it bit by bit. Sites train from x, and
the strategy makes z of their replies, as if x were all there is. What travels next is

    p = z - x + e,    q = Q(p),    x' = x + q,    e' = p - q

with a codec Q of `medfusion.transport.compress` and what it lost so far, e (error feedback at both
ends: DoubleSqueeze [1]_). So x is the run's model: trained from, averaged, evaluated, delivered.
What e holds comes with later rounds, that of the last one never. Under privacy all of it is
post-processing of models that were released.

A message names x by its digest. A site that has it needs no arrays; one that holds the model before
gets q; one that says it holds neither (late, started anew, missed a round) is sent x whole at
once, in the same exchange. Before the first round, sites hold what the seed draws. What a strategy
sends beside the model (SCAFFOLD's control variate) travels whole, and so does a running average.

References
----------
.. [1] Tang et al., "DoubleSqueeze: parallel stochastic gradient descent with double-pass
   error-compensated compression", ICML 2019, arXiv 1905.05957.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from medfusion.randomness import stream
from medfusion.transport.arrays import from_record, state_sha256
from medfusion.transport.compress import Codec, Floats
from medfusion.transport.compression_options import CodecOptions
from medfusion.transport.requests import ARRAYS, BASE_KEY, CONFIG, MODEL_KEY
from medfusion.transport.updates import moved_by, size_of, update_of
from server.messages import with_content

_LOST, _BASE, _PACKED = "lost", "base", "packed/"


@dataclass(frozen=True)
class _Step:
    """The arrays that lead to the model from the one before, which ``base`` names.

    One record of them, for all messages that carry it: it is serialised once.
    """

    base: str
    arrays: ArrayRecord
    lost: Floats


@dataclass
class Downlink:
    """The model that sites hold, and how each of them gets it.

    Parameters
    ----------
    model
        What all begin with.
    seed, run_id
        Of the run; they name the public stream of random rounding.
    """

    options: CodecOptions
    model: ArrayRecord
    seed: int
    run_id: str
    _step: _Step | None = None
    _holders: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._codec = Codec.of(self.options, size_of(self.model))
        self._sha256 = _sha256(self.model)

    @property
    def off(self) -> bool:
        """Whether models travel whole."""
        return self._codec.level == "none"

    def move(self, number: int, made: ArrayRecord) -> ArrayRecord:
        """Return the model that follows once round ``number`` has made another one."""
        if self.off:
            return made
        update = update_of(made, self.model).astype(np.float32)
        if self.options.error_feedback and self._step is not None:
            update = update + self._step.lost
        sent = self._codec.send(update, stream(self.seed, self.run_id, "downlink", number))
        step = ArrayRecord({name: Array(array) for name, array in sent.arrays.items()})
        self._step = _Step(self._sha256, step, sent.lost)
        self._begin(moved_by(self.model, sent.read))
        return self.model

    def _begin(self, model: ArrayRecord) -> None:
        self.model, self._sha256, self._holders = model, _sha256(model), set()

    def packed(self, messages: Iterable[Message], names: Mapping[int, str]) -> list[Message]:
        """Return messages that carry the model, each with as little as its site needs."""
        if self.off:
            return list(messages)
        return [self._for(names[m.metadata.dst_node_id], m) for m in messages]

    def _for(self, name: str, message: Message) -> Message:
        if name in self._holders or self._step is None:
            return self._telling(message, None)
        return self._telling(message, self._step.arrays, base=self._step.base)

    def whole(self, message: Message) -> Message | None:
        """Return what to send a site that holds no model which a message goes on from.

        None if the message had all of it.
        """
        config = message.content.config_records[CONFIG]
        if config.get(MODEL_KEY) != self._sha256:
            return None
        if ARRAYS in message.content and BASE_KEY not in config:
            return None
        return self._telling(message, self.model)

    def held_by(self, names: Iterable[str]) -> None:
        """Take note of sites that answered well to a message which carries the model."""
        self._holders |= set(names)

    def _telling(
        self, message: Message, arrays: ArrayRecord | None, *, base: str | None = None
    ) -> Message:
        told = {**message.content.config_records[CONFIG], MODEL_KEY: self._sha256}
        told.pop(BASE_KEY, None)
        if base is not None:
            told[BASE_KEY] = base
        content = RecordDict({**message.content, CONFIG: ConfigRecord(told)})
        content.pop(ARRAYS, None)
        if arrays is not None:
            content[ARRAYS] = arrays
        return with_content(message, content)

    def state(self) -> ArrayRecord | None:
        """Return what a checkpoint keeps beside the model; None if nothing."""
        if self._step is None:
            return None
        base = np.frombuffer(bytes.fromhex(self._step.base), np.uint8)
        kept = {_PACKED + name: array for name, array in self._step.arrays.items()}
        return ArrayRecord(kept | {_LOST: Array(self._step.lost), _BASE: Array(base)})

    def resume(self, model: ArrayRecord, state: ArrayRecord | None) -> None:
        """Go on from a checkpoint's model and what `state` returned for it."""
        if state is not None:
            kept = dict(state.items())
            lost, base = kept.pop(_LOST).numpy(), kept.pop(_BASE).numpy().tobytes().hex()
            arrays = {name.removeprefix(_PACKED): array for name, array in kept.items()}
            self._step = _Step(base, ArrayRecord(arrays), lost)
        self._begin(model)


def _sha256(model: ArrayRecord) -> str:
    return state_sha256(from_record(model))
