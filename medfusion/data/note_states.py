"""States of a frozen text encoder, computed once for all studies instead of once a step.

A frozen encoder says the same of a note in every step of every round, and it costs more than the
rest of the network. Every distinct note is encoded once; only its real tokens are stored.

Legend: N studies, B batch, T tokens, S width of a state, R states of all distinct notes,
P states of one study's note (T, or 1 where the encoder pools).
"""

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from medfusion.atomic_files import replacing

_FORMAT = 1  # of the states on disk: to be raised when their meaning changes
_KEPT_SECONDS = 7 * 24 * 3600  # after the last use: the runs of a comparison take turns
_CHUNK_TOKENS = 2048  # of one pass of the encoder, padding included


class NoteEncoder(Protocol):
    """A text encoder that nothing trains.

    ``pooled``: it gives one state for each note instead of one for each token. ``sha256``: of
    its weights and settings; None if it is so fast that its states are not worth keeping on disk.
    """

    @property
    def pooled(self) -> bool:
        """Whether P is 1."""
        ...

    @property
    def width(self) -> int:
        """S."""
        ...

    @property
    def sha256(self) -> str | None:
        """Hex digest, or None."""
        ...

    def encode(self, tokens: Tensor, /) -> Tensor:
        """Return states [B, P, S] of tokens [B, T], on the CPU; 0 pads and changes no state."""
        ...


@dataclass(frozen=True, eq=False, repr=False)
class NoteStates:
    """The notes of N studies as states.

    States of tokens are kept in float16, whose rounding (2^-11) is finer than that of the
    bfloat16 in which GPUs train; pooled ones, of which there are few, in float32.

    Attributes
    ----------
    flat
        [R, S], the states of one note after those of another.
    first, count
        int64 [N]: where a study's states begin, and how many there are (0: no note).
    positions
        P.
    """

    flat: Tensor
    first: Tensor
    count: Tensor
    positions: int

    @classmethod
    def build(cls, tokens: NDArray[np.int64], encoder: NoteEncoder) -> Self:
        """Encode the notes of N studies, given as token ids [N, T], 0 = padding at the end."""
        notes, note_of_study = np.unique(tokens, axis=0, return_inverse=True)
        lengths = torch.from_numpy((notes > 0).sum(axis=1))
        counts = (lengths > 0).long() if encoder.pooled else lengths
        first = counts.cumsum(0) - counts
        dtype = torch.float32 if encoder.pooled else torch.float16
        flat = torch.zeros(int(counts.sum()), encoder.width, dtype=dtype)
        for chunk in _chunks(lengths):
            states = encoder.encode(torch.from_numpy(notes)[chunk, : int(lengths[chunk].max())])
            place = torch.arange(states.shape[1])
            real = place < counts[chunk, None]
            flat[(first[chunk, None] + place)[real]] = states[real].to(dtype)
        study = torch.from_numpy(note_of_study.reshape(-1))
        positions = 1 if encoder.pooled else tokens.shape[1]
        return cls(flat, first[study], counts[study], positions)

    @classmethod
    def cached(cls, tokens: NDArray[np.int64], encoder: NoteEncoder, folder: Path) -> Self:
        """Do as `build` does, or read what an earlier call left in ``folder``, a site's own.

        What no call has used for a week (states of another encoder, task or table) is removed.
        """
        if encoder.sha256 is None:
            _remove_unused(folder)
            return cls.build(tokens, encoder)
        about = f"{_FORMAT} {encoder.sha256} {encoder.pooled} {tokens.shape}\n"
        content = about.encode() + tokens.tobytes()
        path = folder / f"notes-{hashlib.sha256(content).hexdigest()[:32]}.safetensors"
        with suppress(OSError):
            os.utime(path)  # a file's time says when it was last used
        _remove_unused(folder)
        positions = 1 if encoder.pooled else tokens.shape[1]
        try:
            return cls(**load_file(path), positions=positions)
        except (FileNotFoundError, SafetensorError, TypeError):
            states = cls.build(tokens, encoder)
        folder.mkdir(parents=True, exist_ok=True)
        kept = {"flat": states.flat, "first": states.first, "count": states.count}
        with replacing(path, durable=False) as partial:
            save_file(kept, partial)
        return states

    @property
    def sha256(self) -> str:
        """Hex digest of all states, and of whose they are."""
        digest = hashlib.sha256(f"{self.positions} {tuple(self.flat.shape)}\n".encode())
        for tensor in (self.flat, self.first, self.count):
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def rows(self, index: Tensor, device: torch.device | str) -> Tensor:
        """Return the states of the studies at ``index``: float32 [B, P, S], 0 where there is none.

        Parameters
        ----------
        index
            int64 [B], on the CPU.
        """
        place = torch.arange(self.positions)
        real = place < self.count[index, None]
        states = torch.zeros(*real.shape, self.flat.shape[1], dtype=self.flat.dtype)
        states[real] = self.flat[(self.first[index, None] + place)[real]]
        return states.to(device).float()


def _remove_unused(folder: Path) -> None:
    """Remove files that nobody has used for long, and what processes left that were killed.

    Another process may remove the same file, or be about to read it: it then encodes again.
    """
    oldest = time.time() - _KEPT_SECONDS
    for pattern in ("notes-*.safetensors", ".notes-*.partial"):
        for path in folder.glob(pattern):
            with suppress(OSError):  # a file too many does no harm
                if path.stat().st_mtime < oldest:
                    path.unlink()


def _chunks(lengths: Tensor) -> Iterator[Tensor]:
    """Yield the notes that are not empty, short ones first, so that little padding is encoded."""
    order = torch.argsort(lengths, stable=True)
    order = order[lengths[order] > 0]
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and (end + 1 - start) * int(lengths[order[end]]) <= _CHUNK_TOKENS:
            end += 1
        yield order[start:end]
        start = end
