"""Every field that leaves a site: a real Node is asked everything, and its replies are read whole.

A field that is not on the list below fails here. Whoever adds one says why it may leave, and what
pays for it under privacy.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Array, ConfigRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto
from node_asker import NodeAsker
from tabular_cohort import write_ward

import medfusion.privacy as privacy_package
from medfusion.errors import WaitingError
from medfusion.federation.signatures import SigningKey
from medfusion.transport.requests import (
    ARRAYS,
    CONFIG,
    MESSAGE_TYPES,
    METRICS,
    REPLY,
    ROUND_KEY,
    Request,
    error_reply,
    read_error,
    read_reply,
    reply_with,
    request_content,
    secagg_record,
)
from medfusion.transport.secagg import MaskingSite
from medfusion.transport.secagg_keys import Offer, survivors_content

PRIVATE = ("privacy.enabled=true", "privacy.target_epsilon=8", "training.steps=2")
PLAIN = ("privacy.enabled=false", "training.steps=2")
SITES = ("north", "oth1", "oth2")  # the site that is asked, and peers in memory
LOSS = ("strategy.name=qfedavg", "strategy.client_learning_rate=0.1")

DECLARED = "declared in site.toml and frozen, so nothing is learned from patients"
WEIGHT = {"metrics.metrics.num-examples": ("int", f"patients_public, {DECLARED}")}
HISTOGRAMS = {"arrays.arrays.histograms": ("float64", "counts, noised and charged under privacy")}
RECEIPT = {  # beside every good reply
    "config.receipt.uuid": ("str", "a random name of the ledger"),
    "config.receipt.count": ("int", "its entries: plans, charges and replies, which are known"),
    "config.receipt.tag": ("str", "MAC of the last entry under the site's secret"),
}

ALLOWED: dict[str, dict[str, tuple[str, str]]] = {
    "describe": {
        "config.reply.json.site": ("str", "the site's public name"),
        "config.reply.json.task": ("task", "task.toml, which all sites share"),
        "config.reply.json.patients_public": ("int", DECLARED),
        "config.reply.json.label_coverage[]": ("float", DECLARED),
        "config.reply.json.delta": ("float", "the hospital's policy"),
        "config.reply.json.max_epsilon": ("float", "the hospital's policy"),
        "config.reply.json.signer": ("str", "a public key"),
        **RECEIPT,
    },
    "select": HISTOGRAMS | WEIGHT | RECEIPT,
    "train": {
        "arrays.arrays.PARAMETER": ("float32", "the model: clipped, noised and charged"),
        "arrays.arrays.values": ("uint8 or uint16", "compression only: the same, rounded"),
        "arrays.arrays.index": ("uint32", "compression only: which entries of the same those are"),
        "arrays.arrays.scales": ("float32", "compression only: the same, rounded"),
        "config.reply.json.selected[]": ("int", "local selection only: from noised histograms"),
        "metrics.metrics.train_loss": ("float", "qfedavg only, which privacy refuses"),
        **WEIGHT,
        **RECEIPT,
    },
    "evaluate": HISTOGRAMS | WEIGHT | RECEIPT,
    "deliver": {"config.reply.json.delivered": ("bool", "always true"), **RECEIPT},
    "secagg": {
        "config.reply.json.offer.site": ("str", "the site's public name"),
        "config.reply.json.offer.patients": ("int", f"patients_public, {DECLARED}"),
        "config.reply.json.offer.encrypting": ("str", "a fresh public key"),
        "config.reply.json.offer.masking": ("str", "a fresh public key"),
        "config.reply.json.offer.signature": ("str", "of these, which holds nothing else"),
        "config.reply.json.shares.encrypted.SITE": ("str", "shares of fresh secrets, encrypted"),
        "config.reply.json.shares.seeds.SITE": ("str", "a digest of such a share"),
        "config.reply.json.shares.keys.SITE": ("str", "a digest of such a share"),
        "config.reply.json.signature": ("str", "of who survived, which the coordinator said"),
        "config.reply.json.revealed.seeds.SITE": ("str", "a share of a fresh secret"),
        "config.reply.json.revealed.keys.SITE": ("str", "a share of a fresh secret"),
        "arrays.arrays.masked": ("uint32", "the update, clipped, noised and charged, masked"),
        **WEIGHT,
        **RECEIPT,
    },
    "error": {
        "config.reply.error": ("str", "a class of errors"),
        "config.reply.message": ("str", "our own words, without patient data"),
    },
}


def fields(reply: RecordDict, asker: NodeAsker) -> dict[str, str]:
    """Return the path and type of all that a reply holds, as it is after the wire."""
    wire = recorddict_to_proto(reply).SerializeToString()
    content = recorddict_from_proto(RecordDictProto.FromString(wire))
    found: dict[str, str] = {}
    for name, record in content.array_records.items():
        for key, array in record.items():
            place = "PARAMETER" if key in asker.record else key
            found[f"arrays.{name}.{place}"] = str(array.numpy().dtype)
    for name, metrics in content.metric_records.items():
        found |= {f"metrics.{name}.{key}": type(value).__name__ for key, value in metrics.items()}
    for name, config in content.config_records.items():
        for key, value in config.items():
            inside = json.loads(str(value)) if key == "json" else value
            found |= dict(leaves(f"config.{name}.{key}", inside, asker))
    assert len(content) == sum(
        map(len, (content.array_records, content.metric_records, content.config_records))
    )
    return found


def leaves(path: str, value: Any, asker: NodeAsker) -> Iterator[tuple[str, str]]:
    """Walk JSON data; the task is one leaf if it is the agreed one, key for key."""
    if value == asker.data.task.to_json():
        yield path, "task"
    elif isinstance(value, dict):
        for key, inner in value.items():
            key = "SITE" if key in SITES else key
            yield from leaves(f"{path}.{key}", inner, asker)
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(f"{path}[]", inner, asker)
    else:
        yield path, type(value).__name__


def ask_securely(asker: NodeAsker) -> RecordDict:
    """Return all that a site answers in a round of secure aggregation, as one reply.

    Two peers in memory take part; the update of one of them is lost.
    """
    run, peers = asker.settings.run_id, SITES[1:]
    keys = {n: SigningKey(Ed25519PrivateKey.from_private_bytes(n.encode() * 8)) for n in peers}
    others = {
        n: MaskingSite(n, keys[n], run=run, number=1, threshold=2, patients=100) for n in peers
    }
    answers = RecordDict()
    found: dict[str, Any] = {}

    def ask(kind: str, **told: Any) -> dict[str, Any]:
        content = request_content(Request(settings=asker.settings), asker.record)
        content[CONFIG][ROUND_KEY] = 1
        content.update(secagg_record(told))
        reply = asker.node.handle(kind, content)
        assert read_error(reply) is None
        answers.update({name: record for name, record in reply.items() if name != REPLY})
        found.update(read_reply(reply) if REPLY in reply else {})
        return found

    listed = [
        ask("secagg", step="offer")["offer"],
        *(o.offer().model_dump() for o in others.values()),
    ]
    offers = [Offer.parse(one, where="offer") for one in listed]
    signer = read_reply(asker.ask("describe"))["signer"]
    members = {SITES[0]: signer, **{name: key.public for name, key in keys.items()}}
    ask("secagg", step="share", offers=listed, members=members)
    sent = {name: site.share(offers, members) for name, site in others.items()}
    one = others[peers[0]]
    one.mask(np.zeros(3, np.uint32), {SITES[0]: found["shares"]["encrypted"][peers[0]]})
    ask("train", inbox={name: shares.encrypted[SITES[0]] for name, shares in sent.items()})
    survivors = list(SITES[:2])
    own = ask("secagg", step="confirm", survivors=survivors)["signature"]
    content = survivors_content(run, 1, offers, sorted(survivors))
    signed = {SITES[0]: own, peers[0]: keys[peers[0]].sign("secagg", content)}
    ask("secagg", step="reveal", signatures=signed)
    answers.update(reply_with(found))
    return answers


def unexpected(kind: str, found: dict[str, str]) -> dict[str, str]:
    """Return the fields, with their types, that are not on the list."""
    allowed = {path: types.split(" or ") for path, (types, _) in ALLOWED[kind].items()}
    return {path: name for path, name in found.items() if name not in allowed.get(path, ())}


def ask_everything(asker: NodeAsker) -> dict[str, RecordDict]:
    """Return the reply to a request of every kind, and to one that fails."""
    settings = asker.settings
    card = {
        "task_sha256": settings.task_sha256,
        "model": settings.model.model_dump(mode="json"),
        "seed": settings.seed,
        "selection": None,
        "selection_method": settings.selection.method,
        "top_n": settings.selection.top_n,
    }
    replies = {kind: asker.ask(kind) for kind in ("describe", "select", "train", "evaluate")}
    replies["deliver"] = asker.ask("deliver", card=card)
    replies["error"] = asker.ask("train", round=99)
    return replies


@pytest.fixture(scope="module")
def masked(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> RecordDict:
    masking = "server.secure_aggregation={threshold=2}"
    return ask_securely(NodeAsker(cohort, tmp_path_factory.mktemp("masked"), *PRIVATE, masking))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ward(tmp_path_factory.mktemp("fields") / "ward", sites=("north",)).parent


@pytest.fixture(scope="module")
def private(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> NodeAsker:
    return NodeAsker(cohort, tmp_path_factory.mktemp("private"), *PRIVATE)


@pytest.fixture(scope="module")
def replies(private: NodeAsker) -> dict[str, RecordDict]:
    return ask_everything(private)


def test_nothing_but_the_listed_fields_leaves(
    cohort: Path,
    tmp_path: Path,
    private: NodeAsker,
    replies: dict[str, RecordDict],
    masked: RecordDict,
) -> None:
    replies = {**replies, "secagg": masked}
    assert set(replies) - {"error"} == set(MESSAGE_TYPES)
    seen: dict[str, dict[str, str]] = {kind: {} for kind in replies}
    local = NodeAsker(cohort, tmp_path / "local", *PRIVATE, "selection.method=local")
    plain = NodeAsker(cohort, tmp_path / "plain", *PLAIN, *LOSS)
    packed = NodeAsker(cohort, tmp_path / "packed", *PRIVATE, "compression.level=int4")
    sparse = NodeAsker(cohort, tmp_path / "sparse", *PRIVATE, "compression.level=topk")
    for asker, answers in (
        (private, replies),
        (local, ask_everything(local)),
        (plain, ask_everything(plain)),
        (packed, {"train": packed.ask("train")}),
        (sparse, {"train": sparse.ask("train")}),
    ):
        for kind, reply in answers.items():
            if kind == "select" and asker is local:  # the histograms stay at the site
                kind = "error"
            found = fields(reply, asker)
            assert unexpected(kind, found) == {}
            seen[kind] |= found
    for kind, allowed in ALLOWED.items():  # the list holds nothing that never leaves
        assert seen[kind].keys() == allowed.keys()


def test_a_site_that_waits_tells_no_more_than_one_that_refuses(private: NodeAsker) -> None:
    found = fields(error_reply(WaitingError("not yet")), private)
    assert unexpected("error", found) == {}


def test_nothing_but_the_listed_fields_is_asked_with() -> None:
    """All sites get them: whoever adds one makes sure that it tells nothing of another site."""
    fields = {"version", "settings", "signature", "frozen_sha256", "selection", "card"}
    assert set(Request.model_fields) == fields


def test_the_threat_model_names_every_field() -> None:
    text = (Path(privacy_package.__file__).parent / "README.md").read_text(encoding="utf-8")
    for allowed in ALLOWED.values():
        for path in allowed:
            assert f"`{path}`" in text


def test_under_privacy_neither_loss_nor_mask_leaves(
    private: NodeAsker, replies: dict[str, RecordDict]
) -> None:
    found = fields(replies["train"], private)
    assert found.keys() == {"arrays.arrays.PARAMETER", *WEIGHT, *RECEIPT}


def test_under_privacy_no_cell_is_an_exact_count(replies: dict[str, RecordDict]) -> None:
    """Empty cells are noised as well: where there is nobody is a fact about patients too."""
    for kind in ("select", "evaluate"):
        cells = replies[kind].array_records[ARRAYS]["histograms"].numpy()
        assert (cells < 0).any()
        # Without noise all but a few cells would be 0.
        assert (cells == 0).mean() < 0.2


def test_a_new_field_is_noticed(private: NodeAsker, replies: dict[str, RecordDict]) -> None:
    def with_array(reply: RecordDict) -> None:
        reply.array_records[ARRAYS]["scores"] = Array(np.zeros(3))

    def with_metric(reply: RecordDict) -> None:
        reply.metric_records[METRICS]["drawn"] = 31

    def with_json(reply: RecordDict) -> None:
        reply[REPLY] = ConfigRecord({"json": json.dumps({"site": {"city": "Genoa"}})})

    def with_record(reply: RecordDict) -> None:
        reply["timing"] = ConfigRecord({"seconds": 1.5})

    def with_type(reply: RecordDict) -> None:
        reply.metric_records[METRICS]["num-examples"] = 31.5

    for change, path in (
        (with_array, "arrays.arrays.scores"),
        (with_metric, "metrics.metrics.drawn"),
        (with_json, "config.reply.json.site.city"),
        (with_record, "config.timing.seconds"),
        (with_type, "metrics.metrics.num-examples"),
    ):
        wire = recorddict_to_proto(replies["evaluate"]).SerializeToString()
        reply = recorddict_from_proto(RecordDictProto.FromString(wire))
        change(reply)
        assert set(unexpected("evaluate", fields(reply, private))) == {path}
