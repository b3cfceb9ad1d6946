"""A model folder to an ONNX file and its description."""

from dataclasses import dataclass
from pathlib import Path

from medfusion.atomic_files import make_folder, replacing, write_json
from medfusion.errors import UsageError
from medfusion.export.description import describe
from medfusion.export.onnx_network import export_network, random_inputs
from medfusion.models.saved import load_model


@dataclass(frozen=True)
class Written:
    """What was written: the description's path, and the largest difference of logits."""

    description: Path
    distance: float


def export_onnx(model_dir: Path, out: Path) -> Written:
    """Write ``out`` and, beside it, ``onnx.json`` (another name: NAME.onnx.json); or neither.

    Raises
    ------
    MedFusionError
        If the model cannot be loaded or exported, a package is missing, or a folder is in the way.
    """
    plain = out.name == "model.onnx"
    description = out.with_name("onnx.json" if plain else f"{out.name}.json")
    for path in (out, description):
        if path.is_dir():
            raise UsageError(f"{path} is a folder; expected the name of a file to write")
    saved = load_model(model_dir)
    make_folder(out.parent)
    with replacing(out, durable=False) as network, replacing(description, durable=False) as told:
        distance = export_network(saved, network)
        about = describe(saved, model_dir, network, random_inputs(saved, 1), distance)
        write_json(told, about, durable=False)
    return Written(description, distance)
