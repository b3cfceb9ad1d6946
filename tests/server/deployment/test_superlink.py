import sqlite3
import threading
import time

import pytest
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore import sql_mixin
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.federation import NoOpFederationManager

from server.deployment.superlink import wait_for_locks

_LOCKED_SECONDS = 6.0  # Flower's own patience is 5


@pytest.mark.filterwarnings("ignore:No path_separator:DeprecationWarning")  # Alembic's, in Flower
def test_a_call_outlasts_a_lock_on_the_database_that_would_end_flowers_patience(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(sql_mixin, "SQLITE_PRAGMAS", sql_mixin.SQLITE_PRAGMAS)  # put back later
    wait_for_locks()
    database = tmp_path / "superlink.db"
    state = LinkStateFactory(str(database), NoOpFederationManager(), ObjectStoreFactory()).state()
    locked, begun = threading.Event(), time.monotonic()

    def hold() -> None:
        other = sqlite3.connect(database)
        other.execute("BEGIN IMMEDIATE")
        locked.set()
        time.sleep(_LOCKED_SECONDS)
        other.rollback()
        other.close()

    holder = threading.Thread(target=hold)
    holder.start()
    assert locked.wait(10)
    assert state.create_node("owner", "owner", b"key", heartbeat_interval=30.0) > 0
    assert time.monotonic() - begun >= _LOCKED_SECONDS
    holder.join()
