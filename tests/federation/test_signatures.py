"""The coordinator's signatures hold for one key, one purpose and one content."""

import base64
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medfusion.errors import ConfigError
from medfusion.federation.signatures import SigningKey, is_signed


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    return SigningKey.create(tmp_path_factory.mktemp("key") / "signing.key")


def test_a_signature_holds_for_its_key_purpose_and_content_alone(key, tmp_path):
    signature = key.sign("run", b"content")
    assert is_signed(key.public, "run", b"content", signature)
    assert not is_signed(key.public, "kit", b"content", signature)
    assert not is_signed(key.public, "run", b"contents", signature)
    other = SigningKey.create(tmp_path / "other.key")
    assert not is_signed(other.public, "run", b"content", signature)


@given(st.one_of(st.text(), st.binary(max_size=80).map(lambda b: base64.b64encode(b).decode())))
def test_what_is_no_key_or_signature_signs_nothing(text):
    assert not is_signed(text, "run", b"", text)


def test_the_key_file_is_its_owners_and_stays(tmp_path):
    path = tmp_path / "signing.key"
    first = SigningKey.create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SigningKey.create(path).public == SigningKey.read(path).public == first.public


@pytest.mark.parametrize("content", [None, b"", b"x" * 31])
def test_a_missing_or_damaged_key_is_refused_by_name(tmp_path, content):
    path = tmp_path / "signing.key"
    if content is not None:
        path.write_bytes(content)
        path.chmod(0o600)
    with pytest.raises(ConfigError, match=r"signing\.key"):
        SigningKey.read(path)


def test_a_key_that_others_may_read_is_refused(tmp_path):
    path = tmp_path / "signing.key"
    SigningKey.create(path)
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="0640"):
        SigningKey.read(path)
