"""``medfusion watch`` follows rounds.jsonl and ends with the run."""

import io
import json
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner, Result

from medfusion.cli import watch as module
from medfusion.cli.watch import rounds_table, watch
from medfusion.errors import ConfigError, DataError, UsageError


def line(number: int, *, failed: tuple[str, ...] = (), **values: object) -> dict:
    names = ("italy", "spain", "usa")
    sites = {n: {"status": "failed" if n in failed else "ok", "seconds": 1.0} for n in names}
    return {
        "schema": 1, "round": number, "update_norm": 0.5, "seconds": 3.25, "bytes_up": 1_000_000,
        "bytes_down": 2_000_000, "sites": sites, "metrics": None, **values,
    }  # fmt: skip


def call(folder: Path) -> Result:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(watch)
    return CliRunner().invoke(app, [str(folder)])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "config.toml").write_text('[run]\nname = "x"\nrounds = 3\n')
    return tmp_path


def test_each_round_is_told_once_until_the_summary_is_there(run, monkeypatch):
    metrics = {"auroc_macro": 0.8125, "auroc": {"a": 0.8125}}
    lines = [line(1), line(2, failed=("spain",)), line(3, metrics=metrics)]
    looks = iter(range(1, 10))

    def next_round(pause: float) -> None:
        count = next(looks)
        text = "".join(json.dumps(one) + "\n" for one in lines[:count])
        (run / "rounds.jsonl").write_text(text)
        if count == 4:
            (run / "summary.json").write_text("{}")

    monkeypatch.setattr(module.time, "sleep", next_round)
    result = call(run)
    assert result.exit_code == 0, result.output
    first, second, third, last = result.output.splitlines()
    assert first.split("  ") == ["1/3", "-", "norm 0.5", "3.2 s", "3.00 MB", "3 of 3"]
    assert second.endswith("2 of 3, spain failed")
    assert "auroc_macro 0.8125" in third
    assert last.startswith("finished: ")
    assert next(looks) == 5


def test_a_finished_run_is_told_at_once(run, monkeypatch):
    (run / "rounds.jsonl").write_text(json.dumps(line(1)) + "\n")
    (run / "summary.json").write_text("{}")
    monkeypatch.setattr(module.time, "sleep", lambda pause: pytest.fail("it waited"))
    assert call(run).output.startswith("1/3")


def test_a_terminal_gets_the_last_rounds_as_a_table():
    metrics = {"auroc_macro": None, "auroc": {}, "mae": 3.5}
    lines = [line(number, metrics=metrics) for number in range(1, 31)]
    console = Console(width=100, file=io.StringIO())
    console.print(rounds_table(lines, 40))
    text = console.file.getvalue()
    assert "30/40" in text
    assert "11/40" in text
    assert "10/40" not in text
    assert "mae 3.5" in text
    assert "30 of 40 rounds" in text


def test_a_terminal_keeps_the_table_when_the_run_ends(run, monkeypatch):
    (run / "rounds.jsonl").write_text(json.dumps(line(1)) + "\n")
    monkeypatch.setattr(module.time, "sleep", lambda _: (run / "summary.json").write_text("{}"))
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "xterm")
    output = call(run).output
    assert "1 of 3 rounds" in output
    assert "update norm" in output
    assert "finished: " in output.splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "content", "kind", "message"),
    [
        ("config.toml", None, UsageError, "found no config.toml"),
        ("config.toml", "[run]\n", ConfigError, "expected the resolved config of a run"),
        ("rounds.jsonl", "{\n", DataError, "line 1: not valid JSON"),
    ],
)
def test_what_is_no_run_is_refused(run, name, content, kind, message):
    if content is None:
        (run / name).unlink()
    else:
        (run / name).write_text(content)
    error = call(run).exception
    assert isinstance(error, kind)
    assert message in str(error)
