"""The coordinator's receipt of a ledger: how far it was when the site last answered.

The witness (`medfusion.privacy.ledger_witness`) stands on the hospital's own machine: whoever
puts ledger and witness back together, as a restored backup of the whole machine does, leaves
no trace there. So a Node tells the coordinator with each reply how far its ledger is; the
coordinator keeps the furthest and shows it with each request. A ledger that lacks what was shown
was rolled back, and its Node refuses.

The hash of an entry itself must not leave: it depends on the patients' data, and whoever knew
all but one of them could try out guesses at the last. What leaves is a MAC of it under the
site's secret, which only the Node can compute. The coordinator does not sign: a receipt that it
makes up or leaves out can only make the Node refuse, or leave it with its own witness.
"""

import hashlib
import hmac
from typing import Self

from pydantic import Field

from medfusion.errors import LedgerError
from medfusion.options import Options
from medfusion.privacy.ledger_book import Book


class Receipt(Options):
    """How far a ledger was: ``count`` entries, and the MAC ``tag`` of the last one's hash."""

    uuid: str = Field(min_length=1, max_length=64)
    count: int = Field(ge=0)
    tag: str = Field(pattern=r"^[0-9a-f]{64}$")

    @classmethod
    def of(cls, book: Book, secret: bytes) -> Self:
        """Return a receipt of all that ``book`` holds, under the site's secret."""
        count = book.head.count
        return cls(uuid=book.uuid, count=count, tag=_tag(book, count, secret))


def check_receipt(receipt: Receipt, book: Book, secret: bytes) -> None:
    """Refuse a ledger that lacks what the coordinator has seen of it.

    Raises
    ------
    LedgerError
        Saying what is missing and how to recover.
    """
    if receipt.uuid != book.uuid:
        raise LedgerError(
            "the coordinator has seen another ledger of this site, with "
            f"{receipt.count} rows: this one was begun later or elsewhere; restore the state "
            "folder and its witness from the newest backup"
        )
    if receipt.count > book.head.count:
        raise LedgerError(
            f"it was rolled back, together with its witness: {book.head.count} rows here, the "
            f"coordinator has seen {receipt.count}; restore the newer file, with its -wal, and "
            "its witness from a backup"
        )
    if not hmac.compare_digest(_tag(book, receipt.count, secret), receipt.tag):
        raise LedgerError(
            f"row {receipt.count} differs from the one that the coordinator has seen: its history "
            "was rewritten after a rollback, or the site's secret was replaced; restore the true "
            "file, with its -wal, its witness and the secret from a backup"
        )


def _tag(book: Book, count: int, secret: bytes) -> str:
    text = f"ledger receipt/{book.uuid}/{count}/{book.hashes[count]}"
    return hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()
