"""The gap between subgroups: of which groups, and of which figure."""

from types import SimpleNamespace

import numpy as np
import pytest

from medfusion.data.task import Task
from medfusion.evaluation.score_histograms import score_histogram
from server.federated_subgroups import subgroup_figures


def context(kind: str) -> SimpleNamespace:
    task = {
        "task": {"name": "ward", "kind": kind},
        "image": {"size": [32, 32]},
        "features": {"sex": {"kind": "categorical", "values": ["F", "M", "X"]}},
        "labels": {"names": ["ill"]},
    }
    return SimpleNamespace(
        task=Task.parse(task, where="test"),
        config=SimpleNamespace(evaluation=SimpleNamespace(subgroups=("sex",))),
        plans={},
        last_sensitivity=1.0,
    )


def group(count: int, *, shift: float, bins: int) -> np.ndarray:
    """Score histogram [1, 2, S] of patients, every other one ill and higher by ``shift``."""
    labels = (np.arange(count) % 2.0)[:, None]
    logits = np.random.default_rng(count).normal(shift * labels, 1)
    return score_histogram(logits, labels, np.ones_like(labels), bins=bins)


@pytest.mark.parametrize(("third", "counts"), [(9, False), (10, True)])
def test_a_group_of_few_is_shown_and_left_out_of_the_gap(third, counts):
    sizes, shifts = (60, 40, third), (1.0, 2.0, -9.0)
    groups = [group(n, shift=s, bins=256) for n, s in zip(sizes, shifts, strict=True)]
    found = subgroup_figures(context("multilabel"), {"north": np.array(groups)})["sex"]
    told = {name: each["auroc_macro"] for name, each in found["groups"].items()}
    assert told["X"] == 0  # every ill patient of it is ranked below every other
    assert found["gap"] == pytest.approx(
        told["M"] - told["X"] if counts else abs(told["M"] - told["F"])
    )
    assert found["groups"]["X"]["patients"] == third


def test_where_boxes_are_not_counted_the_gap_is_that_of_studies():
    groups = [group(n, shift=s, bins=32) for n, s in ((60, 1.0), (40, 2.0), (30, 0.0))]
    found = subgroup_figures(context("detection"), {"north": np.array(groups)})["sex"]
    assert {each["ap50"] for each in found["groups"].values()} == {None}
    told = [each["auroc_macro"] for each in found["groups"].values()]
    assert found["gap"] == pytest.approx(max(told) - min(told))
