"""What a human at the hospital must know to approve a run."""

from medfusion.data.task import Task
from medfusion.evaluation.kinds import measures_of
from medfusion.models.registry import modalities_of
from medfusion.options import Options
from medfusion.privacy.plan import DpPlan
from medfusion.transport.requests import RunSettings


class Leaving(Options):
    """Something that leaves the site, at most ``times`` times; without privacy it is exact."""

    what: str
    times: int


class RunSummary(Options):
    """A run in short.

    ``epsilon`` and ``delta`` are what it costs this site at most, None without privacy; ``size``
    is None for models that have one size only.
    """

    task_sha256: str
    model: str
    size: str | None
    modalities: tuple[str, ...]
    rounds: int
    epsilon: float | None
    delta: float | None
    leaves: tuple[Leaving, ...]


def summarise(settings: RunSettings, task: Task, plan: DpPlan | None) -> RunSummary:
    """Return what a run of these settings comes to at a site; ``plan`` is None without privacy.

    Raises
    ------
    ConfigError
        If the model asks for a modality that the task does not offer.
    """
    return RunSummary(
        task_sha256=settings.task_sha256,
        model=settings.model.name,
        size=getattr(settings.model, "size", None),
        modalities=modalities_of(settings.model, task),
        rounds=settings.rounds,
        epsilon=plan.epsilon() if plan else None,
        delta=plan.delta if plan else None,
        leaves=_leaves(settings, task),
    )


def _leaves(settings: RunSettings, task: Task) -> tuple[Leaving, ...]:
    method, rounds = settings.selection.method, settings.rounds
    found = []
    if method == "federated" and "tabular" in modalities_of(settings.model, task):
        found.append(Leaving(what="selection histograms", times=1))
    updates = "model updates" if settings.secure_aggregation is None else "masked model updates"
    found.append(Leaving(what=updates, times=rounds))
    if method == "local":
        found.append(Leaving(what="names of the columns selected", times=rounds))
    if settings.report_loss:
        found.append(Leaving(what="training loss", times=rounds))
    scores = measures_of(task).released
    found.append(Leaving(what=scores, times=settings.evaluations))
    found.append(Leaving(what=f"{scores} of the calibration patients", times=1))
    return tuple(found)
