"""The link as a program.

::

    python -P -m client.link KIT --socket PATH [--spool DIR]

It needs the kit with its ``node.key``, the Node's socket and a folder of its own, and neither
reads nor needs anything else of the hospital: run it as a user who cannot.
"""

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from client.app import node_at
from client.link.fleet import Fleet
from client.link.link import Link
from client.link.spool import Spool
from medfusion.errors import ConfigError, MedFusionError
from medfusion.federation.kit import SiteKit
from medfusion.federation.node_key import NodeKey
from medfusion.logs import log_to_stderr

_GRACE_SECONDS = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the link from the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -P -m client.link", description="Link a hospital's Node to the coordinator."
    )
    parser.add_argument("kit", type=Path, help="the kit of this site, which has joined")
    parser.add_argument("--socket", type=Path, required=True, help="the Node's Unix socket")
    parser.add_argument("--spool", type=Path, required=True, help="folder of the link's own")
    options = parser.parse_args(arguments)
    log_to_stderr()
    try:
        link, fleet = _build(options.kit, options.socket, options.spool)
    except MedFusionError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    serving = threading.Thread(target=link.run, daemon=True, name="link")
    serving.start()
    while serving.is_alive() and not ended.wait(1.0):
        pass
    crashed = not ended.is_set()
    link.end()
    serving.join(_GRACE_SECONDS)
    if serving.is_alive():  # the Node is at work on a message, which the spool keeps
        logging.shutdown()
        os._exit(0)
    fleet.close()
    return int(crashed)


def _build(kit_folder: Path, socket: Path, spool: Path) -> tuple[Link, Fleet]:
    kit = SiteKit.read(kit_folder)
    try:
        fleet = Fleet(
            kit.address,
            ca=kit.ca.read_bytes(),
            key=NodeKey.read(kit.node_key).private,
            patience=kit.patience,
        )
        kept = Spool(spool)
    except OSError as error:
        raise ConfigError(f"{error.filename}: cannot be used ({error.strerror})") from None
    return Link(fleet, kept, node_at(str(socket)), status=spool / "status.json"), fleet


if __name__ == "__main__":
    sys.exit(main())
