"""One user of a state folder at a time: a Node that is served, or a simulation."""

from contextlib import AbstractContextManager
from pathlib import Path

from medfusion.errors import FederationError
from medfusion.folder_lock import held_alone


def alone(state: Path) -> AbstractContextManager[None]:
    """Hold the state folder of a site; the operating system lets go if the process dies.

    Raises
    ------
    FederationError
        If another process holds it.
    """
    return held_alone(
        state,
        FederationError(
            f"{state}: another Node serves this site, or a simulation uses its state; stop it first"
        ),
    )
