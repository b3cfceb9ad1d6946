"""Studies as tensors: what a batch holds, and that it costs no more than the batch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import pytest
import torch

from medfusion.data.encode import encode_tabular
from medfusion.data.images import ImageCache
from medfusion.data.studies import Studies
from medfusion.data.task import Task
from medfusion.data.tensors import StudyTensors

NAN = float("nan")
TASK = Task.parse(
    {
        "task": {"name": "t", "kind": "multilabel"},
        "image": {"size": [16, 16]},
        "text": {"max_tokens": 4},
        "features": {"age": {"kind": "numeric", "low": 0, "high": 100}},
        "labels": {"names": ["ill", "dead"]},
    },
    where="test",
)
STUDIES = Studies(
    study_ids=np.array(["s1", "s2", "s3", "s4"]),
    patient_ids=np.array(["q", "p", "q", "r"]),
    rows=np.arange(2, 6),
    features=np.array([[10.0], [NAN], [100.0], [50.0]]),
    labels=np.array([[1, NAN], [0, 0], [NAN, 1], [1, 1]], dtype=np.float32),
    images=(Path("a.png"), None, Path("b.png"), Path("a.png")),
    notes=("cough", None, "cough fever", "fever"),
    split_column=None,
)


class RecordedArray(np.ndarray[Any, Any]):
    """An array that records which rows are read."""

    read: ClassVar[list[list[int]]] = []

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, np.ndarray):
            self.read.append(key.tolist())
        return super().__getitem__(key)


class FakeCache:
    """Two decoded images, constant 255 (a.png) and 51 (b.png)."""

    def __init__(self) -> None:
        levels = np.array([255, 51], np.uint8)
        self.array = np.tile(levels[:, None, None, None], (1, 1, 16, 16)).view(RecordedArray)
        self.array.read.clear()

    def rows(self, paths: Sequence[Path | None], *, table_rows: np.ndarray) -> np.ndarray:
        assert table_rows.tolist() == [2, 3, 4, 5]
        return np.array([-1 if path is None else "ab".index(path.stem) for path in paths])


class CountingTokenizer:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, notes: Sequence[str | None]) -> np.ndarray:
        self.calls += 1
        words = {"cough": 7, "fever": 8}
        ids = [[words[word] for word in (note or "").split()] for note in notes]
        return np.array([(row + [0] * 4)[:4] for row in ids], dtype=np.int64)


def build(*modalities: str) -> tuple[StudyTensors, FakeCache, CountingTokenizer]:
    cache, tokenizer = FakeCache(), CountingTokenizer()
    tensors = StudyTensors.build(
        STUDIES,
        TASK,
        selection=None,
        modalities=modalities,
        cache=cast(ImageCache, cache),
        tokenizer=tokenizer,
    )
    return tensors, cache, tokenizer


def test_a_batch_of_every_modality() -> None:
    tensors, cache, tokenizer = build("image", "tabular", "text")
    inputs = tensors.inputs(torch.tensor([3, 1, 2]), torch.device("cpu"))
    assert {name: (tuple(value.shape), value.dtype) for name, value in inputs.items()} == {
        "image": ((3, 1, 16, 16), torch.float32),
        "image_present": ((3,), torch.bool),
        "tabular": ((3, 1, 5), torch.float32),
        "tokens": ((3, 4), torch.int64),
    }
    assert inputs["image"][:, 0, 0, 0].tolist() == pytest.approx([1.0, 0.0, -0.6])
    assert inputs["image_present"].tolist() == [True, False, True]
    assert inputs["tokens"].tolist() == [[8, 0, 0, 0], [0, 0, 0, 0], [7, 8, 0, 0]]
    expected = encode_tabular(STUDIES.features, TASK, None)[[3, 1, 2]]
    assert np.array_equal(inputs["tabular"].numpy(), expected)
    tensors.inputs(torch.tensor([0]))
    assert tokenizer.calls == 1
    assert cache.array.read == [[0, 1], [0]]  # the rows of each batch and no others


def test_batch_without_a_missing_image_and_batch_of_missing_ones() -> None:
    tensors, _, _ = build("image")
    assert tensors.inputs(torch.tensor([0, 2]))["image"][:, 0, 0, 0].tolist() == pytest.approx(
        [1.0, -0.6]
    )
    missing = tensors.inputs(torch.tensor([1, 1]))
    assert missing["image"].abs().sum() == 0
    assert missing["image_present"].tolist() == [False, False]


def test_empty_batch_keeps_the_shapes() -> None:
    tensors, _, _ = build("image", "tabular", "text")
    inputs = tensors.inputs(torch.tensor([], dtype=torch.int64))
    assert [tuple(value.shape) for value in inputs.values()] == [
        (0, 1, 5),
        (0, 4),
        (0, 1, 16, 16),
        (0,),
    ]


@pytest.mark.parametrize(
    ("modality", "keys"),
    [("image", {"image", "image_present"}), ("tabular", {"tabular"}), ("text", {"tokens"})],
)
def test_only_the_asked_modalities_are_there(modality: str, keys: set[str]) -> None:
    tensors = StudyTensors.build(
        STUDIES,
        TASK,
        selection=None,
        modalities=[modality],
        cache=cast(ImageCache, FakeCache()) if modality == "image" else None,
        tokenizer=CountingTokenizer() if modality == "text" else None,
    )
    assert set(tensors.inputs(torch.tensor([0]))) == keys


def test_labels_patients_and_length() -> None:
    tensors, _, _ = build("tabular")
    assert len(tensors) == 4
    assert tensors.labels.tolist() == [[1, 0], [0, 0], [0, 1], [1, 1]]
    assert tensors.known.tolist() == [[1, 0], [1, 1], [0, 1], [1, 1]]
    assert tensors.patients.tolist() == [1, 0, 1, 2]
    assert tensors.patients.dtype == torch.int64
    assert tensors.labels.dtype == tensors.known.dtype == torch.float32
