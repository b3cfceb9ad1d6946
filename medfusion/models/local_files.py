"""Files of this machine that a model is built from, besides what the wheel and its extras bring.

A config names them and does not say what is in them: who goes on with earlier work has to.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from medfusion.errors import ConfigError
from medfusion.file_digests import file_sha256
from medfusion.models.options import MedFusionNetOptions, ModelOptions


def local_files_sha256(options: ModelOptions) -> str:
    """Return a hex digest of names and content of the files that ``options`` name.

    They are the file or model folder in ``init``, and a text encoder's folder. Empty if there
    are none. A hub id stands for the files that were fetched, which this does not read.

    Raises
    ------
    ConfigError
        If ``init`` is not on this machine, or a file cannot be read.
    """
    try:
        lines = [f"{path.name} {file_sha256(path)}\n" for path in _local_files(options)]
    except OSError as error:
        raise ConfigError(
            "expected files that this user may read under model.init and model.text.encoder, "
            f"found one with: {error.strerror}"
        ) from None
    return hashlib.sha256("".join(lines).encode()).hexdigest() if lines else ""


def _local_files(options: ModelOptions) -> Iterator[Path]:
    if not isinstance(options, MedFusionNetOptions):
        return
    if options.init is not None:
        from medfusion.models.pretrained import find_init, init_files

        yield from (path for path in init_files(find_init(options.init)) if path.is_file())
    encoder = Path(options.text.encoder)
    if encoder.is_dir() and not _has_a_meaning(options.text.encoder):
        yield from sorted(path for path in encoder.iterdir() if path.is_file())


def _has_a_meaning(encoder: str) -> bool:
    """Whether a name is one of ours, whatever folder of that name there is."""
    from medfusion.models.blocks.language_models import PACKAGED

    return encoder == "tiny" or encoder in PACKAGED
