"""What scikit-learn makes of the same studies: logistic regression and gradient boosting.

Everything (means, components, vocabulary, penalty) is fitted on training studies alone, one
model for each label. Tabular features: standardised, one-hot, with a flag for missing; as they
are for the trees. Images: principal components of 32 x 32 pixels. Notes: TF-IDF of words and
pairs of words, reduced to components for the trees.

Legend: N studies, F features, K inputs, L labels, S seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold
from threadpoolctl import threadpool_limits

from medfusion.data.images import decode_image
from medfusion.data.site_data import SiteData
from medfusion.data.split import TEST, TRAIN
from medfusion.data.studies import Studies
from medfusion.data.task import CategoricalFeature, Task

Floats = NDArray[np.float64]
PENALTIES = (0.001, 0.01, 0.1, 1.0)  # C of the logistic regression, chosen within the training part
_SIDE, _IMAGE_COMPONENTS, _TEXT_COMPONENTS, _WORDS = 32, 50, 30, 2000


@dataclass(frozen=True)
class Baseline:
    """A kind of model on some modalities."""

    kind: str  # "logistic" or "boosting"
    modalities: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.kind}, {'+'.join(self.modalities)}"


class FoldInputs:
    """Inputs of one fold's pooled training and test studies, made once for each modality."""

    def __init__(self, pooled: SiteData) -> None:
        self.train, self.test = pooled.part(TRAIN), pooled.part(TEST)
        self._task = pooled.task
        self._made: dict[tuple[str, str], tuple[Floats, Floats]] = {}

    def of(self, baseline: Baseline) -> tuple[Floats, Floats]:
        """Return training and test inputs [N, K]."""
        parts = [self._of(baseline.kind, modality) for modality in baseline.modalities]
        return np.hstack([part[0] for part in parts]), np.hstack([part[1] for part in parts])

    def _of(self, kind: str, modality: str) -> tuple[Floats, Floats]:
        key = ("any" if modality == "image" else kind, modality)
        if key not in self._made:
            if modality == "tabular":
                both = (one_hot(part.features, self._task) for part in (self.train, self.test))
                made = standardised(*both) if kind == "logistic" else tuple(both)
            elif modality == "image":
                made = image_components(self.train, self.test, self._task)
            else:
                made = text_inputs(self.train, self.test, reduced=kind == "boosting")
            self._made[key] = made
        return self._made[key]


def one_hot(features: Floats, task: Task) -> Floats:
    """Return features [N, F] with a column for each category, [N, K]; NaN where missing."""
    columns = []
    for values, feature in zip(features.T, task.features.values(), strict=True):
        if isinstance(feature, CategoricalFeature):
            for code in range(len(feature.values)):
                columns.append(np.where(np.isnan(values), np.nan, values == code))
        else:
            columns.append(values)
    return np.column_stack(columns)


def standardised(train: Floats, test: Floats) -> tuple[Floats, Floats]:
    """Scale both [N, K] by the known training values; missing becomes their mean and a flag."""
    known = ~np.isnan(train)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, train, 0).sum(axis=0) / count
    spread = np.sqrt(np.where(known, (train - mean) ** 2, 0).sum(axis=0) / count)
    spread[spread == 0] = 1

    def scale(values: Floats) -> Floats:
        return np.hstack([np.nan_to_num((values - mean) / spread), np.isnan(values)])

    return scale(train), scale(test)


def image_components(train: Studies, test: Studies, task: Task) -> tuple[Floats, Floats]:
    """Return principal components of the pixels, and a flag for a missing image."""
    pixels = [_pixels(part, task) for part in (train, test)]
    shown = ~np.isnan(pixels[0][:, 0])
    count = min(_IMAGE_COMPONENTS, int(shown.sum()) - 1)
    model = PCA(count, whiten=True, random_state=0).fit(pixels[0][shown])
    made = []
    for part in pixels:
        here = ~np.isnan(part[:, 0])
        found = np.zeros((len(part), count + 1))
        found[here, :count] = model.transform(part[here]) if here.any() else 0
        found[:, count] = ~here
        made.append(found)
    return made[0], made[1]


def _pixels(studies: Studies, task: Task) -> Floats:
    """Return pixels in [0, 1] of each image made small, [N, K]; NaN without an image."""
    assert task.image is not None
    result = np.full((len(studies), _SIDE * _SIDE), np.nan)
    for row, path in enumerate(studies.images):
        if path is not None:
            small = Image.fromarray(decode_image(path, task.image)[0])
            small = small.resize((_SIDE, _SIDE), Image.Resampling.BOX)
            result[row] = np.asarray(small, np.float64).ravel() / 255
    return result


def text_inputs(train: Studies, test: Studies, *, reduced: bool) -> tuple[Floats, Floats]:
    """Return TF-IDF weights of the notes, or components of them; zero without a note."""
    words = TfidfVectorizer(
        ngram_range=(1, 2), min_df=2, max_features=_WORDS, sublinear_tf=True, norm="l2"
    )
    made = [
        words.fit_transform(note or "" for note in train.notes),
        words.transform(note or "" for note in test.notes),
    ]
    if reduced:
        model = TruncatedSVD(min(_TEXT_COMPONENTS, made[0].shape[1] - 1), random_state=0)
        return model.fit_transform(made[0]), model.transform(made[1])
    return made[0].toarray(), made[1].toarray()


def fold_scores(baseline: Baseline, inputs: FoldInputs, seeds: Sequence[int]) -> Floats:
    """Return log-odds [S, N, L] of the fold's test studies.

    Where a label's known training studies are all of one class, every test study gets the same.
    """
    with threadpool_limits(1):  # the fits are small: waiting for one another costs more
        return _fold_scores(baseline, inputs, seeds)


def _fold_scores(baseline: Baseline, inputs: FoldInputs, seeds: Sequence[int]) -> Floats:
    train_x, test_x = inputs.of(baseline)
    labels = inputs.train.labels
    scores = np.zeros((len(seeds), len(test_x), labels.shape[1]))
    for label in range(labels.shape[1]):
        known = ~np.isnan(labels[:, label])
        truth = labels[known, label] > 0
        if truth.all() or not truth.any():
            scores[:, :, label] = np.log((truth.sum() + 0.5) / ((~truth).sum() + 0.5))
            continue
        patients = inputs.train.patient_ids[known]
        if baseline.kind == "logistic":  # the same for every seed
            model = _logistic(train_x[known], truth, patients)
            scores[:, :, label] = model.decision_function(test_x)
            continue
        filled = ~np.isnan(train_x[known]).all(axis=0)  # the trees stumble over empty columns
        for number, seed in enumerate(seeds):
            trees = _boosting(seed).fit(train_x[known][:, filled], truth)
            scores[number, :, label] = trees.decision_function(test_x[:, filled])
    return scores


def _boosting(seed: int) -> HistGradientBoostingClassifier:
    return HistGradientBoostingClassifier(
        learning_rate=0.05,
        max_iter=100,
        max_leaf_nodes=8,
        min_samples_leaf=10,
        l2_regularization=1.0,
        max_features=0.5,  # where the seed counts
        early_stopping=False,
        random_state=seed,
    )


def _logistic(x: Floats, truth: NDArray[np.bool_], patients: NDArray[Any]) -> LogisticRegression:
    """Fit with the penalty of the least log-loss over three folds of training patients.

    With fewer than three studies of a class, the strongest penalty.
    """
    if np.bincount(truth).min() < 3:
        return _penalised(PENALTIES[0]).fit(x, truth)
    folds = StratifiedGroupKFold(3, shuffle=True, random_state=0)
    parts = [
        (fit, held)
        for fit, held in folds.split(x, truth, patients)
        if truth[fit].any() and not truth[fit].all()
    ]
    losses = []
    for penalty in PENALTIES:
        loss = 0.0
        for fit, held in parts:
            model = _penalised(penalty).fit(x[fit], truth[fit])
            guess = model.predict_proba(x[held])
            loss += log_loss(truth[held], guess, labels=[False, True], normalize=False)
        losses.append(loss)
    return _penalised(PENALTIES[int(np.argmin(losses))]).fit(x, truth)


def _penalised(penalty: float) -> LogisticRegression:
    return LogisticRegression(C=penalty, max_iter=2000)
