"""States of notes, computed in advance: each in its place, each distinct note once."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from medfusion.data.note_states import _CHUNK_TOKENS, NoteStates, _remove_unused

T = 6
TOKENS = np.array(
    [
        [5, 7, 9, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [4, 4, 0, 0, 0, 0],
        [5, 7, 9, 0, 0, 0],
        [9, 8, 7, 6, 5, 4],
        [5, 7, 0, 0, 0, 0],
    ]
)


class FakeEncoder:
    """A token's state: its id, its position and the sum of the note; pooled: the sum, and 2."""

    width = 3

    def __init__(self, *, pooled: bool = False, sha256: str | None = None) -> None:
        self.pooled = pooled
        self.sha256 = sha256
        self.seen: list[Tensor] = []

    def encode(self, tokens: Tensor, /) -> Tensor:
        self.seen.append(tokens)
        total = tokens.sum(dim=1, keepdim=True)
        if self.pooled:
            return torch.stack([total, total, total * 0 + 2], dim=-1).float()
        place = torch.arange(tokens.shape[1]).expand(tokens.shape)
        # what is said of padding must not get through
        return torch.stack([tokens, place, total.expand(tokens.shape)], dim=-1).float() + 0.5


def rows(tokens: np.ndarray, index: list[int], **kind: bool) -> Tensor:
    return NoteStates.build(tokens, FakeEncoder(**kind)).rows(torch.tensor(index), "cpu")


def test_every_real_token_has_its_state_and_padding_has_zeros() -> None:
    found = rows(TOKENS, [4, 1, 0, 5])
    expected = FakeEncoder().encode(torch.from_numpy(TOKENS))[[4, 1, 0, 5]]
    expected[torch.from_numpy(TOKENS)[[4, 1, 0, 5]] == 0] = 0.0
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_a_pooled_note_has_one_state_and_a_missing_one_zeros() -> None:
    assert rows(TOKENS, [0, 1, 4], pooled=True).tolist() == [
        [[21.0, 21.0, 2.0]],
        [[0.0, 0.0, 0.0]],
        [[39.0, 39.0, 2.0]],
    ]


def test_distinct_notes_are_encoded_once_and_without_much_padding() -> None:
    encoder = FakeEncoder()
    states = NoteStates.build(TOKENS, encoder)
    notes = sorted(tuple(row[row > 0].tolist()) for call in encoder.seen for row in call)
    assert notes == [(4, 4), (5, 7), (5, 7, 9), (9, 8, 7, 6, 5, 4)]
    assert states.flat.shape == (2 + 2 + 3 + 6, 3)
    assert states.flat.dtype == torch.float16
    states.rows(torch.tensor([0, 4]), "cpu")
    assert len(encoder.seen) == 1  # reading encodes nothing


def test_many_notes_are_encoded_in_pieces_of_alike_length() -> None:
    draw = np.random.default_rng(0)
    lengths = draw.integers(0, 101, 200)
    tokens = np.where(np.arange(100) < lengths[:, None], draw.integers(1, 50, (200, 100)), 0)
    encoder = FakeEncoder()
    states = NoteStates.build(tokens, encoder)
    assert len(encoder.seen) > 3
    for call in encoder.seen:
        assert call.numel() <= _CHUNK_TOKENS
        assert (call[:, -1] > 0).any()
    padding = sum(int((call == 0).sum()) for call in encoder.seen)
    assert padding < 0.25 * (tokens == 0).sum()
    found = states.rows(torch.arange(200), "cpu")
    assert torch.equal((found != 0).any(dim=2), torch.from_numpy(tokens > 0))
    torch.testing.assert_close(found[..., 0][found[..., 0] > 0].int(), real_ids(tokens))


def real_ids(tokens: np.ndarray) -> Tensor:
    return torch.from_numpy(tokens[tokens > 0]).int()


@pytest.mark.parametrize("pooled", [False, True])
def test_nothing_to_encode(pooled: bool) -> None:
    encoder = FakeEncoder(pooled=pooled)
    shape = (1 if pooled else T, 3)
    for count in (0, 2):
        states = NoteStates.build(np.zeros((count, T), np.int64), encoder)
        found = states.rows(torch.arange(count), "cpu")
        assert found.shape == (count, *shape)
        assert not found.any()
    assert encoder.seen == []
    assert NoteStates.build(TOKENS, encoder).rows(torch.arange(0), "cpu").shape == (0, *shape)


def test_states_are_kept_on_disk_for_the_same_notes_and_weights(tmp_path) -> None:
    first = NoteStates.cached(TOKENS, FakeEncoder(sha256="a"), tmp_path)
    again, index = FakeEncoder(sha256="a"), torch.arange(len(TOKENS))
    found = NoteStates.cached(TOKENS, again, tmp_path)
    assert again.seen == []
    assert torch.equal(found.rows(index, "cpu"), first.rows(index, "cpu"))
    for tokens, other in (
        (TOKENS, FakeEncoder(sha256="b")),
        (TOKENS, FakeEncoder(sha256="a", pooled=True)),
        (TOKENS[::-1].copy(), FakeEncoder(sha256="a")),
    ):
        NoteStates.cached(tokens, other, tmp_path)
        assert other.seen


def test_a_damaged_file_of_states_is_made_anew(tmp_path) -> None:
    first = NoteStates.cached(TOKENS, FakeEncoder(sha256="a"), tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:40])
    again = FakeEncoder(sha256="a")
    assert torch.equal(NoteStates.cached(TOKENS, again, tmp_path).flat, first.flat)
    assert again.seen


def test_a_fast_encoder_leaves_nothing_on_disk(tmp_path) -> None:
    NoteStates.cached(TOKENS, FakeEncoder(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def grow_old(folder, *, days: float) -> None:
    for path in folder.iterdir():
        found = path.stat().st_mtime - days * 24 * 3600
        os.utime(path, (found, found))


@pytest.mark.parametrize("now_used", ["b", None])
def test_states_that_nobody_uses_any_more_are_removed(tmp_path, now_used) -> None:
    NoteStates.cached(TOKENS, FakeEncoder(sha256="a"), tmp_path)
    (old,) = tmp_path.iterdir()
    (tmp_path / f".{old.name}.0f.partial").write_bytes(b"of a process that was killed")
    (tmp_path / "images.bin").write_bytes(b"not of notes")
    grow_old(tmp_path, days=5)
    NoteStates.cached(TOKENS, FakeEncoder(sha256="b"), tmp_path)
    assert len(list(tmp_path.iterdir())) == 4  # runs may take turns
    grow_old(tmp_path, days=5)
    NoteStates.cached(TOKENS, FakeEncoder(sha256=now_used), tmp_path)
    left = {path.name for path in tmp_path.iterdir()} - {"images.bin"}
    assert len(left) == 1
    assert old.name not in left


def test_states_in_use_are_kept_however_old(tmp_path) -> None:
    for _ in range(3):
        encoder = FakeEncoder(sha256="a")
        NoteStates.cached(TOKENS, encoder, tmp_path)
        grow_old(tmp_path, days=30)
    assert encoder.seen == []


def test_a_file_that_cannot_be_removed_does_no_harm(tmp_path, monkeypatch) -> None:
    NoteStates.cached(TOKENS, FakeEncoder(sha256="a"), tmp_path)
    grow_old(tmp_path, days=30)

    def refuse(path, **_):
        raise PermissionError(13, "no")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        _remove_unused(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    _remove_unused(tmp_path)
    assert list(tmp_path.iterdir()) == []
