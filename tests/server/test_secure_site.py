"""What one site answers in masked rounds, step by step, and whose keys it believes."""

import json

import numpy as np
import pytest
from fake_federation import PATIENTS
from masking_federation import KEY, key, make_masking

from client.node.pinned_peers import check_peers_known, pin_peers, read_peers
from client.node.secure_rounds import SecureRounds
from medfusion.errors import ConfigError, FederationError
from medfusion.transport.requests import (
    CONFIG,
    ROUND_KEY,
    Received,
    Request,
    read_reply,
    request_content,
    secagg_record,
)


class Pair:
    """Two sites of a run, asked step by step."""

    def __init__(self, folder):
        self.part = make_masking(folder)
        self.sites = {name: self.part.sites[name] for name in ("east", "north")}
        loop, _ = self.part.loop()
        self.settings = loop._settings

    def ask(self, name, number, **told):
        request = Received.parse(self._content(number, told))
        return read_reply(self.sites[name].secure.answer(request, self.settings))

    def _content(self, number, told):
        content = request_content(Request(settings=self.settings))
        content[CONFIG][ROUND_KEY] = number
        content.update(secagg_record(told))
        return content

    def begin(self, number, **more):
        """Come to the shares, with further members if wanted; return them."""
        told = {"offers": self.offers(number), "members": self.members | more}
        return {n: self.ask(n, number, step="share", **told)["shares"] for n in self.sites}

    def offers(self, number):
        return [self.ask(name, number, step="offer")["offer"] for name in self.sites]

    @property
    def members(self):
        return {name: site.signer for name, site in self.sites.items()}


def test_a_second_sum_of_a_round_is_of_the_same_sites_or_refused(tmp_path):
    pair = Pair(tmp_path)
    rounds = tmp_path / "east" / "secagg"
    for survivors in (["east", "north"], ["east", "north"]):
        shares = pair.begin(1)
        part = pair.sites["east"].secure._part
        part.mask(np.zeros(3, np.uint32), {"north": shares["north"]["encrypted"]["east"]})
        pair.ask("east", 1, step="confirm", survivors=survivors)
    shares = pair.begin(1)
    part = pair.sites["east"].secure._part
    part.mask(np.zeros(3, np.uint32), {"north": shares["north"]["encrypted"]["east"]})
    with pytest.raises(FederationError, match="expected east, north again"):
        pair.ask("east", 1, step="confirm", survivors=["east", "west"])
    kept = json.loads(next(rounds.glob("*.json")).read_text())
    assert kept["rounds"] == {"1": ["east", "north"]}


def told_of_a_ghost(pair, folder):
    """Return what a coordinator tells in round 2 with a site that it made up."""
    ghost = SecureRounds("ghost", b"ghost".ljust(32), folder, patients=5)
    request = Received.parse(pair._content(2, {"step": "offer"}))
    offer = read_reply(ghost.answer(request, pair.settings))["offer"]
    members = pair.members | {"ghost": ghost.signer}
    return {"offers": [*pair.offers(2), offer], "members": members}


def test_no_site_comes_into_a_run_that_has_begun(tmp_path):
    pair = Pair(tmp_path)
    pair.begin(1)
    told = told_of_a_ghost(pair, tmp_path / "ghost")
    with pytest.raises(FederationError, match="began among east, north: ghost may take part in"):
        pair.ask("east", 2, step="share", **told)


def test_a_name_kept_free_for_a_site_that_is_made_up_later_comes_with_its_key_at_once(tmp_path):
    """A coordinator cannot wait with the key until the hospitals have compared theirs."""
    pair = Pair(tmp_path)
    pair.begin(1, ghost=KEY)
    for name in pair.sites:
        peers = read_peers(tmp_path / name / "peers.json")
        others = {other: key for other, key in pair.members.items() if other != name}
        assert (peers.signed, peers.told) == (others, {"ghost": KEY})
    told = told_of_a_ghost(pair, tmp_path / "ghost")
    with pytest.raises(FederationError, match="'ghost' are not signed by its own key"):
        pair.ask("east", 2, step="share", **told)


def test_a_site_that_was_lost_at_first_is_of_the_run_and_counts_for_the_majority(tmp_path):
    pair = Pair(tmp_path)
    offers = pair.offers(1)
    four = pair.members | {"south": KEY, "west": KEY}
    with pytest.raises(FederationError, match="threshold = 2 of 4 sites: expected more than half"):
        pair.ask("east", 1, step="share", offers=offers, members=four)
    three = {name: four[name] for name in ("east", "north", "south")}
    pair.ask("north", 1, step="share", offers=offers, members=three)
    kept = json.loads(next((tmp_path / "north" / "secagg").glob("*.json")).read_text())
    assert kept["members"] == three
    assert not list((tmp_path / "east").glob("secagg/*"))  # nothing stands for good that failed
    assert not (tmp_path / "east" / "peers.json").exists()


def test_what_is_asked_again_is_answered_likewise(tmp_path):
    pair = Pair(tmp_path)
    told = {"offers": pair.offers(1), "members": pair.members}
    first, again = (pair.ask("east", 1, step="share", **told) for _ in range(2))
    assert first == again  # else its shares, drawn anew, would fit nothing
    with pytest.raises(FederationError, match="sent already"):
        pair.ask("east", 1, step="share", **told | {"offers": told["offers"][::-1]})


def test_nobody_chooses_the_weight_of_a_sites_update(tmp_path):
    pair = Pair(tmp_path)
    pair.begin(1)
    whole = sum(PATIENTS[name] for name in pair.sites)
    for name, site in pair.sites.items():
        assert site.secure._part.weight == PATIENTS[name] / whole


def test_a_site_without_keys_of_the_round_is_lost_to_it(tmp_path):
    pair = Pair(tmp_path)
    with pytest.raises(FederationError, match="holds no keys of this round"):
        pair.ask("east", 1, step="share", offers=[])
    pair.begin(1)
    with pytest.raises(FederationError, match="holds no keys of this round"):
        pair.ask("east", 2, step="confirm", survivors=[])
    with pytest.raises(FederationError, match="unknown exchange 'peek'"):
        pair.ask("east", 1, step="peek")


def test_a_site_that_comes_with_another_key_is_refused(tmp_path):
    path = tmp_path / "state" / "peers.json"
    pin_peers(path, {"a": key(1)}, told={"a": key(1), "b": key(0)})
    assert read_peers(path).told == {"b": key(0)}
    pin_peers(path, {"b": key(2), "a": key(1)}, told={})
    peers = read_peers(path)
    assert (peers.signed, peers.told) == ({"a": key(1), "b": key(2)}, {})
    with pytest.raises(FederationError, match="'b' comes with another key"):
        check_peers_known(peers, {"b": key(3)})
    check_peers_known(peers, {"c": key(3)})
    path.write_text(json.dumps(json.loads(path.read_text()) | {"closed": True}))  # by people
    with pytest.raises(FederationError, match="site ghost: not among the sites"):
        check_peers_known(read_peers(path), {"ghost": key(4)})
    before = path.read_text()
    pin_peers(path, {"a": key(1)}, told={"ghost": key(4)})
    assert path.read_text() == before


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        '{"peers": {"a": "no key"}}',
        '{"peers": {"a": 5}}',
        '{"peers": {}, "closed": "true"}',
        '{"peers": {}, "shut": true}',
    ],
)
def test_keys_of_others_in_another_form_are_refused(tmp_path, content):
    (tmp_path / "peers.json").write_text(content)
    with pytest.raises(FederationError, match="found another form; correct it"):
        read_peers(tmp_path / "peers.json")


def test_a_site_is_refused_for_its_key_and_the_offers_of_the_others_still_stand(tmp_path):
    pair = Pair(tmp_path)
    pin_peers(tmp_path / "east" / "peers.json", {"north": KEY}, told={})
    told = {"offers": pair.offers(1), "members": pair.members}
    with pytest.raises(FederationError, match="'north' comes with another key"):
        pair.ask("east", 1, step="share", **told)
    (tmp_path / "east" / "peers.json").unlink()  # as people do once they have asked
    assert pair.ask("east", 1, step="share", **told)["shares"]["encrypted"].keys() == {"north"}


def test_a_closed_file_needs_the_keys_of_the_others_alone(tmp_path):
    pair = Pair(tmp_path)
    others = {name: key for name, key in pair.members.items() if name != "east"}
    (tmp_path / "east" / "peers.json").parent.mkdir(exist_ok=True)
    content = {"schema": 1, "peers": others, "closed": True}
    (tmp_path / "east" / "peers.json").write_text(json.dumps(content))
    assert pair.begin(1)["east"]["encrypted"].keys() == {"north"}


def test_the_pinned_key_of_a_site_that_is_away_stands_whatever_is_told_of_it(tmp_path):
    pair = Pair(tmp_path)
    pin_peers(tmp_path / "east" / "peers.json", {"south": key(1)}, told={})
    pair.begin(1, south=key(2))
    kept = {
        name: json.loads(next((tmp_path / name / "secagg").glob("*.json")).read_text())["members"]
        for name in pair.sites
    }
    assert (kept["east"]["south"], kept["north"]["south"]) == (key(1), key(2))


@pytest.mark.parametrize(
    ("step", "told"),
    [
        ("share", {}),
        ("share", {"offers": [5], "members": {}}),
        ("share", {"offers": None, "members": {}}),
        ("share", {"offers": [], "members": ["east", "north"]}),
        ("share", {"offers": [], "members": {"east": {"a": 1}}}),
        ("share", {"offers": [], "members": {"east": "no key"}}),
        ("confirm", {}),
        ("confirm", {"survivors": None}),
        ("confirm", {"survivors": [5]}),
        ("reveal", {"signatures": ["east"]}),
        ("reveal", {"signatures": {"east": 5}}),
        ("reveal", {"signatures": {}, "more": 1}),
    ],
)
def test_what_is_told_in_another_form_is_refused_by_name(tmp_path, step, told):
    pair = Pair(tmp_path)
    pair.offers(1)
    with pytest.raises(ConfigError, match=f"secure aggregation, {step}"):
        pair.ask("east", 1, step=step, **told)
