"""What a crash, another process or a power cut can leave of a file, at any moment."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from replies import make_reply

from client.node.state import NodeState
from medfusion.atomic_files import (
    create_secret,
    make_folder,
    replacing,
    unfinished,
    write_atomically,
    write_json,
)
from medfusion.privacy.ledger_chain import EMPTY
from medfusion.privacy.ledger_receipt import Receipt
from medfusion.privacy.ledger_witness import Witness
from medfusion.privacy.options import ClientDpOptions
from server.checkpoint import Checkpoint, CheckpointStore
from server.client_dp import ClientDp, coordinators_secret
from server.receipts import Receipts
from server.strategies import StrategyOptions, build_strategy

Events = list[tuple[str, int]]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Events:
    """What is asked of the disk, in order: each call with the inode that it is about."""
    seen: Events = []
    fsync, replace, link = os.fsync, os.replace, os.link

    def synced(descriptor: int) -> None:
        seen.append(("fsync", os.fstat(descriptor).st_ino))
        fsync(descriptor)

    def moved(source: Path, target: Path) -> None:
        seen.append(("appears", source.stat().st_ino))
        replace(source, target)

    def linked(source: Path, target: Path) -> None:
        seen.append(("appears", source.stat().st_ino))
        link(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", moved)
    monkeypatch.setattr(os, "link", linked)
    return seen


def inode(path: Path) -> int:
    return path.stat().st_ino


@pytest.mark.parametrize("data", ["caf\u00e9\n", b"\x00\xff"])
@pytest.mark.parametrize("durable", [True, False])
def test_a_file_takes_the_place_of_another(
    tmp_path: Path, events: Events, data: str | bytes, durable: bool
) -> None:
    path = tmp_path / "file"
    path.write_text("old and longer than the new one")
    write_atomically(path, data, durable=durable)
    assert path.read_bytes() == (data.encode() if isinstance(data, str) else data)
    assert list(tmp_path.iterdir()) == [path]
    appears = ("appears", inode(path))
    whole = [("fsync", inode(path)), appears, ("fsync", inode(tmp_path))]
    assert events == (whole if durable else [appears])


def test_a_new_file_is_as_open_as_the_umask_lets_it_be(tmp_path: Path) -> None:
    write_atomically(tmp_path / "ours", "", durable=False)
    (tmp_path / "plain").touch()
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours", "plain")}
    assert len(modes) == 1


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "disk full")

    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr(os, fails, full)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new", durable=True)
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"value": float("nan")}, durable=False)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with replacing(path, durable=False) as one, replacing(path, durable=False) as other:
        one.write_text("first")
        other.write_text("second")
        assert not path.exists()
    assert path.read_text() == "first"  # whose block ended last
    assert list(tmp_path.iterdir()) == [path]


def test_a_secret_is_the_owners_and_replaces_none(tmp_path: Path, events: Events) -> None:
    path = tmp_path / "secret"
    create_secret(path, b"one")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert events == [
        ("fsync", inode(path)),
        ("appears", inode(path)),
        ("fsync", inode(tmp_path)),
    ]
    create_secret(path, b"two")
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]
    assert events[-1] == ("fsync", inode(tmp_path))  # the other process may not have come to it


def test_a_new_folder_is_on_the_disk_with_those_above_it(tmp_path: Path, events: Events) -> None:
    folder = tmp_path / "a" / "b"
    make_folder(folder, mode=0o700)
    assert sorted(events) == sorted(("fsync", inode(part)) for part in (tmp_path, folder.parent))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    make_folder(folder)
    assert len(events) == 2


def charge(folder: Path) -> None:
    model = ArrayRecord({"w": Array(np.zeros(1, np.float32))})
    options = ClientDpOptions(clip=1.0, noise_multiplier=1.0)
    ClientDp(options, "run", 1, folder, bytes(32)).combine(1, model, {"a": make_reply({"w": 1}, 1)})


def keep_receipt(folder: Path) -> None:
    receipts = Receipts(folder / "receipts.json")
    receipts.take([("north", Receipt(uuid="one", count=1, tag="0" * 64))])
    (folder / "receipts.lock").unlink()  # holds nothing


def save_checkpoint(folder: Path) -> None:
    model = ArrayRecord({"w": Array(np.zeros(1, np.float32))})
    strategy = build_strategy(StrategyOptions(), min_sites=1)
    CheckpointStore(folder, "run").save(Checkpoint(1, model, {}), strategy)


def witness(folder: Path) -> None:
    Witness.of(folder.parent, uuid="one", site="north", head=EMPTY).write(folder)


@pytest.mark.parametrize(
    "write",
    [
        charge,
        keep_receipt,
        save_checkpoint,
        witness,
        lambda folder: coordinators_secret(folder, seed=0, simulated=False),
        lambda folder: NodeState(folder).secret(),
    ],
    ids=["charge", "receipt", "checkpoint", "witness", "coordinator's secret", "site's secret"],
)
def test_what_something_is_built_on_is_on_the_disk_first(
    tmp_path: Path, events: Events, write: Callable[[Path], object]
) -> None:
    folder = tmp_path / "new"
    if write is charge:
        folder.mkdir()  # the secret, which comes first, makes it
    write(folder)
    (path,) = folder.iterdir()
    assert events[-3:] == [
        ("fsync", inode(path)),
        ("appears", inode(path)),
        ("fsync", inode(folder)),
    ]
    if write is not charge:
        assert events[0] == ("fsync", inode(tmp_path))


def test_unfinished_files_are_known_and_hidden(tmp_path: Path) -> None:
    path = tmp_path / "round-1.json"
    others = {tmp_path / ".round-2.json.00.partial", tmp_path / "not-ours.partial"}
    for other in others:
        other.touch()
    with replacing(path, durable=False) as partial:
        partial.touch()
        assert unfinished(path) == [partial]
        assert set(tmp_path.iterdir()) == {partial, *others}
        assert not [*tmp_path.glob("round-*"), *tmp_path.glob("*.json")]
    assert unfinished(path) == []
