"""Explains a model on a site's studies and writes the page that stays there."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medfusion.atomic_files import make_folder
from medfusion.evaluation.report.page import render_page
from medfusion.explain.case_page import case_content
from medfusion.explain.cohort_page import cohort_content
from medfusion.explain.generated_weights import generated_layers, sweep_features
from medfusion.explain.scores import reads_image_apart
from medfusion.explain.studies import ToExplain, explain, join, unit_of_scores
from medfusion.models.hyperfusion import HyperFusion
from medfusion.models.medfusion_net import MedFusionNet
from medfusion.scoring import selection_at

PAGE = "explanations.html"
CASES = 8  # studies shown one by one unless another number is asked for
COHORT = 100  # studies at most: beyond, intervals shrink less than waiting grows
COHORT_READ_ANEW = 24  # the same where every step of a path reads the image again
_AT_ONCE = 4  # studies at most, fewer where the site's physical batch is smaller
_SEED = 0


def explain_site(
    what: ToExplain, folder: Path, *, cases: int, advance: Callable[[int, int], None]
) -> Path:
    """Write `PAGE` into a folder and return its path.

    It names studies as the table of predictions does, and shows their images, notes and values:
    it is as much of a secret as they are, and nothing here sends it anywhere.

    Parameters
    ----------
    cases
        So many studies, the first, are shown one by one.
    advance
        Is told after each step how many of how many are done.
    """
    model = what.saved.module.to(what.device)
    shown = np.arange(min(cases, len(what.data.studies)))
    fused = isinstance(model, HyperFusion | MedFusionNet) and not reads_image_apart(model)
    anew = fused and {"image", "tabular"} <= set(model.modalities)
    drawn = _cohort(len(what.data.studies), COHORT_READ_ANEW if anew else COHORT)
    steps, done = len(shown) + len(drawn), 0
    contents, parts = [], []
    at_once = min(_AT_ONCE, what.data.config.compute.physical_batch)
    for start in range(0, len(drawn), at_once):
        some = drawn[start : start + at_once]
        parts.append(explain(what, some))
        done += len(some)
        advance(done, steps)
    for study in shown:
        contents.append(case_content(what, int(study), explain(what, np.array([study]))))
        done += 1
        advance(done, steps)
    sweeps = []
    if isinstance(model, HyperFusion | MedFusionNet) and generated_layers(model):
        features = what.data.studies.features[drawn]
        selection = selection_at(what.saved, what.data)
        sweeps = sweep_features(model, features, what.data.task, selection)
    content = {
        "task": what.data.task.task.name,
        "site": what.data.name,
        "studies": len(what.data.studies),
        "unit": unit_of_scores(what.data.task)[0],
        "detects": what.data.task.detects,
        "cohort": cohort_content(what, drawn, join(parts), sweeps) if parts else None,
        "cases": contents,
    }
    make_folder(folder)
    return render_page("explanations.html.j2", content, folder / PAGE)


def _cohort(studies: int, most: int) -> NDArray[np.int64]:
    """Return which studies stand for all, in order: all, or ``most`` at random."""
    chosen = np.random.default_rng(_SEED).permutation(studies)[:most]
    return np.sort(chosen).astype(np.int64)
