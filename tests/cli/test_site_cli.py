import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medfusion.cli.site import app
from medfusion.errors import UsageError

TASK = """
[task]
name = "heart"
kind = "multilabel"
[features.age]
kind = "numeric"
low = 0
high = 120
[labels]
names = ["ill"]
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / "task.toml").write_text(TASK)
    lines = [f"s{i},p{i},{40 + i},{i % 2}" for i in range(20)]
    path = tmp_path / "north" / "studies.csv"
    path.parent.mkdir()
    path.write_text("\n".join(["study_id,patient_id,age,ill", *lines]) + "\n")
    return path


def init(table: Path, *, expected: int = 0) -> str:
    arguments = ["--table", str(table), "--task", str(table.parents[1] / "task.toml")]
    result = CliRunner().invoke(app, ["init", str(table.parent), *arguments])
    assert (result.exit_code == 0) == (expected == 0), result.output
    if expected:
        assert isinstance(result.exception, UsageError)
        assert result.exception.exit_code == expected
    return result.output


def test_init_then_check(table: Path) -> None:
    assert "TODO" in init(table)
    result = CliRunner().invoke(app, ["check", str(table.parent)])
    assert result.exit_code == 0, result.output
    assert "column 'ill': 10 of 20 known studies are positive (50.0%; 10 patients)" in result.output
    assert "site north: 0 errors, 0 warnings" in result.output
    init(table, expected=2)


def test_check_prints_json_and_fails_on_errors(table: Path) -> None:
    init(table)
    table.write_text(table.read_text() + "s99,p99,512,1\n")
    result = CliRunner().invoke(app, ["check", str(table.parent), "--json"])
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert (report["schema"], report["site"]) == (1, "north")
    assert report["counts"]["studies"] == 21
    (error,) = [f for f in report["findings"] if f["severity"] == "error"]
    assert set(error) == {"severity", "code", "where", "message"}
    assert error["code"] == "out-of-range"
    assert error["where"] == "studies.csv, column 'age'"
    assert "row 22" in error["message"]
    assert "512" not in result.output
    result = CliRunner().invoke(app, ["check", str(table.parent)])
    assert result.exit_code == 1
    assert "error   studies.csv, column 'age': 1 cell (row 22)" in result.output
