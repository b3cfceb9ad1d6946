"""The command from end to end: what a good run leaves, and what bad input is told."""

import csv
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from client.node.state import NodeState
from client.node.state_lock import alone
from medfusion.cli.main import app
from medfusion.config import load_config
from medfusion.data.cohorts.synthetic import write_cohort
from medfusion.data.site_data import load_site_data

torch.set_num_threads(1)

Row = dict[str, str]
LABELS = ("pneumonia", "heart_failure", "effusion", "icu_transfer", "septic_shock")
LOGISTIC = ("model.name=logistic", "run.rounds=2")
IMAGES = ("privacy.enabled=false", "run.rounds=1", 'model.modalities=["image"]')
SUMMARY_KEYS = {
    *("calibration", "subgroups"),
    "versions",
    *("schema", "auroc_macro", "auprc_macro", "auroc", "brier", "ece", "sites", "rounds"),
    *("seconds", "bytes_up", "bytes_down", "seed", "ema", "client_dp", "selected"),
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("simulate") / "cohort"
    write_cohort(folder, sites=2, patients=40, seed=0)
    return folder


@pytest.fixture
def cohort(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "cohort")


Simulate = Callable[..., tuple[int, str, str]]


@pytest.fixture
def simulate(
    cohort: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Simulate:
    """Run the command in this process; return its exit code and what it printed."""
    # One worker of one thread: a fork of a process whose OpenMP threads have started may hang.
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    monkeypatch.setenv("COLUMNS", "200")

    def run(*sets: str, options: tuple[str, ...] = ()) -> tuple[int, str, str]:
        arguments = ["simulate", str(cohort / "config.toml"), "--out", str(cohort.parent / "out")]
        settings = [part for setting in sets for part in ("--set", setting)]
        monkeypatch.setattr(sys, "argv", ["medfusion", *arguments, *options, *settings])
        with pytest.raises(SystemExit) as ended:
            app()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return run


def test_a_private_run_leaves_all_that_is_promised(
    simulate: Simulate, cohort: Path, tmp_path: Path
) -> None:
    code, printed, told = simulate(*LOGISTIC)
    assert code == 0, told
    assert "epsilon (simulated)" in printed
    out = tmp_path / "out"
    assert load_config(out / "config.toml") == load_config(cohort / "config.toml", LOGISTIC)
    assert (out / "model" / "model.safetensors").stat().st_size
    assert "<html" in (out / "report.html").read_text(encoding="utf-8")

    summary = _strict_json((out / "summary.json").read_text())
    assert set(summary) == SUMMARY_KEYS
    assert (summary["schema"], summary["rounds"], summary["seed"]) == (1, 2, 0)
    assert set(summary["auroc"]) == set(LABELS)
    assert set(summary["sites"]) == {"alder", "birch"}
    for site in summary["sites"].values():
        assert set(site) == {
            *("patients", "auroc_macro", "coverage", "epsilon", "delta", "max_epsilon"),
        }
        assert site["patients"] == 28
        assert 7.5 < site["epsilon"] <= 8.0
    card = _strict_json((out / "model" / "model.json").read_text())
    assert card["schema"] == 1
    assert card["privacy"]["simulated"] is True
    lines = [_strict_json(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [1, 2]
    assert not (cohort / "state").exists()


def test_a_finished_run_is_shown_again_and_another_is_refused(
    simulate: Simulate, tmp_path: Path
) -> None:
    def files() -> dict[Path, int]:
        found = (path for path in (tmp_path / "out").rglob("*") if path.is_file())
        return {path: path.stat().st_mtime_ns for path in found}

    assert simulate(*LOGISTIC)[0] == 0
    before = files()
    code, printed, _ = simulate(*LOGISTIC)
    assert code == 0
    assert "alder" in printed
    code, _, told = simulate(*LOGISTIC, "run.seed=9")
    assert code == 2
    assert "other settings" in told
    assert files() == before


def test_a_run_records_its_initial_weights_and_is_resumed_with_the_same_only(
    simulate: Simulate, tmp_path: Path
) -> None:
    settings = ('model.modalities=["tabular"]', "run.rounds=1", "training.steps=1")
    out, first = tmp_path / "out", tmp_path / "first"
    code, _, told = simulate(*settings)
    assert code == 0, told
    assert _strict_json((out / "model" / "model.json").read_text())["initial_weights"] is None
    assert "initial weights" not in (out / "report.html").read_text(encoding="utf-8")
    summary = _strict_json((out / "summary.json").read_text())
    epsilons = [site["epsilon"] for site in summary["sites"].values()]
    (out / "model").rename(first)
    shutil.rmtree(out)

    settings = (*settings, f"model.init={first}")
    code, _, told = simulate(*settings)
    assert code == 0, told
    record = _strict_json((out / "model" / "model.json").read_text())["initial_weights"]
    weights = (first / "model.safetensors").read_bytes()
    assert record["kind"] == "medfusion"
    assert record["sha256"] == hashlib.sha256(weights).hexdigest()
    assert record["epsilon"] == max(epsilons)
    assert "earlier MedFusion model" in (out / "report.html").read_text(encoding="utf-8")

    (out / "summary.json").unlink()  # as if it had been interrupted
    (first / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    code, _, told = simulate(*settings)
    assert code == 2
    assert "other settings, sites or files" in told
    (first / "model.safetensors").write_bytes(weights)
    code, _, told = simulate(*settings)
    assert code == 0, told


def test_the_sites_own_state_is_shared_with_no_node(simulate: Simulate, cohort: Path) -> None:
    options = ("--use-site-state",)
    state = load_site_data(cohort / "sites" / "birch").state
    NodeState(state)
    with alone(state):
        code, _, told = simulate(*LOGISTIC, options=options)
    assert code == 1
    assert "another Node serves this site" in told
    code, printed, told = simulate(*LOGISTIC, options=options)
    assert code == 0, told
    assert "simulated" not in printed
    assert (state / "secret").exists()


def test_a_state_folder_among_the_sites_is_no_site(simulate: Simulate, cohort: Path) -> None:
    for name in ("alder", "birch"):
        _replace(cohort / "sites" / name / "site.toml", '"../../state/', '"../state/')
    (cohort / "sites" / "cedar.state").mkdir()
    (cohort / "sites" / ".hidden").mkdir()
    (cohort / "sites" / "README.txt").write_text("")
    assert simulate(*LOGISTIC, "run.rounds=1", options=("--use-site-state",))[0] == 0
    shutil.rmtree(cohort.parent / "out")
    code, _, told = simulate(*LOGISTIC, "run.rounds=1")
    assert code == 0, told


def test_a_folder_that_a_kill_left_before_the_run_began_is_taken(
    simulate: Simulate, cohort: Path
) -> None:
    folder = cohort.parent / "out"
    folder.mkdir()
    (folder / ".config.toml.00.partial").write_text("half")
    code, _, told = simulate(*LOGISTIC, "run.rounds=1")
    assert code == 0, told
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "thesis.txt").write_text("")
    code, _, told = simulate(*LOGISTIC, "run.rounds=1")
    assert code == 2
    assert "is not a run folder" in told


def _strict_json(text: str) -> dict:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in JSON")

    return json.loads(text, parse_constant=refuse)


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def _edit_rows(cohort: Path, edit: Callable[[list[Row]], list[Row]]) -> None:
    """Rewrite the table of the first site."""
    path = cohort / "sites" / "alder" / "studies.csv"
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    header = list(rows[0])
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, header)
        writer.writeheader()
        writer.writerows(edit(rows))


def _set_cell(column: str, value: str) -> Callable[[Path], None]:
    def edit(rows: list[Row]) -> list[Row]:
        rows[1][column] = value
        return rows

    return lambda cohort: _edit_rows(cohort, edit)


def _copy_first_study_id(rows: list[Row]) -> list[Row]:
    rows[1]["study_id"] = rows[0]["study_id"]
    return rows


def _misspell(cohort: Path) -> None:
    _replace(cohort / "config.toml", "batch_size", "batchsize")


def _point_outside(cohort: Path) -> None:
    shutil.copy(cohort / "sites" / "alder" / "images" / "000000.png", cohort / "stray.png")
    _set_cell("image", "../../../stray.png")(cohort)


def _truncate_image(cohort: Path) -> None:
    path = cohort / "sites" / "alder" / "images" / "000003.png"
    path.write_bytes(path.read_bytes()[:-200])


def _rename_site(cohort: Path) -> None:
    _replace(cohort / "sites" / "birch" / "site.toml", 'name = "birch"', 'name = "alder"')


def _change_task(cohort: Path) -> None:
    shutil.copy(cohort / "task.toml", cohort / "other.toml")
    _replace(cohort / "other.toml", "high = 320.0", "high = 300.0")
    _replace(cohort / "other.toml", "bins = 32", "bins = 16")
    _replace(cohort / "sites" / "birch" / "site.toml", "task.toml", "other.toml")


def _encode_otherwise(cohort: Path) -> None:
    path = cohort / "sites" / "alder" / "studies.csv"
    text = path.read_text(encoding="utf-8").replace("haematocrit", "hämatokrit")
    path.write_bytes(text.encode("latin-1"))


def _draft_no_site(cohort: Path) -> None:
    (cohort / "sites" / "cedar").mkdir()


BAD_INPUT = {
    "misspelt key": (
        _misspell, LOGISTIC, 2, ["config.toml", "'training.batchsize'", "'batch_size'"],
    ),
    "value outside its range": (
        _set_cell("heart_rate", "777.5"), LOGISTIC, 1,
        ["studies.csv", "row 3", "'heart_rate'", "40", "200"],
    ),
    "label 7": (_set_cell("effusion", "7"), LOGISTIC, 1, ["studies.csv", "row 3", "'effusion'"]),
    "image outside the site": (_point_outside, LOGISTIC, 1, ["row 3", "'image'", "outside"]),
    "truncated image": (_truncate_image, IMAGES, 1, ["'alder'", "row 5", "'image'", "truncated"]),
    "empty site": (
        lambda cohort: _edit_rows(cohort, lambda rows: []), LOGISTIC, 1, ["studies.csv", "no rows"],
    ),
    "no positives": (
        lambda cohort: _edit_rows(
            cohort, lambda rows: [row | dict.fromkeys(LABELS, "0") for row in rows]
        ),
        LOGISTIC, 1, ["'alder'", "at least one positive"],
    ),
    "duplicate study": (
        lambda cohort: _edit_rows(cohort, _copy_first_study_id), LOGISTIC, 1,
        ["studies.csv", "rows 2, 3"],
    ),
    "two sites of one name": (_rename_site, LOGISTIC, 1, ["two called 'alder'"]),
    "differing tasks": (_change_task, LOGISTIC, 1, ["'birch'", "[task]", "[features]", "hash"]),
    "table not UTF-8": (_encode_otherwise, LOGISTIC, 1, ["studies.csv", "UTF-8"]),
    "epsilon too small": (
        lambda cohort: None, (*LOGISTIC, "privacy.target_epsilon=0.0001"), 2,
        ["target_epsilon", "nearest"],
    ),
    "epsilon above the site's": (
        lambda cohort: None, (*LOGISTIC, "privacy.target_epsilon=9"), 2, ["at most 8"],
    ),
    "folder without site.toml": (_draft_no_site, LOGISTIC, 2, ["cedar", "no site.toml"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_told_where_and_ends_with_its_code(
    case: str, simulate: Simulate, cohort: Path, tmp_path: Path
) -> None:
    damage, sets, expected, parts = BAD_INPUT[case]
    damage(cohort)
    code, _, told = simulate(*sets)
    message = told[told.index("error: ") :]
    assert code == expected, told
    for part in parts:
        assert part in message
    assert not re.search(r"(alder|birch)-\d{6}|\d{6}\.(png|jpg)|stray|777\.5", told)
    assert not (tmp_path / "out" / "summary.json").exists()
