"""The faults of the matrix: what goes wrong, when, and how its run is to end."""

import os
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from far_line import set_line, why_not
from fault_driver import ROUNDS, SITE, FaultyFederation
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.supercore.task_identity import TaskIdentity

from medfusion.data.site_data import load_site_data
from medfusion.transport.packing import pack, to_bytes, unpacked
from medfusion.transport.requests import ARRAYS, METRICS, WEIGHT_KEY

Inject = Callable[[FaultyFederation, str], None]
_CUT_SECONDS = 90
_LOCKED_SECONDS = 6  # longer than Flower's own patience, shorter than ours
_FROZEN_SECONDS = 60  # three times the kits' patience: the site counts as gone


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong while a run called by the second argument of ``inject`` goes on.

    ``ends`` is how that run ends: finished, or failed with ``names`` in the reason, and then
    finished once it is resumed. ``same`` says that the model is the simulation's.
    """

    name: str
    phase: str
    inject: Inject
    ends: str = "finished"
    names: str = ""
    same: bool = True
    overrides: tuple[str, ...] = ()


def _before(program: str, federation: FaultyFederation, run: str) -> None:
    """Wait until a run has begun, and no round of it."""
    if program in ("link", "node", "site"):
        federation.await_message()
    elif program == "serverapp":
        federation.await_("app at work", (federation.run_folder(run) / "app.json").exists)


def _middle(program: str, federation: FaultyFederation, run: str) -> None:
    federation.await_round(run, 1)
    federation.await_message()


def _late(program: str, federation: FaultyFederation, run: str) -> None:
    """Wait for an upload, or, at the coordinator, for the delivery."""
    if program in ("link", "node", "site"):
        federation.await_round(run, 1)
        federation.await_reply()
    else:
        federation.await_round(run, ROUNDS)


def _kill(program: str, phase: Callable[..., None], federation: FaultyFederation, run: str) -> None:
    phase(program, federation, run)
    federation.kill(program)
    if program == "server":
        federation.start_server()
    elif program == "site":
        federation.start_site(SITE, federation.cohort / "sites" / SITE)


def _freeze(federation: FaultyFederation, run: str) -> None:
    """Let a site fall silent for a while in mid-round, as one whose network is cut."""
    _middle("link", federation, run)
    federation.kill("link", number=signal.SIGSTOP)
    try:
        subprocess.run(["sleep", str(_FROZEN_SECONDS)], check=True)
    finally:
        federation.kill("link", number=signal.SIGCONT)


def _cut_line(federation: FaultyFederation, run: str) -> None:
    """Let nothing through for a while in mid-round."""
    _middle("link", federation, run)
    set_line(federation.line, cut=True)
    try:
        subprocess.run(["sleep", str(_CUT_SECONDS)], check=True)
    finally:
        set_line(federation.line)


def _slow_line(federation: FaultyFederation, run: str) -> None:
    """Let the line be as over an ocean, until all rounds are done."""
    set_line(federation.line, delay=0.05, loss=0.01)
    try:
        federation.await_round(run, ROUNDS)
    finally:
        set_line(federation.line)


def _forge(change: Callable[[np.ndarray], np.ndarray], fed: FaultyFederation, run: str) -> None:
    """Let a link answer by itself, with the incoming model changed."""

    def forged(data: bytes) -> bytes:
        message = message_from_proto(MessageProto.FromString(data))
        assert isinstance(message, Message)
        TaskIdentity.run_id = message.metadata.run_id
        TaskIdentity.node_id, TaskIdentity.task_id = message.metadata.dst_node_id, 0
        arrays = unpacked(message.content).array_records[ARRAYS]
        changed = {name: Array(change(array.numpy())) for name, array in arrays.items()}
        patients = load_site_data(fed.cohort / "sites" / SITE).patients_public
        content = RecordDict(
            {ARRAYS: ArrayRecord(changed), METRICS: MetricRecord({WEIGHT_KEY: patients})}
        )
        reply = Message(pack(to_bytes(content)), reply_to=message)
        found: bytes = message_to_proto(reply).SerializeToString()
        return found

    _put_reply(forged, fed, run)


def _put_reply(make: Callable[[bytes], bytes], federation: FaultyFederation, run: str) -> None:
    """Put a reply into the spool, made from the message, while the link is away."""
    spool = federation.spool()
    while True:
        federation.await_round(run, 1)
        federation.await_message()
        federation.kill("link", number=signal.SIGSTOP)
        if (spool / "message").exists() and not (spool / "reply").exists():
            break
        federation.kill("link", number=signal.SIGCONT)
    (spool / "reply").write_bytes(make((spool / "message").read_bytes()))
    (spool / "message").unlink()
    federation.kill("link")


@contextmanager
def _full(folder: Path, process: int) -> Iterator[None]:
    """Let a folder's file system be a full one where a process sees it; needs root."""
    inside = ("nsenter", f"--target={process}", "--mount")  # a network namespace has mounts as well
    mount = ("mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", folder)
    subprocess.run([*inside, *mount], check=True)
    try:
        seen = Path(f"/proc/{process}/root") / folder.relative_to("/")
        (seen / "ballast").write_bytes(bytes(4096))
        yield
    finally:
        subprocess.run([*inside, "umount", "-l", folder], check=True)


def _full_spool(federation: FaultyFederation, run: str) -> None:
    _middle("link", federation, run)
    with _full(federation.spool(), federation.pid_of("link")):
        federation.await_(
            "complaint about the spool",
            lambda: "the spool cannot be written" in federation.processes.log(SITE),
        )


def _lock_database(federation: FaultyFederation, run: str) -> None:
    """Let nobody else write to the SuperLink's database for a while, as a slow disk does."""
    _middle("link", federation, run)
    database = sqlite3.connect(federation.server_kit / "state" / "superlink.db", timeout=60)
    try:
        database.execute("BEGIN IMMEDIATE")
        subprocess.run(["sleep", str(_LOCKED_SECONDS)], check=True)
    finally:
        database.rollback()
        database.close()


def _put_back(federation: FaultyFederation, run: str) -> None:
    """Send a reply again that was taken already."""
    spool = federation.spool()
    federation.await_round(run, 1)
    federation.await_reply()
    kept = (spool / "reply").read_bytes()
    federation.await_round(run, 2)
    federation.kill("link", number=signal.SIGSTOP)
    if not any((spool / name).exists() for name in ("claimed", "message", "reply")):
        (spool / "reply").write_bytes(kept)
    federation.kill("link", number=signal.SIGCONT)


def _silence(federation: FaultyFederation, run: str) -> None:
    """Lose a message: the link forgets what it has claimed."""
    _middle("link", federation, run)
    federation.kill("link", number=signal.SIGSTOP)
    for name in ("claimed", "message", "reply"):
        (federation.spool() / name).unlink(missing_ok=True)
    federation.kill("link")


_PHASES = {"before": _before, "middle": _middle, "late": _late}
_PROGRAMS = ("link", "node", "serverapp", "superlink", "superexec", "site", "server")

_NAN = partial(_forge, lambda array: array * np.float32("nan"))
_CUT = partial(_forge, lambda array: array[..., :-1] if array.ndim else array[None])
_HUGE = partial(_forge, lambda array: np.tile(array, 5000))
_GARBAGE = partial(_put_reply, lambda data: data[::-1])

FAULTS = (
    Fault("none", "-", lambda federation, run: None),
    *(
        Fault(f"kill-{program}", phase, partial(_kill, program, _PHASES[phase]))
        for phase in ("middle", "late", "before")
        for program in _PROGRAMS
    ),
    *(
        [
            Fault("cut-line-90s", "middle", _cut_line),
            Fault("slow-line", "-", _slow_line),
        ]
        if not why_not()
        else []
    ),
    Fault("locked-database", "middle", _lock_database),
    Fault("lost-message", "middle", _silence),
    Fault("freeze-link-60s", "middle", _freeze),
    Fault("corrupt-reply", "middle", _GARBAGE),
    Fault("nan-reply", "middle", _NAN, "failed", SITE),
    Fault("wrong-shape-reply", "middle", _CUT, "failed", SITE),
    Fault("oversized-reply", "middle", _HUGE, "failed", SITE),
    Fault(
        "nan-reply-quorum-2",
        "middle",
        _NAN,
        same=False,
        overrides=("server.min_sites=2",),
    ),
    Fault("replayed-reply", "middle", _put_back),
    *([Fault("spool-disk-full", "middle", _full_spool)] if os.geteuid() == 0 else []),
)
