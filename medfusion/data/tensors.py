"""A site's studies as tensors: prepared once, then indexed batch by batch.

Legend: N studies, B batch, C channels, H height, W width, K model-input columns, L labels,
T tokens.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medfusion.data.boxes import Boxes
from medfusion.data.encode import encode_tabular
from medfusion.data.images import ImageCache
from medfusion.data.labels import truth_array
from medfusion.data.note_states import NoteEncoder, NoteStates
from medfusion.data.studies import Studies
from medfusion.data.task import Task
from medfusion.data.thresholds import Selection

Inputs = dict[str, Tensor]
Tokenizer = Callable[[Sequence[str | None]], NDArray[np.int64]]
ImageFeatures = Callable[[Tensor], Tensor]
"""From images [B, C, H, W] to float32 [B, F], both on the CPU; nothing in it is trained."""

_CHUNK = 64  # images at a time


class StudyTensors:
    """Studies ready for a model; build with `StudyTensors.build`.

    Attributes
    ----------
    labels
        float32 [N, L], 0 where unknown.
    known
        float32 [N, L], 1 where the label is known.
    truth
        float32 [N, L] or [N, L + 5 M], see `truth_array`; 0 where a label is unknown.
    patients
        int64 [N]: a number for each patient, shared by the patient's studies.
    column_features
        int64 [K]: the number of the feature that each model-input column belongs to.
    """

    def __init__(
        self,
        *,
        labels: Tensor,
        known: Tensor,
        truth: NDArray[np.float32],
        patients: Tensor,
        column_features: Tensor,
        resident: Inputs,
        notes: NoteStates | None,
        images: NDArray[np.uint8] | None,
        image_rows: NDArray[np.int64] | None,
    ) -> None:
        self.labels = labels
        self.known = known
        self.truth = truth
        self.patients = patients
        self.column_features = column_features
        self._resident = resident
        self._notes = notes
        self._images = images
        self._image_rows = image_rows

    @classmethod
    def build(
        cls,
        studies: Studies,
        task: Task,
        *,
        selection: Selection | None,
        modalities: Sequence[str],
        cache: ImageCache | None = None,
        tokenizer: Tokenizer | None = None,
        note_encoder: NoteEncoder | None = None,
        note_cache: Path | None = None,
        image_features: ImageFeatures | None = None,
    ) -> Self:
        """Encode, tokenise and decode what ``modalities`` asks for, once.

        ``image`` needs a cache, ``text`` a tokenizer; with a ``note_encoder``, which must be
        frozen, a batch brings its states of the notes beside the tokens. States that took long
        are kept in the folder ``note_cache``. With ``image_features`` a batch brings those
        beside the images.
        """
        resident: Inputs = {}
        images = image_rows = notes = None
        if "image" in modalities:
            assert cache is not None, "the image modality needs a cache"
            image_rows = cache.rows(studies.images, table_rows=studies.rows)
            images = cache.array
        if "tabular" in modalities:
            encoded = encode_tabular(studies.features, task, selection)
            resident["tabular"] = torch.from_numpy(encoded)
        if "text" in modalities:
            assert tokenizer is not None, "the text modality needs a tokenizer"
            tokens = tokenizer(studies.notes)
            resident["tokens"] = torch.from_numpy(tokens)
            if note_encoder is not None:
                assert note_cache is not None, "a note encoder needs a cache"
                notes = NoteStates.cached(tokens, note_encoder, note_cache)
        if studies.boxes is not None:
            resident |= _box_targets(studies.boxes, task)
        _, codes = np.unique(studies.patient_ids, return_inverse=True)
        labels = torch.from_numpy(studies.labels.astype(np.float32))
        filled = torch.nan_to_num(labels, nan=0.0)
        tensors = cls(
            labels=filled,
            known=(~torch.isnan(labels)).float(),
            truth=truth_array(filled.numpy(), studies.boxes),
            patients=torch.from_numpy(codes.astype(np.int64)),
            column_features=_column_features(task),
            resident=resident,
            notes=notes,
            images=images,
            image_rows=image_rows,
        )
        if image_features is not None and image_rows is not None:
            tensors._precompute(image_features)
        return tensors

    def _precompute(self, image_features: ImageFeatures) -> None:
        chunks = torch.split(torch.arange(len(self)), _CHUNK)
        images = (self._image_inputs(chunk, "cpu")["image"] for chunk in chunks)
        self._resident["image_features"] = torch.cat([image_features(x) for x in images])

    @cached_property
    def notes_sha256(self) -> str:
        """Hex digest of the notes' tokens, and of their states where an encoder gave them."""
        tokens = self._resident.get("tokens")
        if tokens is None:
            return ""
        states = self._notes.sha256 if self._notes else ""
        return hashlib.sha256(states.encode() + tokens.numpy().tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.labels)

    def inputs(self, index: Tensor, device: torch.device | str = "cpu") -> Inputs:
        """Return the model's inputs of the studies ``index`` (int64 [B], on the CPU).

        Keys, for the modalities asked for: ``image`` float32 [B, C, H, W] (a volume has three
        axes of space) in [-1, 1], 0 where missing; ``image_present`` bool [B];
        ``image_features`` float32 [B, F] if they were asked for; ``tabular`` float32
        [B, K, 3 + L]; ``tokens`` int64 [B, T], 0 = padding; with a note encoder,
        ``text_states`` float32 [B, T, S] (pooled: [B, 1, S]). In a task of detection also what
        was drawn, for training: ``boxes`` float32 [B, M, 4], corners in pixels of the image as
        the model sees it, and ``box_classes`` int64 [B, M].
        """
        inputs = {
            name: whole.index_select(0, index).to(device) for name, whole in self._resident.items()
        }
        if self._notes is not None:
            inputs["text_states"] = self._notes.rows(index, device)
        if self._image_rows is not None:
            inputs |= self._image_inputs(index, device)
        return inputs

    def _image_inputs(self, index: Tensor, device: torch.device | str) -> Inputs:
        """Read the batch's images only, and move them as bytes: a quarter of the floats."""
        assert self._images is not None
        assert self._image_rows is not None
        rows = self._image_rows[index.numpy()]
        present = rows >= 0
        whole = bool(present.all())
        if whole:
            pixels = np.asarray(self._images[rows])
        else:
            pixels = np.zeros((len(rows), *self._images.shape[1:]), np.uint8)
            pixels[present] = self._images[rows[present]]
        image = torch.from_numpy(pixels).to(device).float().div_(127.5).sub_(1.0)
        image_present = torch.from_numpy(present).to(device)
        if not whole:
            image.masked_fill_(~image_present.view(-1, *[1] * (image.ndim - 1)), 0.0)
        return {"image": image, "image_present": image_present}


def _box_targets(boxes: Boxes, task: Task) -> Inputs:
    assert task.image is not None
    height, width = task.image.plane
    sides = torch.tensor([width, height, width, height], dtype=torch.float32)
    return {
        "boxes": torch.from_numpy(boxes.corners) * sides,
        "box_classes": torch.from_numpy(boxes.classes),
    }


def _column_features(task: Task) -> Tensor:
    position = {name: number for number, name in enumerate(task.features)}
    return torch.tensor([position[column.feature] for column in task.columns], dtype=torch.int64)
