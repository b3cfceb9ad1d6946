"""Commands as a user calls them, in this process; their errors stay exceptions."""

import json
from pathlib import Path
from typing import Any

import typer
from click.testing import Result
from typer.testing import CliRunner

from medfusion.cli.compare import compare
from medfusion.cli.evaluate import evaluate
from medfusion.cli.predict import predict
from medfusion.cli.simulate import simulate

app = typer.Typer(pretty_exceptions_enable=False)
for command in (simulate, evaluate, predict, compare):
    app.command()(command)


def tried(*arguments: object) -> Result:
    """Return what became of a command."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def call(*arguments: object) -> str:
    """Return what a command prints, which has to succeed."""
    result = tried(*arguments)
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    return result.output


def simulated(config: Path, out: Path, *settings: str) -> dict[str, Any]:
    """Return the summary of a run."""
    options = [option for setting in settings for option in ("--set", setting)]
    call("simulate", config, "--out", out, *options)
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return summary
