"""The run loop: drives any Flower strategy through a run that survives faults.

Flower's own ``Strategy.start`` knows no start round, quorum, checkpoint or NaN check; the loop
here calls the strategy's four steps itself and adds them.
"""

import hashlib
import json
import math
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from flwr.app import ArrayRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from medfusion.config import RunConfig
from medfusion.data.task import Task
from medfusion.data.thresholds import Selection, select_features, selection_sensitivity
from medfusion.errors import FederationError
from medfusion.models.contract import trainable_state
from medfusion.models.registry import build_model, modalities_of
from medfusion.models.spec import FeatureAxis
from medfusion.privacy.plan import DpPlan
from medfusion.transport.arrays import from_record, to_record
from medfusion.transport.requests import (
    Request,
    RunSettings,
    SiteDescription,
    read_histograms,
    request_config,
    request_content,
)
from server.checkpoint import Checkpoint, CheckpointStore
from server.exchange import Replies, broadcast, exchange
from server.federated_metrics import federated_metrics
from server.local_selection import fill_unselected
from server.progress import RunProgress
from server.roster import Roster

Histograms = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Outcome:
    """What a finished run leaves: the model, what it needs to be used, and what was measured."""

    arrays: ArrayRecord
    selection: Selection | None
    sites: dict[str, SiteDescription]
    rounds: list[dict[str, Any]]
    histograms: Histograms


@dataclass
class Progress:
    """What a run has done so far; plain data, so that a checkpoint can hold it."""

    selection: Selection | None = None
    rounds: list[dict[str, Any]] = field(default_factory=list)
    histograms: Histograms = field(default_factory=dict)


class RoundLoop:
    """One run of one federation."""

    def __init__(
        self,
        grid: Grid,
        config: RunConfig,
        task: Task,
        strategy: Strategy,
        plans: Mapping[str, DpPlan],
        store: CheckpointStore,
        progress: RunProgress,
        *,
        simulated: bool,
    ) -> None:
        self._grid = grid
        self._config = config
        self._task = task
        self._strategy = strategy
        self._plans = plans
        self._store = store
        self._show = progress
        self._simulated = simulated  # then all data are the researcher's, to be mended at once
        self._settings = run_settings(config, task)

    def run(self, roster: Roster) -> Outcome:
        """Select, train for the configured rounds, evaluate; resume where a checkpoint stands.

        Raises
        ------
        FederationError
            If fewer sites than the quorum answer, or the model diverges.
        """
        model = build_model(self._config.model, self._task, seed=self._config.run.seed)
        resumed = self._store.load(self._strategy)
        rounds = self._config.run.rounds
        done = resumed.round if resumed else 0
        self._show.start(roster.sites, rounds=rounds, done=done)
        if resumed:
            state = self._from_json(resumed.progress)
            arrays = resumed.arrays
        else:
            state = Progress(selection=self._select(roster))
            arrays = to_record(trainable_state(model))
        columns = model.feature_rows() if self._settings.selection.method == "local" else {}
        for number in range(done + 1, rounds + 1):
            arrays, line = self._round(number, arrays, state, roster, columns)
            state.rounds.append(line)
            self._store.save(Checkpoint(number, arrays, self._to_json(state)), self._strategy)
            self._show.round_done(line, rounds=rounds)
        return Outcome(arrays, state.selection, roster.sites, state.rounds, state.histograms)

    def deliver(self, outcome: Outcome, card: dict[str, Any], roster: Roster) -> None:
        """Send the final model and its description to every hospital."""
        self._show.phase("delivering the model")
        request = self._request(outcome.selection, card=card)
        messages = broadcast("deliver", request_content(request, outcome.arrays), roster.nodes)
        replies = self._exchange(messages, roster, number=self._config.run.rounds)
        replies.require(self._config.server.min_sites, sound_data=self._simulated)

    def _select(self, roster: Roster) -> Selection | None:
        """Sum the sites' histograms and choose features from the sum."""
        options = self._settings.selection
        if options.method != "federated" or "tabular" not in modalities_of(
            self._settings.model, self._task
        ):
            return None
        self._show.phase("selecting features")
        replies = self._exchange(
            broadcast("select", request_content(self._request(None)), roster.nodes), roster
        )
        replies.require(self._config.server.min_sites, sound_data=self._simulated)
        total = sum(read_histograms(reply.content) for reply in replies.good.values())
        assert not isinstance(total, int)
        multipliers = [
            self._plans[name].selection_noise or 0.0 for name in replies.good if name in self._plans
        ]
        noise = selection_sensitivity(self._task) * math.hypot(*multipliers)
        return select_features(total, self._task, options.top_n, noise=noise)

    def _round(
        self,
        number: int,
        arrays: ArrayRecord,
        state: Progress,
        roster: Roster,
        columns: dict[str, FeatureAxis],
    ) -> tuple[ArrayRecord, dict[str, Any]]:
        """Train one round and, where the plan says so, evaluate the new model."""
        start = time.monotonic()
        self._show.phase(f"round {number}: training")
        replies = self._train(number, arrays, state.selection, roster)
        if columns:
            fill_unselected(replies.good, arrays, columns)
        before = from_record(arrays)
        aggregated, _ = self._strategy.aggregate_train(number, list(replies.good.values()))
        if aggregated is None:
            raise FederationError(f"round {number}: the strategy returned no model")
        after = from_record(aggregated)
        norm = math.sqrt(sum(float((after[n] - before[n]).double().square().sum()) for n in after))
        if not math.isfinite(norm):
            raise FederationError(
                f"round {number}: the model diverged (NaN or infinity); the last good one is in "
                "the checkpoint folder. Try a lower training.learning_rate"
            )
        arrays = to_record(after)
        line: dict[str, Any] = {
            "schema": 1,
            "round": number,
            "update_norm": norm,
            "sites": replies.sites(),
            "metrics": None,
        }
        if number in self._config.evaluation_rounds():
            line["metrics"], evaluated = self._evaluate(number, arrays, state, roster)
            replies.bytes_up += evaluated.bytes_up
            replies.bytes_down += evaluated.bytes_down
        line |= {"bytes_up": replies.bytes_up, "bytes_down": replies.bytes_down}
        line["seconds"] = round(time.monotonic() - start, 4)
        return arrays, line

    def _train(
        self, number: int, arrays: ArrayRecord, selection: Selection | None, roster: Roster
    ) -> Replies:
        # Strategies draw sites from Python's global generator: pin it, also across a resume.
        random.seed(f"{self._config.run.seed}/{number}")
        messages = self._strategy.configure_train(
            number, arrays, request_config(self._request(selection)), self._grid
        )
        replies = self._exchange(list(messages), roster, number=number)
        replies.require(self._config.server.min_sites, sound_data=self._simulated)
        return replies

    def _evaluate(
        self, number: int, arrays: ArrayRecord, state: Progress, roster: Roster
    ) -> tuple[dict[str, Any], Replies]:
        self._show.phase(f"round {number}: evaluating")
        messages = self._strategy.configure_evaluate(
            number, arrays, request_config(self._request(state.selection)), self._grid
        )
        replies = self._exchange(list(messages), roster, number=number)
        replies.require(self._config.server.min_sites, sound_data=self._simulated)
        self._strategy.aggregate_evaluate(number, list(replies.good.values()))
        state.histograms = {
            name: read_histograms(reply.content) for name, reply in replies.good.items()
        }
        metrics = federated_metrics(state.histograms, self._plans)
        auroc = dict(zip(self._task.labels.names, metrics.auroc, strict=True))
        return {"auroc_macro": metrics.auroc_macro, "auroc": auroc}, replies

    def _request(self, selection: Selection | None, **parts: Any) -> Request:
        chosen = selection.to_json() if selection else None
        return Request(settings=self._settings, selection=chosen, **parts)

    def _exchange(self, messages: list[Any], roster: Roster, *, number: int = 0) -> Replies:
        return exchange(
            self._grid,
            messages,
            roster.names,
            timeout=self._config.server.round_timeout,
            on_reply=lambda name, seconds, error: self._show.site_replied(
                name, round=number, seconds=seconds, failed=str(error) if error else None
            ),
        )

    def _to_json(self, state: Progress) -> dict[str, Any]:
        return {
            "selection": state.selection.to_json() if state.selection else None,
            "rounds": state.rounds,
            "histograms": {name: array.tolist() for name, array in state.histograms.items()},
        }

    def _from_json(self, data: dict[str, Any]) -> Progress:
        chosen = data["selection"]
        return Progress(
            selection=Selection.from_json(chosen, self._task) if chosen else None,
            rounds=data["rounds"],
            histograms={
                name: torch.tensor(rows, dtype=torch.float64).numpy()
                for name, rows in data["histograms"].items()
            },
        )


def run_settings(config: RunConfig, task: Task) -> RunSettings:
    """Return what the run asks of every site; equal configs have equal run ids."""
    parts: dict[str, Any] = {
        "seed": config.run.seed,
        "rounds": config.run.rounds,
        "evaluations": len(config.evaluation_rounds()),
        "task_sha256": task.sha256,
        "model": config.model,
        "selection": config.selection,
        "training": config.training,
        "privacy": config.privacy,
        "report_loss": config.strategy.name == "qfedavg",
    }
    draft = RunSettings(run_id=config.run.name, **parts)
    content = draft.model_dump_json() + json.dumps(config.strategy.model_dump(), sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:12]
    return draft.model_copy(update={"run_id": f"{config.run.name}-{digest}"})
