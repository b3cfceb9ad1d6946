"""What a hospital lets a run do; every refusal names what would be allowed."""

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfusion.data.site import PolicyOptions
from medfusion.data.task import Task
from medfusion.errors import ConfigError, FederationError
from medfusion.models.options import (
    WITH_INIT,
    HyperFusionOptions,
    MdfNetOptions,
    MedFusionNetOptions,
)
from medfusion.transport.requests import RunSettings

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)?")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def check_settings(
    settings: RunSettings,
    task: Task,
    policy: PolicyOptions,
    *,
    patients_public: int,
    simulated: bool,
) -> None:
    """Refuse what this hospital does not allow.

    A run of another task; one that asks for more epsilon than the site grants, or for no
    privacy at all, or for updates that are not masked as the site demands; one about too few
    patients, or with too few steps of theirs to train what is shared; one that names a file on
    this machine.

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
    check_declared(policy, patients_public)
    asked = settings.privacy.target_epsilon
    if settings.privacy.enabled and asked > policy.max_epsilon:
        raise ConfigError(
            f"privacy.target_epsilon = {asked}: this site allows at most {policy.max_epsilon}"
        )
    if settings.privacy.enabled and settings.report_loss:
        raise ConfigError("the training loss stays at the site under privacy")
    _check_turns(settings, patients_public)
    if simulated:
        return
    if not settings.privacy.enabled and not policy.allow_without_privacy:
        raise ConfigError(
            "privacy.enabled = false: this site takes part under differential privacy only "
            "([policy] allow_without_privacy)"
        )
    _check_masks(settings, policy)
    if not isinstance(settings.model, HyperFusionOptions):  # which reads no text
        _check_encoder(settings.model.text.encoder)
    if isinstance(settings.model, WITH_INIT):
        _check_init(settings.model)


def _check_turns(settings: RunSettings, patients_public: int) -> None:
    """Refuse rounds in which nothing that sites share would be trained."""
    own_steps = settings.personalisation.own_steps
    steps = settings.training.steps_per_round(patients_public)
    if own_steps and own_steps >= steps:
        raise ConfigError(
            f"personalisation.own_steps = {own_steps}: this site takes {steps} in a round, and "
            "some must be left for what is shared; raise training.local_epochs or set "
            "training.steps"
        )


def _check_masks(settings: RunSettings, policy: PolicyOptions) -> None:
    """Refuse updates that are not hidden in sums of as many sites as the hospital demands."""
    secure = settings.secure_aggregation
    found = 0 if secure is None else secure.threshold
    if found < policy.min_masked_sites:
        raise ConfigError(
            f"[server.secure_aggregation] threshold = {found if secure else 'unset'}: this site "
            f"sends updates only into sums of at least {policy.min_masked_sites} sites "
            "([policy] min_masked_sites)"
        )


def check_declared(policy: PolicyOptions, patients_public: int) -> None:
    """Refuse to say anything about too few patients, their number included.

    Raises
    ------
    ConfigError
    """
    if patients_public < policy.min_patients:
        raise ConfigError(
            "patients_public is below this site's [policy] min_patients = "
            f"{policy.min_patients}: nothing leaves about so few patients, their number included"
        )


def check_exact(policy: PolicyOptions, patients: int) -> None:
    """Refuse a release without noise that fewer than ``min_patients`` patients are behind.

    Under privacy this must not be asked: the noise on every cell protects whoever is counted,
    and a refusal that hangs on how many there are would itself be a release.

    Raises
    ------
    FederationError
    """
    if patients < policy.min_patients:
        raise FederationError(
            "without privacy it would be exact, and about fewer patients than this site's "
            f"[policy] min_patients = {policy.min_patients}: refused; expected "
            "privacy.enabled = true"
        )


def _check_encoder(name: str) -> None:
    """Refuse a text encoder that is a path: a coordinator names hub ids, not our files."""
    if not _HUB_ID.fullmatch(name) or Path(name).exists():
        raise ConfigError(
            f"model.text.encoder = {name!r}: expected 'tiny' or a hub id, found a path"
        )


def _check_init(model: MedFusionNetOptions | MdfNetOptions) -> None:
    """Refuse to read initial weights from a path: a coordinator names files of a public cache."""
    if model.init is not None and model.needs_init and not _FILE_NAME.fullmatch(model.init):
        raise ConfigError(
            f"model.init = {model.init!r}: expected the name of a file in torchvision's cache, "
            "found a path; only a run without frozen weights may start from a path"
        )


def of_enough_patients(known: NDArray[Any], min_patients: int) -> NDArray[Any]:
    """Return ``known`` [N, L], one study of each patient, without labels that too few are known of.

    What is exact about them would be about single patients.
    """
    counted: NDArray[Any] = known * (known.sum(axis=0) >= min_patients)
    return counted


def groups_of_enough_patients(
    known: NDArray[Any], members: NDArray[np.bool_], min_patients: int
) -> NDArray[Any]:
    """Return ``known`` of each group [G, N, L], beside a whole that is shown.

    A label is left out of groups with too few patients, and then of the smallest others until
    those whom no shown group holds are nobody or enough: whole minus groups is exact as well.

    Parameters
    ----------
    known
        [N, L], one study of each patient.
    members
        [G, N]: who is in which group; nobody in two.
    """
    counts, whole = members.astype(np.int64) @ (known > 0), (known > 0).sum(axis=0)
    shown = counts >= min_patients
    for label in range(known.shape[1]):
        while shown[:, label].any():
            rest = whole[label] - counts[shown[:, label], label].sum()
            if rest == 0 or rest >= min_patients:
                break
            sizes = np.where(shown[:, label], counts[:, label], np.iinfo(np.int64).max)
            shown[int(sizes.argmin()), label] = False
    counted: NDArray[Any] = known * members[:, :, None] * shown[:, None, :]
    return counted
