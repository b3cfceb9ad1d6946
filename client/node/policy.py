"""What a hospital lets a run do; every refusal names what would be allowed."""

from medfusion.data.site import PolicyOptions
from medfusion.data.task import Task
from medfusion.errors import ConfigError, FederationError
from medfusion.transport.requests import RunSettings


def check_settings(settings: RunSettings, task: Task, policy: PolicyOptions) -> None:
    """Refuse a run of another task, or one that asks for more epsilon than the site allows.

    Raises
    ------
    ConfigError, FederationError
        Saying what was expected and found.
    """
    if settings.task_sha256 != task.sha256:
        raise FederationError(
            f"the run is for a task with hash {settings.task_sha256[:12]}, this site holds "
            f"{task.sha256[:12]}: give all sites the same task.toml"
        )
    asked = settings.privacy.target_epsilon
    if settings.privacy.enabled and asked > policy.max_epsilon:
        raise ConfigError(
            f"privacy.target_epsilon = {asked}: this site allows at most {policy.max_epsilon}"
        )


class Releases:
    """What one run has released, so that it cannot ask for more than its plan paid for.

    The same release may be asked for again (a reply was lost): the noise is drawn from the
    request itself, so the answer is the same. A second, different one is refused.
    """

    def __init__(self, *, rounds: int, evaluations: int) -> None:
        self._limits = {"select": 1, "train": rounds, "evaluate": evaluations}
        self._seen: dict[tuple[str, int], str] = {}

    def admit(self, kind: str, number: int, content: str) -> None:
        """Count a release; ``content`` is a hash of everything that it depends on.

        Raises
        ------
        FederationError
            If the plan holds no further release of this kind, or the round had another one.
        """
        known = self._seen.get((kind, number))
        if known == content:
            return
        if known is not None:
            raise FederationError(
                f"{kind} of round {number} was released already, from another model: refused"
            )
        if sum(seen == kind for seen, _ in self._seen) >= self._limits[kind]:
            raise FederationError(
                f"the run's plan pays for {self._limits[kind]} releases of kind {kind!r}; refused"
            )
        self._seen[kind, number] = content
