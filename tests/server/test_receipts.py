"""What the coordinator keeps of the sites' ledgers, and to whom it shows it."""

import json

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from replies import make_reply

from medfusion.errors import DataError, FederationError
from medfusion.privacy.ledger_receipt import Receipt
from medfusion.transport.requests import (
    ARRAYS,
    METRICS,
    RECEIPT,
    WEIGHT_KEY,
    read_receipt,
    receipt_record,
)
from server.progress import RunProgress
from server.receipts import FILE_NAME, Receipts


def receipt(count, *, uuid="one"):
    return Receipt(uuid=uuid, count=count, tag=f"{count:064x}")


def shown(receipts, name):
    return read_receipt(receipts.shown_to(name, make_reply({"w": [0.0]}, 3)).content)


def test_the_furthest_receipt_of_each_site_is_kept_for_good(tmp_path):
    path = tmp_path / FILE_NAME
    receipts = Receipts(path)
    receipts.take([("north", receipt(5)), ("south", receipt(9, uuid="two"))])
    receipts.take([("north", receipt(4)), ("south", receipt(12, uuid="begun anew"))])
    for seen in (receipts, Receipts(path)):
        assert shown(seen, "north") == receipt(5)
        assert shown(seen, "south") == receipt(9, uuid="two")
        assert shown(seen, "west") is None
    receipts.take([("north", receipt(6)), ("west", receipt(3))], begin=False)
    assert shown(receipts, "west") is None
    assert shown(Receipts(path), "north") == receipt(6)


def test_a_message_keeps_all_else(tmp_path):
    receipts = Receipts(None)
    receipts.take([("north", receipt(5))])
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


def tell(federation):
    """Let each site's ledger go further with every answer, and tell; return how far each is."""
    counts = {name: 10 * number for number, name in enumerate(federation.sites, 1)}

    def telling(name, genuine):
        def answer(kind, content):
            counts[name] += 1
            told = receipt_record(receipt(counts[name], uuid=name))
            return RecordDict({**genuine(kind, content), RECEIPT: told})

        return answer

    for name, site in federation.sites.items():
        site.answer = telling(name, site.answer)
    return counts


def kept_counts(federation):
    kept = json.loads((federation.folder / FILE_NAME).read_text())["sites"]
    return {name: site["count"] for name, site in kept.items()}


def test_every_request_of_a_run_shows_the_sites_own_receipt(federation):
    """From the roll call on; a run that goes on shows what an earlier one has seen."""
    counts, seen = tell(federation), {name: [] for name in federation.sites}

    def watch(name, genuine):
        def answer(kind, content):
            seen[name].append(read_receipt(content))
            return genuine(kind, content)

        return answer

    for name, site in federation.sites.items():
        site.answer = watch(name, site.answer)
    federation.run()
    for number, (name, requests) in enumerate(seen.items(), 1):
        assert requests[0] is None  # describe, before any receipt
        expected = [receipt(10 * number + k, uuid=name) for k in range(1, len(requests))]
        assert requests[1:] == expected
    assert kept_counts(federation) == counts


def test_a_site_whose_reply_is_refused_has_released_all_the_same(federation, monkeypatch):
    def diverged(content, number):
        arrays = {name: Array(a.numpy() + np.float32("nan")) for name, a in content[ARRAYS].items()}
        return RecordDict({ARRAYS: ArrayRecord(arrays), METRICS: MetricRecord({WEIGHT_KEY: 70})})

    loop, _ = federation.loop()
    counts, saved = tell(federation), []
    monkeypatch.setattr("server.receipts.write_json", lambda *parts, **_: saved.append(parts))
    monkeypatch.setattr(federation.sites["north"], "train", diverged)
    monkeypatch.setattr(federation.sites["north"], "evaluate", diverged)
    outcome = loop.run()
    statuses = [line["sites"]["north"]["status"] for line in outcome.progress.rounds]
    assert statuses == ["failed"] * 3
    kept = {name: shown(federation.receipts, name).count for name in counts}
    assert kept == counts
    assert len(saved) == 7  # selection, and training and metrics of three rounds


def test_an_exchange_that_breaks_off_keeps_what_was_told(federation, monkeypatch):
    loop, _ = federation.loop()
    counts = tell(federation)

    def broken(show, name, **_):
        raise KeyboardInterrupt

    monkeypatch.setattr(RunProgress, "site_replied", broken)
    with pytest.raises(KeyboardInterrupt):
        loop.run()
    (name,) = kept_counts(federation)  # whichever answered first
    assert kept_counts(federation) == {name: counts[name]}


def test_a_roll_call_that_fails_follows_the_ledgers_it_knows(federation):
    counts = tell(federation)
    federation.roll()
    before = dict(counts)
    assert kept_counts(federation) == before
    site = federation.sites["north"]
    site.task = {**site.task, "features": dict(reversed(site.task["features"].items()))}
    federation.grid.silent.update({3, 7})  # the others
    with pytest.raises(FederationError, match="differs from the run's"):
        federation.roll()
    assert kept_counts(federation) == before | {"north": counts["north"]}


def test_of_two_sites_with_one_name_neither_has_it(federation):
    """Else the right one were refused once the other is renamed: its ledger is another."""
    tell(federation)
    federation.sites["north"].name = "east"
    with pytest.raises(FederationError, match="two called 'east'"):
        federation.roll()
    assert not (federation.folder / FILE_NAME).exists()


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


def test_runs_that_go_on_at_the_same_time_share_the_file(tmp_path):
    path = tmp_path / FILE_NAME
    one, other = Receipts(path), Receipts(path)
    one.take([("north", receipt(5)), ("south", receipt(2, uuid="two"))])
    other.take([("north", receipt(4)), ("south", receipt(3, uuid="two"))])
    for seen in (other, Receipts(path)):
        assert shown(seen, "north") == receipt(5)
        assert shown(seen, "south") == receipt(3, uuid="two")
