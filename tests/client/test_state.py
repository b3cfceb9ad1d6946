import stat
from pathlib import Path

import pytest

from client.node.state import NodeState
from medfusion.errors import FederationError


def test_the_secret_is_made_once_and_is_the_owners_alone(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    secret = NodeState(folder).secret()
    assert len(secret) == 32
    assert NodeState(folder).secret() == secret
    assert NodeState(tmp_path / "other").secret() != secret
    assert [path.name for path in folder.iterdir()] == ["secret"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "secret").stat().st_mode) == 0o600


def test_a_secret_made_meanwhile_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_bytes(b"x" * 32)
    monkeypatch.setattr(Path, "exists", lambda path: False)
    assert NodeState(tmp_path).secret() == b"x" * 32


def test_a_damaged_secret_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"")
    with pytest.raises(FederationError, match="expected 32 bytes, found 0"):
        NodeState(tmp_path).secret()


@pytest.mark.parametrize(
    "run_id", ["", ".", "..", "../out", "a/b", "/etc", "a\x00", "a\n", "x" * 300]
)
def test_a_run_cannot_leave_the_state_folder(tmp_path: Path, run_id: str) -> None:
    with pytest.raises(FederationError, match="run_id"):
        NodeState(tmp_path).model_folder(run_id)


def test_a_plain_run_id_names_a_folder(tmp_path: Path) -> None:
    folder = NodeState(tmp_path).model_folder("covid-icu.2_a-0123456789ab")
    assert folder == tmp_path / "models" / "covid-icu.2_a-0123456789ab"
