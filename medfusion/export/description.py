"""What goes with an ONNX model: ``onnx.json``, how its inputs are made and its outputs read."""

from pathlib import Path
from typing import Any

from torch import Tensor

from medfusion.data.task import CategoricalFeature, ImageSpec, NumericFeature, Task
from medfusion.digests import file_sha256
from medfusion.export.onnx_network import OUTPUT, TOLERANCE
from medfusion.models.saved import SavedModel
from medfusion.models.spec import InputSpec, input_spec

_HOLDS = {
    "image": "the image as preprocessing.image says; 0 where there is none",
    "image_present": "whether the study has an image",
    "tabular": "the columns as preprocessing.tabular says",
    "tokens": "the note as preprocessing.text says; all 0 where there is none",
}


def describe(
    saved: SavedModel, folder: Path, onnx: Path, inputs: dict[str, Tensor], distance: float
) -> dict[str, Any]:
    """Return the content of ``onnx.json``.

    Parameters
    ----------
    saved, folder
        The model and where it came from.
    onnx
        The ONNX file.
    inputs
        Inputs of any batch, for their shapes.
    distance
        How far the logits were from PyTorch's at most.
    """
    task, spec, calibration = saved.task, input_spec(saved.task), saved.calibration
    return {
        "schema": 1,
        "run": saved.card.get("run"),
        "task": task.task.name,
        "task_sha256": task.sha256,
        "model_sha256": file_sha256(folder / "model.safetensors"),
        "onnx_sha256": file_sha256(onnx),
        "inputs": {name: _input(name, value) for name, value in inputs.items()},
        "outputs": {OUTPUT: _output(task)},
        "preprocessing": _preprocessing(saved, inputs, spec),
        "calibration": None if calibration is None else calibration.shared(),
        "parity": {"largest_difference": distance, "tolerance": TOLERANCE, "batches": [1, 3]},
    }


def _input(name: str, value: Tensor) -> dict[str, Any]:
    return {
        "type": str(value.dtype).removeprefix("torch."),
        "shape": ["batch", *value.shape[1:]],
        "holds": _HOLDS[name],
    }


def _output(task: Task) -> dict[str, Any]:
    labels = task.labels
    told: dict[str, Any] = {
        "type": "float32",
        "shape": ["batch", len(labels.names)],
        "labels": list(labels.names),
        "kind": task.task.kind,
    }
    if task.task.kind == "regression":
        low, high = labels.range
        rule = "value = (low + high) / 2 + logit * (high - low) / 2"
        return told | {"read_as": rule, "low": low, "high": high, "unit": labels.unit}
    if task.task.kind == "multiclass":
        return told | {"read_as": "probabilities = softmax(logits)"}
    return told | {"read_as": "probability of each label = 1 / (1 + exp(-logit))"}


def _preprocessing(saved: SavedModel, inputs: dict[str, Tensor], spec: InputSpec) -> dict[str, Any]:
    task = saved.task
    found: dict[str, Any] = {}
    if "image" in inputs:
        assert task.image is not None
        found["image"] = _image(task.image)
    if "tabular" in inputs:
        found["tabular"] = _tabular(saved)
    if "tokens" in inputs:
        found["text"] = {
            "encoder": saved.options.model_dump()["text"]["encoder"],
            "max_tokens": spec.max_tokens,
            "steps": [
                "tokenise with the encoder's own tokenizer, special tokens included "
                "('tiny': BERT word pieces of medfusion/models/vocabulary.json)",
                f"cut to {spec.max_tokens} tokens",
                "add 1 to every id; fill up with 0",
            ],
        }
    return found


def _image(spec: ImageSpec) -> dict[str, Any]:
    if spec.dims == 2:
        steps = [
            "decode to 8 bits; DICOM through its modality transform and its first VOI table or "
            "window, MONOCHROME1 inverted",
            f"resize to height {spec.size[0]}, width {spec.size[1]} (bilinear, antialiased)",
            f"{'grey' if spec.channels == 1 else 'RGB'}, channels first",
        ]
    else:
        scale = "0.5th to 99.5th percentile of the volume" if not spec.window else "the window"
        steps = [
            "turn to axes right, front, up (RAS)",
            f"intensities from {scale} to 0..255",
            "resample to the spacing and cut or fill up with 0 around the centre"
            if spec.spacing
            else "resample the whole volume to the size",
            "round to 8 bits",
        ]
    return spec.model_dump(mode="json") | {"steps": steps, "scale": "value / 127.5 - 1"}


def _tabular(saved: SavedModel) -> dict[str, Any]:
    task, selection = saved.task, saved.selection
    columns = []
    for column in task.columns:
        feature = task.features[column.feature]
        about: dict[str, Any] = {"feature": column.feature, "kind": feature.kind}
        if isinstance(feature, NumericFeature):
            about |= {"low": feature.low, "high": feature.high, "unit": feature.unit}
        if isinstance(feature, CategoricalFeature):
            about["value"] = column.value
        about["selected"] = selection is None or column.feature in selection.features
        columns.append(about)
    local = saved.selection_method == "local"
    return {
        "columns": columns,
        "last_axis": ["value", "missing", "selected", *task.labels.names],
        "steps": [
            "value: numeric 2 * (clip(x, low, high) - low) / (high - low) - 1; binary -1 or 1; a "
            "column of a categorical feature 1 where the feature has its value, else 0",
            "missing: 1 where the feature is missing, else 0; selected: 1 or 0 as in columns",
            "one for each label: 1 on the risk side of the feature's threshold for that label "
            "(direction above: x > value, x == category, binary x == 1), -1 on the other side, 0 "
            "without a threshold",
            "value and the labels' entries are 0 where the feature is missing or not selected",
        ],
        "thresholds": selection.to_json()["thresholds"] if selection else None,
        "selection": "each hospital's own (selection.method = local)" if local else "as in columns",
    }
