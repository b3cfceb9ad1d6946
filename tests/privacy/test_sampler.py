from fractions import Fraction
from itertools import pairwise
from math import floor, sqrt

import numpy as np
import pytest
import torch
from torch import Tensor

from medfusion.errors import DataError
from medfusion.privacy.keystream import Keystream
from medfusion.privacy.sampler import epoch_batches, poisson_batches

# Patient 7 has three studies, 2 has one, 5 has two; their rows are mixed.
PATIENTS = torch.tensor([7, 2, 5, 7, 5, 7])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def poisson(patients: Tensor, rate: float, steps: int, seed: int = 0) -> list[Tensor]:
    keystream = Keystream(bytes(32), seed)
    return list(poisson_batches(patients, sample_rate=rate, steps=steps, keystream=keystream))


def test_each_patient_is_drawn_at_the_rate_and_independently() -> None:
    steps, rate = 20_000, 0.3
    drawn = torch.zeros(steps, 8)
    for step, batch in enumerate(poisson(PATIENTS, rate, steps)):
        drawn[step, PATIENTS[batch]] = 1
    bound = 4.5 * sqrt(rate * (1 - rate) / steps)
    for patient in (2, 5, 7):
        assert abs(float(drawn[:, patient].mean()) - rate) < bound
    for one, other in ((2, 5), (2, 7), (5, 7)):
        together = float((drawn[:, one] * drawn[:, other]).mean())
        assert abs(together - rate**2) < 4.5 * sqrt(rate**2 * (1 - rate**2) / steps)
    following = float((drawn[:-1, 2] * drawn[1:, 2]).mean())  # steps do not remember
    assert abs(following - rate**2) < 4.5 * sqrt(rate**2 / steps)


def test_a_drawn_patient_brings_one_study_each_as_likely() -> None:
    batches = poisson(PATIENTS, 0.5, 12_000)
    counts = torch.bincount(torch.cat(batches), minlength=6)
    for batch in batches:
        patients = PATIENTS[batch].tolist()
        assert len(set(patients)) == len(patients)
    for studies in ([0, 3, 5], [2, 4]):
        expected = 6_000 / len(studies)
        assert all(abs(int(counts[s]) - expected) < 5 * sqrt(expected) for s in studies)


def test_who_is_drawn_does_not_hang_on_how_many_studies_they_have() -> None:
    single = torch.tensor([2, 5, 7])
    for many, one in zip(poisson(PATIENTS, 0.4, 200), poisson(single, 0.4, 200), strict=True):
        assert torch.equal(PATIENTS[many], single[one])


class Scripted:
    """Children give the words told for them; everybody's choice is the first study."""

    def __init__(self, words: dict[str, list[int]]) -> None:
        self.told = words

    def child(self, name: str) -> "Scripted":
        return Scripted({"": self.told[name]})

    def words(self, count: int) -> np.ndarray:
        assert count == len(self.told[""])
        return np.array(self.told[""], dtype=np.uint64)


@pytest.mark.parametrize("rate", [0.3, 1 / 3, 0.5, 2.0**-70, 5e-300, 1 - 2.0**-53])
def test_a_patient_is_drawn_exactly_where_the_word_is_below_the_rate(rate: float) -> None:
    threshold = floor(Fraction(rate) * 2**64)  # a double is a fraction
    words = [0, max(threshold - 1, 0), threshold, threshold + 1, 2**64 - 1]
    scripted = Scripted({"draws": words, "choices": [0] * 5})
    patients = torch.arange(5)
    (batch,) = poisson_batches(patients, sample_rate=rate, steps=1, keystream=scripted)
    assert batch.tolist() == [i for i, word in enumerate(words) if word < threshold]


def test_the_largest_words_draw_everybody_at_rate_one_and_the_last_study() -> None:
    scripted = Scripted({"draws": [2**64 - 1] * 3, "choices": [2**64 - 1] * 3})
    (batch,) = poisson_batches(PATIENTS, sample_rate=1.0, steps=1, keystream=scripted)
    assert batch.tolist() == [1, 4, 5]


def test_rate_one_draws_every_patient() -> None:
    for batch in poisson(PATIENTS, 1.0, 50):
        assert PATIENTS[batch].tolist() == [2, 5, 7]


def test_small_rates_leave_batches_empty_but_there() -> None:
    batches = poisson(PATIENTS, 0.01, 100)
    assert len(batches) == 100
    assert sum(len(batch) == 0 for batch in batches) > 80
    assert all(batch.dtype == torch.int64 for batch in batches)


def test_no_patients_make_empty_batches() -> None:
    batches = poisson(torch.empty(0, dtype=torch.int64), 0.5, 3)
    assert [len(batch) for batch in batches] == [0, 0, 0]


def test_same_seed_same_batches() -> None:
    first, again, other = (poisson(PATIENTS, 0.5, 40, seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(a.tolist() != b.tolist() for a, b in zip(first, other, strict=True))


def test_a_pass_takes_every_patient_once_and_the_next_shuffles() -> None:
    patients = torch.arange(50) // 2  # 25 patients of two studies each
    batches = list(epoch_batches(patients, batch_size=10, steps=9, generator=generator()))
    assert [len(batch) for batch in batches] == [10, 10, 5] * 3
    passes = [torch.cat(batches[i : i + 3]) for i in (0, 3, 6)]
    for one in passes:
        assert sorted(patients[one].tolist()) == list(range(25))
    assert all(not torch.equal(patients[a], patients[b]) for a, b in pairwise(passes))
    assert len(set(torch.cat(passes).tolist())) > 30  # both studies of a patient get their turn


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_epoch_batches_stop_after_the_steps_asked_for(steps: int) -> None:
    batches = epoch_batches(PATIENTS, batch_size=2, steps=steps, generator=generator())
    assert len(list(batches)) == steps


def test_nothing_to_train_on_is_an_error() -> None:
    empty = torch.empty(0, dtype=torch.int64)
    with pytest.raises(DataError, match="at least one training study"):
        next(epoch_batches(empty, batch_size=2, steps=1, generator=generator()))
