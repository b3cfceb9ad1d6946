"""Flower's SuperLink, patient with its database: ``python -m server.deployment.superlink ...``.

Takes the arguments of ``flower-superlink``. Flower 1.39 waits five seconds for the database while
another call writes to it, and then answers with an internal error, which ends the run: a disk that
a backup keeps busy is slower than that.
"""

from flwr.supercore import sql_mixin
from flwr.supercore.constant import SQLITE_PRAGMAS

# For each transaction: a call makes up to four, and has to end before whoever asked stops waiting,
# after 30 s. A reply that is given out to a caller who has gone would be lost.
_LOCK_SECONDS = 7


def wait_for_locks() -> None:
    """Have every connection to the database, made from now on, wait that long."""
    pragmas = dict(SQLITE_PRAGMAS) | {"busy_timeout": str(1000 * _LOCK_SECONDS)}
    sql_mixin.__dict__["SQLITE_PRAGMAS"] = tuple(pragmas.items())


if __name__ == "__main__":
    from flwr.superlink.cli import flower_superlink

    wait_for_locks()
    flower_superlink()
