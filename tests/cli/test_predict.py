"""`medfusion predict` for every kind of task, against what the models say by themselves."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from boxes_cohort import SIDE, write_boxes
from kinds_cohort import write_kind
from tabular_cohort import write_ward
from typer.testing import CliRunner, Result

from medfusion.cli.predict import predict
from medfusion.data.site_data import load_site_data
from medfusion.errors import DataError
from medfusion.models.contract import trainable_state
from medfusion.models.options import LogisticOptions, MdfNetOptions
from medfusion.models.registry import build_model
from medfusion.models.saved import load_model, save_model
from medfusion.scoring import apply_model, study_tensors

torch.set_num_threads(1)


def write_model(site: Path, folder: Path, *, options=None, method: str = "none", **card) -> Path:
    """Write a model whose every output follows the first column, or as the seed draws it."""
    task = load_site_data(site).task
    chosen = options or LogisticOptions()
    module = build_model(chosen, task, seed=0)
    if options is None:
        with torch.no_grad():
            module.linear.tabular.weight[:, 0] = torch.arange(1.0, 1.0 + len(module.bias.weight))
    content = {
        "task": task.to_json(),
        "model": chosen.model_dump(mode="json"),
        "seed": 0,
        "selection": None,
        "selection_method": method,
        "top_n": 1,
    }
    save_model(folder, trainable_state(module), content | card)
    return folder


def call(model: Path, site: Path, out: Path) -> Result:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(predict)
    return CliRunner().invoke(app, [str(model), str(site), "--out", str(out)])


def predicted(model: Path, site: Path, out: Path) -> list[dict[str, str]]:
    result = call(model, site, out)
    assert result.exit_code == 0, result.output + repr(result.exception)
    with out.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def ward(tmp_path: Path) -> Path:
    return write_ward(tmp_path / "ward").parent / "sites" / "north"


def strip_columns(site: Path, *names: str) -> None:
    """Remove columns from the table."""
    with (site / "studies.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    kept = [name for name in rows[0] if name not in names]
    with (site / "studies.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, kept, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def test_every_study_has_each_label_s_probability_and_decision(ward, tmp_path):
    rows = predicted(write_model(ward, tmp_path / "model"), ward, tmp_path / "new" / "out.csv")
    studies = load_site_data(ward).studies
    assert [row["study_id"] for row in rows] == studies.study_ids.tolist()
    assert list(rows[0]) == [
        "study_id", "ill_probability", "ill_decision", "dead_probability", "dead_decision",
        "missing",
    ]  # fmt: skip
    for number, label in enumerate(("ill", "dead"), start=1):
        told = np.array([float(row[f"{label}_probability"]) for row in rows])
        age = studies.features[:, 0] / 50 - 1
        np.testing.assert_allclose(told, 1 / (1 + np.exp(-number * age)), atol=1e-5)
        decided = [row[f"{label}_decision"] for row in rows]
        assert decided == [str(int(p >= 0.5)) for p in told]
        assert set(decided) == {"0", "1"}


@pytest.mark.parametrize("kind", ["multilabel", "multiclass", "regression"])
def test_a_site_without_labels_gets_the_same_predictions(tmp_path, kind):
    writer = write_ward if kind == "multilabel" else lambda folder: write_kind(folder, kind)
    site = writer(tmp_path / "cohort").parent / "sites" / "north"
    model = write_model(site, tmp_path / "model")
    before = predicted(model, site, tmp_path / "with.csv")
    strip_columns(site, "ill", "dead", "state", "stay")
    assert predicted(model, site, tmp_path / "without.csv") == before


def test_classes_have_probabilities_and_one_is_told(tmp_path):
    site = write_kind(tmp_path / "cohort", "multiclass").parent / "sites" / "north"
    rows = predicted(write_model(site, tmp_path / "model"), site, tmp_path / "out.csv")
    names = ("well", "ill", "worse")
    for row in rows:
        told = [float(row[f"{name}_probability"]) for name in names]
        assert sum(told) == pytest.approx(1, abs=1e-5)
        assert row["decision"] == names[int(np.argmax(told))]
    assert {row["decision"] for row in rows} == {"well", "worse"}


def test_a_number_is_in_its_unit(tmp_path):
    site = write_kind(tmp_path / "cohort", "regression").parent / "sites" / "north"
    rows = predicted(write_model(site, tmp_path / "model"), site, tmp_path / "out.csv")
    dose = load_site_data(site).studies.features[:, 0]
    told = np.array([float(row["stay_value"]) for row in rows])
    np.testing.assert_allclose(told, dose / 2, atol=1e-3)  # 50 days at the highest dose
    assert {row["stay_unit"] for row in rows} == {"day"}


def test_boxes_are_in_pixels_of_the_stored_image(tmp_path):
    site = write_boxes(tmp_path / "cohort").parent / "sites" / "north"
    model = write_model(site, tmp_path / "model", options=MdfNetOptions(proposals=8))
    labelled = load_site_data(site)
    (site / "boxes.csv").unlink()
    rows = predicted(model, site, tmp_path / "out.csv")
    saved = load_model(model)
    tensors = study_tensors(saved, labelled, labelled.studies, cache=tmp_path / "cache")
    found = apply_model(saved, labelled, tensors)
    by_study = {
        study: boxes[boxes[:, 5] > 0]
        for study, boxes in zip(labelled.studies.study_ids, found, strict=True)
    }
    assert sum(len(boxes) for boxes in by_study.values()) > 0
    for study, boxes in by_study.items():
        mine = [row for row in rows if row["study_id"] == study]
        if not len(boxes):
            assert [row["label"] for row in mine] == [""]
            continue
        assert [float(row["score"]) for row in mine] == pytest.approx(
            sorted(boxes[:, 4], reverse=True), abs=1e-5
        )
        best = boxes[np.argmax(boxes[:, 4])]
        x, y, width, height = (float(mine[0][key]) for key in ("x", "y", "width", "height"))
        # Images are stored twice as large as the model sees them.
        assert (x, y) == pytest.approx(tuple(2 * best[:2]), abs=0.01)
        assert (x + width, y + height) == pytest.approx(tuple(2 * best[2:4]), abs=0.02)
        assert x + width <= 2 * SIDE
        assert mine[0]["label"] == ("above", "below")[int(best[5]) - 1]
        assert mine[0]["decision"] == str(int(best[4] >= 0.5))


def test_a_study_says_which_modalities_it_lacks(ward, tmp_path):
    table = ward / "studies.csv"
    header, first, second, *rest = table.read_text().splitlines()
    cells, others = first.split(","), second.split(",")
    cells[2] = cells[3] = others[3] = ""  # one study without any feature, one without the dose
    table.write_text("\n".join([header, ",".join(cells), ",".join(others), *rest]) + "\n")
    rows = predicted(write_model(ward, tmp_path / "model"), ward, tmp_path / "out.csv")
    missing = {row["study_id"]: row["missing"] for row in rows}
    assert missing.pop(cells[0]) == "tabular"
    assert set(missing.values()) == {""}


def test_values_outside_the_public_range_count_as_missing_with_a_warning(ward, tmp_path):
    table = ward / "studies.csv"
    header, first, *rest = table.read_text().splitlines()
    cells = first.split(",")
    cells[2] = "777"
    table.write_text("\n".join([header, ",".join(cells), *rest]) + "\n")
    result = call(
        write_model(ward.with_name("south"), tmp_path / "model"), ward, tmp_path / "o.csv"
    )
    assert result.exit_code == 0, repr(result.exception)
    assert "'age'" in result.output
    assert "expected 0 to 100" in result.output
    assert "777" not in result.output
    with (tmp_path / "o.csv").open(encoding="utf-8") as file:
        row = next(row for row in csv.DictReader(file) if row["study_id"] == cells[0])
    assert float(row["ill_probability"]) == 0.5


def test_under_local_selection_the_site_needs_its_labels(ward, tmp_path):
    model = write_model(ward, tmp_path / "model", method="local")
    assert call(model, ward, tmp_path / "out.csv").exit_code == 0
    strip_columns(ward, "ill")
    error = call(model, ward, tmp_path / "out.csv").exception
    assert isinstance(error, DataError)
    assert "'ill'" in str(error)


def test_another_task_is_refused_and_the_earlier_table_stays(ward, tmp_path):
    model = write_model(ward, tmp_path / "model")
    before = predicted(model, ward, tmp_path / "out.csv")
    task = ward.parents[1] / "task.toml"
    task.write_text(task.read_text().replace("high = 100", "high = 110", 1))
    error = call(model, ward, tmp_path / "out.csv").exception
    assert isinstance(error, DataError)
    assert "differs from the model's in [features]" in str(error)
    with (tmp_path / "out.csv").open(encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == before


def test_a_model_of_another_version_is_refused(ward, tmp_path):
    model = write_model(ward, tmp_path / "model", schema=2)
    error = call(model, ward, tmp_path / "out.csv").exception
    assert isinstance(error, DataError)
    assert "schema 2, expected 1" in str(error)
    (model / "model.json").write_text(json.dumps([]))
    assert "not a model" in str(call(model, ward, tmp_path / "out.csv").exception)
