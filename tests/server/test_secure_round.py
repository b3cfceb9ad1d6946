"""Rounds whose updates are masked, over sites in memory that mask as Nodes do."""

import json

import numpy as np
import pytest
from fake_federation import PATIENTS, STEPS, Federation, arrays_of
from masking_federation import KEY, SECURE, MaskingFakeSite, make_masking

from client.node.pinned_peers import read_peers
from client.node.secure_rounds import SecureRounds
from medfusion.config import load_config
from medfusion.errors import ConfigError, FederationError
from medfusion.transport.requests import (
    ARRAYS,
    MASKED,
    read_reply,
    reply_with,
)
from medfusion.transport.secagg_keys import Offer, offer_content


def test_the_model_is_that_of_plain_rounds(tmp_path):
    masked = arrays_of(make_masking(tmp_path / "masked").run())
    plain = arrays_of(Federation(tmp_path / "plain").run())
    for name in plain:
        np.testing.assert_allclose(masked[name], plain[name], atol=1e-6)


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("step", ["offer", "share", "mask", "confirm", "reveal"])
def test_a_site_that_is_lost_on_the_way_counts_if_its_update_came(tmp_path, step, at):
    part = make_masking(tmp_path, {"west": [(at, step)]})
    outcome = part.run()
    lost = step in ("offer", "share", "mask")
    expected = 0.0
    for number in (1, 2, 3):
        names = [n for n in PATIENTS if not (lost and number == at and n == "west")]
        weights = [PATIENTS[name] for name in names]
        expected += np.average([number * STEPS[name] for name in names], weights=weights)
    found = arrays_of(outcome)["bias.weight"]
    np.testing.assert_allclose(found, np.full_like(found, expected), atol=1e-6)


def test_below_the_threshold_the_run_stops_and_no_update_was_sent(tmp_path):
    deaf = {"west": [(1, "share")], "east": [(1, "share")]}
    part = make_masking(tmp_path, deaf, "server.min_sites=1")
    said = "'share' of secure aggregation, expected 2; nothing was learned; site 'east': lost"
    with pytest.raises(FederationError, match=said):
        part.run()
    sent = [reply for site in part.sites.values() for reply in site.replies]
    assert not any(MASKED in record for r in sent for record in r.array_records.values())


def worthless(data, spoiled, site):
    """A site's answer that fits the protocol in form."""
    if spoiled == "equal keys":
        return {"offer": signed_again(data["offer"], site, masking=data["offer"]["encrypting"])}
    if spoiled == "another lasting key":  # as of a Node that was installed anew
        return {"offer": signed_again(data["offer"], site, "else")}
    if spoiled == "signature":
        return data | {"offer": data["offer"] | {"signature": "00" * 64}}
    if spoiled == "point of low order":
        return data | {"offer": data["offer"] | {"masking": "00" * 32}}
    if spoiled == "shares":
        return data | {"shares": data["shares"] | {"encrypted": dict.fromkeys("ab", "zz")}}
    if spoiled == "digests":
        return data | {"shares": data["shares"] | {"seeds": {}}}
    if spoiled == "no digests":
        seeds = dict.fromkeys(data["shares"]["seeds"], "zz")
        return data | {"shares": data["shares"] | {"seeds": seeds}}
    false = {
        name: f"{int(share, 16) + 1:0132x}" for name, share in data["revealed"]["seeds"].items()
    }
    return {"revealed": data["revealed"] | {"seeds": false}}


def signed_again(offer, site, secret=None, **changes):
    """Return an offer of round 2, changed and signed by its site, or under another secret."""
    offer = Offer.parse(offer | changes, where="offer")
    secret = (secret or site.name).encode().ljust(32)
    signing = SecureRounds(site.name, secret, site.folder, patients=1)._signing
    content = offer_content(site.run_id, 2, offer)
    return offer.model_dump() | {"signature": signing.sign("secagg", content)}


@pytest.mark.parametrize("name", PATIENTS)
@pytest.mark.parametrize(
    "spoiled",
    [
        *("signature", "another lasting key", "equal keys", "point of low order"),
        *("shares", "digests", "no digests", "revealed"),
    ],
)
def test_one_site_that_spoils_its_answers_ends_no_round(tmp_path, spoiled, name):
    part = make_masking(tmp_path)
    steps = {**dict.fromkeys(("shares", "digests", "no digests"), "shares"), "revealed": "revealed"}
    genuine, key = part.sites[name].secagg, steps.get(spoiled, "offer")

    def answer(content, number):
        data = read_reply(reply := genuine(content, number))
        spoils = number == 2 and key in data
        return reply_with(worthless(data, spoiled, part.sites[name])) if spoils else reply

    part.sites[name].secagg = answer
    outcome = part.run()
    assert len(outcome.progress.rounds) == 3
    counted = {n for n, s in outcome.progress.rounds[1]["sites"].items() if s["status"] == "ok"}
    assert counted == PATIENTS.keys() - ({name} if spoiled != "revealed" else set())


def test_two_sites_that_offer_the_same_keys_are_left_out_and_the_third_is_not_blamed(tmp_path):
    part, offered = make_masking(tmp_path), []
    for name in ("east", "west"):
        genuine = part.sites[name].secagg

        def answer(content, number, genuine=genuine, site=part.sites[name]):
            data = read_reply(reply := genuine(content, number))
            if number != 2 or "offer" not in data:
                return reply
            offered.append(data["offer"])
            keys = {key: offered[0][key] for key in ("encrypting", "masking")}
            return reply_with({"offer": signed_again(data["offer"], site, **keys)})

        part.sites[name].secagg = answer
    said = "1 sites answered the exchange 'offer'.*site 'east': offers a key that is offered twice"
    with pytest.raises(FederationError, match=said):
        part.run()


def test_a_site_installed_anew_is_lost_to_the_masked_rounds_of_a_resumed_run(tmp_path):
    part = make_masking(tmp_path, {"east": [(2, "mask")], "north": [(2, "mask")]})
    with pytest.raises(FederationError, match="1 of 3 sites answered, expected at least 2"):
        part.run()
    for name, site in part.sites.items():
        site.deaf = set()
        if name == "west":  # its state folder, and with it its secret, is gone
            site.secure = SecureRounds(name, b"new".ljust(32), tmp_path / "new", patients=10)
            site.signer = site.secure.signer
    lines = part.run().progress.rounds
    assert [line["sites"].get("west", {}).get("status") for line in lines] == ["ok", None, None]
    assert all(line["sites"]["north"]["status"] == "ok" for line in lines)


@pytest.mark.parametrize("step", ["offer", "shares", "signature", "revealed"])
def test_a_site_that_answers_nonsense_is_lost_and_nobody_else(tmp_path, step):
    part = make_masking(tmp_path)
    genuine = part.sites["west"].secagg

    def answer(content, number):
        reply = genuine(content, number)
        data = read_reply(reply)
        return reply_with({step: {"west": "zz"}}) if step in data and number == 2 else reply

    part.sites["west"].secagg = answer
    outcome = part.run()
    counted = step in ("signature", "revealed")  # its update had come
    assert outcome.progress.rounds[1]["sites"].get("west", {}).get("status") == (
        "ok" if counted else None
    )


def test_no_update_leaves_a_site_in_clear(tmp_path):
    part = make_masking(tmp_path)
    part.run()
    for name, site in part.sites.items():
        masked = [
            reply[ARRAYS][MASKED].numpy()
            for reply in site.replies
            if MASKED in reply.get(ARRAYS, {})
        ]
        assert len(masked) == 3
        # An update of this fake site is one number; its masked form is uniform on 2^32.
        for vector in masked:
            assert len(np.unique(vector)) > 0.99 * vector.size, name


def test_an_update_beyond_the_range_stays_at_its_site(tmp_path):
    part = make_masking(tmp_path)
    part.sites["west"].step = 17.0
    outcome = part.run()
    lines = outcome.progress.rounds
    assert all(line["sites"]["west"]["status"] == "failed" for line in lines)
    assert all(line["sites"]["north"]["status"] == "ok" for line in lines)


def test_a_threshold_of_no_majority_is_refused_before_anything_is_paid(tmp_path):
    part = make_masking(tmp_path, None, "server.secure_aggregation={threshold=4, update_range=16}")
    with pytest.raises(FederationError, match="more than half of the 3 sites"):
        part.run()
    asked = {kind for site in part.sites.values() for kind, _, _ in site.asked}
    assert "select" not in asked


def test_a_round_that_was_cut_off_is_resumed_with_the_same_survivors(tmp_path):
    part = make_masking(
        tmp_path, {"west": [(2, "mask")], "east": [(2, "reveal")], "north": [(2, "reveal")]}
    )
    with pytest.raises(FederationError, match="site 'east': lost"):
        part.run()
    for site in part.sites.values():
        site.deaf = set()  # west is back: but the others have signed that it was lost
    outcome = part.run()
    assert outcome.progress.rounds[1]["sites"].keys() >= {"east", "north"}
    assert len(outcome.progress.rounds) == 3


def test_a_round_below_the_threshold_of_offers_binds_nobody_to_its_sites(tmp_path):
    part = make_masking(tmp_path, {name: [(1, "offer")] for name in ("east", "north")})
    with pytest.raises(FederationError, match="1 of 3 sites answered"):
        part.run()
    assert not (part.folder / "members.json").exists()


def test_survivors_of_another_run_in_the_folder_count_for_nothing(tmp_path):
    part = make_masking(tmp_path, None, "run.rounds=1")
    path = part.folder / "survivors.json"
    kept = {"schema": 1, "run": "another", "round": 1, "survivors": ["east", "north"]}
    path.write_text(json.dumps(kept))
    part.run()
    assert json.loads(path.read_text())["survivors"] == sorted(PATIENTS)


def test_a_member_that_was_away_at_a_restart_comes_back(tmp_path, monkeypatch):
    monkeypatch.setattr("server.latecomers._ASK_AGAIN_SECONDS", 0.0)
    part = make_masking(tmp_path, {"east": [(2, "mask")], "north": [(2, "mask")]})
    with pytest.raises(FederationError, match="1 of 3 sites answered"):
        part.run()
    for site in part.sites.values():
        site.deaf = set()
    away = part.grid.sites.pop(7)

    def back(kind, number):
        if (kind, number) == ("train", 2):
            part.grid.sites[7] = away

    part.grid.before = back
    sites = [sorted(line["sites"]) for line in part.run().progress.rounds]
    assert sites == [sorted(PATIENTS), ["east", "north"], sorted(PATIENTS)]


def test_a_site_that_is_away_does_no_harm_whatever_key_is_told_of_it(tmp_path):
    """Also in the next run: what nobody signed binds nobody, and is held against nobody."""
    away = {"west": [(n, "offer") for n in (1, 2, 3)]}
    keys = {"first": KEY, "second": None, "third": KEY}  # None: its own
    for number, (run, key) in enumerate(keys.items()):
        part = make_masking(tmp_path / run, away if key else {}, f"run.seed={number}")
        for name, site in part.sites.items():  # the state folders stay the same
            secret, folder = name.encode().ljust(32), tmp_path / name
            site.secure = SecureRounds(name, secret, folder, patients=PATIENTS[name])
        if key:
            part.sites["west"].signer = key
        lines = part.run().progress.rounds
        assert all(len(line["sites"]) == (2 if key else 3) for line in lines)
        if run == "first":
            assert read_peers(tmp_path / "east" / "peers.json").told == {"west": KEY}


@pytest.mark.parametrize("deaf", [(1, "mask"), (2, "mask")])
def test_a_site_that_comes_while_a_masked_run_rests_waits_for_the_next_run(tmp_path, deaf):
    part = make_masking(tmp_path, {"east": [deaf], "north": [deaf]})
    with pytest.raises(FederationError, match="1 of 3 sites answered"):
        part.run()
    for site in part.sites.values():
        site.deaf = set()
    late = MaskingFakeSite("late", part.task.to_json(), 5, 1.0)
    late.secure = SecureRounds("late", b"late".ljust(32), tmp_path / "late", patients=5)
    late.deaf, late.replies, late.signer = set(), [], late.secure.signer
    part.grid.sites[9] = late
    lines = part.run().progress.rounds
    assert all(line["sites"].keys() == PATIENTS.keys() for line in lines)
    assert {kind for kind, _, _ in late.asked} == {"query.describe"}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["strategy.name=fedmedian"], "looks at single sites' updates, which server.secure"),
        (["strategy.name=scaffold", "training.optimizer=sgd"], "expected one of fedavg"),
        (["selection.method=local"], "averages single sites' rows"),
        (
            ["selection.method=none", "server.client_dp={clip=1, noise_multiplier=1}"],
            "expected one of the two",
        ),
        (["server.secure_aggregation={threshold=1}"], "threshold"),
    ],
)
def test_what_looks_at_single_updates_is_refused(tmp_path, more, said):
    path = Federation(tmp_path).folder.parent / "cohort" / "config.toml"
    with pytest.raises(ConfigError, match=said):
        load_config(path, [SECURE, *more])
