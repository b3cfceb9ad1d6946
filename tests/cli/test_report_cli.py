"""``medfusion report`` builds the page of a finished run anew, and says why it cannot."""

import json
from pathlib import Path

import pytest
import torch
import typer
from tabular_cohort import write_ward
from typer.testing import CliRunner, Result

from medfusion.cli.report import report
from medfusion.cli.simulate import simulate
from medfusion.errors import DataError, UsageError

app = typer.Typer(pretty_exceptions_enable=False)
for command in (simulate, report):
    app.command()(command)

torch.set_num_threads(1)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    result = call("simulate", write_ward(folder / "ward"), "--out", folder / "run")
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    return folder / "run"


def test_the_page_is_the_one_that_the_run_wrote(run: Path) -> None:
    versions = json.loads((run / "summary.json").read_text())["versions"]
    page = run / "report.html"
    assert all(version in page.read_text() for version in versions.values())
    written = page.read_bytes()
    page.unlink()
    result = call("report", run)
    assert result.exit_code == 0, result.output
    assert str(page) in result.output.replace("\n", "")
    assert page.read_bytes() == written


def test_a_damaged_folder_keeps_its_page(run: Path) -> None:
    page, summary = (run / "report.html").read_bytes(), (run / "summary.json").read_text()
    changed = json.loads(summary) | {"schema": 2}
    (run / "summary.json").write_text(json.dumps(changed))
    error = call("report", run).exception
    (run / "summary.json").write_text(summary)
    assert isinstance(error, DataError)
    assert "expected schema = 1, found 2" in str(error)
    assert (run / "report.html").read_bytes() == page


@pytest.mark.parametrize(
    ("folder", "kind", "message"),
    [
        ("nowhere", UsageError, "found no folder"),
        (".", DataError, "no summary.json; expected the folder of a finished run"),
    ],
)
def test_what_is_no_run_is_refused(
    tmp_path: Path, folder: str, kind: type[Exception], message: str
) -> None:
    error = call("report", tmp_path / folder).exception
    assert isinstance(error, kind)
    assert message in str(error)
    assert not (tmp_path / "report.html").exists()
