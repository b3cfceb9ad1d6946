"""What the coordinator keeps of the sites' ledgers, and to whom it shows it."""

import json

import pytest
from flwr.app import RecordDict
from replies import make_reply

from medfusion.errors import DataError
from medfusion.privacy.ledger_receipt import Receipt
from medfusion.transport.requests import RECEIPT, read_receipt, receipt_record
from server.receipts import FILE_NAME, Receipts


def receipt(count, *, uuid="one"):
    return Receipt(uuid=uuid, count=count, tag=f"{count:064x}")


def reply(count, **which):
    message = make_reply({"w": [0.0]}, 3)
    message.content[RECEIPT] = receipt_record(receipt(count, **which))
    return message


def shown(receipts, name):
    return read_receipt(receipts.shown_to(name, make_reply({"w": [0.0]}, 3)).content)


def test_the_furthest_receipt_of_each_site_is_kept_for_good(tmp_path):
    path = tmp_path / FILE_NAME
    receipts = Receipts(path)
    receipts.take({"north": reply(5), "south": reply(9, uuid="two")})
    receipts.take({"north": reply(4), "south": reply(12, uuid="begun anew")})
    for seen in (receipts, Receipts(path)):
        assert shown(seen, "north") == receipt(5)
        assert shown(seen, "south") == receipt(9, uuid="two")
        assert shown(seen, "west") is None
    receipts.take({"north": reply(6)})
    assert shown(Receipts(path), "north") == receipt(6)


def test_a_message_keeps_all_else(tmp_path):
    receipts = Receipts(None)
    receipts.take({"north": reply(5)})
    message = make_reply({"w": [1.0]}, 3, node=7)
    sent = receipts.shown_to("north", message)
    assert {**sent.content, RECEIPT: None} == {**message.content, RECEIPT: None}
    assert RECEIPT not in message.content  # which other sites' messages share
    for key in ("dst_node_id", "message_type", "group_id", "ttl"):
        assert getattr(sent.metadata, key) == getattr(message.metadata, key)


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / FILE_NAME
    for text in ("{", "{}", '{"sites": {"north": {"count": -1}}}'):
        path.write_text(text)
        with pytest.raises(DataError, match="backup"):
            Receipts(path)


def test_every_request_of_a_run_shows_the_sites_own_receipt(federation):
    """From the roll call on; a run that goes on shows what an earlier one has seen."""
    counts = {name: 10 * number for number, name in enumerate(federation.sites, 1)}
    seen = {name: [] for name in federation.sites}

    def watch(name, genuine):
        def answer(kind, content):
            seen[name].append(read_receipt(content))
            counts[name] += 1
            told = receipt_record(receipt(counts[name], uuid=name))
            return RecordDict({**genuine(kind, content), RECEIPT: told})

        return answer

    for name, site in federation.sites.items():
        site.answer = watch(name, site.answer)
    federation.run()
    for number, (name, requests) in enumerate(seen.items(), 1):
        assert requests[0] is None  # describe, before any receipt
        expected = [receipt(10 * number + k, uuid=name) for k in range(1, len(requests))]
        assert requests[1:] == expected
    kept = json.loads((federation.folder / FILE_NAME).read_text())["sites"]
    assert {name: site["count"] for name, site in kept.items()} == counts


def test_a_malformed_receipt_costs_its_site_the_round(federation):
    site = federation.sites["west"]
    genuine = site.answer

    def answer(kind, content):
        found = genuine(kind, content)
        if kind == "train":
            found[RECEIPT] = receipt_record(receipt(1))
            found[RECEIPT]["tag"] = "none"
        return found

    site.answer = answer
    outcome = federation.run()
    statuses = [line["sites"] for line in outcome.progress.rounds]
    assert {sites["west"]["status"] for sites in statuses} == {"failed"}
    assert {sites["east"]["status"] for sites in statuses} == {"ok"}
