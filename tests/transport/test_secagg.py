"""Secure aggregation: what it sums, whom it survives, what it shows and what it refuses."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from masked_sums import STEPS, MaskedSum, inbox_of, random_parts, signing_key

from medfusion.errors import FederationError
from medfusion.transport import secagg
from medfusion.transport.fixed_point import FixedPoint
from medfusion.transport.secagg import MaskingSite
from medfusion.transport.secagg_keys import offer_content

NAMES = "abcdef"


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_the_sum_is_right_whoever_is_lost_and_when(data):
    threshold = data.draw(st.integers(4, 6))
    lost = {}
    for name in data.draw(st.permutations(NAMES))[: len(NAMES) - threshold]:
        lost.setdefault(data.draw(st.sampled_from(STEPS)), []).append(name)
    run = MaskedSum(random_parts(NAMES), threshold, lost)
    total, counted = run.run()
    before = {name for step in STEPS[:3] for name in lost.get(step, ())}
    assert counted == sorted(set(NAMES) - before)
    expected = np.sum([run.parts[name] for name in counted], axis=0, dtype=np.uint32)
    np.testing.assert_array_equal(total, expected)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_the_weighted_mean_is_right_to_the_stated_error(data):
    reach = data.draw(st.sampled_from([0.3, 1.0, 8.0, 100.0]))
    patients = {name: data.draw(st.integers(1, 1000)) for name in NAMES}
    lost = {"mask": data.draw(st.sampled_from([["a"], ["c", "e"], []]))}
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    updates = {name: rng.uniform(-reach, reach, 30) for name in NAMES}
    point, total_patients = FixedPoint(reach), sum(patients.values())
    parts = {n: point.encode(u, weight=patients[n] / total_patients) for n, u in updates.items()}
    total, counted = MaskedSum(parts, 4, lost).run()
    answered = sum(patients[name] for name in counted)
    mean = point.decode(total, sites=len(counted)) * (total_patients / answered)
    expected = sum(patients[name] * updates[name] for name in counted) / answered
    bound = len(counted) * point.unit / 2 * total_patients / answered
    assert np.abs(mean - expected).max() <= bound * (1 + 1e-9)
    assert point.unit <= reach * 2.0**-29


@pytest.mark.parametrize("step", STEPS)
def test_below_the_threshold_the_round_fails(step):
    run = MaskedSum(random_parts(NAMES), 4, {step: ["a", "b", "c"]})
    with pytest.raises(FederationError):
        run.run()


def test_what_was_sent_in_a_failed_round_tells_nothing_of_a_part():
    """Too few revealed: the seeds stay unknown, and with them each part is any part."""
    run = MaskedSum(random_parts(NAMES), 4, {"reveal": ["a", "b", "c"]})
    with pytest.raises(FederationError, match="Expected 4 shares, found 3"):
        run.run()
    for name, masked in run.seen["mask"].items():
        assert (masked != run.parts[name]).mean() > 0.9
        # Every seed's shares that are out are one below the threshold (see test_shamir).
        assert sum(name in given.seeds for given in run.seen["reveal"].values()) == 3


def in_step(monkeypatch, seed):
    """Let all that is drawn come from a seed, so that two rounds differ in their parts alone."""
    rng = np.random.default_rng(seed)
    monkeypatch.setattr("secrets.token_bytes", rng.bytes)
    monkeypatch.setattr("secrets.randbelow", lambda n: int.from_bytes(rng.bytes(80)) % n)
    genuine = secagg.X25519PrivateKey

    class Drawn:
        from_private_bytes = staticmethod(genuine.from_private_bytes)

        @staticmethod
        def generate():
            return genuine.from_private_bytes(rng.bytes(32))

    monkeypatch.setattr(secagg, "X25519PrivateKey", Drawn)


@pytest.mark.parametrize("lost", [{}, {"mask": ["f"]}, {"confirm": ["f"]}])
def test_the_view_of_colluders_is_the_same_for_any_parts_of_one_sum(monkeypatch, lost):
    """A simulator that knows the honest sites' sum alone makes the colluders' transcript.

    Coordinator and t - 1 sites see all messages, and all that these sites hold. Other parts of
    the honest sites with the same sum lead to the same transcript, bit for bit, under other
    streams of the honest pairs, which nobody else can compute and which are as likely.
    """
    honest, threshold = "abc", 4
    parts = random_parts(NAMES)
    others = dict(parts)
    moved = random_parts("a", seed=9)["a"]
    others["a"], others["b"] = parts["a"] + moved, parts["b"] - moved

    def transcript(chosen, shifted):
        with monkeypatch.context() as patch:
            in_step(patch, 5)
            run = MaskedSum(chosen, threshold, lost)
            genuine = secagg.pair_mask

            def pair_mask(key, size, *, own, other):
                stream = genuine(key, size, own=own, other=other)
                if not shifted or {own, other} != {"a", "b"}:
                    return stream
                return stream - moved if own == "a" else stream + moved

            patch.setattr(secagg, "pair_mask", pair_mask)
            total, counted = run.run()
            return run, total, counted

    real, total, counted = transcript(parts, shifted=False)
    simulated, other_total, other_counted = transcript(others, shifted=True)
    assert counted == other_counted
    np.testing.assert_array_equal(total, other_total)
    for step in STEPS:
        for name in real.seen[step]:
            one, other = real.seen[step][name], simulated.seen[step][name]
            if step == "mask":
                np.testing.assert_array_equal(one, other)
            else:
                assert one == other
    unshifted = transcript(others, shifted=False)[0]
    assert any((unshifted.seen["mask"][n] != real.seen["mask"][n]).any() for n in honest)


@pytest.mark.parametrize("lost", [{}, {"mask": ["f"]}, {"share": ["e"], "mask": ["f"]}])
def test_never_both_shares_of_one_site(lost):
    run = MaskedSum(random_parts(NAMES), 4, lost)
    run.run()
    for given_ in run.seen["reveal"].values():
        assert not set(given_.seeds) & set(given_.keys)
        assert set(given_.keys) == set(lost.get("mask", ()))


def until(step, **changes):
    """Return a round of four sites that has come to a step."""
    run = MaskedSum(random_parts("abcd"), 3)
    order = STEPS.index(step)
    offers = [site.offer() for site in run.sites.values()]
    if order > 1:
        shares = {n: s.share(offers, run.members) for n, s in run.sites.items()}
    if order > 2:
        for name, site in run.sites.items():
            site.mask(run.parts[name], inbox_of(name, shares))
    if order > 3:
        run.signatures = {n: s.confirm("abcd") for n, s in run.sites.items()}
    return run, offers


def test_keys_that_their_site_did_not_sign_are_refused():
    run, offers = until("share")
    mallory = signing_key("mallory")
    forged = MaskingSite("b", mallory, run="run", number=3, threshold=3, patients=100).offer()
    with pytest.raises(FederationError, match="'b' are not signed by its own key"):
        run.sites["a"].share([offers[0], forged, *offers[2:]], run.members)
    content = offer_content("run", 2, offers[1])
    old = offers[1].model_copy(update={"signature": signing_key("b").sign("secagg", content)})
    with pytest.raises(FederationError, match="not signed"):  # of another round
        run.sites["a"].share([offers[0], old, *offers[2:]], run.members)
    lighter = offers[1].model_copy(update={"patients": 10**18})  # the others' parts would be 0
    with pytest.raises(FederationError, match="not signed"):
        run.sites["a"].share([offers[0], lighter, *offers[2:]], run.members)
    own = offers[1].model_copy(update={"masking": offers[1].encrypting})
    signature = signing_key("b").sign("secagg", offer_content("run", 3, own))
    with pytest.raises(FederationError, match="different keys"):
        run.sites["a"].share(
            [offers[0], own.model_copy(update={"signature": signature}), *offers[2:]], run.members
        )
    swapped = offers[0].model_copy(update={"masking": offers[1].masking})
    with pytest.raises(FederationError, match="with its own keys"):
        run.sites["a"].share([swapped, *offers[1:]], run.members)


def test_a_threshold_of_half_the_sites_is_refused():
    run = MaskedSum(random_parts("abcdef"), 3)
    with pytest.raises(FederationError, match="more than half"):
        run.run()


def test_survivors_must_be_confirmed_by_a_threshold_on_one_list():
    run, _ = until("confirm")
    for name in "ab":
        run.sites[name].confirm("abc")
    other = {name: run.sites[name].confirm("abcd") for name in "cd"}
    signed_as_a = {"a": run.sites["a"]._signing.sign("secagg", run.sites["a"]._list_content())}
    with pytest.raises(FederationError, match="needs 3 sites, found 1"):
        run.sites["a"].reveal({**other, **signed_as_a})
    with pytest.raises(FederationError, match="once"):
        run.sites["a"].confirm("abcd")
    with pytest.raises(FederationError, match="and this site"):
        until("confirm")[0].sites["d"].confirm("abc")
    with pytest.raises(FederationError, match="needs 3 sites, found 2"):
        until("confirm")[0].sites["a"].confirm("ab")


@pytest.mark.parametrize(
    ("sites", "threshold"), [("abc", 2), ("abcd", 3), ("abcde", 3), ("abcde", 4)]
)
def test_so_many_sites_must_deviate_with_the_coordinator_as_is_said(sites, threshold):
    """It tells honest sites different survivors: that "a" was lost, and that it was not.

    Those who deviate sign both lists, 2 t - n of them. Then a's seed and its key are both known,
    and with them its part; with one fewer no honest site reveals anything.
    """
    needed = 2 * threshold - len(sites)

    def revealed(liars):
        run = MaskedSum(random_parts(sites), threshold)
        offers = [site.offer() for site in run.sites.values()]
        shares = {n: s.share(offers, run.members) for n, s in run.sites.items()}
        for name, site in run.sites.items():
            site.mask(run.parts[name], inbox_of(name, shares))
        lying, honest = sites[len(sites) - liars :], sites[: len(sites) - liars]
        here = honest[: threshold - liars]  # a among them; the others are told that it was lost
        lists = {"with": here + lying, "without": honest[len(here) :] + lying}
        found = {}
        for key, survivors in lists.items():
            signed = {}
            for name in survivors:
                if name in lying:
                    run.sites[name]._survivors = None  # a deviating site signs again
                    run.sites[name]._revealed = False
                try:
                    signed[name] = run.sites[name].confirm(survivors)
                except FederationError:
                    break
            for name in survivors:
                try:
                    given_ = run.sites[name].reveal(signed)
                except FederationError:
                    continue
                found.setdefault(key, []).append(given_)
        return found

    both = revealed(needed)
    assert sum("a" in given_.seeds for given_ in both["with"]) >= threshold
    assert sum("a" in given_.keys for given_ in both["without"]) >= threshold
    assert len(revealed(needed - 1)) <= 1


def test_each_step_is_taken_once():
    run, offers = until("reveal")
    site = run.sites["a"]
    site.reveal(run.signatures)
    with pytest.raises(FederationError, match="once"):
        site.reveal(run.signatures)
    with pytest.raises(FederationError, match="sent already"):
        site.share(offers, run.members)
    with pytest.raises(FederationError, match="once"):
        site.mask(run.parts["a"], {})


def with_liars(names, threshold, liars):
    """Return a round in which liars add 1 to each share that they reveal; the last site is lost."""
    run = MaskedSum(random_parts(names), threshold, {"mask": [names[-1]]})

    def reveal(genuine, *given):
        def false(shares):
            return {name: f"{int(share, 16) + 1:0132x}" for name, share in shares.items()}

        told = genuine(*given)
        return told.model_copy(update={"seeds": false(told.seeds), "keys": false(told.keys)})

    for name in liars:
        run.sites[name].reveal = partial(reveal, run.sites[name].reveal)
    return run


@pytest.mark.parametrize(
    ("names", "threshold", "liars"),
    [
        (NAMES, 4, "a"),
        ([f"{i:02}" for i in range(32)], 17, [f"{i:02}" for i in range(14)]),
    ],
)
def test_false_shares_are_passed_over_while_enough_are_right(names, threshold, liars):
    run = with_liars(names, threshold, liars)
    total, counted = run.run()
    expected = np.sum([run.parts[name] for name in counted], axis=0, dtype=np.uint32)
    np.testing.assert_array_equal(total, expected)


def test_too_many_false_shares_end_the_round():
    run = with_liars(NAMES, 4, "ab")  # three of five shares are right
    said = "site 'a': Expected 4 shares, found 3. What a, b gave is not what it says it sent."
    with pytest.raises(FederationError, match=said):
        run.run()


def test_a_share_of_no_secret_is_its_dealers_and_ends_the_round():
    run = MaskedSum(random_parts(NAMES), 4)
    genuine = secagg.shamir.split
    run.sites["b"].share = partial(spoilt_split, run.sites["b"].share, genuine)
    with pytest.raises(FederationError, match="site 'b': Expected shares of one secret"):
        run.run()


def spoilt_split(share, split, *given):
    """Let one site deal shares that are of no secret of 32 bytes."""

    def spoilt(secret, *, threshold, places):
        found = split(secret, threshold=threshold, places=places)
        return found | {place: (2**500 + place**7).to_bytes(66) for place in places[:1]}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(secagg.shamir, "split", spoilt)
        return share(*given)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 8.001, -8.001])
def test_what_is_not_finite_or_out_of_range_never_leaves(bad):
    update = np.array([0.1, bad])
    with pytest.raises(FederationError, match="update_range = 8"):
        FixedPoint(8.0).encode(update, weight=0.5)


def test_masks_that_do_not_cancel_are_found():
    random = random_parts("a", size=1000)["a"]
    with pytest.raises(FederationError, match="do not add up"):
        FixedPoint(8.0).decode(random, sites=4)
    with pytest.raises(FederationError, match="at most 1"):
        FixedPoint(8.0).encode(np.zeros(2), weight=1.5)


def test_the_sum_of_largest_updates_stays_in_range():
    point = FixedPoint(8.0)
    parts = [point.encode(np.full(2, sign * 8.0), weight=0.25) for sign in (1, 1, 1, 1)]
    total = np.sum(parts, axis=0, dtype=np.uint32)
    np.testing.assert_allclose(point.decode(total, sites=4), [8.0, 8.0])
