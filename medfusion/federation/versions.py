"""Which versions of MedFusion work together: hospitals go first, one minor version at a time.

A Node takes requests of a coordinator of its own MAJOR.MINOR, or of the minor version before it;
patch releases never matter. So hospitals upgrade one after another while the federation runs,
the coordinator last.
"""

import re
from functools import cache
from importlib.metadata import version

from medfusion.errors import FederationError

_VERSION = re.compile(r"([0-9]{1,9})\.([0-9]{1,9})([^\d\s]\S{0,50})?")


@cache
def own_version() -> str:
    """Return the version of the MedFusion that is installed here."""
    return version("medfusion")


def check_coordinator(coordinator: object, *, own: str) -> None:
    """Refuse a coordinator whose version this site does not work with.

    Parameters
    ----------
    coordinator
        What the request names, from the wire; anything but a version is refused too.
    own
        This site's version.

    Raises
    ------
    FederationError
        Naming both versions and who has to upgrade.
    """
    theirs, ours = _numbers(coordinator), _numbers(own)
    if theirs is None or ours is None:
        raise FederationError(
            f"this site runs MedFusion {own}; expected a coordinator that names its version "
            "(such as 0.1.0), found none: upgrade the coordinator"
        )
    if theirs in (ours, (ours[0], ours[1] - 1)):
        return
    who = "the site has" if theirs > ours else "the coordinator has"
    raise FederationError(
        f"the coordinator runs MedFusion {coordinator}, this site {own}; expected the same minor "
        f"version, or a coordinator one behind: {who} to upgrade"
    )


def _numbers(version: object) -> tuple[int, int] | None:
    """Return MAJOR and MINOR; None for what is no version."""
    found = _VERSION.fullmatch(version) if isinstance(version, str) else None
    return (int(found[1]), int(found[2])) if found else None
