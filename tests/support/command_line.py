"""MedFusion's commands, called in this process."""

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from medfusion.cli.main import app


def call(*arguments: object) -> str:
    """Call a command that must succeed; return what it prints."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    return result.output


def simulated(config: Path, out: Path, *settings: str) -> dict[str, Any]:
    """Simulate a run with ``section.key=value`` settings; return its summary."""
    options = [option for setting in settings for option in ("--set", setting)]
    call("simulate", config, "--out", out, *options)
    found: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return found
