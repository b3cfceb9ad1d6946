"""What the people of a hospital decided about each run: a file per run in the state folder.

The Node writes down a run when it sees one for the first time; ``medfusion site approve`` and
``site deny`` change its status, also while the Node runs: it reads the file at each request.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from client.node.audit_log import AuditLog
from client.node.run_summary import RunSummary
from client.node.state import NodeState
from client.node.state_files import read_state_file
from medfusion.atomic_files import make_folder, write_json
from medfusion.errors import ConfigError, FederationError, UsageError, WaitingError
from medfusion.folder_lock import one_at_a_time
from medfusion.options import FileSchema, Options
from medfusion.transport.requests import RunSettings

Decision = Literal["approved", "denied"]

_LOCK = ".lock"
_BY_POLICY = 'policy (approve = "always")'


class RunRecord(Options):
    """What is known of a run, and what was decided; times in UTC."""

    file_schema: FileSchema = 1
    run_id: str
    status: Literal["waiting", "approved", "denied"]
    first_seen: str
    decided: str | None = None
    decided_by: str | None = None
    settings: dict[str, Any]
    summary: RunSummary


class Approvals:
    """The runs that a site has seen.

    Parameters
    ----------
    log
        Is told of each run seen and each decision, before it counts.
    """

    def __init__(self, state: NodeState, log: AuditLog) -> None:
        self._state = state
        self._log = log

    def require(
        self, settings: RunSettings, *, ask: bool, summary: Callable[[], RunSummary]
    ) -> None:
        """Return if the run of exactly these settings is approved; write it down if it is new.

        Parameters
        ----------
        ask
            Whether people decide; else what they did not deny is approved.
        summary
            What they are told; called for a new run only.

        Raises
        ------
        WaitingError
            If nobody has decided yet.
        FederationError
            If it was denied, or its id belongs to other settings.
        """
        with self._alone():
            record = self._record(settings.run_id)
            if record is None:
                record = self._first_seen(settings, summary())
            elif not _is_of(record, settings):
                raise FederationError(
                    f"run {settings.run_id!r}: this site knows it with other settings; a run "
                    "that differs needs another run.name"
                )
            if record.status == "waiting" and not ask:
                record = self._decide(record, "approved", by=_BY_POLICY)
        if record.status == "denied":
            raise FederationError(f"run {settings.run_id!r}: this site has denied it")
        if record.status == "waiting":
            raise WaitingError(
                f"this site has not approved the run yet ({record.run_id}): "
                f"`medfusion site approve {record.run_id} SITE` at the hospital"
            )

    def all(self) -> list[RunRecord]:
        """Return all runs, in the order in which they were first seen."""
        names = [path.stem for path in self._state.runs.glob("*.json")]
        records = [record for name in names if (record := self._record(name))]
        return sorted(records, key=lambda record: (record.first_seen, record.run_id))

    def decide(self, run: str, decision: Decision, *, by: str) -> RunRecord:
        """Approve or deny a run, for its next request on; a decision may be changed.

        Parameters
        ----------
        run
            Its id, or the beginning of it if that fits one run only.
        by
            Who decides.

        Raises
        ------
        UsageError
            If no run or several fit.
        """
        known = [record.run_id for record in self.all()]
        fits = [run] if run in known else [name for name in known if run and name.startswith(run)]
        if len(fits) != 1:
            which = "several runs begin so" if fits else "this site has seen no such run"
            raise UsageError(
                f"run {run!r}: {which}; expected one of: {', '.join(fits or known) or 'none yet'}"
            )
        with self._alone():
            record = self._record(fits[0])
            assert record is not None  # nothing removes one
            return record if record.status == decision else self._decide(record, decision, by=by)

    def _first_seen(self, settings: RunSettings, summary: RunSummary) -> RunRecord:
        record = RunRecord(
            run_id=settings.run_id,
            status="waiting",
            first_seen=_now(),
            settings=settings.model_dump(mode="json"),
            summary=summary,
        )
        self._log.append("seen", record.run_id, summary.model_dump(mode="json"))
        self._write(record)
        return record

    def _decide(self, record: RunRecord, decision: Decision, *, by: str) -> RunRecord:
        decided = record.model_copy(
            update={"status": decision, "decided": _now(), "decided_by": by}
        )
        self._log.append(decision, record.run_id, {"by": by, "before": record.status})
        self._write(decided)
        return decided

    def _record(self, run_id: str) -> RunRecord | None:
        path = self._state.run_file(run_id)

        def read(data: Any) -> RunRecord:
            record = RunRecord.parse(data, where=path.name)
            if record.run_id != run_id:
                raise ValueError("another run's")
            return record

        # Read as unseen it would be asked about again, also after a denial.
        return read_state_file(
            path,
            read,
            damaged=f"runs/{path.name} in the site's state folder: damaged; restore it from a "
            "backup, or remove it to decide about the run again",
        )

    def _write(self, record: RunRecord) -> None:
        path = self._state.run_file(record.run_id)
        write_json(path, record.model_dump(mode="json"), durable=True)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        make_folder(self._state.runs, mode=0o700)
        with one_at_a_time(self._state.runs / _LOCK):
            yield


def runs_of(folder: Path) -> Approvals:
    """Return the runs of the site whose state is in ``folder``, for its people."""
    return Approvals(NodeState(folder), AuditLog(folder))


def _is_of(record: RunRecord, settings: RunSettings) -> bool:
    """Whether what was approved are these settings; options added since have their defaults."""
    try:
        return RunSettings.parse(record.settings, where=record.run_id) == settings
    except ConfigError:
        return False


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
