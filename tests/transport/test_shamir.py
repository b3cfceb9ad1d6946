import secrets

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfusion.transport import shamir
from medfusion.transport.shamir import _PRIME, join, split


@given(st.binary(min_size=32, max_size=32), st.integers(1, 9), st.integers(0, 5), st.randoms())
@settings(max_examples=40, deadline=None)
def test_any_threshold_of_shares_tells_the_secret(secret, threshold, more, random):
    places = random.sample(range(1, 40), threshold + more)
    shares = split(secret, threshold=threshold, places=places)
    kept = random.sample(places, threshold)
    assert join({place: shares[place] for place in kept}, threshold=threshold) == secret


def test_fewer_shares_fit_every_secret_alike():
    """For t - 1 shares and any secret there is one polynomial: all are equally likely."""
    threshold, places = 4, [1, 2, 3, 4, 5]
    shares = split(secrets.token_bytes(32), threshold=threshold, places=places)
    known = {place: int.from_bytes(shares[place]) for place in places[: threshold - 1]}
    for candidate in (0, 1, 2**256 - 1, secrets.randbelow(2**256)):
        points = known | {0: candidate}

        def at(x, points=points):
            total = 0
            for i, y in points.items():
                term = y
                for j in points:
                    if j != i:
                        term = term * (x - j) * pow(i - j, -1, _PRIME) % _PRIME
                total += term
            return total % _PRIME

        fourth = at(places[3]).to_bytes(shamir.SHARE_BYTES)
        again = {place: shares[place] for place in places[:3]} | {places[3]: fourth}
        assert join(again, threshold=threshold) == candidate.to_bytes(32)


@pytest.mark.parametrize("threshold", [2, 3, 5])
def test_one_share_short_of_the_threshold_is_not_enough(threshold):
    secret, places = secrets.token_bytes(32), [1, 2, 3, 4, 5]
    shares = split(secret, threshold=threshold, places=places)
    fewer = {place: shares[place] for place in places[: threshold - 1]}
    try:  # as if the polynomial were of a lower degree
        found = join(fewer, threshold=threshold - 1)
    except ValueError:  # beyond every secret
        found = None
    assert found != secret


def test_what_cannot_be_shared_or_joined_is_refused():
    with pytest.raises(ValueError, match="32 bytes"):
        split(b"short", threshold=1, places=[1])
    for threshold, places in ((3, [1, 2]), (1, [1, 1]), (1, [0, 1])):
        with pytest.raises(ValueError, match="different places"):
            split(bytes(32), threshold=threshold, places=places)
    shares = split(bytes(32), threshold=2, places=[1, 2, 3])
    with pytest.raises(ValueError, match="Expected 2 shares, found 1"):
        join({1: shares[1]}, threshold=2)
    wrong = {1: shares[1], 2: (int.from_bytes(shares[2]) ^ 2**500).to_bytes(66)}
    with pytest.raises(ValueError, match="one secret"):
        join(wrong, threshold=2)
