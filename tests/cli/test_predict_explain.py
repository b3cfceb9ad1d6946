"""``medfusion predict --explain``: the page that stays at the hospital."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from boxes_cohort import write_boxes
from PIL import Image
from tabular_cohort import write_ward
from typer.testing import CliRunner, Result

from medfusion.cli.predict import predict
from medfusion.data.site_data import load_site_data
from medfusion.models.contract import trainable_state
from medfusion.models.hyperfusion import HyperFusion
from medfusion.models.options import (
    HyperFusionOptions,
    LogisticOptions,
    MdfNetOptions,
    MedFusionNetOptions,
)
from medfusion.models.registry import build_model
from medfusion.models.saved import save_model

torch.set_num_threads(1)


def write_model(site: Path, folder: Path, options) -> Path:
    """Write a model none of whose weights is zero."""
    task = load_site_data(site).task
    module = build_model(options, task, seed=0)
    draw = torch.Generator().manual_seed(0)
    state = {
        name: value.detach() + 0.1 * torch.randn(value.shape, generator=draw)
        for name, value in trainable_state(module).items()
    }
    card = {
        "task": task.to_json(),
        "model": options.model_dump(mode="json"),
        "seed": 0,
        "selection": None,
        "selection_method": "none",
        "top_n": 1,
    }
    save_model(folder, state, card)
    return folder


def call(model: Path, site: Path, folder: Path, *arguments: str) -> Result:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(predict)
    out = folder / "out.csv"
    return CliRunner().invoke(app, [str(model), str(site), "--out", str(out), *arguments])


def explained(options, site: Path, folder: Path, *arguments: str) -> str:
    model = write_model(site, folder / "model", options)
    result = call(model, site, folder, "--explain", str(folder / "why"), *arguments)
    assert result.exit_code == 0, result.output + repr(result.exception)
    page = (folder / "why" / "explanations.html").read_text(encoding="utf-8")
    assert not re.search(r'(src|href)="(?!data:)', page)  # nothing is fetched
    return page


def write_complete(folder: Path, *, least: int = 5) -> Path:
    """Write a site with images, numbers and notes; return its folder."""
    site = folder / "sites" / "north"
    (site / "images").mkdir(parents=True)
    (folder / "task.toml").write_text("""
[task]
name = "whole"
kind = "multilabel"
[image]
size = [32, 32]
[text]
max_tokens = 8
[features.age]
kind = "numeric"
low = 0
high = 100
unit = "year"
[labels]
names = ["ill", "dead"]
""")
    (site / "site.toml").write_text(f"""
[site]
name = "north"
task = "../../task.toml"
patients_public = 6
[policy]
min_patients = {least}
""")
    rng = np.random.default_rng(0)
    rows = ["study_id,patient_id,image,age,notes,ill,dead"]
    for number in range(6):
        pixels = rng.integers(0, 255, (32, 32)).astype(np.uint8)
        Image.fromarray(pixels).save(site / "images" / f"{number}.png")
        image = f"{number}.png" if number else ""
        rows.append(f"s{number},secret{number},{image},{10 * number},<b>fever</b> cough,1,")
    (site / "studies.csv").write_text("\n".join(rows) + "\n")
    return site


def test_cases_and_cohort_of_a_model_of_everything(tmp_path):
    site = write_complete(tmp_path)
    page = explained(MedFusionNetOptions(), site, tmp_path, "--cases", "2")
    assert re.findall(r"<h2>(.*)</h2>", page) == ["All studies", "Study s0", "Study s1"]
    assert "secret" not in page
    assert "<b>" not in page  # a note's own marks
    assert "age = 10 year" in page
    first, second = page.split("<h2>Study s0</h2>")[1].split("<h2>Study s1</h2>")
    assert "<img" not in first  # it has no image
    for title in ("Grad-CAM, level 1", "Grad-CAM, level 3", "attention of the label", "occlusion"):
        assert second.count(f"<figcaption>{title}") == 2  # of each label
    for told in ("The note, for ill", "Which words matter", "Which labels take in which others"):
        assert told in page
    assert "Known: ill: 1" in page
    looks = "Attention says where the label looks, not what speaks for or against it."
    words = "In the note, orange words speak for the label, blue underlined ones against it"
    assert (looks in first, looks in second) == (False, True)
    assert (words in first, words in second) == (True, True)
    assert "Orange raises the label's score, blue (below 0) lowers it." in first
    assert re.search(r"\.words \.against \{.*text-decoration: underline", page)
    against = re.findall(r'<span class="against".* title="against: (\d+)%">(.*)</span>', page)
    assert against
    assert all(said.endswith(f" (against: {n}%)</span>") for n, said in against)


def test_of_few_patients_there_is_no_summary(tmp_path):
    site = write_complete(tmp_path, least=10)
    page = explained(LogisticOptions(), site, tmp_path, "--cases", "1")
    assert "fewer patients" in page
    assert "How much each feature matters" not in page
    assert "<h2>Study s0</h2>" in page


def test_the_feature_that_counts_comes_first(tmp_path):
    site = write_ward(tmp_path / "ward").parent / "sites" / "north"
    model = write_model(site, tmp_path / "model", LogisticOptions())
    saved = {name: torch.zeros(shape) for name, shape in shapes(model).items()}
    saved["linear.tabular.weight"][:, 4] = 1.0  # of the second column, the dose
    save_model(model, saved, card_of(model))
    result = call(model, site, tmp_path, "--explain", str(tmp_path / "why"), "--cases", "0")
    assert result.exit_code == 0, result.output + repr(result.exception)
    page = (tmp_path / "why" / "explanations.html").read_text()
    assert re.findall(r'<th scope="row">(.*)</th>', page) == ["dose", "age"]
    assert "<h2>Study" not in page


def shapes(model: Path) -> dict[str, tuple[int, ...]]:
    from safetensors.torch import load_file

    return {name: tuple(x.shape) for name, x in load_file(model / "model.safetensors").items()}


def card_of(model: Path) -> dict:
    import json

    return json.loads((model / "model.json").read_text())


def test_a_detector_s_boxes_are_drawn_and_features_have_shapley_values(tmp_path):
    site = write_boxes(tmp_path / "cohort").parent / "sites" / "north"
    options = MdfNetOptions(proposals=8, detections=4)
    page = explained(options, site, tmp_path, "--cases", "2")
    assert page.count("<figcaption>found (orange) and drawn (green)") == 2
    assert "drawn by a reader: " in page
    assert "Which features raise a label" in page
    assert "Mean absolute Shapley value" in page
    assert "about one in twenty is by chance" in page


def test_without_labels_there_is_no_truth(tmp_path):
    site = write_boxes(tmp_path / "cohort").parent / "sites" / "north"
    model = write_model(site, tmp_path / "model", MdfNetOptions(proposals=8, detections=4))
    (site / "boxes.csv").unlink()
    why = tmp_path / "why"
    result = call(model, site, tmp_path, "--explain", str(why), "--cases", "1")
    assert result.exit_code == 0, result.output + repr(result.exception)
    assert "note: the explanations show no truth: " in result.output
    page = (why / "explanations.html").read_text()
    assert page.count("<figcaption>found (orange)") == 1
    assert "drawn by a reader: " not in page
    assert "Which features raise a label" not in page


def test_generated_weights_have_a_picture(tmp_path):
    site = write_complete(tmp_path)
    options = HyperFusionOptions(width=4, stages=2, generated=("head1",))
    page = explained(options, site, tmp_path, "--cases", "0")
    assert "How generated weights move with each feature" in page
    assert "<h3>age: from 0 year</h3><svg" in page


def write_volumes(folder: Path) -> Path:
    """Write a site of volumes with something bright in the middle; return its folder."""
    site = write_complete(folder)
    task = (folder / "task.toml").read_text()
    (folder / "task.toml").write_text(
        task.replace("size = [32, 32]", "dims = 3\nsize = [16, 16, 16]")
    )
    table = (site / "studies.csv").read_text().replace(".png", ".npz")
    (site / "studies.csv").write_text(table)
    rng = np.random.default_rng(0)
    for number in range(6):
        voxels = np.zeros((12, 14, 10), np.uint8)
        voxels[3:9, 4:11, 2:8] = rng.integers(60, 255, (6, 7, 6))
        np.savez(site / "images" / f"{number}.npz", volume=voxels)
    return site


def test_a_volume_is_cut_in_three_planes_for_every_way_to_explain_it(tmp_path):
    site = write_volumes(tmp_path)
    options = HyperFusionOptions(width=4, stages=2, linear_path=True)
    page = explained(options, site, tmp_path, "--cases", "2")
    first, second = page.split("<h2>Study s0</h2>")[1].split("<h2>Study s1</h2>")
    assert "<img" not in first  # it has no volume
    assert second.count("<figcaption>as the model sees it") == 3
    for title in ("Grad-CAM, last map", "occlusion"):
        assert second.count(f"<figcaption>{title}</figcaption>") == 2 * 3  # of each label
    shares = re.findall(r"<figcaption>integrated gradients \((-?\d+)% of the change\)", second)
    assert len(shares) == 2 * 3
    assert all(80 <= int(share) <= 120 for share in shares)
    assert "against a black image and without the linear path" in second


def test_a_linear_model_of_volumes_has_its_occlusion_alone(tmp_path):
    site = write_volumes(tmp_path)
    options = LogisticOptions(modalities=("image", "tabular"))
    page = explained(options, site, tmp_path, "--cases", "2")
    assert set(re.findall(r"<figcaption>(.*?)</figcaption>", page)) == {
        "as the model sees it",
        "occlusion",
    }
    assert "ntegrated gradients say what each place adds" not in page


def test_no_more_images_at_once_than_the_site_allows(tmp_path, monkeypatch):
    site, rows, forward = write_complete(tmp_path), [], HyperFusion.forward
    with (site / "site.toml").open("a") as file:
        file.write("[compute]\nphysical_batch = 2\n")

    def counted(model, inputs):
        rows.append(len(inputs["image"]))
        return forward(model, inputs)

    monkeypatch.setattr(HyperFusion, "forward", counted)
    explained(HyperFusionOptions(width=4, stages=2), site, tmp_path, "--cases", "1")
    assert max(rows) == 2


@pytest.mark.parametrize(
    ("arguments", "told"), [(["--cases", "2"], "--explain"), (["--cases", "-1"], "0")]
)
def test_wrong_usage(tmp_path, arguments, told):
    site = write_ward(tmp_path / "ward").parent / "sites" / "north"
    model = write_model(site, tmp_path / "model", LogisticOptions())
    result = call(model, site, tmp_path, *arguments)
    assert result.exit_code == 2
    assert told in result.output
    assert not (tmp_path / "out.csv").exists()
