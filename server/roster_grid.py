"""The grid as strategies see it: the sites of the roll call that are still connected.

Flower's strategies count the connected nodes, then draw from them, and wait without end for a
node that left in between; they would also draw a node that no roll call has checked.
"""

import time
from collections.abc import Callable, Iterable

from flwr.serverapp import Grid

from medfusion.errors import FederationError
from server.passing_grid import PassingGrid
from server.roster import Roster

_PAUSE_SECONDS = 1.0


class RosterGrid(PassingGrid):
    """Passes everything on to ``grid``, except which nodes there are.

    Make one for each call of a strategy: the nodes it has named stay the same ones, so that the
    strategy counts and draws from one list.

    Parameters
    ----------
    quorum
        How many sites must be connected.
    timeout
        How long to wait for them, in seconds.
    look
        Called before each look at who is connected; it may change the roster.
    """

    def __init__(
        self,
        grid: Grid,
        roster: Roster,
        *,
        quorum: int,
        timeout: float,
        look: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(grid)
        self._look = look
        self._roster = roster
        self._quorum = quorum
        self._timeout = timeout
        self._connected: list[int] = []

    def get_node_ids(self) -> Iterable[int]:
        """Node ids in the order of the sites' names.

        Raises
        ------
        FederationError
            If fewer than the quorum are connected, and still are after the timeout.
        """
        if not self._connected:
            self._connected = self._await_quorum()
        return list(self._connected)

    def _await_quorum(self) -> list[int]:
        deadline = time.monotonic() + self._timeout
        while True:
            self._look()
            present = set(self._grid.get_node_ids())
            connected = [node for node in self._roster.nodes if node in present]
            if len(connected) >= self._quorum:
                return connected
            left = deadline - time.monotonic()
            if left <= 0:
                raise FederationError(
                    f"expected at least {self._quorum} connected sites (server.min_sites), found "
                    f"{len(connected)} of the {len(self._roster.sites)} that took part; the "
                    "same command resumes it"
                )
            time.sleep(min(_PAUSE_SECONDS, left))
