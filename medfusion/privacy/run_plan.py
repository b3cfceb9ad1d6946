"""The privacy plan of one run at one site: coordinator and hospital derive it alike."""

from medfusion.data.task import Task
from medfusion.models.registry import modalities_of
from medfusion.privacy.plan import DpPlan, make_plan
from medfusion.transport.requests import RunSettings


def run_plan(
    settings: RunSettings, task: Task, *, patients_public: int, delta: float
) -> DpPlan | None:
    """Return the plan that a run's settings imply at a site; None without privacy.

    Raises
    ------
    ConfigError
        If the epsilon asked for cannot be reached.
    """
    if not settings.privacy.enabled:
        return None
    selects = settings.selection.method != "none" and "tabular" in modalities_of(
        settings.model, task
    )
    return make_plan(
        settings.privacy,
        patients_public=patients_public,
        batch_size=settings.training.batch_size,
        steps_per_round=settings.training.steps_per_round(patients_public),
        rounds=settings.rounds,
        delta=delta,
        selects=selects,
        metrics_releases=settings.evaluations,
    )
