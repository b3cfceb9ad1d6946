"""Averages of a label's rows are over the sites that declare to know the label."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detection_studies import detection_task
from flwr.app import Array, ArrayRecord, ConfigRecord
from quadratics import KnownNodes
from replies import make_reply
from tabular_cohort import write_ward
from torch import nn

from medfusion.config import StrategyOptions, load_config
from medfusion.data.cohorts.synthetic import write_cohort
from medfusion.data.task import Task
from medfusion.errors import ConfigError
from medfusion.models.label_rows import label_rows
from medfusion.models.options import LogisticOptions, MdfNetOptions, MedFusionNetOptions
from medfusion.models.registry import build_model
from medfusion.strategies.patient_weighted import RunFacts
from medfusion.training.options import TrainingOptions
from server.strategies import build_strategy

LABELS = ("ill", "dead")
START = {"head": np.zeros((2, 3)), "bias": np.zeros(2), "trunk": np.zeros((2, 2))}


def averaged(coverage, patients, trained, name="label_aware"):
    strategy = build_strategy(StrategyOptions(name=name), min_sites=1)
    nodes = {number: f"site{number}" for number in range(len(patients))}
    sites = {
        nodes[i]: SimpleNamespace(patients_public=n, label_coverage=c)
        for i, (n, c) in enumerate(zip(patients, coverage, strict=True))
    }
    known = SimpleNamespace(sites=sites, names=nodes)
    facts = RunFacts(known, TrainingOptions(), LABELS, frozenset({"head", "bias"}))
    if name == "label_aware":
        strategy.serve(facts)
    arrays = ArrayRecord({n: Array(np.asarray(v, np.float32)) for n, v in START.items()})
    strategy.configure_train(1, arrays, ConfigRecord(), KnownNodes(nodes))
    replies = []
    for node, (weight, model) in enumerate(zip(patients, trained, strict=True)):
        record = {n: np.asarray(v, np.float32) for n, v in model.items()}
        reply = make_reply(record, weight)
        reply.metadata.__dict__["_src_node_id"] = node
        replies.append(reply)
    found, _ = strategy.aggregate_train(1, replies)
    return {n: a.numpy() for n, a in found.items()}


@pytest.fixture
def trained():
    rng = np.random.default_rng(0)
    return [{n: rng.normal(size=v.shape) for n, v in START.items()} for _ in range(3)]


def test_who_never_records_a_label_has_no_say_in_its_rows(trained):
    patients, coverage = (10, 30, 60), ((1.0, 0.0), (1.0, 0.5), ())
    found = averaged(coverage, patients, trained)
    for name in ("head", "bias"):
        rows = np.stack([model[name] for model in trained])
        expected_ill = np.average(rows[:, 0], axis=0, weights=patients)
        expected_dead = np.average(rows[:, 1], axis=0, weights=(0, 15, 60))
        np.testing.assert_allclose(found[name][0], expected_ill, rtol=1e-5)
        np.testing.assert_allclose(found[name][1], expected_dead, rtol=1e-5)
    trunk = np.average(np.stack([m["trunk"] for m in trained]), axis=0, weights=patients)
    np.testing.assert_allclose(found["trunk"], trunk, rtol=1e-5)


def test_rows_of_a_label_that_nobody_records_stay(trained):
    found = averaged([(1.0, 0.0)] * 3, (10, 30, 60), trained)
    np.testing.assert_array_equal(found["head"][1], START["head"][1])
    assert (found["head"][0] != 0).all()


def test_full_coverage_is_fedavg(trained):
    aware = averaged([(), (), (1.0, 1.0)], (10, 30, 60), trained)
    plain = averaged([(), (), (1.0, 1.0)], (10, 30, 60), trained, "fedavg")
    for name in START:
        np.testing.assert_allclose(aware[name], plain[name], rtol=1e-5)


def _task(folder, *, multimodal):
    if multimodal:
        write_cohort(folder, sites=1, patients=20, seed=0)
    else:
        write_ward(folder, patients=4)
    return Task.load(load_config(folder / "config.toml").run.task)


@pytest.mark.parametrize(
    ("options", "multimodal"),
    [
        (LogisticOptions(), True),
        (LogisticOptions(), False),
        (MedFusionNetOptions(linear_path=True, auxiliary_heads=0.3), True),
        (MedFusionNetOptions(head="pooled", auxiliary_heads=0.3), True),
    ],
)
def test_a_row_belongs_to_its_label_alone(options, multimodal, tmp_path):
    """What only label 0 is trained on leaves every other row of those parameters as it was."""
    task = _task(tmp_path / "cohort", multimodal=multimodal)
    model = build_model(options, task, seed=0)
    names = label_rows(model)
    rows = {name: value for name, value in model.named_parameters() if name in names}
    biases = {id(bias) for bias in model.label_biases()}
    assert biases <= {id(value) for value in rows.values()}
    assert any(id(value) not in biases for value in rows.values())
    with torch.no_grad():  # what starts at zero would hide a gradient
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    inputs = _inputs(task)
    total = sum(logits[:, 0].sum() for logits in model.outputs(inputs).values())
    total.backward()
    assert all(value.shape[0] == len(task.labels.names) for value in rows.values())
    for name, value in rows.items():
        assert isinstance(value, nn.Parameter)
        if value.grad is not None:
            assert not value.grad[1:].any(), name
    assert any(value.grad is not None and value.grad[0].any() for value in rows.values())


def _inputs(task):
    rng = torch.Generator().manual_seed(0)
    values = 3 + len(task.labels.names)
    tabular = torch.rand((3, len(task.columns), values), generator=rng)
    tabular[..., 2] = 1.0
    inputs = {"tabular": tabular}
    if task.image:
        shape = (3, task.image.channels, *task.image.size)
        inputs |= {"image": torch.rand(shape, generator=rng), "image_present": torch.ones(3) > 0}
    if task.text:
        inputs["tokens"] = torch.randint(1, 50, (3, task.text.max_tokens), generator=rng)
    return inputs


def test_a_model_whose_labels_own_nothing_is_refused():
    model = build_model(MdfNetOptions(size="tiny"), detection_task(), seed=0)
    strategy = build_strategy(StrategyOptions(name="label_aware"), min_sites=1)
    known = SimpleNamespace(sites={}, names={})
    with pytest.raises(ConfigError, match="belongs to one label alone"):
        strategy.serve(RunFacts(known, TrainingOptions(), LABELS, label_rows(model)))
