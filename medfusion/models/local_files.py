"""Files of this machine that a model is built from, besides what the wheel and its extras bring.

A config names them and does not say what is in them: who goes on with earlier work has to.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from medfusion.data.task import Task
from medfusion.digests import file_sha256
from medfusion.errors import ConfigError
from medfusion.models.options import WITH_INIT, HyperFusionOptions, ModelOptions
from medfusion.models.pretrained import find_init, init_files
from medfusion.models.registry import modalities_of


def local_files_sha256(options: ModelOptions, task: Task) -> str:
    """Return a hex digest of names and content of the files that ``options`` name.

    They are the file or model folder in ``init``, and a text encoder's folder where the model
    reads text. Empty if there are none. A hub id stands for the files that were fetched, which
    this does not read.

    Raises
    ------
    ConfigError
        If ``init`` is not on this machine, a file cannot be read, or the task lacks a modality
        that the options ask for.
    """
    try:
        lines = [f"{path.name} {file_sha256(path)}\n" for path in _local_files(options, task)]
    except OSError as error:
        raise ConfigError(
            "expected files that this user may read under model.init and model.text.encoder, "
            f"found one with: {error.strerror}"
        ) from None
    return hashlib.sha256("".join(lines).encode()).hexdigest() if lines else ""


def _local_files(options: ModelOptions, task: Task) -> Iterator[Path]:
    if isinstance(options, WITH_INIT) and options.init is not None:
        yield from (path for path in init_files(find_init(options.init)) if path.is_file())
    if isinstance(options, HyperFusionOptions) or "text" not in modalities_of(options, task):
        return
    encoder = Path(options.text.encoder)
    if encoder.is_dir() and not _has_a_meaning(options.text.encoder):
        yield from sorted(path for path in encoder.iterdir() if path.is_file())


def _has_a_meaning(encoder: str) -> bool:
    """Whether a name is one of ours, whatever folder of that name there is."""
    # imported here, since transformers takes a second
    from medfusion.models.blocks.language_models import PACKAGED

    return encoder == "tiny" or encoder in PACKAGED
