"""The receipts that the coordinator keeps: how far each site's ledger was when it last answered.

See `medfusion.privacy.ledger_receipt` for what they find. They lie in a file, since a site may be
put back while the coordinator is down.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from flwr.app import Message, RecordDict

from medfusion.atomic_files import make_folder, write_json
from medfusion.errors import ConfigError, DataError
from medfusion.privacy.ledger_receipt import Receipt
from medfusion.transport.requests import RECEIPT, receipt_record

FILE_NAME = "receipts.json"


class Receipts:
    """The furthest receipt of each site, by the site's name.

    Parameters
    ----------
    path
        File that keeps them, also across runs if they share it. None for a simulation with
        scratch ledgers, which are not to outlast it.

    Raises
    ------
    DataError
        If the file is damaged.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._kept: dict[str, Receipt] = {}
        if path is not None and path.exists():
            try:
                sites = json.loads(path.read_text(encoding="utf-8"))["sites"]
                self._kept = {name: Receipt.parse(sites[name], where=name) for name in sites}
            except (ValueError, KeyError, TypeError, ConfigError):
                raise DataError(
                    f"{path}: expected the receipts of the sites' ledgers, found a damaged file; "
                    "restore it from a backup"
                ) from None

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
        before = dict(self._kept)
        for name, receipt in told:
            kept = self._kept.get(name)
            if kept is None:
                further = begin
            else:
                further = kept.uuid == receipt.uuid and kept.count < receipt.count
            if further:
                self._kept[name] = receipt
        if self._kept != before:
            self._save()

    def shown_to(self, name: str, message: Message) -> Message:
        """Return the message with the site's receipt, which no other site gets to see."""
        kept = self._kept.get(name)
        if kept is None:
            return message
        content = RecordDict({**message.content, RECEIPT: receipt_record(kept)})
        meta = message.metadata
        return Message(
            content, meta.dst_node_id, meta.message_type, ttl=meta.ttl, group_id=meta.group_id
        )

    def _save(self) -> None:
        """Bring all to the disk before anything is built on the reply."""
        if self._path is None:
            return
        sites = {name: receipt.model_dump() for name, receipt in sorted(self._kept.items())}
        make_folder(self._path.parent)  # the first thing a run writes
        write_json(self._path, {"schema": 1, "sites": sites}, durable=True)
