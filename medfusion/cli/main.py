"""The ``medfusion`` command; each group of commands has a file of its own."""

import os
import sys

import typer

from medfusion.cli import (
    audit,
    cohort,
    compare,
    evaluate,
    export,
    poc,
    predict,
    privacy,
    provision,
    report,
    runs,
    server,
    simulate,
    site,
    watch,
)
from medfusion.errors import MedFusionError

for _name in (
    "FLWR_DISABLE_UPDATE_CHECK",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION",
):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
# OpenMP threads that spin while they wait stall one another where cores are shared.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_cli = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Hospitals train multimodal diagnostic models together without sharing patients.",
)
_cli.command("simulate")(simulate.simulate)
_cli.command("compare")(compare.compare)
_cli.command("evaluate")(evaluate.evaluate)
_cli.command("report")(report.report)
_cli.command("watch")(watch.watch)
_cli.command("predict")(predict.predict)
_cli.command("export")(export.export)
_cli.command("privacy")(privacy.privacy)
_cli.command("audit")(audit.audit)
_cli.command("provision")(provision.provision)
_cli.command("submit")(runs.submit)
_cli.command("status")(runs.status)
_cli.command("stop")(runs.stop)
_cli.command("resume")(runs.resume)
_cli.command("poc")(poc.poc)
_cli.add_typer(site.app, name="site")
_cli.add_typer(server.app, name="server")
_cli.add_typer(cohort.app, name="cohort")


def app() -> None:
    """Run the command line; our own errors become one message and their exit code."""
    try:
        _cli()
    except MedFusionError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
