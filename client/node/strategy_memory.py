"""What a run's strategy lets the site remember between rounds, on the site's disk.

One file for each round, in the state folder: the memory after that round. A request says which of
the site's rounds counted last, and training goes on from the memory after it; so a reply that was
lost, refused or came late leaves no trace, and a run that is resumed goes on as if never
interrupted. All of it follows from what left the site (`medfusion.strategies.site_rules`).
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from medfusion.atomic_files import make_folder, replacing
from medfusion.errors import FederationError
from medfusion.transport.arrays import check_matches

_PREFIX, _SUFFIX = "round-", ".safetensors"


class StrategyMemory:
    """The memory of one run, in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def after(self, number: int, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the memory after a round; 0 is before the first one, where all is zero.

        Parameters
        ----------
        like
            The parameters that the memory is about.

        Raises
        ------
        FederationError
            If it is not there, or not one of these parameters.
        """
        if number == 0:
            return {name: torch.zeros(tensor.shape) for name, tensor in like.items()}
        path = self._path(number)
        try:
            memory: dict[str, Tensor] = load_file(path)
        except (OSError, SafetensorError):
            raise FederationError(
                f"what this site kept of round {number} for the run is not in its state folder, "
                "or damaged: restore strategies/ there from a backup, or start a new run"
            ) from None
        check_matches(memory, like)
        return memory

    def keep(self, number: int, memory: Mapping[str, Tensor], *, counted: int) -> None:
        """Bring the memory after a round to the disk; drop all but that and the one it is from."""
        make_folder(self._folder)
        with replacing(self._path(number), durable=True) as partial:
            save_file({name: tensor.contiguous() for name, tensor in memory.items()}, partial)
        kept = {self._path(number), self._path(counted)}
        for path in self._folder.iterdir():
            if path not in kept:  # also what a killed process left half-written
                path.unlink()

    def _path(self, number: int) -> Path:
        return self._folder / f"{_PREFIX}{number:06d}{_SUFFIX}"
