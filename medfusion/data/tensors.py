"""A site's studies as tensors: prepared once, then indexed batch by batch.

Legend: N studies, B batch, C channels, H height, W width, K model-input columns, L labels,
T tokens.
"""

from collections.abc import Callable, Sequence
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medfusion.data.encode import encode_tabular
from medfusion.data.images import ImageCache
from medfusion.data.studies import Studies
from medfusion.data.task import Task
from medfusion.data.thresholds import Selection

Inputs = dict[str, Tensor]
Tokenizer = Callable[[Sequence[str | None]], NDArray[np.int64]]


class StudyTensors:
    """Studies ready for a model; build with `StudyTensors.build`.

    Attributes
    ----------
    labels
        float32 [N, L], 0 where unknown.
    known
        float32 [N, L], 1 where the label is known.
    patients
        int64 [N]: a number for each patient, shared by the patient's studies.
    """

    def __init__(
        self,
        *,
        labels: Tensor,
        known: Tensor,
        patients: Tensor,
        resident: Inputs,
        images: NDArray[np.uint8] | None,
        image_rows: NDArray[np.int64] | None,
    ) -> None:
        self.labels = labels
        self.known = known
        self.patients = patients
        self._resident = resident
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
    ) -> Self:
        """Encode, tokenise and decode what ``modalities`` asks for, once.

        ``image`` needs a cache, ``text`` a tokenizer.
        """
        resident: Inputs = {}
        images = image_rows = None
        if "image" in modalities:
            assert cache is not None, "the image modality needs a cache"
            image_rows = cache.rows(studies.images, table_rows=studies.rows)
            images = cache.array
        if "tabular" in modalities:
            encoded = encode_tabular(studies.features, task, selection)
            resident["tabular"] = torch.from_numpy(encoded)
        if "text" in modalities:
            assert tokenizer is not None, "the text modality needs a tokenizer"
            resident["tokens"] = torch.from_numpy(tokenizer(studies.notes))
        _, codes = np.unique(studies.patient_ids, return_inverse=True)
        labels = torch.from_numpy(studies.labels.astype(np.float32))
        return cls(
            labels=torch.nan_to_num(labels, nan=0.0),
            known=(~torch.isnan(labels)).float(),
            patients=torch.from_numpy(codes.astype(np.int64)),
            resident=resident,
            images=images,
            image_rows=image_rows,
        )

    def __len__(self) -> int:
        return len(self.labels)

    def inputs(self, index: Tensor, device: torch.device | str = "cpu") -> Inputs:
        """Return the model's inputs of the studies ``index`` (int64 [B], on the CPU).

        Keys, for the modalities asked for: ``image`` float32 [B, C, H, W] in [-1, 1], 0 where
        missing; ``image_present`` bool [B]; ``tabular`` float32 [B, K, 3 + L]; ``tokens`` int64
        [B, T], 0 = padding.
        """
        inputs = {
            name: whole.index_select(0, index).to(device) for name, whole in self._resident.items()
        }
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
            image.masked_fill_(~image_present[:, None, None, None], 0.0)
        return {"image": image, "image_present": image_present}
