"""``medfusion site start``: a hospital's Node and its link to the coordinator."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from medfusion.federation.kit import SiteKit
    from medfusion.supervision.supervisor import Program

_LONGEST_STATUS = 4096  # bytes


def start(
    kit: Annotated[Path, typer.Argument(help="The site's kit, which has joined.")],
    site: Annotated[Path, typer.Option(help="Site folder, which holds site.toml.")],
    link_user: Annotated[
        str | None,
        typer.Option(help="OS user of the link, which reads neither site nor state; needs root."),
    ] = None,
    node_user: Annotated[
        str | None,
        typer.Option(help="OS user of the Node, which reads site and state; with --link-user."),
    ] = None,
    monitor_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Serve /healthz and /metrics on this loopback port."),
    ] = None,
) -> None:
    """Serve this hospital's part in the federation until SIGTERM or Ctrl-C."""
    import signal
    import tempfile
    import threading

    from medfusion.errors import UsageError
    from medfusion.federation.kit import SiteKit, check_version
    from medfusion.federation.versions import own_version
    from medfusion.logs import log_to_stderr
    from medfusion.supervision.monitor import Monitor
    from medfusion.supervision.supervisor import Supervisor

    log_to_stderr()
    if node_user is not None and link_user in (None, node_user):
        raise UsageError(
            f"--node-user {node_user}: expected another user for the link as well; add --link-user"
        )
    found = SiteKit.read(kit.resolve())
    check_version(found, own_version())
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    # A folder of its own: the state folder, where the Node writes, is closed to the link's user.
    with tempfile.TemporaryDirectory(prefix="medfusion-") as run:
        programs = _programs(found, site.resolve(), Path(run), link_user, node_user)
        supervisor = Supervisor(programs, folder=Path(run))
        if monitor_port is not None:
            status = found.folder / "spool" / "status.json"
            Monitor(supervisor, lambda: _link_figures(status)).start(monitor_port)
        supervisor.run(ended)


def _programs(
    kit: "SiteKit", site: Path, run: Path, link_user: str | None, node_user: str | None
) -> "list[Program]":
    import sys

    from medfusion.data.site import open_site
    from medfusion.supervision.supervisor import Program
    from medfusion.supervision.users import let_through, own, refuse_readers

    socket, spool = run / "node.sock", kit.folder / "spool"
    spool.mkdir(mode=0o700, exist_ok=True)
    group: tuple[str, ...] = ()
    if link_user is not None:
        opened = open_site(site)
        for path in (site, opened.table, opened.images, opened.state):
            refuse_readers(link_user, path)
        own(spool, link_user)
        if node_user is not None:
            own(run, node_user)
        group = ("--group", let_through(run, link_user))
    # -P: a module in the current folder must not take the place of an installed one.
    python = (sys.executable, "-P", "-m")
    node = (*python, "client.node.service", str(site), "--kit", str(kit.folder))
    link = (*python, "client.link", str(kit.folder), "--spool", str(spool))
    at = ("--socket", str(socket))
    return [
        Program(name="node", command=(*node, *at, *group), user=node_user),
        Program(name="link", command=(*link, *at), user=link_user),
    ]


def _link_figures(status: Path) -> dict[str, float]:
    """Return what the link last said of itself; nothing where it said nothing yet."""
    import json
    import os

    # The file is the link's, who may be another user, and this process may be root's.
    try:
        descriptor = os.open(status, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            told = json.loads(file.read(_LONGEST_STATUS))
        return {
            "link_connected": float(told["connected"]),
            "link_last_contact_seconds": float(told["last_contact"] or 0.0),
            "link_messages": float(told["messages"]),
            "link_busy": float(told["busy"]),
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {}
