"""The run loop: drives any Flower strategy through a run that survives faults.

Flower's own ``Strategy.start`` knows no start round, quorum, checkpoint or NaN check; the loop
here calls the strategy's steps itself and adds them.
"""

import math
import random
import time
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.app.exception import AppExitException
from flwr.serverapp.strategy import FedAvgM, Strategy

from medfusion.data.split import CALIBRATION, TEST
from medfusion.errors import FederationError
from medfusion.evaluation.calibration import Calibration
from medfusion.evaluation.kinds import measures_of
from medfusion.models.contract import frozen_sha256, trainable_state
from medfusion.models.label_rows import label_rows
from medfusion.models.local_parts import local_parts
from medfusion.models.registry import build_model
from medfusion.strategies.counted import telling_what_counted
from medfusion.strategies.patient_weighted import PatientWeighted, RunFacts
from medfusion.transport.arrays import from_record, to_record
from medfusion.transport.compress import Codec
from medfusion.transport.requests import (
    CALIBRATION_KEY,
    read_histograms,
    request_config,
    request_content,
)
from medfusion.transport.updates import size_of
from server.asking import Asking
from server.averaging import running_average
from server.checkpoint import Checkpoint, CheckpointStore
from server.client_dp import client_dp_of
from server.downlink import Downlink
from server.exchange import Check, Replies, broadcast
from server.federated_metrics import federated_metrics
from server.federated_selection import federated_selection
from server.latecomers import Latecomers, facts_of, recall_sites
from server.local_selection import fill_unselected
from server.progress import RunProgress
from server.reply_checks import check_mask, check_trained, unpack_update
from server.results import write_rounds
from server.run_state import Cost, Outcome, Progress, RunContext, run_settings
from server.secure_round import Exchange, SecureRound, kept_members
from server.tracking import Tracking


class RoundLoop:
    """One run of one federation."""

    def __init__(
        self,
        context: RunContext,
        strategy: Strategy,
        store: CheckpointStore,
        show: RunProgress,
        tracking: Tracking,
    ) -> None:
        self._context = context
        self._config = context.config
        self._task = context.task
        self._measures = measures_of(context.task)
        self._roster = context.roster
        self._strategy = strategy
        self._store = store
        self._show = show
        self._tracking = tracking
        self._settings = run_settings(context.config, context.task)
        model = build_model(context.config.model, context.task, seed=context.config.run.seed)
        kept = local_parts(model, context.config.personalisation.local)
        trained = trainable_state(model)
        self._start = to_record({n: value for n, value in trained.items() if n not in kept})
        self._unshared = to_record({n: trained[n] for n in kept})
        self._codec = Codec.of(context.config.compression, size_of(self._start))
        self._frozen = frozen_sha256(model)
        self._origin = model.origin
        self._initial_weights = model.initial_weights
        self._client_dp = client_dp_of(context, self._settings.run_id)
        local = self._settings.selection.method == "local"
        rows = model.feature_rows() if local else {}
        self._columns = {name: axis for name, axis in rows.items() if name not in kept}
        down, seed = context.config.compression.down, context.config.run.seed
        self._downlink = Downlink(down, self._start, seed, self._settings.run_id)
        latecomers, whole = Latecomers(context, show.warn), self._downlink.whole
        self._asking = Asking(context, self._settings, self._frozen, latecomers, show, whole)
        if isinstance(strategy, PatientWeighted):
            strategy.serve(
                RunFacts(
                    sites=context.roster,
                    training=context.config.training,
                    labels=tuple(context.task.labels.names),
                    label_rows=label_rows(model) - kept,
                )
            )

    def run(self) -> Outcome:
        """Select, train for the configured rounds, evaluate; resume where a checkpoint stands.

        Raises
        ------
        FederationError
            If fewer sites than the quorum answer, or the model diverges.
        """
        resumed = self._store.load(self._strategy)
        self._leave_out_newcomers()
        rounds = self._config.run.rounds
        done = resumed.round if resumed else 0
        self._show.start(self._roster.sites, rounds=rounds, done=done)
        if self._origin and not done:
            self._show.note(f"initial weights: {self._origin}")
        if resumed:
            arrays, average = resumed.arrays, resumed.average or resumed.arrays
            state = Progress.from_json(resumed.progress, self._task)
            self._downlink.resume(arrays, resumed.down)
            recall_sites(self._context, state.sites)
            self._write_rounds(state)
        else:
            arrays, average, state = self._start, self._start, Progress()
            self._check_threshold()
            state.selection = federated_selection(self._context, self._asking, state)
        if state.pending is not None:
            self._finish_round(done, arrays, average, state)
        for number in range(done + 1, rounds + 1):
            arrays, average = self._train_round(number, arrays, average, state)
            if number in self._config.evaluation_rounds():
                # A site answers for one model of a round: this one, whatever happens now.
                self._save(number, arrays, average, state)
            self._finish_round(number, arrays, average, state)
        client_dp = self._client_dp.account() if self._client_dp else None
        return Outcome(
            average, self._frozen, self._initial_weights, state, client_dp, self._unshared
        )

    def deliver(
        self, outcome: Outcome, card: dict[str, Any], calibration: Calibration | None = None
    ) -> None:
        """Send the final model, its description and its calibration to every hospital."""
        self._show.phase("delivering the model")
        if calibration is not None:
            card = card | {CALIBRATION_KEY: calibration.shared()}
        request = self._asking.request(outcome.progress.selection, card=card)
        nodes = list(self._asking.connected().get_node_ids())
        for node, name in self._roster.names.items():
            if node not in nodes:
                self._show.warn(f"site {name} is gone: it gets no model")
        messages = broadcast("deliver", request_content(request, outcome.arrays), nodes)
        messages = self._with_average(messages, outcome.progress)
        cost = Cost()
        self._asking.exchange(messages, cost=cost, number=self._config.run.rounds)
        outcome.progress.cost.add(cost)

    def _leave_out_newcomers(self) -> None:
        """Of a run whose masked rounds have begun, leave out the sites that were not there then."""
        members = kept_members(self._context.folder, self._settings.run_id)
        if self._settings.secure_aggregation is None or members is None:
            return
        for name in self._roster.keep_only(members):
            self._context.plans.pop(name, None)
            self._show.warn(
                f"site {name} came after the run's masked rounds had begun: it may take part in "
                "another run (another run.name or run.seed)"
            )

    def _check_threshold(self) -> None:
        options, sites = self._settings.secure_aggregation, len(self._roster.sites)
        if options is not None and not sites / 2 < options.threshold <= sites:
            raise FederationError(
                f"server.secure_aggregation.threshold = {options.threshold}: expected more than "
                f"half of the {sites} sites, and no more than there are"
            )

    def _save(
        self, number: int, arrays: ArrayRecord, average: ArrayRecord, state: Progress
    ) -> None:
        state.sites = facts_of(self._roster)
        kept = average if self._config.server.ema else None
        checkpoint = Checkpoint(number, arrays, state.to_json(), kept, self._downlink.state())
        self._store.save(checkpoint, self._strategy)

    def _finish_round(
        self, number: int, arrays: ArrayRecord, average: ArrayRecord, state: Progress
    ) -> None:
        """Evaluate the new average where the plan says so; write down the round."""
        line, start, cost = state.pending, time.monotonic(), Cost()
        assert line is not None
        if number in self._config.evaluation_rounds():
            line["metrics"] = self._evaluate(number, average, state, cost)
            line["evaluated"] = list(state.histograms)
        cost.seconds = round(time.monotonic() - start, 4)
        state.cost.add(cost)
        whole = Cost(**{key: line[key] for key in asdict(cost)})
        whole.add(cost)
        line |= asdict(whole)
        state.rounds.append(line)
        state.pending = None
        self._save(number, arrays, average, state)
        self._write_rounds(state)
        self._show.round_done(line, rounds=self._config.run.rounds)

    def _write_rounds(self, state: Progress) -> None:
        write_rounds(self._context.folder, state.rounds)
        self._tracking.rounds(state.rounds)

    def _train_round(
        self, number: int, arrays: ArrayRecord, average: ArrayRecord, state: Progress
    ) -> tuple[ArrayRecord, ArrayRecord]:
        """Return the new model and the new average of models.

        Leaves in ``state.pending`` what the line of ``rounds.jsonl`` holds so far.
        """
        self._show.phase(f"round {number}: training")
        cost = Cost()
        start = time.monotonic()
        replies, good = self._train(number, arrays, state, cost)
        self._downlink.held_by(replies.good)
        made, norm = self._aggregate(number, arrays, good)
        arrays = self._downlink.move(number, made)
        if isinstance(self._strategy, FedAvgM) and not self._downlink.off:
            self._strategy.current_arrays = arrays  # it goes on from a model that it keeps
        average = running_average(average, arrays, ema=self._config.server.ema, number=number)
        line: dict[str, Any] = {
            "schema": 1,
            "round": number,
            "update_norm": norm,
            "sites": replies.sites(),
            "metrics": None,
        }
        cost.seconds = round(time.monotonic() - start, 4)
        state.cost.add(cost)
        state.pending = line | asdict(cost)
        return arrays, average

    def _train(
        self, number: int, arrays: ArrayRecord, state: Progress, cost: Cost
    ) -> tuple[Replies, list[Message]]:
        """Return what the sites answered, and what of it the strategy gets to see."""
        # Strategies draw sites from Python's global generator: pin it, also across a resume.
        random.seed(f"{self._config.run.seed}/{number}")
        messages = self._strategy.configure_train(
            number, arrays, self._asked(state), self._asking.connected()
        )
        messages = self._downlink.packed(self._told(messages, state), self._roster.names)
        if self._settings.secure_aggregation is not None:
            asking = partial(self._asking.exchange, cost=cost, number=number)
            replies, mean = self._masked(number, asking).train(messages, arrays)
            state.counted |= dict.fromkeys(replies.good, number)
            return replies, [mean]
        check = self._check_of(arrays)
        replies = self._asking.exchange(messages, check, cost=cost, number=number)
        state.counted |= dict.fromkeys(replies.good, number)
        if self._columns:
            fill_unselected(replies.good, arrays, self._columns)
        if self._client_dp is not None:
            return replies, [self._client_dp.combine(number, arrays, replies.good)]
        return replies, list(replies.good.values())

    def _masked(self, number: int, exchange: Exchange) -> SecureRound:
        options = self._settings.secure_aggregation
        assert options is not None
        return SecureRound(
            options,
            self._settings.run_id,
            number,
            self._roster.names,
            self._roster.sites,
            exchange,
            self._context.folder,
        )

    def _check_of(self, arrays: ArrayRecord) -> Check:
        """Return what unpacks a site's reply to a model, and refuses one that is not to be used."""
        expected = from_record(arrays)

        def check(name: str, reply: Message) -> None:
            unpack_update(reply, arrays, self._codec)
            check_trained(
                reply,
                expected,
                patients=self._roster.sites[name].patients_public,
                reports_loss=self._settings.report_loss,
            )
            if self._columns:
                check_mask(reply, len(self._task.columns))

        return check

    def _aggregate(
        self, number: int, incoming: ArrayRecord, good: list[Message]
    ) -> tuple[ArrayRecord, float]:
        """Return the new model and the L2 norm of the step that led to it."""
        before = from_record(incoming)
        try:
            found, _ = self._strategy.aggregate_train(number, good)
        except AppExitException as error:
            raise FederationError(f"round {number}: the replies do not combine: {error}") from None
        if found is None:
            raise FederationError(f"round {number}: the strategy returned no model")
        after = from_record(found)
        norm = math.sqrt(sum(float((after[n] - before[n]).double().square().sum()) for n in after))
        if not math.isfinite(norm):
            raise FederationError(
                f"round {number}: the model diverged (NaN or infinity); the last good one is in "
                "the checkpoint folder. Try a lower training.learning_rate"
            )
        return to_record(after), norm

    def _evaluate(
        self, number: int, arrays: ArrayRecord, state: Progress, cost: Cost
    ) -> dict[str, Any]:
        """Bring what the sites released to ``state``; return the metrics of its sum."""
        self._show.phase(f"round {number}: evaluating")
        messages = self._strategy.configure_evaluate(
            number, arrays, self._asked(state), self._asking.connected()
        )
        messages = self._with_average(messages, state)
        held_out = self._context.held_out(number)
        shape = held_out.shape(self._measures, noised=self._settings.privacy.enabled)
        check = self._asking.check_counts(shape)
        replies = self._asking.exchange(list(messages), check, cost=cost, number=number)
        if not self._config.server.ema:
            self._downlink.held_by(replies.good)
        released = {
            name: held_out.split(read_histograms(reply.content))
            for name, reply in replies.good.items()
        }
        state.histograms = {name: parts[TEST] for name, (parts, _) in released.items()}
        if CALIBRATION in held_out.parts:
            state.calibration = {n: parts[CALIBRATION] for n, (parts, _) in released.items()}
            state.subgroups = {name: groups for name, (_, groups) in released.items()}
        metrics = federated_metrics(
            self._measures,
            state.histograms,
            self._context.plans,
            sensitivity=held_out.sensitivity(self._measures),
        )
        shown = dict.fromkeys(("auroc_macro", "auroc", self._measures.headline.key))
        return {key: metrics[key] for key in shown}

    def _asked(self, state: Progress) -> ConfigRecord:
        return request_config(self._asking.request(state.selection))

    def _with_average(self, messages: Iterable[Message], state: Progress) -> list[Message]:
        """Return messages with the average of models, which sites hold if it is the last one."""
        told = self._told(messages, state)
        return told if self._config.server.ema else self._downlink.packed(told, self._roster.names)

    def _told(self, messages: Iterable[Message], state: Progress) -> list[Message]:
        """Return messages that say which round of its site counted last, where sites ask for it.

        What a site's last update lost goes with the next, and what it keeps of the model is that
        of the round.
        """
        if self._codec.level == "none" and not self._unshared:
            return list(messages)
        return telling_what_counted(messages, state.counted, self._roster.names)
