"""What a deployed run without privacy has released: no more than its people were shown."""

from collections.abc import Callable
from pathlib import Path

from flwr.app import RecordDict
from pydantic import Field

from client.node.state_files import read_state_file
from medfusion.atomic_files import make_folder, write_json
from medfusion.errors import FederationError
from medfusion.options import FileSchema, Options
from medfusion.privacy.plan_costs import ReleaseKind
from medfusion.transport.requests import RunSettings


class _Release(Options):
    kind: ReleaseKind
    number: int
    content: str


class _Released(Options):
    file_schema: FileSchema = 1
    releases: tuple[_Release, ...] = Field(default=())


class ExactReleases:
    """Lets each part of a run leave once; the file tells of it before anything is computed.

    No budget limits what is exact. A coordinator that was taken over could otherwise send one
    crafted model after another in an approved run, and read patients off the answers.

    Parameters
    ----------
    path
        File of what the run has released, in the state folder.
    """

    def __init__(self, path: Path, settings: RunSettings) -> None:
        self._path = path
        self._most = {"select": 1, "train": settings.rounds, "evaluate": settings.evaluations}

    def reply(
        self, kind: ReleaseKind, number: int, content: str, compute: Callable[[], RecordDict]
    ) -> RecordDict:
        """Write down and compute a reply; the same one may be asked for again.

        Parameters
        ----------
        number
            The round, 0 before the first one.
        content
            Hash of everything that the reply depends on.

        Raises
        ------
        FederationError
            If the round had another one, the run has had all of its kind, or the file is damaged.
        """
        before = self._read().releases
        release = _Release(kind=kind, number=number, content=content)
        if release not in before:
            same_kind = [other for other in before if other.kind == kind]
            if any(other.number == number for other in same_kind):
                raise FederationError(
                    f"{kind}, round {number}: this site has answered another request for it; "
                    "a run is answered once per round"
                )
            if len(same_kind) >= self._most[kind]:
                raise FederationError(
                    f"{kind}: the run was approved for {self._most[kind]}, and all were answered"
                )
            make_folder(self._path.parent, mode=0o700)
            released = _Released(releases=(*before, release))
            write_json(self._path, released.model_dump(mode="json"), durable=True)
        return compute()

    def _read(self) -> _Released:
        found = read_state_file(
            self._path,
            lambda data: _Released.parse(data, where=self._path.name),
            damaged=f"releases/{self._path.name} in the site's state folder: damaged; restore it "
            "from a backup: without it nobody knows what the run has released",
        )
        return found or _Released()
