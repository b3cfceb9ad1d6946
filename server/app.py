"""The coordinator's Flower app: the very one that simulation and deployment run.

Settings tell it what to do: ``config`` (a resolved ``config.toml``) and ``out`` (the run folder),
paths on the coordinator's own machine, and ``signature``, the coordinator's, of the run's
`run_content`. The key that signs is not needed here.
"""

import hashlib
import json
import logging
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from rich.console import Console

from medfusion.config import load_config
from medfusion.data.task import Task
from medfusion.evaluation.kinds import measures_of
from medfusion.models.local_files import local_files_sha256
from server.admitted import FILE_NAME as REGISTERED
from server.admitted import Admitted
from server.checkpoint import CheckpointStore
from server.federated_calibration import federated_calibration
from server.packed_grid import PackedGrid
from server.progress import RunProgress
from server.prompt_pulls import pull_promptly
from server.receipts import FILE_NAME, Receipts
from server.results import model_card, write_results
from server.roster import Roster, call_roll
from server.rounds import RoundLoop
from server.run_lock import working_on
from server.run_state import SUMMARY, RunContext, run_settings
from server.strategies import build_strategy
from server.tracking import Tracking, require_trackers

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run one federation from roll call to report."""
    logging.getLogger("flwr").setLevel(logging.WARNING)  # the strategies log each step
    folder = Path(str(context.run_config["out"]))
    if bool(context.run_config.get("simulated", False)):
        _run(grid, context, folder)
        return
    pull_promptly()
    grid = PackedGrid(grid)
    with working_on(folder, context.run_id):
        if not (folder / SUMMARY).exists():  # else another app has finished it meanwhile
            _run(grid, context, folder)


def _run(grid: Grid, context: Context, folder: Path) -> None:
    config = load_config(Path(str(context.run_config["config"])))
    simulated = bool(context.run_config.get("simulated", False))
    signature = str(context.run_config.get("signature", "")) or None
    task = Task.load(config.run.task)
    strategy = build_strategy(config.strategy, min_sites=config.server.min_sites)
    settings = run_settings(config, task)
    require_trackers(config.run.tracking)
    headline = measures_of(task).headline
    with RunProgress(Console(stderr=True), headline) as progress:
        # Beside the run folders: what one run has seen of a ledger, the next one knows.
        receipts = Receipts(None if simulated else folder.parent / FILE_NAME)
        admitted = _admitted(folder)
        roster = call_roll(
            grid,
            config,
            task,
            warn=progress.warn,
            receipts=receipts,
            admitted=admitted,
            simulated=simulated,
        )
        run = RunContext(
            grid, config, task, roster, {}, receipts, folder, simulated, signature, admitted
        )
        for name, site in roster.sites.items():
            for warning in run.plan_for(site):
                progress.warn(f"site {name}: {warning}")
        files = local_files_sha256(config.model, task)
        fixed = roster if simulated or config.server.client_dp is not None else None
        fingerprint = _fingerprint(settings.run_id, fixed, simulated=simulated, files=files)
        store = CheckpointStore(folder / "checkpoint", fingerprint)
        tracking = Tracking(config.run.tracking, folder, config.run.name, progress.warn)
        loop = RoundLoop(run, strategy, store, progress, tracking)
        outcome = loop.run()
        card, state = model_card(run, outcome), outcome.progress
        calibration = federated_calibration(
            run, calibration=state.calibration, test=state.histograms
        )
        loop.deliver(outcome, card, calibration)
        progress.phase("writing the report")
        write_results(run, outcome, card, calibration)
        tracking.finish(folder / SUMMARY)


def _admitted(folder: Path) -> Admitted:
    """Return who is who, as the server whose kit holds the run folder keeps it."""
    path = folder.parent.parent / "state" / REGISTERED
    return Admitted(path if path.exists() else None)


def _fingerprint(run_id: str, roster: Roster | None, *, simulated: bool, files: str) -> str:
    """Name what must not change between a run and its resumption.

    ``roster`` holds the sites if they must be the same ones; ``files`` is the digest of files that
    the settings only name, empty without.
    """
    known = roster.sites if roster else {}
    sites = {name: site.patients_public for name, site in known.items()}
    parts = [run_id, simulated, sites, files]
    content = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
