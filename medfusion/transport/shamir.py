"""Shamir's secret sharing [1]_: any ``threshold`` shares tell a secret of 32 bytes, fewer nothing.

References
----------
.. [1] Shamir, "How to share a secret", CACM 22:612-613, 1979.
"""

import secrets
from collections.abc import Mapping, Sequence

SECRET_BYTES = 32
SHARE_BYTES = 66
_PRIME = 2**521 - 1  # a Mersenne prime, above every secret


def split(secret: bytes, *, threshold: int, places: Sequence[int]) -> dict[int, bytes]:
    """Return a share, 66 bytes, for each place (a number above 0, all different).

    The polynomial's other coefficients come from the operating system's generator.
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"Expected a secret of {SECRET_BYTES} bytes, found {len(secret)}.")
    if not 1 <= threshold <= len(places) or len(set(places)) < len(places) or min(places) < 1:
        raise ValueError(f"Expected 1 <= threshold={threshold} <= the number of different places.")
    polynomial = [
        int.from_bytes(secret),
        *(secrets.randbelow(_PRIME) for _ in range(threshold - 1)),
    ]
    return {place: _value(polynomial, place).to_bytes(SHARE_BYTES) for place in places}


def join(shares: Mapping[int, bytes], *, threshold: int) -> bytes:
    """Return the secret, from the first ``threshold`` shares.

    Raises
    ------
    ValueError
        If there are fewer than ``threshold`` shares, or they are not of one secret: of a wrong one
        that is noticed but by chance, a secret having half the length of what it would tell.
    """
    if len(shares) < threshold:
        raise ValueError(f"Expected {threshold} shares, found {len(shares)}.")
    places, secret = sorted(shares)[:threshold], 0
    for place in places:  # Lagrange's polynomials at 0
        above = below = 1
        for other in places:
            if other != place:
                above = above * other % _PRIME
                below = below * (other - place) % _PRIME
        value = int.from_bytes(shares[place])
        secret = (secret + value * above * pow(below, -1, _PRIME)) % _PRIME
    if secret >= 2 ** (8 * SECRET_BYTES):
        raise ValueError("Expected shares of one secret, found others.")
    return secret.to_bytes(SECRET_BYTES)


def _value(polynomial: Sequence[int], at: int) -> int:
    value = 0
    for coefficient in reversed(polynomial):
        value = (value * at + coefficient) % _PRIME
    return value
