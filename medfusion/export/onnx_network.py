"""A model's network as ONNX, compared with PyTorch before anybody gets it.

Shapes: B batch, which is free in the ONNX model, and those of `medfusion.models.contract`.
"""

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from medfusion.data.images import ImageCache
from medfusion.data.studies import Studies
from medfusion.data.tensors import StudyTensors
from medfusion.errors import MedFusionError, UsageError
from medfusion.models.blocks.generated import Generated
from medfusion.models.registry import build_tokenizer, modalities_of
from medfusion.models.saved import SavedModel
from medfusion.training.public_studies import PublicStudies

if TYPE_CHECKING:
    import onnxruntime

OUTPUT = "logits"
TOLERANCE = 1e-4  # on logits
_BATCHES = (1, 3)
_TRACED = 3  # a batch that is neither 1, which tracing takes for a constant, nor any width


class ExportError(MedFusionError):
    """A model, or a part of it, that has no form in ONNX."""


class _ByPosition(nn.Module):
    """The network with one argument for each input, under the input's name."""

    def __init__(self, network: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.network = network
        self._names = names

    def forward(self, *values: Tensor) -> Tensor:
        """Return the logits [B, L]."""
        logits: Tensor = self.network(dict(zip(self._names, values, strict=True))).float()
        return logits


def export_network(saved: SavedModel, path: Path) -> float:
    """Write the network as ONNX to ``path`` and return how far its logits are from PyTorch's.

    The distance is the largest one over random studies (see `PublicStudies`) in batches of 1 and
    3, of which the last lacks every input.

    Raises
    ------
    UsageError
        If a package is missing.
    ExportError
        If the model has a part that ONNX cannot hold, or gives other logits there.
    """
    require_packages()
    _refuse_what_cannot_be(saved)
    inputs = random_inputs(saved, _TRACED)
    module = _ByPosition(saved.module.cpu().eval(), tuple(inputs))
    with _silent():
        program = _traced(module, inputs)
        program.save(path, include_initializers=True)
    return _distance(saved, path)


def require_packages() -> None:
    """Raise `UsageError` if what writes and runs ONNX is not installed."""
    from importlib.util import find_spec

    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise UsageError(
            f'ONNX needs {", ".join(missing)}, not found here: pip install "medfusion[export]"'
        )


def random_inputs(saved: SavedModel, rows: int, *, seed: int = 0) -> dict[str, Tensor]:
    """Return inputs that are no patient's, as a hospital would make them of raw data."""
    task = saved.task
    modalities = modalities_of(saved.options, task)
    with tempfile.TemporaryDirectory() as folder:
        nobody = StudyTensors.build(
            Studies.none(task),
            task,
            selection=saved.selection,
            modalities=modalities,
            cache=ImageCache(Path(folder), task.image) if task.image else None,
            tokenizer=build_tokenizer(saved.options, task),
        )
        generator = torch.Generator().manual_seed(seed)
        studies = PublicStudies(nobody, rows=rows, generator=generator)
    return studies.inputs(torch.arange(rows), torch.device("cpu"))


def open_session(path: Path, *, threads: int = 0) -> "onnxruntime.InferenceSession":
    """Open an ONNX model on the processor; ``threads`` 0: as many as there are cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run_session(session: "onnxruntime.InferenceSession", inputs: dict[str, Tensor]) -> Any:
    """Return the logits, float32 [B, L]."""
    (logits,) = session.run([OUTPUT], {name: value.numpy() for name, value in inputs.items()})
    return logits


def _refuse_what_cannot_be(saved: SavedModel) -> None:
    """Raise `ExportError` for what is known not to work, and why."""
    if saved.task.detects:
        raise ExportError(
            f"model {saved.options.name!r} finds boxes: which regions it looks at, and which boxes "
            "it keeps, depends on the values (proposals, non-maximum suppression), and that part "
            "is not written as ONNX; use `medfusion predict`"
        )
    for name, layer in saved.module.named_modules():
        if not isinstance(layer, Generated) or not isinstance(layer.base, _ConvNd):
            continue
        if any(side != 1 for side in layer.base.kernel_size):
            raise ExportError(
                f"layer {name!r} has weights of its own for each study in a convolution of "
                f"{'x'.join(map(str, layer.base.kernel_size))}, which ONNX can only hold for one "
                "size of batch; expected generated layers of size 1 ('...down', 'head1', 'head2')"
            )


def _traced(module: _ByPosition, inputs: dict[str, Tensor]) -> Any:
    batch = torch.export.Dim("batch")
    try:
        return torch.onnx.export(
            module,
            tuple(inputs.values()),
            dynamo=True,
            input_names=list(inputs),
            output_names=[OUTPUT],
            dynamic_shapes=(tuple({0: batch} for _ in inputs),),
            custom_translation_table={torch.ops.prims.hypot.default: _hypot},
            verbose=False,
        )
    except torch.onnx.errors.OnnxExporterError as error:
        cause = str(error.__cause__ or error).strip().splitlines()
        raise ExportError(f"PyTorch cannot write this model as ONNX: {cause[0]}") from None


def _hypot(x: Any, y: Any) -> Any:
    """Write the moduli of wavelets, for which ONNX has no operator and PyTorch no translation."""
    from onnxscript import opset18 as op

    return op.Sqrt(op.Add(op.Mul(x, x), op.Mul(y, y)))


def _distance(saved: SavedModel, path: Path) -> float:
    session = open_session(path)
    found = 0.0
    for rows in _BATCHES:
        inputs = random_inputs(saved, rows, seed=rows)
        with torch.inference_mode():
            expected = saved.module(inputs).float().numpy()
        try:
            logits = run_session(session, inputs)
        except Exception as error:  # the runtime's errors share no class of their own
            raise ExportError(f"the ONNX model does not run a batch of {rows}: {error}") from None
        if logits.shape != expected.shape or not np.isfinite(logits).all():
            raise ExportError(
                f"the ONNX model gives {logits.shape} or what is not finite for a batch of {rows}"
            )
        found = max(found, float(np.abs(logits - expected).max()))
    if found > TOLERANCE:
        raise ExportError(
            f"the ONNX model's logits differ from PyTorch's by {found:.2g}, expected at most "
            f"{TOLERANCE:g}: nothing is written"
        )
    return found


@contextmanager
def _silent() -> Iterator[None]:
    """Keep the exporter's remarks on how it works from the user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
