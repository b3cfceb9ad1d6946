import pytest
import torch
from torch import Tensor

from medfusion.training.label_masking import reveal_labels, still_to_learn

N, L = 6000, 6


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_labels(seed: int = 1) -> tuple[Tensor, Tensor]:
    known = (torch.rand(N, L, generator=generator(seed)) < 0.7).float()
    return (torch.rand(N, L, generator=generator(seed + 1)) < 0.3).float() * known, known


def test_states_are_the_labels_of_those_revealed() -> None:
    labels, known = make_labels()
    states = reveal_labels(labels, known, 0.9, generator())
    assert states.dtype == torch.int64
    assert (states[known == 0] == 0).all()
    assert (labels[states == 1] == 0).all()
    assert (labels[states == 2] == 1).all()
    assert set(states.unique().tolist()) == {0, 1, 2}


@pytest.mark.parametrize("rate", [0.3, 0.9])
def test_each_number_up_to_three_quarters_is_as_likely_and_so_is_each_label(rate: float) -> None:
    everything = torch.ones(N, L)
    states = reveal_labels(everything, everything, rate, generator())
    counts = torch.bincount((states > 0).sum(dim=1), minlength=L + 1) / N
    expected = torch.tensor([rate / 5] * 5 + [0.0, 0.0])  # 0 to 4 of 6
    expected[0] += 1 - rate
    torch.testing.assert_close(counts, expected, atol=0.02, rtol=0)
    each = (states > 0).float().mean(dim=0)
    torch.testing.assert_close(each, torch.full((L,), rate * 2 / L), atol=0.02, rtol=0)


def test_a_batch_cut_into_pieces_draws_the_same() -> None:
    labels, known = make_labels()
    whole, draws = reveal_labels(labels, known, 0.5, generator()), generator()
    cut = [
        reveal_labels(*pair, 0.5, draws)
        for pair in zip(labels.split(700), known.split(700), strict=True)
    ]
    assert torch.equal(torch.cat(cut), whole)


def test_what_is_told_of_a_study_does_not_depend_on_the_others() -> None:
    labels, known = make_labels()
    others, others_known = make_labels(5)
    others[17], others_known[17] = labels[17], known[17]
    first, second = (
        reveal_labels(*pair, 0.9, generator()) for pair in ((labels, known), (others, others_known))
    )
    assert torch.equal(first[17], second[17])
    assert not torch.equal(first, second)


def test_one_label_is_never_told() -> None:
    one = torch.ones(N, 1)
    assert not reveal_labels(one, one, 0.9, generator()).any()


def test_told_labels_are_not_learned_from() -> None:
    known = torch.tensor([[1.0, 1.0, 0.0, 1.0]])
    inputs = {"label_states": torch.tensor([[0, 2, 0, 1]])}
    assert still_to_learn(known, inputs).tolist() == [[1.0, 0.0, 0.0, 0.0]]
    assert still_to_learn(known, {}) is known
