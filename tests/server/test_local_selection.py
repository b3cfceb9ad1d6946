import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import FedAvg
from hypothesis import given
from hypothesis import strategies as st
from replies import make_reply

from medfusion.models.spec import FeatureAxis
from server.local_selection import fill_unselected

COLUMNS = 3


@given(
    seed=st.integers(0, 2**31),
    sites=st.integers(1, 4),
    axis=st.integers(0, 1),
    width=st.integers(1, 3),
)
def test_fedavg_then_averages_over_the_selecting_sites(seed, sites, axis, width):
    generator = np.random.default_rng(seed)
    shape = (COLUMNS * width, 2) if axis == 0 else (2, COLUMNS * width)
    incoming = generator.normal(size=shape).astype(np.float32)
    values = generator.normal(size=(sites, *shape)).astype(np.float32)
    weights = generator.integers(1, 100, size=sites)
    selected = generator.integers(0, 2, size=(sites, COLUMNS))
    replies = {
        f"site{i}": make_reply(
            {"other": np.float32([i]), "weight": values[i]},
            int(weights[i]),
            selected=selected[i].tolist(),
        )
        for i in range(sites)
    }
    fill_unselected(
        replies,
        ArrayRecord({"weight": Array(incoming)}),
        {"weight": FeatureAxis(axis, width)},
    )
    result, _ = FedAvg(min_available_nodes=1).aggregate_train(1, list(replies.values()))
    found = np.moveaxis(result["weight"].numpy(), axis, 0)
    for column in range(COLUMNS):
        rows = slice(column * width, (column + 1) * width)
        chosen = selected[:, column].astype(bool)
        if chosen.any():
            parts = np.moveaxis(values[chosen], axis + 1, 1)[:, rows]
            expected = np.average(parts, axis=0, weights=weights[chosen])
        else:
            expected = np.moveaxis(incoming, axis, 0)[rows]
        np.testing.assert_allclose(found[rows], expected, rtol=1e-5, atol=1e-6)
    expected_other = np.average(np.arange(sites), weights=weights)
    np.testing.assert_allclose(result["other"].numpy(), [expected_other], rtol=1e-5, atol=1e-6)


def test_a_site_that_selected_everything_keeps_its_values():
    value = np.arange(6, dtype=np.float32).reshape(3, 2)
    replies = {"a": make_reply({"w": value}, 5, selected=[1, 1, 1])}
    fill_unselected(replies, ArrayRecord({"w": Array(value * 0)}), {"w": FeatureAxis(0, 1)})
    assert replies["a"].content["arrays"]["w"].numpy() == pytest.approx(value)
