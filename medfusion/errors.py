"""What can go wrong, as one tree.

::

    MedFusionError            exit code 1
    ├── UsageError            exit code 2   a command was called wrongly
    │   └── ConfigError       exit code 2   a TOML file or --set holds something we refuse
    ├── DataError             exit code 1   a hospital's files are not what the task says
    └── FederationError       exit code 1   a run cannot go on
        ├── WaitingError      exit code 1   a site's people have not approved the run yet
        ├── StaleModelError   exit code 1   a site lacks the model that an update goes on from
        ├── AuditLogError     exit code 1   a site's audit log cannot be used
        └── LedgerError       exit code 1   a site's privacy ledger cannot be used

A message says what was expected, what was found, where (file, row, column) and how to mend
it. It never holds a patient's value or identifier: name rows and columns, not cells.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class MedFusionError(Exception):
    """Root of every error that we raise on purpose; shown to the user without a traceback."""

    exit_code = 1


class UsageError(MedFusionError):
    """A command was called in a way that cannot work."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration holds an unknown key, a bad value or an illegal combination."""


class DataError(MedFusionError):
    """A hospital's table, images or notes break the contract of the task."""


class FederationError(MedFusionError):
    """A run cannot start or go on: quorum, differing tasks, a model that diverged."""


class WaitingError(FederationError):
    """A site has a run that its people have not approved yet; asking again later may do."""


class StaleModelError(FederationError):
    """A site does not hold the model that an update goes on from; the whole one will do."""


class AuditLogError(FederationError):
    """A site's audit log is edited, cut short or cannot be written."""


class LedgerError(FederationError):
    """A site's privacy ledger is missing, damaged, copied, rolled back or in use."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the nearest known name, or an empty string."""
    near = get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""
