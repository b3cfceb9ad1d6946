import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medfusion.errors import ConfigError
from medfusion.federation.authority import Authority, content_to_sign
from medfusion.federation.signatures import SigningKey


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return SigningKey.create(tmp_path / "key")


def test_it_takes_what_its_coordinator_signed_for_its_federation(
    key: SigningKey, tmp_path: Path
) -> None:
    settings = {"run_id": "a", "learning_rate": 1e-5, "model": {"name": "logistic"}}
    authority = Authority(federation="heart", signing_key=key.public)
    content = content_to_sign("heart", settings)
    signature = key.sign("run", content)
    assert authority.signed(settings, signature)
    assert authority.signed(json.loads(json.dumps(settings)), signature)
    others = SigningKey.create(tmp_path / "other").sign("run", content)
    wrong_purpose = key.sign("kit", content)
    elsewhere = key.sign("run", content_to_sign("lung", settings))
    for wrong in (None, "", "x", others, wrong_purpose, elsewhere):
        assert not authority.signed(settings, wrong)
    assert not authority.signed(settings | {"run_id": "b"}, signature)
    assert not authority.signed({**settings, "model": {"name": "x"}}, signature)


@given(st.dictionaries(st.text(), st.one_of(st.integers(), st.floats(allow_nan=False), st.text())))
def test_what_is_signed_depends_on_values_not_on_order(settings: dict[str, object]) -> None:
    settings = {name: value for name, value in settings.items() if value not in (1e999, -1e999)}
    turned = dict(reversed(settings.items()))
    assert content_to_sign("heart", settings) == content_to_sign("heart", turned)
    assert content_to_sign("heart", settings) != content_to_sign("heart", settings | {"more!": 0})


@pytest.mark.parametrize("key_text", ["", "not base64!", "AAAA", "A" * 60])
def test_a_key_that_is_none_is_refused(key_text: str) -> None:
    with pytest.raises(ConfigError, match="32 bytes"):
        Authority.parse({"federation": "heart", "signing_key": key_text}, where="kit")


def test_its_fingerprint_tells_keys_apart(key: SigningKey, tmp_path: Path) -> None:
    other = SigningKey.create(tmp_path / "other")
    prints = {
        Authority(federation=name, signing_key=each.public).fingerprint
        for name in ("heart", "lung")
        for each in (key, other)
    }
    assert sorted(map(len, prints)) == [64, 64]
