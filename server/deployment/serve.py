"""The coordinator's server in the foreground."""

import logging
import signal
import threading

from medfusion.atomic_files import make_folder
from medfusion.federation.key_file import read_key_file
from medfusion.federation.kit import ServerKit
from medfusion.supervision.monitor import Monitor
from medfusion.supervision.supervisor import Supervisor
from server.deployment.caretaker import Caretaker
from server.deployment.flower import Flower
from server.deployment.node_registry import NodeRegistry
from server.deployment.programs import listens_on, server_programs
from server.deployment.runs import Runs

log = logging.getLogger("medfusion.server")


def flower_of(kit: ServerKit) -> Flower:
    """Return the control plane of a kit's server."""
    return Flower(kit.folder / "state", port=kit.control_port, ca=kit.ca)


def serve(kit: ServerKit, *, bind: str | None, monitor_port: int | None) -> None:
    """Run Flower's programs and the caretaker until SIGTERM or SIGINT; leave no process behind.

    Parameters
    ----------
    bind
        Address that the Fleet API listens on; None: by the kit's own address.
    monitor_port
        Loopback port of health and metrics; None: not served.

    Raises
    ------
    UsageError
        If a program cannot be started, or the port is taken.
    ConfigError
        If the server's key cannot be read, or others may read it.
    """
    read_key_file(kit.server_key)
    state = kit.folder / "state"
    make_folder(state, mode=0o700)
    flower = flower_of(kit)
    registry = NodeRegistry(kit, flower, state)
    programs = server_programs(kit, flower, state, bind=bind or listens_on(kit.host))
    supervisor = Supervisor(programs, folder=state)
    if monitor_port is not None:
        Monitor(supervisor, lambda: {"sites_admitted": float(len(registry.registered))}).start(
            monitor_port
        )
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    caretaker = Caretaker(registry, Runs(kit, flower))
    threading.Thread(target=caretaker.run, args=(ended,), daemon=True, name="caretaker").start()
    log.info("federation %s: serving hospitals at %s", kit.federation, kit.address)
    supervisor.run(ended)
