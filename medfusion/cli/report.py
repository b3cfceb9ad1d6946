"""``medfusion report``: the page of a finished run, built anew from its folder."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
) -> None:
    """Build report.html of a finished run anew, from the files in its folder."""
    from medfusion.errors import UsageError
    from medfusion.evaluation.report.build import build_report

    if not run.is_dir():
        raise UsageError(f"{run}: expected the folder of a finished run, found no folder")
    typer.echo(f"report: {build_report(run)}")
