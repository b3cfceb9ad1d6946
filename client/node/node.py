"""The Node: answers a coordinator's requests from the hospital's own data."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from flwr.app import RecordDict

from client.node.admission import Admission
from client.node.exact_releases import ExactReleases
from client.node.policy import check_declared, check_exact, check_settings
from client.node.secure_rounds import SecureRounds
from client.node.state import NodeState
from client.node.trainer import Trainer
from medfusion.data.site_data import SiteData
from medfusion.data.split import TEST, TRAIN
from medfusion.data.task import Task
from medfusion.errors import (
    AuditLogError,
    DataError,
    FederationError,
    LedgerError,
    MedFusionError,
)
from medfusion.evaluation.calibration import Calibration
from medfusion.federation.authority import Authority
from medfusion.models.saved import PERSONAL, check_calibration, save_model
from medfusion.privacy.ledger import Ledger
from medfusion.transport.arrays import from_record, state_sha256
from medfusion.transport.requests import (
    CALIBRATION_KEY,
    RECEIPT,
    Received,
    Request,
    RunSettings,
    SiteDescription,
    error_reply,
    receipt_record,
    reply_with,
)

log = logging.getLogger("medfusion.node")

_PAID = ("select", "train", "evaluate")


class Node:
    """Serves `describe`, `select`, `train`, `evaluate`, `deliver` and `secagg` for one site.

    The model, tensors and cache of the latest run stay warm between requests.

    Parameters
    ----------
    data
        Studies, split and public facts of the site.
    state
        The state folder, the only place that is written to.
    secret
        Root of the private random streams (Poisson draws and noise).
    ledger
        The site's; every release of a private run is charged to it.
    simulated
        Whether site and coordinator are one researcher's: then a run may do without privacy
        and approval, what is wrong with the data is told in full, and nothing is audited.
    authority
        The coordinator whose signature every run must bear; None takes any run.

    Raises
    ------
    FederationError
        If the site serves another coordinator, or its audit log is not as it was left.
    """

    def __init__(
        self,
        data: SiteData,
        state: NodeState,
        secret: bytes,
        ledger: Ledger,
        *,
        simulated: bool = False,
        authority: Authority | None = None,
    ) -> None:
        self._simulated = simulated
        self._admission = None if simulated else Admission(data, state, authority)
        self._data = data
        self._state = state
        self._secret = secret
        self._ledger = ledger
        self._secure = SecureRounds(
            data.name, secret, state.folder, patients=max(1, data.patients_public)
        )
        self._trainer: Trainer | None = None
        self._serve: dict[str, Callable[[Received], RecordDict]] = {
            "describe": self._describe,
            "select": self._select,
            "train": self._train,
            "evaluate": self._evaluate,
            "deliver": self._deliver,
            "secagg": self._secagg,
        }

    def handle(self, kind: str, content: RecordDict) -> RecordDict:
        """Answer one request; an error of ours becomes a reply, without patient data."""
        request: Received | None = None
        try:
            if kind not in self._serve:
                raise FederationError(f"unknown request {kind!r}")
            request = Received.parse(content)
            return self._answer(kind, request)
        except Exception as error:
            told = self._told(kind, error)
            if self._admission is not None:
                self._admission.refused(kind, request, told)
            return error_reply(told)

    def _answer(self, kind: str, request: Received) -> RecordDict:
        """Return the reply to a request that is in order, with a receipt beside it."""
        if self._admission is not None:
            self._admission.check_signed(request)
        if request.receipt is not None:
            self._ledger.check_receipt(request.receipt, self._secret)
        before = self._ledger.book.head
        reply = self._serve[kind](request)
        if self._admission is not None:
            # What is paid for and wrote nothing to the ledger is a stored reply.
            paid = self._trainer is not None and self._trainer.settings.privacy.enabled
            replayed = kind in _PAID and paid and self._ledger.book.head == before
            self._admission.answered(kind, request, reply, replayed=replayed)
        # Beside the reply, whose stored bytes stay as they were when it is sent again.
        receipt = receipt_record(self._ledger.receipt(self._secret))
        return RecordDict({**reply, RECEIPT: receipt})

    def _told(self, kind: str, error: Exception) -> MedFusionError:
        """Return what a coordinator may know of an error; the rest goes to the Node's log."""
        if isinstance(error, DataError) and not self._simulated:
            # Rows and counts are about patients, and no plan pays for them.
            log.error("request %s: %s", kind, error)
            return DataError("wrong data at this site: its Node's log tells where")
        if isinstance(error, (LedgerError, AuditLogError)):
            log.error("request %s: %s", kind, error)  # names a path of this machine
            told = str(error) if self._simulated else "unusable at this site: its Node's log tells"
            which = "privacy ledger" if isinstance(error, LedgerError) else "audit log"
            return FederationError(f"{which}: {told}")
        if isinstance(error, MedFusionError):
            return error
        # The text of a foreign error may hold values: only its type leaves, and only the
        # place goes to the log.
        frame = error.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        place = f"{frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}" if frame else "?"
        log.error("request %s failed with %s at %s", kind, type(error).__name__, place)
        return FederationError(f"internal error {type(error).__name__} at {place}")

    def _describe(self, request: Received) -> RecordDict:
        policy = self._data.config.policy
        check_declared(policy, self._data.patients_public)
        description = SiteDescription(
            site=self._data.name,
            task=self._data.task.to_json(),
            patients_public=self._data.patients_public,
            label_coverage=self._data.config.site.coverage_of(self._data.task.labels.names),
            delta=policy.delta,
            max_epsilon=policy.max_epsilon,
            signer=self._secure.signer,
        )
        return reply_with(description.model_dump(mode="json"))

    def _select(self, request: Received) -> RecordDict:
        trainer = self._run(request)
        self._check_counted(trainer.settings, TRAIN)
        return trainer.select()

    def _train(self, request: Received) -> RecordDict:
        trainer = self._run(request)
        self._check_counted(trainer.settings, TRAIN)
        request = trainer.whole(request)
        reply = trainer.train(request)
        if trainer.settings.secure_aggregation is None:
            return reply
        return self._secure.masked(reply, request, trainer.settings)

    def _secagg(self, request: Received) -> RecordDict:
        return self._secure.answer(request, self._run(request).settings)

    def _evaluate(self, request: Received) -> RecordDict:
        trainer = self._run(request)
        self._check_counted(trainer.settings, TEST)
        return trainer.evaluate(trainer.whole(request))

    def _check_counted(self, settings: RunSettings, part: int) -> None:
        """Refuse what a deployed run without noise would tell about too few patients."""
        if not self._simulated and not settings.privacy.enabled:
            patients = np.unique(self._data.part(part).patient_ids)
            check_exact(self._data.config.policy, len(patients))

    def _run(self, request: Received) -> Trainer:
        """Return the trainer of the request's run, kept warm while the run lasts."""
        settings = _settings(request)
        is_new = self._trainer is None or self._trainer.settings != settings
        if is_new:
            check_settings(
                settings,
                self._data.task,
                self._data.config.policy,
                patients_public=self._data.patients_public,
                simulated=self._simulated,
            )
        if self._admission is not None:  # each time: a decision may have changed
            self._admission.check_approved(settings)
        if self._trainer is None or is_new:
            self._state.forget_strategies_of_delivered(but=settings.run_id)
            file = self._state.releases_file(settings.run_id)
            self._trainer = Trainer(
                self._data,
                settings,
                self._state.cache,
                self._secret,
                self._ledger,
                kept=self._state.strategy_folder(settings.run_id),
                exact=None if self._simulated else ExactReleases(file, settings),
            )
        return self._trainer

    def _deliver(self, request: Received) -> RecordDict:
        trainer = self._run(request)
        settings, request = trainer.settings, trainer.whole(request)
        arrays, card = request.arrays, request.request.card
        if arrays is None or card is None:
            raise FederationError("deliver: expected a model and its description")
        state = from_record(arrays)
        trainer.check_state(state)
        _check_card(card, request.request)
        card, calibration = _without_calibration(card, self._data.task)
        if settings.selection.method == "local":  # the model reads this site's own features
            own = trainer.own_selection()
            card = card | {"selection": own.to_json() if own else None}
        folder = self._state.model_folder(settings.run_id)
        save_model(folder, state | trainer.own_parts(request), card, calibration)
        personal = trainer.personal(request)
        if personal is not None:
            save_model(folder / PERSONAL, personal, card)
        if self._admission is not None:
            self._admission.delivered(settings, state_sha256(state))
        return reply_with({"delivered": True})


def _check_card(card: dict[str, Any], request: Request) -> None:
    """Refuse a description that is not of the run's model; raises `FederationError`."""
    assert request.settings is not None
    expected = {
        "task_sha256": request.settings.task_sha256,
        "model": request.settings.model.model_dump(mode="json"),
        "seed": request.settings.seed,
        "selection": request.selection,
        "selection_method": request.settings.selection.method,
        "top_n": request.settings.selection.top_n,
    }
    for key, value in expected.items():
        if card.get(key) != value:
            raise FederationError(f"deliver: the model's description differs from the run in {key}")


def _without_calibration(
    card: dict[str, Any], task: Task
) -> tuple[dict[str, Any], Calibration | None]:
    """Return a model's description without the calibration that came in it, and that.

    Raises
    ------
    ConfigError, FederationError
        If that is none, or of another task.
    """
    rest = dict(card)
    found = rest.pop(CALIBRATION_KEY, None)
    if found is None:
        return rest, None
    if not isinstance(found, dict):
        raise FederationError("deliver: expected a calibration as an object")
    calibration = Calibration.parse(found, where="deliver: calibration")
    try:
        check_calibration(calibration, task)
    except ValueError as error:
        raise FederationError(f"deliver: calibration: {error}") from None
    return rest, calibration


def _settings(request: Received) -> RunSettings:
    if request.request.settings is None:
        raise FederationError("expected a request with the run's settings")
    return request.request.settings
