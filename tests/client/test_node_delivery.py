"""What a Node keeps of the model that is delivered."""

import pytest
from logistic_asker import Asker

from medfusion.models.saved import load_model
from medfusion.transport.requests import (
    read_error,
    read_reply,
)


def card_of(asker, **changes):
    settings = asker.settings
    return {
        "schema": 1,
        "task": asker.data.task.to_json(),
        "task_sha256": settings.task_sha256,
        "model": settings.model.model_dump(mode="json"),
        "seed": settings.seed,
        "selection_method": settings.selection.method,
        "top_n": settings.selection.top_n,
        "selection": None,
    } | changes


def test_the_delivered_model_can_be_loaded(cohort, tmp_path):
    asker = Asker(cohort, tmp_path)
    assert read_error(asker.ask("deliver", card=card_of(asker))) is None
    saved = load_model(asker.state.model_folder(asker.settings.run_id))
    assert saved.task.sha256 == asker.data.task.sha256


@pytest.mark.parametrize(
    "change", [{"task_sha256": "0"}, {"model": {"name": "x"}}, {"selection": {"thresholds": []}}]
)
def test_a_description_of_another_model_is_refused(cohort, tmp_path, change):
    asker = Asker(cohort, tmp_path)
    error = read_error(asker.ask("deliver", card=card_of(asker, **change)))
    assert "differs from the run" in str(error)


def test_under_local_selection_the_delivered_model_reads_what_the_site_chose(cohort, tmp_path):
    asker = Asker(cohort, tmp_path, "selection.method=local", "selection.top_n=1")
    mask = read_reply(asker.ask("train"))["selected"]
    assert read_error(asker.ask("deliver", card=card_of(asker))) is None
    saved = load_model(asker.state.model_folder(asker.settings.run_id))
    assert saved.selection is not None
    columns = asker.data.task.columns
    chosen = {c.feature for c, is_chosen in zip(columns, mask, strict=True) if is_chosen}
    assert set(saved.selection.features) == chosen
