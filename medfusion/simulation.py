"""A federation on one machine: Flower's Grid with warm hospital nodes in worker processes.

The very ServerApp and ClientApp of a deployment run here; every message is serialised as it
would be for the wire. Each worker process serves some of the sites and pins its threads, so
that the machine's cores are shared out and results do not depend on timing.
"""

import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkContext, SpawnContext
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
import torch._dynamo  # the first optimiser step imports it: once here, not in every worker
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from medfusion.errors import FederationError
from medfusion.workers import end_with_parent, has_gpu

NodeFactory = Callable[[], ClientApp]
"""Opens a site and returns its Flower app; called once, in the worker that serves the site."""

_RUN_ID, _SERVER_NODE, _TASK = 1, 1, 1
_POLL_SECONDS = 0.05


class InProcessGrid(Grid):
    """Flower's message exchange over pipes to worker processes.

    Use as a context manager: leaving it ends the workers.

    Parameters
    ----------
    sites
        Node factories by site name. Node ids are 1, 2, ... in the order of the names, and
        sites are dealt to workers in turn.
    """

    def __init__(self, sites: Mapping[str, NodeFactory]) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = (
            _RUN_ID,
            _SERVER_NODE,
            _TASK,
        )
        factories = {node: sites[name] for node, name in enumerate(sorted(sites), start=1)}
        cores = len(os.sched_getaffinity(0))
        count = min(len(factories), cores)
        threads = max(1, cores // count)
        self._worker_of = {node: (node - 1) % count for node in factories}
        self._workers = [
            _Worker(
                {
                    node: factory
                    for node, factory in factories.items()
                    if (node - 1) % count == turn
                },
                threads,
            )
            for turn in range(count)
        ]
        self._arrived: dict[str, Message] = {}
        self._sent = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for worker in self._workers:
            worker.stop()

    def set_run(self, run: Run) -> None:
        """Refuse: the grid serves the one run it was made for."""
        raise NotImplementedError("an in-process grid has one run")

    @property
    def run(self) -> Run:
        """The one run of this grid."""
        return Run.create_empty(_RUN_ID)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a new message (Flower's older way to make one)."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Node ids, in the order of the sites' names."""
        return list(self._worker_of)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Serialise messages and hand them to the workers; return their ids."""
        identifiers = []
        for message in messages:
            self._sent += 1
            identifier = str(self._sent)
            message.metadata.__dict__["_message_id"] = identifier
            worker = self._workers[self._worker_of[message.metadata.dst_node_id]]
            worker.send(message_to_proto(message).SerializeToString())
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have arrived, waiting a moment if there are none."""
        for connection in wait([w.connection for w in self._workers], timeout=_POLL_SECONDS):
            assert isinstance(connection, Connection)
            try:
                proto = MessageProto.FromString(connection.recv_bytes())
            except EOFError:
                raise FederationError(
                    "a worker process ended unexpectedly (out of memory?); the run can be "
                    "resumed with the same command"
                ) from None
            reply = message_from_proto(proto)
            self._arrived[reply.metadata.reply_to_message_id] = reply
        return [
            self._arrived.pop(identifier)
            for identifier in list(message_ids)
            if identifier in self._arrived
        ]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages and wait for their replies, at most ``timeout`` seconds."""
        pending = set(self.push_messages(messages))
        deadline = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while pending and (deadline is None or time.monotonic() < deadline):
            arrived = list(self.pull_messages(pending))
            pending -= {reply.metadata.reply_to_message_id for reply in arrived}
            replies += arrived
        return replies


class _Worker:
    """A process that serves some nodes, one message after another.

    Messages queue on this side and one is under way at a time: a pipe that both ends fill
    would stop both.
    """

    def __init__(self, factories: dict[int, NodeFactory], threads: int) -> None:
        # Forked workers share the loaded libraries and start in milliseconds; CUDA forbids it.
        context: SpawnContext | ForkContext = (
            multiprocessing.get_context("spawn")
            if has_gpu()
            else multiprocessing.get_context("fork")
        )
        self.connection, theirs = context.Pipe()
        self._sender = _Sender(self.connection)
        self._process = context.Process(
            target=_serve, args=(factories, theirs, threads, os.getpid()), daemon=True
        )
        self._process.start()
        theirs.close()

    def send(self, data: bytes) -> None:
        self._sender.put(data)

    def stop(self) -> None:
        self._sender.stop()
        self._process.terminate()
        self._process.join()
        self.connection.close()


class _Sender:
    """Writes to a pipe from a thread of its own, so that a full pipe does not stop the grid."""

    def __init__(self, connection: Connection) -> None:
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._connection = connection
        threading.Thread(target=self._run, daemon=True).start()

    def put(self, data: bytes) -> None:
        self._queue.put(data)

    def stop(self) -> None:
        self._queue.put(None)

    def _run(self) -> None:
        while (data := self._queue.get()) is not None:
            try:
                self._connection.send_bytes(data)
            except OSError:
                return


def _serve(
    factories: dict[int, NodeFactory], connection: Connection, threads: int, parent: int
) -> None:
    """Open the sites and answer messages until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us
    end_with_parent(parent)
    torch.set_num_threads(threads)
    TaskIdentity.run_id, TaskIdentity.task_id = _RUN_ID, _TASK
    apps = {node: factory() for node, factory in factories.items()}
    contexts = {
        node: Context(_RUN_ID, node, {}, state=RecordDict(), run_config={}) for node in factories
    }
    while True:
        try:
            proto = MessageProto.FromString(connection.recv_bytes())
        except EOFError:
            return
        message = message_from_proto(proto)
        node = message.metadata.dst_node_id
        TaskIdentity.node_id = node
        reply = apps[node](message, contexts[node])
        connection.send_bytes(message_to_proto(reply).SerializeToString())


def run_in_process(
    server: ServerApp,
    sites: Mapping[str, NodeFactory],
    *,
    config: Path,
    out: Path,
    simulated: bool,
) -> None:
    """Run the coordinator's app with the sites' apps on this machine.

    Parameters
    ----------
    server
        The coordinator's Flower app.
    sites
        Node factories by site name (picklable where the machine has a GPU).
    config, out
        The resolved configuration, and the run folder.
    simulated
        Whether the Nodes' secrets come from the seed, so that their epsilon protects nobody.
    """
    settings = run_config(config=config, out=out, simulated=simulated)
    with InProcessGrid(sites) as grid:
        context = Context(_RUN_ID, _SERVER_NODE, {}, state=RecordDict(), run_config=settings)
        server(grid, context)


def run_config(*, config: Path, out: Path, simulated: bool) -> dict[str, bool | float | int | str]:
    """Return what tells the coordinator's app where its settings and its run folder are."""
    return {"config": str(config), "out": str(out), "simulated": simulated}
