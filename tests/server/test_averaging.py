import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from hypothesis import given
from hypothesis import strategies as st

from server.averaging import running_average


def draw_models(rounds: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    shapes = {"weight": (3, 2), "bias": (2,), "scale": ()}
    return [
        {name: np.asarray(rng.normal(size=shape), np.float32) for name, shape in shapes.items()}
        for _ in range(rounds)
    ]


def record(model: dict[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(value)) for name, value in model.items()})


def averaged(models: list[dict[str, np.ndarray]], ema: float) -> dict[str, np.ndarray]:
    average = record({name: value + 1e6 for name, value in models[0].items()})  # must not count
    for number, model in enumerate(models, 1):
        average = running_average(average, record(model), ema=ema, number=number)
    return {name: array.numpy() for name, array in average.items()}


@given(ema=st.floats(0.01, 0.999), rounds=st.integers(1, 30), seed=st.integers(0, 99))
def test_it_is_the_weighted_mean_of_all_rounds(ema, rounds, seed):
    models = draw_models(rounds, seed)
    weights = ema ** np.arange(rounds - 1, -1, -1.0)
    for name, found in averaged(models, ema).items():
        values = np.stack([model[name].astype(np.float64) for model in models])
        expected = np.average(values, axis=0, weights=weights)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_the_first_round_is_its_model_bit_for_bit():
    (model,) = draw_models(1)
    for name, found in averaged([model], 0.99).items():
        np.testing.assert_array_equal(found, model[name])


def test_without_averaging_the_model_itself_is_returned():
    past, model = (record(model) for model in draw_models(2))
    assert running_average(past, model, ema=0.0, number=2) is model


def test_nearly_all_weight_on_the_past_is_the_plain_mean():
    models = draw_models(9)
    for name, found in averaged(models, 1 - 1e-9).items():
        assert found == pytest.approx(np.mean([model[name] for model in models], axis=0), abs=1e-5)
