"""The Node as a service: gRPC over a Unix socket, for the link to the coordinator.

::

    python -P -m client.node.service SITE_FOLDER --kit KIT --socket PATH [--group NAME]

``-P`` keeps the current folder off the import path: the Node must run from the installed
package. The socket belongs to the Node's OS user alone (mode 0600), or to the members of a group
as well (0660): the link runs as a user who is in that group and can read neither the site's files
nor its state.
"""

import argparse
import grp
import logging
import os
import signal
import socket as sockets
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import grpc
import torch
from flwr.app import RecordDict

from client.node.node import Node
from client.node.state import NodeState
from client.node.state_lock import alone
from medfusion.data.site_data import SiteData, load_site_data, require_positives
from medfusion.errors import ConfigError, MedFusionError, UsageError
from medfusion.federation.authority import Authority
from medfusion.federation.kit import SiteKit, check_version
from medfusion.federation.versions import own_version
from medfusion.logs import log_to_stderr
from medfusion.privacy.ledger_witness import default_witnesses
from medfusion.transport.packing import from_bytes, to_bytes
from medfusion.transport.requests import read_error

log = logging.getLogger("medfusion.service")

Handle = Callable[[str, RecordDict], RecordDict]
"""Answers one request of a kind; `Node.handle` is the one that is deployed."""

_PREFIX = "/medfusion.Node/"
_UNLIMITED = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
_GRACE_SECONDS = 10.0
_LONGEST_SOCKET_PATH = 107  # bytes; sockaddr_un on Linux


class NodeService(grpc.GenericRpcHandler):
    """Turns calls of ``/medfusion.Node/<kind>`` into requests to a Node.

    Requests and replies are serialised RecordDict messages of Flower. One request is served at
    a time: a Node is not made for two at once. What a call may fail with says nothing of the
    data: the Node's own errors travel in its replies.
    """

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._busy = threading.Lock()

    @property
    def busy(self) -> bool:
        """Whether a request is being answered now."""
        return self._busy.locked()

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[bytes, bytes] | None":
        """Return the handler of a method, or None if it is not ours."""
        method = handler_call_details.method
        if not method.startswith(_PREFIX):
            return None
        return grpc.unary_unary_rpc_method_handler(
            partial(self._answer, method.removeprefix(_PREFIX))
        )

    def _answer(self, kind: str, data: bytes, context: grpc.ServicerContext) -> bytes:
        start = time.monotonic()
        try:
            content = from_bytes(data)
        except Exception:  # whatever a damaged message leads to
            log.warning("%r: refused %d bytes that are no RecordDict", kind, len(data))
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "expected a serialised RecordDict")
        with self._busy:
            reply = self._handle(kind, content)
        if error := read_error(reply):
            log.warning("%r failed: %s", kind, error)
        answer = to_bytes(reply)
        seconds = time.monotonic() - start
        log.info("%r: %d bytes in, %d out, %.2f s", kind, len(data), len(answer), seconds)
        return answer


def start_service(
    service: NodeService, socket: Path, *, group: str | None = None, threads: int = 0
) -> grpc.Server:
    """Listen on a Unix socket.

    Parameters
    ----------
    socket
        Path of the socket; one that a dead service left behind is replaced.
    group
        Members of this OS group may connect too.
    threads
        PyTorch threads of the one thread that serves; 0 keeps PyTorch's own choice.

    Raises
    ------
    UsageError
        If the path cannot be used, another process listens there, or there is no such group.
    """
    group_id = None if group is None else _group_id(group)
    pool = ThreadPoolExecutor(
        max_workers=1,
        thread_name_prefix="node",
        initializer=partial(torch.set_num_threads, threads) if threads else None,
    )
    server = grpc.server(pool, handlers=[service], options=_UNLIMITED)
    try:
        _free(socket)
        with _umask(0o177):
            server.add_insecure_port(f"unix:{socket}")
        if group_id is not None:
            os.chown(socket, -1, group_id)
            socket.chmod(0o660)
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "cannot listen there"
        raise UsageError(
            f"{socket}: {reason}; expected a path in a folder that this user may write to, and "
            "a group that it belongs to"
        ) from None
    server.start()
    return server


def _free(socket: Path) -> None:
    """Make sure that nothing listens at a path; remove a socket that nobody serves.

    gRPC itself would take the path away from a service that runs.
    """
    if len(os.fsencode(socket)) > _LONGEST_SOCKET_PATH:
        raise UsageError(f"{socket}: expected a path of at most {_LONGEST_SOCKET_PATH} bytes")
    try:
        mode = socket.lstat().st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(mode):
        raise UsageError(f"{socket}: exists and is not a socket; choose another --socket")
    with sockets.socket(sockets.AF_UNIX) as probe:
        try:
            probe.connect(str(socket))
        except ConnectionRefusedError:
            socket.unlink()
        else:
            raise UsageError(f"{socket}: another service listens there; stop it first")


def _group_id(name: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise UsageError(f"--group {name}: no such group on this machine") from None


@contextmanager
def _umask(mask: int) -> Iterator[None]:
    previous = os.umask(mask)
    try:
        yield
    finally:
        os.umask(previous)


def run(site: Path, socket: Path, *, kit: Path, group: str | None) -> bool:
    """Serve a site until SIGTERM or SIGINT; return whether the last request was finished.

    Parameters
    ----------
    kit
        Of the coordinator that runs are taken from.
    group
        See `start_service`.

    Raises
    ------
    MedFusionError
        If the site is not as its task says, has no positives, or is in use already, its ledger
        is not as it was left, or the socket cannot be used.
    """
    data = load_site_data(site)
    require_positives(data)
    authority = _authority(kit, data)
    state = NodeState(data.state)
    ended = threading.Event()
    with alone(data.state):
        ledger = state.ledger(data.name, witnesses=default_witnesses())
        node = Node(data, state, state.secret(), ledger, authority=authority)
        service = NodeService(node.handle)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: ended.set())
        server = start_service(service, socket, group=group, threads=data.config.compute.threads)
        log.info("site %s: serving at %s", data.name, socket)
        ended.wait()
        log.info("ending; a request under way has %.0f s to finish", _GRACE_SECONDS)
        server.stop(_GRACE_SECONDS).wait()
        socket.unlink(missing_ok=True)
        return not service.busy


def _authority(folder: Path, data: SiteData) -> Authority:
    """Return the coordinator that a kit is from; refuse a kit of another task."""
    kit = SiteKit.read(folder)
    check_version(kit, own_version())
    if kit.task_sha256 != data.task.sha256:
        raise ConfigError(
            f"{folder}: the kit is for another task (hash {kit.task_sha256[:12]}) than the site "
            f"(hash {data.task.sha256[:12]}): let [site] task be {kit.task}"
        )
    if kit.site != data.name:
        raise ConfigError(
            f"{folder}: is the kit of {kit.site!r}, but [site] name is {data.name!r}: use the "
            "site's own kit, or let its name be the one that the coordinator knows"
        )
    return Authority(federation=kit.federation, signing_key=kit.signing_key)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the service from the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -P -m client.node.service", description="Serve a hospital's Node."
    )
    parser.add_argument("site", type=Path, help="site folder, which holds site.toml")
    parser.add_argument("--kit", type=Path, required=True, help="the site's kit")
    parser.add_argument("--socket", type=Path, required=True, help="Unix socket to listen on")
    parser.add_argument("--group", help="OS group that may connect, besides this user")
    options = parser.parse_args(arguments)
    log_to_stderr()
    try:
        socket = options.socket.absolute()
        finished = run(options.site, socket, kit=options.kit, group=options.group)
    except MedFusionError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if not finished:
        # Python would wait for the thread that trains. What it writes, it writes atomically.
        log.warning("ended before the last request was finished")
        logging.shutdown()
        os._exit(1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
