"""A saved model applied to a part of a site's studies, with the truth beside its scores.

Legend: N studies, L labels.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfusion.data.findings import Finding
from medfusion.data.images import ImageCache
from medfusion.data.labels import binary_labels
from medfusion.data.site_data import SiteData, load_site_data, load_unlabelled
from medfusion.data.split import TRAIN
from medfusion.data.studies import Studies
from medfusion.data.task import Task
from medfusion.data.tensors import StudyTensors
from medfusion.data.thresholds import (
    Selection,
    feature_label_histograms,
    first_study_per_patient,
    select_features,
)
from medfusion.errors import DataError
from medfusion.evaluation.calibrated_figures import calibrated_figures
from medfusion.evaluation.decision_curve import decision_curve_json
from medfusion.evaluation.drift import missing_modality_drift, score_drift
from medfusion.evaluation.kinds import measures_of
from medfusion.evaluation.metrics import check_logits, counts_at_scores
from medfusion.models.registry import (
    build_tokenizer,
    fixed_image_features,
    frozen_note_encoder,
    modalities_of,
)
from medfusion.models.saved import SavedModel
from medfusion.prediction import predict_logits
from medfusion.prediction_table import missing_modalities
from medfusion.training.device import choose_device


@dataclass(frozen=True, eq=False, repr=False)
class Scores:
    """Logits of N studies and what is known about them.

    Attributes
    ----------
    logits
        float32 [N, L].
    labels, known
        float32 [N, L]; ``labels`` is 0 where ``known`` is 0. Of detection it has the boxes as
        well, see `medfusion.data.labels.truth_array`.
    patients
        [N], one value for each patient.
    """

    logits: NDArray[np.float32]
    labels: NDArray[np.float32]
    known: NDArray[np.float32]
    patients: NDArray[Any]


def load_to_predict(saved: SavedModel, folder: Path) -> tuple[SiteData, list[Finding]]:
    """Read a site to apply a model to all of its studies; labels are not needed.

    Where the site has to choose the model's features itself (see `selection_at`), it is read with
    its labels, since the choice depends on them.

    Returns
    -------
    tuple
        The site, and what a user should know of its data.

    Raises
    ------
    ConfigError, DataError
        If the folder cannot be read, or its task is not the model's.
    """
    if _site_selects(saved):
        data, findings = load_site_data(folder), list[Finding]()
    else:
        data, findings = load_unlabelled(folder)
    check_same_task(saved.task, data)
    return data, findings


def score_part(saved: SavedModel, site: SiteData, part: int, *, cache: Path) -> Scores:
    """Score every study of one part of a site's split.

    Parameters
    ----------
    part
        ``TRAIN``, ``CALIBRATION`` or ``TEST``.
    cache
        Folder of the site's decoded images; written to.

    Raises
    ------
    DataError
        If the site's task is not the model's, or an image cannot be read.
    FederationError
        If the model gives NaN.
    """
    check_same_task(saved.task, site)
    studies = site.part(part)
    tensors = study_tensors(saved, site, studies, cache=cache)
    logits = apply_model(saved, site, tensors)
    return Scores(logits, tensors.truth, tensors.known.numpy(), studies.patient_ids)


def drift_warnings(saved: SavedModel, studies: Studies, outputs: NDArray[Any]) -> list[str]:
    """Say what sets studies apart from those that a model was trained and calibrated on.

    ``outputs`` are those of `apply_model`.
    """
    modalities = modalities_of(saved.options, saved.task)
    found = missing_modality_drift(missing_modalities(studies, modalities), modalities)
    logits = measures_of(saved.task).scores(outputs)
    if saved.calibration is not None and logits is not None:
        found += score_drift(logits, saved.calibration.labels)
    return found


def calibrated(saved: SavedModel, scores: Scores) -> dict[str, Any]:
    """Return what a model's calibration is worth on scored studies, under ``calibration``.

    Nothing where there is no calibration. The figures are `calibrated_figures`, and for each label
    the ``decision_curve`` of the probability that `predict` tells.
    """
    calibration, logits = saved.calibration, measures_of(saved.task).scores(scores.logits)
    if calibration is None or logits is None:
        return {}
    labels = scores.labels[:, : logits.shape[1]]
    counts, at = counts_at_scores(logits, labels, scores.known)
    figures = calibrated_figures(calibration, counts, at)
    counts, told = counts_at_scores(calibration.read(logits).probabilities, labels, scores.known)
    for figure, count, probability in zip(figures["labels"].values(), counts, told, strict=True):
        figure["decision_curve"] = decision_curve_json(count, probability)
    kept = {"method": calibration.method, "wanted_coverage": calibration.coverage}
    return {"calibration": kept | figures}


def study_tensors(
    saved: SavedModel, site: SiteData, studies: Studies, *, cache: Path
) -> StudyTensors:
    """Return ``studies`` of a site as its model reads them.

    Parameters
    ----------
    cache
        Folder of the site's decoded images; written to.

    Raises
    ------
    DataError
        If an image cannot be read.
    """
    modalities = modalities_of(saved.options, site.task)
    image = site.task.image if "image" in modalities else None
    model = saved.module.to(choose_device(site.config.compute.device))
    return StudyTensors.build(
        studies,
        site.task,
        selection=selection_at(saved, site),
        modalities=modalities,
        cache=ImageCache(cache, image) if image else None,
        tokenizer=build_tokenizer(saved.options, site.task),
        note_encoder=frozen_note_encoder(model),
        note_cache=cache,
        image_features=fixed_image_features(model),
    )


def apply_model(saved: SavedModel, site: SiteData, tensors: StudyTensors) -> NDArray[np.float32]:
    """Return the outputs of studies at a site, on its device, [N, W] (of a detector [N, D, 6]).

    Raises
    ------
    FederationError
        If the model gives NaN.
    """
    compute = site.config.compute
    device = choose_device(compute.device)
    outputs = predict_logits(saved.module.to(device), tensors, device, batch=compute.physical_batch)
    check_logits(outputs)
    return outputs


def selection_at(saved: SavedModel, site: SiteData) -> Selection | None:
    """Return the selection under which the model reads the site's features.

    The model's own where it carries one. Under local selection it carries none: the site
    chooses from the histograms of its training patients, exactly, since nothing of it leaves.
    """
    if not _site_selects(saved):
        return saved.selection
    studies = site.part(TRAIN)
    studies = studies.take(first_study_per_patient(studies.patient_ids))
    labels = binary_labels(studies.labels, site.task)
    histograms = feature_label_histograms(studies.features, labels, site.task)
    return select_features(histograms, site.task, saved.top_n)


def _site_selects(saved: SavedModel) -> bool:
    reads_features = "tabular" in modalities_of(saved.options, saved.task)
    return saved.selection is None and saved.selection_method == "local" and reads_features


def check_same_task(task: Task, site: SiteData) -> None:
    """Refuse a site whose task is not the model's; raises `DataError`."""
    if site.task.sha256 == task.sha256:
        return
    differing = task.differing_sections(site.task)
    raise DataError(
        f"site {site.name!r}: its task differs from the model's in {differing} (hash "
        f"{site.task.sha256[:12]}, expected {task.sha256[:12]}): give the site the task.toml "
        "that the model was trained with"
    )
