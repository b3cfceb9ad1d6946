"""Updates in fewer bytes, with what they lose kept for the next round.

========  ==================================================================  ===================
level     what travels of an update of P entries                              bytes
========  ==================================================================  ===================
none      float32 entries                                                     4 P
bfloat16  entries rounded to the nearest                                      2 P
int8      blocks of 256: a float32 scale, entries rounded at random to one    P + P / 64
          of 255 steps, so that they are right in the mean [1]_
int4      the same with 15 steps, two entries in a byte                       P / 2 + P / 64
topk      the largest entries by size: number as uint32, value as bfloat16    6 k
========  ==================================================================  ===================

Random rounding draws from a public stream of run, site (or coordinator) and round, so that a
message comes out the same again. **Error feedback** [2]_ adds to an update what the one before
lost; top-k needs it, since entries that stay small would never be sent. Under privacy all of this
is post-processing of the update as it was released and charged; so is the memory of what was lost.

References
----------
.. [1] Alistarh et al., "QSGD: communication-efficient SGD via gradient quantization and
   encoding", NeurIPS 2017 (with the largest entry of a block as its scale).
.. [2] Seide et al., "1-bit stochastic gradient descent", Interspeech 2014; Karimireddy et al.,
   "Error feedback fixes SignSGD and other gradient compression schemes", ICML 2019.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from medfusion.errors import FederationError
from medfusion.transport.compression_options import CodecOptions, Level

Floats = NDArray[np.float32]
Arrays = Mapping[str, NDArray[Any]]
_BLOCK = 256
_STEPS: dict[Level, int] = {"int8": 127, "int4": 7}
_BYTES_OF_ENTRY = 6  # of top-k


@dataclass(frozen=True)
class Sent:
    """What travels of an update, what the other end reads of it, and what is lost, both [P]."""

    arrays: dict[str, NDArray[Any]]
    read: Floats
    lost: Floats


@dataclass(frozen=True)
class Codec:
    """How an update of ``size`` entries travels; both ends make the same one.

    ``kept`` is the number of entries that ``topk`` sends.
    """

    level: Level
    size: int
    kept: int = 0

    @classmethod
    def of(cls, options: CodecOptions, size: int) -> Self:
        """Return what the options come to; a byte budget chooses by ``size`` alone."""
        kept = max(1, round(options.fraction * size))
        if options.byte_budget is None:
            return cls(options.level, size, kept if options.level == "topk" else 0)
        levels: tuple[Level, ...] = ("none", "bfloat16", "int8", "int4")
        for level in levels:
            if (codec := cls(level, size)).bytes <= options.byte_budget:
                return codec
        return cls("topk", size, options.byte_budget // _BYTES_OF_ENTRY)

    @property
    def bytes(self) -> int:
        """Bytes of the arrays that travel."""
        scales = 4 * -(-self.size // _BLOCK)
        return {
            "none": 4 * self.size,
            "bfloat16": 2 * self.size,
            "int8": self.size + scales,
            "int4": -(-self.size // 2) + scales,
            "topk": _BYTES_OF_ENTRY * self.kept,
        }[self.level]

    def send(self, update: Floats, draws: torch.Generator) -> Sent:
        """Pack an update, [P]; ``draws`` as in `pack`."""
        arrays = self.pack(update, draws)
        read = self.unpack(arrays)
        return Sent(arrays, read, update - read)

    def pack(self, update: Floats, draws: torch.Generator) -> dict[str, NDArray[Any]]:
        """Return the arrays that travel, by name.

        Parameters
        ----------
        update
            [P].
        draws
            A CPU generator for random rounding.
        """
        if self.level == "bfloat16":
            return {"values": _to_bfloat16(update)}
        if self.level == "topk":
            # What is no number comes first, so that the other end sees it.
            largest = np.nan_to_num(np.abs(update), nan=np.inf)
            order = np.argsort(-largest, kind="stable")[: self.kept]
            index = np.sort(order).astype(np.uint32)
            return {"index": index, "values": _to_bfloat16(update[index])}
        if self.level in _STEPS:
            return self._quantised(update, draws)
        return {"values": update}

    def unpack(self, arrays: Arrays) -> Floats:
        """Return the update, [P], that packed arrays stand for.

        Raises
        ------
        FederationError
            If they are not what `pack` returns for this codec.
        """
        expected = self._layout()
        found = {name: (array.dtype, array.shape) for name, array in arrays.items()}
        if found != expected:
            raise FederationError(f"an update sent as {self.level}: expected other arrays")
        if self.level == "bfloat16":
            return _from_bfloat16(arrays["values"])
        if self.level == "topk":
            index = arrays["index"]
            if (np.diff(index.astype(np.int64)) <= 0).any() or index[-1] >= self.size:
                raise FederationError(f"an update sent as topk: expected {self.kept} rising places")
            update = np.zeros(self.size, np.float32)
            update[index] = _from_bfloat16(arrays["values"])
            return update
        if self.level in _STEPS:
            return self._restored(arrays["values"], arrays["scales"])
        return np.array(arrays["values"])

    def _layout(self) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
        whole, blocks = (self.size,), (-(-self.size // _BLOCK),)
        layouts: dict[Level, dict[str, tuple[str, tuple[int, ...]]]] = {
            "none": {"values": ("<f4", whole)},
            "bfloat16": {"values": ("<u2", whole)},
            "int8": {"values": ("i1", whole), "scales": ("<f4", blocks)},
            "int4": {"values": ("u1", (-(-self.size // 2),)), "scales": ("<f4", blocks)},
            "topk": {"index": ("<u4", (self.kept,)), "values": ("<u2", (self.kept,))},
        }
        return {n: (np.dtype(kind), shape) for n, (kind, shape) in layouts[self.level].items()}

    def _quantised(self, update: Floats, draws: torch.Generator) -> dict[str, NDArray[Any]]:
        steps = _STEPS[self.level]
        blocks = np.zeros((-(-self.size // _BLOCK), _BLOCK), np.float32)
        blocks.reshape(-1)[: self.size] = update
        scales = np.abs(blocks).max(axis=1) / np.float32(steps)
        divisor = np.where(scales == 0, np.float32(1), scales)[:, None]
        uniform = torch.rand(blocks.shape, generator=draws).numpy()
        whole = np.clip(np.floor(blocks / divisor + uniform), -steps, steps)
        # A scale that is not finite says so by itself at the other end.
        values = np.nan_to_num(whole, nan=0.0).astype(np.int8).reshape(-1)[: self.size]
        if self.level == "int4":
            pairs = np.zeros(2 * -(-self.size // 2), np.uint8)
            pairs[: self.size] = (values + 8).astype(np.uint8)
            values = pairs[::2] | (pairs[1::2] << 4)
        return {"values": values, "scales": scales}

    def _restored(self, values: NDArray[Any], scales: Floats) -> Floats:
        if self.level == "int4":
            pairs = np.stack([values & 15, values >> 4], axis=1).reshape(-1)[: self.size]
            values = pairs.astype(np.int8) - np.int8(8)
        restored: Floats = values.astype(np.float32) * np.repeat(scales, _BLOCK)[: self.size]
        return restored


def _to_bfloat16(values: Floats) -> NDArray[np.uint16]:
    whole: NDArray[np.uint16] = (
        torch.from_numpy(np.ascontiguousarray(values)).bfloat16().view(torch.uint16).numpy()
    )
    return whole


def _from_bfloat16(whole: NDArray[np.uint16]) -> Floats:
    values: Floats = (
        torch.from_numpy(np.ascontiguousarray(whole)).view(torch.bfloat16).float().numpy()
    )
    return values
