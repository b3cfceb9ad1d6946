"""What a deployed Node lets in: runs that its coordinator signed and its people approved.

All of it, and all that is answered, is told to the site's audit log.
"""

import hashlib
import logging
import time

from flwr.app import RecordDict

from client.node.approvals import Approvals
from client.node.audit_log import AuditLog
from client.node.run_summary import RunSummary, summarise
from client.node.state import NodeState
from medfusion.data.site_data import SiteData
from medfusion.errors import AuditLogError, FederationError, MedFusionError, WaitingError
from medfusion.federation.authority import Authority
from medfusion.federation.versions import own_version
from medfusion.privacy.run_plan import run_plan
from medfusion.transport.packing import to_bytes
from medfusion.transport.requests import Received, RunSettings

log = logging.getLogger("medfusion.node")

_LONGEST = 500  # characters of a refusal that are logged: it may repeat what came from outside
_HOURLY = 600  # lines for what no run was approved for; the log must not fill the disk


class Admission:
    """Decides about requests and keeps the record.

    Parameters
    ----------
    authority
        The coordinator; None takes runs from whoever reaches the Node.

    Raises
    ------
    FederationError
        If the site serves another coordinator.
    AuditLogError
        If the audit log is not as it was left.
    """

    def __init__(self, data: SiteData, state: NodeState, authority: Authority | None) -> None:
        if authority is not None:
            state.pin(authority)
        self._data = data
        self._authority = authority
        self._log = AuditLog(state.folder)
        self._log.require_sound()
        self._approvals = Approvals(state, self._log)
        self._unasked = _HourlyLimit(_HOURLY)
        key = authority.fingerprint if authority else None
        self._log.append("started", None, {"version": own_version(), "authority": key})

    def check_signed(self, request: Received) -> None:
        """Refuse settings that the coordinator did not sign; raises `FederationError`."""
        if self._authority is None or request.signed is None:
            return
        if not self._authority.signed(request.signed, request.request.signature):
            raise FederationError(
                f"the run is not signed for federation {self._authority.federation!r} by the key "
                f"{self._authority.fingerprint[:16]} that this site was given: submit it with "
                "that federation's kit"
            )

    def check_approved(self, settings: RunSettings) -> None:
        """Return if the run may go on.

        Raises
        ------
        WaitingError
            If the hospital's people have not decided yet.
        FederationError
            If they denied it.
        ConfigError
            If its epsilon cannot be reached, so that there is nothing to decide.
        """

        def summary() -> RunSummary:
            task, policy = self._data.task, self._data.config.policy
            patients = self._data.patients_public
            plan = run_plan(settings, task, patients_public=patients, delta=policy.delta)
            return summarise(settings, task, plan)

        ask = self._data.config.policy.approve == "ask"
        self._approvals.require(settings, ask=ask, summary=summary)

    def delivered(self, settings: RunSettings, model_sha256: str) -> None:
        """Tell the log that a run's model was kept."""
        self._log.append("delivered", settings.run_id, {"model_sha256": model_sha256})

    def answered(self, kind: str, request: Received, reply: RecordDict, *, replayed: bool) -> None:
        """Tell the log what leaves; raises `AuditLogError`, and then nothing may leave.

        Size and digest are those that the ledger keeps, without the receipt beside the reply.
        """
        data = to_bytes(reply)
        if request.request.settings is None and not self._unasked.takes_one():
            raise FederationError(f"{kind}: asked more than {_HOURLY} times in an hour; wait")
        details = {
            "kind": kind,
            "round": request.round,
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "replayed": replayed,
        }
        self._log.append("answered", _run(request), details)

    def refused(self, kind: str, request: Received | None, told: MedFusionError) -> None:
        """Tell the log what was refused, in the words that the coordinator is told.

        A run that waits was told when it was seen: it is asked for every few seconds. Of more
        refusals than an hour may have, the log tells with the next one how many it left out.
        """
        if isinstance(told, WaitingError) or not self._unasked.takes_one():
            return
        number = request.round if request else None
        details = {
            "kind": kind[:_LONGEST],
            "round": number,
            "reason": str(told)[:_LONGEST],
            "left_out": self._unasked.left_out(),
        }
        try:
            self._log.append("refused", _run(request), details)
        except AuditLogError as error:  # nothing leaves with a refusal
            log.error("%s", error)


class _HourlyLimit:
    """Takes so many in an hour, and counts the others."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._begun = time.monotonic()
        self._taken = 0
        self._others = 0

    def takes_one(self) -> bool:
        """Whether one more is taken."""
        if time.monotonic() - self._begun >= 3600:
            self._begun, self._taken = time.monotonic(), 0
        if self._taken >= self._most:
            self._others += 1
            return False
        self._taken += 1
        return True

    def left_out(self) -> int:
        """Return how many were not taken since this was last asked."""
        others, self._others = self._others, 0
        return others


def _run(request: Received | None) -> str | None:
    settings = request.request.settings if request else None
    return settings.run_id if settings else None
