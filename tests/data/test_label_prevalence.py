"""``[labels] prevalence`` of a task, and the models that start from it."""

from math import log

import pytest
import torch

from medfusion.data.task import Task
from medfusion.errors import ConfigError
from medfusion.models.options import LogisticOptions, MedFusionNetOptions
from medfusion.models.registry import build_model
from medfusion.objectives.multilabel import probabilities
from medfusion.toml_text import to_toml

SHARES = [0.02, 0.5, 0.7]


def make_task(**labels) -> Task:
    content = {
        "task": {"name": "ward", "kind": "multilabel"},
        "text": {"max_tokens": 8},
        "features": {
            "age": {"kind": "numeric", "low": 0, "high": 120},
            "sex": {"kind": "binary"},
        },
        "labels": {"names": ["ill", "dead", "home"], **labels},
    }
    return Task.parse(content, where="task.toml")


def make_inputs() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    tabular = torch.randn(5, 2, 6, generator=draw)
    tabular[..., 1], tabular[..., 2] = 0.0, 1.0
    return {"tabular": tabular, "tokens": torch.randint(1, 99, (5, 8), generator=draw)}


def test_a_task_without_prevalence_is_written_and_hashed_as_before_there_was_one():
    task = Task.parse(
        {
            "task": {"name": "ward", "kind": "multilabel"},
            "features": {"age": {"kind": "numeric", "low": 0, "high": 120}},
            "labels": {"names": ["ill", "dead"]},
        },
        where="task.toml",
    )
    assert task.sha256 == ("e0faa98ef9d89eb225555272d9d7906f5c277c8ecfb3dfaa809706b352adbf1e")
    assert task.to_json()["labels"] == {"names": ["ill", "dead"]}


def test_prevalence_is_part_of_what_sites_agree_on(tmp_path):
    task, other = make_task(prevalence=SHARES), make_task(prevalence=[0.02, 0.5, 0.6])
    assert len({make_task().sha256, task.sha256, other.sha256}) == 3
    assert task.differing_sections(other) == "[labels]"
    assert Task.parse(task.to_json(), where="json") == task
    for number, written in enumerate((task, make_task())):
        path = tmp_path / f"{number}.toml"
        path.write_text(to_toml(written.model_dump(mode="json", exclude_none=True)))
        assert Task.load(path) == written


@pytest.mark.parametrize(
    ("prevalence", "message"),
    [
        ([0.1, 0.2], r"labels: prevalence: expected one share for each of the 3 labels, found 2"),
        ([0.1, 0.0, 0.2], r"prevalence of 'dead' = 0.0: expected a share of patients above 0"),
        ([0.1, 0.2, 1.0], r"prevalence of 'home' = 1.0"),
        (["often", 0.2, 0.1], r"labels.prevalence"),
    ],
)
def test_what_is_no_prevalence_is_refused(prevalence, message):
    with pytest.raises(ConfigError, match=message):
        make_task(prevalence=prevalence)


@pytest.mark.parametrize(
    "options",
    [
        LogisticOptions(),
        MedFusionNetOptions(),
        MedFusionNetOptions(head="pooled"),
        MedFusionNetOptions(auxiliary_heads=0.5),
        MedFusionNetOptions(auxiliary_heads=0.5, head="pooled"),
    ],
    ids=repr,
)
def test_every_logit_starts_at_the_log_odds_of_its_label(options):
    plain = build_model(options, make_task(), seed=3)
    model = build_model(options, make_task(prevalence=SHARES), seed=3)
    shift = torch.tensor([log(share / (1 - share)) for share in SHARES])
    before, after = plain.outputs(make_inputs()), model.outputs(make_inputs())
    assert before.keys() == after.keys()
    for name, logits in before.items():
        torch.testing.assert_close(after[name], logits + shift, rtol=1e-5, atol=1e-5)


def test_a_model_that_knows_nothing_else_predicts_the_prevalence():
    model = build_model(LogisticOptions(), make_task(prevalence=SHARES), seed=0)
    found = probabilities(model(make_inputs()))
    torch.testing.assert_close(found, torch.tensor(SHARES).expand(5, 3), rtol=1e-6, atol=0)
