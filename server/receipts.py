"""The receipts that the coordinator keeps: how far each site's ledger was when it last answered.

See `medfusion.privacy.ledger_receipt` for what they find. They lie in a file that a coordinator's
runs share, since a site may be put back while the coordinator is down, or between two runs.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from flwr.app import Message, RecordDict

from medfusion.atomic_files import make_folder, write_json
from medfusion.errors import ConfigError, DataError
from medfusion.folder_lock import one_at_a_time
from medfusion.privacy.ledger_receipt import Receipt
from medfusion.transport.requests import RECEIPT, receipt_record
from server.messages import with_content

FILE_NAME = "receipts.json"


class Receipts:
    """The furthest receipt of each site, by the site's name.

    Parameters
    ----------
    path
        File that keeps them; runs that go on at the same time may share it. None for a
        simulation with scratch ledgers, which are not to outlast it.

    Raises
    ------
    DataError
        If the file is damaged.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._kept: dict[str, Receipt] = {} if path is None else _read(path)

    def take(self, told: Iterable[tuple[str, Receipt]], *, begin: bool = True) -> None:
        """Keep what sites, by name, told, unless more of a ledger was seen before.

        A site whose ledger is another one than before keeps its old receipt: the Node itself
        refuses then, and says what to do.

        Parameters
        ----------
        told
            Each site's receipt, of every reply that could be read: also of one that is refused
            for its content, since its Node has charged and released.
        begin
            Whether to keep that of a site of which none is kept yet.
        """
        if self._path is None:
            self._merge(told, begin=begin)
            return
        make_folder(self._path.parent)  # the first thing a run writes
        with one_at_a_time(self._path.with_suffix(".lock")):
            self._kept = before = _read(self._path)  # another run may have got further
            self._merge(told, begin=begin)
            if self._kept != before:
                sites = {name: kept.model_dump() for name, kept in sorted(self._kept.items())}
                write_json(self._path, {"schema": 1, "sites": sites}, durable=True)

    def _merge(self, told: Iterable[tuple[str, Receipt]], *, begin: bool) -> None:
        kept_now = dict(self._kept)
        for name, receipt in told:
            kept = kept_now.get(name)
            if kept is None:
                further = begin
            else:
                further = kept.uuid == receipt.uuid and kept.count < receipt.count
            if further:
                kept_now[name] = receipt
        self._kept = kept_now

    def shown_to(self, name: str, message: Message) -> Message:
        """Return the message with the site's receipt, which no other site gets to see."""
        kept = self._kept.get(name)
        if kept is None:
            return message
        return with_content(message, RecordDict({**message.content, RECEIPT: receipt_record(kept)}))


def _read(path: Path) -> dict[str, Receipt]:
    """Return what a file keeps; nothing if there is none."""
    try:
        sites = json.loads(path.read_text(encoding="utf-8"))["sites"]
        return {name: Receipt.parse(sites[name], where=name) for name in sites}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, ConfigError):
        raise DataError(
            f"{path}: expected the receipts of the sites' ledgers, found a damaged file; "
            "restore it from a backup"
        ) from None
