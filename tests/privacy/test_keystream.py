"""The stream cipher behind all private randomness, against published vectors."""

import copy
import hashlib
import hmac
import pickle
from itertools import combinations

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import ECB

from medfusion.privacy import keystream
from medfusion.privacy.keystream import Keystream, derive_key, encode_info

SECRET = bytes(range(32))


def test_key_derivation_gives_the_published_key() -> None:
    """RFC 5869, A.3: SHA-256, neither salt nor info; the first 32 of its 42 bytes."""
    expected = "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"
    assert derive_key(b"\x0b" * 22, b"").hex() == expected


def test_words_are_the_published_cipher_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Galois/Counter Mode paper, test cases 13 and 14: E(0, 0), E(0, 1) and E(0, 2)."""
    monkeypatch.setattr(keystream, "_expand", lambda root, info: bytes(32))
    assert Keystream(SECRET).words(6).tobytes().hex() == (
        "dc95c078a2408989ad48a21492842087"
        "530f8afbc74536b9a963b4f1c4cb738b"
        "cea7403d4d606b6e074ec5d3baf39d18"
    )


def hkdf_expand(key: bytes, info: bytes) -> bytes:
    return hmac.new(key, info + b"\x01", hashlib.sha256).digest()


def encoded(*parts: tuple[bytes, bytes]) -> bytes:
    return b"".join(kind + len(data).to_bytes(8, "big") + data for kind, data in parts)


def test_words_and_children_follow_from_hmac_and_the_block_cipher() -> None:
    info = encoded(
        (b"s", b"medfusion keystream 1"), (b"s", b"run"), (b"i", b"7"), (b"s", b"\xc3\xa9")
    )
    root = hkdf_expand(hmac.new(bytes(32), SECRET, hashlib.sha256).digest(), info)
    child = hkdf_expand(root, encoded((b"s", b"child"), (b"s", b"noise")))
    stream = Keystream(SECRET, "run", 7, "é")
    for key, found in ((root, stream), (child, stream.child("noise"))):
        cipher = Cipher(AES256(hkdf_expand(key, encoded((b"s", b"words")))), ECB()).encryptor()
        blocks = cipher.update(b"".join(i.to_bytes(16, "big") for i in range(300)))
        expected = [int.from_bytes(blocks[i : i + 8], "little") for i in range(0, 4800, 8)]
        assert found.words(600).tolist() == expected


def test_frozen_words() -> None:
    assert Keystream(SECRET, "known answer").words(3).tolist() == [
        3757861294889950283,
        3245233437987675325,
        17233005741928196571,
    ]


def test_no_word_comes_twice_however_they_are_asked_for() -> None:
    whole = Keystream(SECRET).words(1000)
    assert len(set(whole.tolist())) == 1000
    cut = Keystream(SECRET)
    parts = [cut.words(size) for size in (0, 1, 2, 5, 64, 928)]
    assert np.array_equal(np.concatenate(parts), whole)


def test_every_part_of_the_name_and_every_bit_of_the_secret_counts() -> None:
    streams = [
        Keystream(SECRET),
        Keystream(SECRET, ""),
        Keystream(SECRET, "ab", "c"),
        Keystream(SECRET, "a", "bc"),
        Keystream(SECRET, "abc"),
        Keystream(SECRET, 1),
        Keystream(SECRET, "1"),
        Keystream(SECRET, "i\0\0\0\0\0\0\0\x011"),
        Keystream(SECRET[:-1] + b"\xff", "abc"),
        Keystream(SECRET + b"\0", "abc"),
        Keystream(SECRET, "a").child("b"),
        Keystream(SECRET).child("a", "b"),
        Keystream(SECRET).child("a").child("b"),
        Keystream(SECRET, "child", "a", "b"),
    ]
    firsts = [stream.words(64) for stream in streams]
    for one, other in combinations(firsts, 2):
        assert not np.intersect1d(one, other).size


def test_kinds_and_lengths_keep_parts_apart() -> None:
    assert encode_info("ab", "c") != encode_info("a", "bc")
    assert encode_info(12) != encode_info("12")
    assert encode_info() == b""


def test_children_do_not_depend_on_what_else_was_drawn() -> None:
    quiet, busy = Keystream(SECRET), Keystream(SECRET)
    busy.words(17)
    busy.child("other").words(5)
    assert np.array_equal(quiet.child("noise").words(8), busy.child("noise").words(8))
    assert np.array_equal(Keystream(SECRET).words(18)[17:], busy.words(1))


def test_the_same_child_is_not_given_twice() -> None:
    stream = Keystream(SECRET)
    stream.child("noise", 1)
    stream.torch_generator("noise", 1)
    stream.child("noise", 2)
    with pytest.raises(ValueError, match="drawn from"):
        stream.child("noise", 1)
    with pytest.raises(ValueError, match="drawn from"):
        stream.torch_generator("noise", 1)


def test_a_torch_generator_starts_from_a_state_of_the_child() -> None:
    generator = Keystream(SECRET, "x").torch_generator("dropout")
    state = generator.get_state()[24 : 24 + 8 * 624].numpy().view("<u8")
    expected = Keystream(SECRET, "x").child("torch", "dropout").words(312).view("<u4")
    assert np.array_equal(state, expected)
    again = Keystream(SECRET, "x").torch_generator("dropout")
    other = Keystream(SECRET, "x").torch_generator("labels")
    draws = [torch.rand(500, generator=g) for g in (generator, again, other)]
    assert torch.equal(draws[0], draws[1])
    assert abs(float(torch.corrcoef(torch.stack([draws[0], draws[2]]))[0, 1])) < 0.2


def test_secrets_do_not_show_and_do_not_travel() -> None:
    stream = Keystream(b"\xabVERY-SECRET-VERY-SECRET-VERY-SECRET", "run")
    shown = f"{stream} {stream!r} {[stream]}"
    assert shown == "Keystream(<secret>) Keystream(<secret>) [Keystream(<secret>)]"
    with pytest.raises(TypeError):
        pickle.dumps(stream)
    with pytest.raises(TypeError):
        copy.deepcopy(stream)


@pytest.mark.parametrize("size", [0, 8, 31])
def test_a_short_secret_is_refused_without_being_shown(size: int) -> None:
    with pytest.raises(ValueError, match=f"at least 32 bytes, found {size}"):
        Keystream(b"\xab" * size)
