import pytest
import torch
from torch import Tensor

from medfusion.models.fusion import drop_modalities

N, K, L, T = 4000, 3, 2, 5


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def full_inputs() -> dict[str, Tensor]:
    tabular = torch.ones(N, K, 3 + L)
    tabular[..., 1] = 0.0
    return {
        "image": torch.ones(N, 1, 2, 2),
        "image_present": torch.ones(N, dtype=torch.bool),
        "tabular": tabular,
        "tokens": torch.ones(N, T, dtype=torch.int64),
    }


def presence(inputs: dict[str, Tensor]) -> Tensor:
    tabular = (inputs["tabular"][..., 1] == 0).any(dim=1)
    return torch.stack([inputs["image_present"], tabular, inputs["tokens"].bool().any(dim=1)], 1)


def test_rate_zero_returns_the_inputs_and_draws_nothing():
    inputs, draws = full_inputs(), generator()
    assert drop_modalities(inputs, 0.0, draws) is inputs
    assert torch.equal(draws.get_state(), generator().get_state())


def test_a_single_modality_is_never_hidden():
    inputs = {"tokens": full_inputs()["tokens"]}
    assert drop_modalities(inputs, 0.9, generator()) is inputs


@pytest.mark.parametrize("rate", [0.3, 0.9])
def test_each_modality_is_hidden_at_the_rate_but_never_all(rate):
    there = presence(drop_modalities(full_inputs(), rate, generator()))
    assert there.any(dim=1).all()
    spared = rate**3 / 3  # of the studies that would lose all, a third keeps this one
    expected = torch.full((3,), 1 - rate + spared)
    torch.testing.assert_close(there.float().mean(dim=0), expected, atol=0.03, rtol=0)


def test_hidden_means_missing():
    inputs = full_inputs()
    found = drop_modalities(inputs, 0.5, generator())
    image, tabular, text = (~presence(found)).T
    assert (found["image"][image] == 0).all()
    assert (found["image"][~image] == 1).all()
    hidden = torch.zeros(K, 3 + L)
    hidden[:, 1:3] = 1.0  # missing, and as selected as before
    assert (found["tabular"][tabular] == hidden).all()
    assert torch.equal(found["tabular"][~tabular], inputs["tabular"][~tabular])
    assert (found["tokens"][text] == 0).all()
    assert (inputs["image"] == 1).all(), "the caller's tensors stay"


def test_what_is_kept_is_what_the_study_has():
    inputs = full_inputs()
    inputs["image_present"] = torch.zeros(N, dtype=torch.bool)
    inputs["tokens"] = torch.zeros(N, T, dtype=torch.int64)
    there = presence(drop_modalities(inputs, 0.9, generator()))
    assert there[:, 1].all()


def test_hiding_one_study_does_not_depend_on_the_others():
    inputs, other = full_inputs(), full_inputs()
    other["image_present"][1:] = False
    first, second = (drop_modalities(x, 0.5, generator()) for x in (inputs, other))
    assert torch.equal(presence(first)[0], presence(second)[0])


def test_the_generator_fixes_the_draws():
    first, again = (presence(drop_modalities(full_inputs(), 0.5, generator(3))) for _ in "ab")
    other = presence(drop_modalities(full_inputs(), 0.5, generator(4)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
