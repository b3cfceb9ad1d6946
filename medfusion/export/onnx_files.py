"""A model folder to an ONNX file and its description."""

from dataclasses import dataclass
from pathlib import Path

from medfusion.atomic_files import make_folder, replacing, write_json
from medfusion.export.description import describe
from medfusion.export.onnx_network import export_network, random_inputs
from medfusion.models.saved import load_model


@dataclass(frozen=True)
class Written:
    """What was written: the description's path, and the largest difference of logits."""

    description: Path
    distance: float


def export_onnx(model_dir: Path, out: Path) -> Written:
    """Write ``out`` and, beside it, ``onnx.json`` (another name: NAME.json); or neither.

    Raises
    ------
    MedFusionError
        If the model cannot be loaded or exported, or a package is missing.
    """
    saved = load_model(model_dir)
    make_folder(out.parent)
    plain = out.name == "model.onnx"
    description = out.with_name("onnx.json") if plain else out.with_suffix(".json")
    with replacing(out, durable=False) as partial:
        distance = export_network(saved, partial)
        about = describe(saved, model_dir, partial, random_inputs(saved, 1), distance)
    write_json(description, about, durable=False)
    return Written(description, distance)
