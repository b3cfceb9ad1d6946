"""Average precision against COCO's own code and a plain reading of its rules, which knows IoBB."""

import io
from contextlib import redirect_stdout

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.ops import box_iou

from medfusion.evaluation.box_matching import IOU_LEVELS, Drawn, match_boxes, overlaps
from medfusion.evaluation.detection_metrics import FIGURES, detection_figures
from medfusion.evaluation.intervals import resampled_weights

D, M, L = 5, 3, 2


def draw(seed: int, studies: int = 6) -> tuple[np.ndarray, Drawn]:
    """Random boxes on a coarse grid, so that ties and exact overlaps are common."""
    rng = np.random.default_rng(seed)

    def corners(count: int) -> np.ndarray:
        near = rng.integers(0, 6, (studies, count, 2))
        return np.concatenate([near, near + rng.integers(1, 5, (studies, count, 2))], axis=-1)

    classes = rng.integers(0, L + 1, (studies, M))
    known = (rng.random((studies, L)) < 0.8).astype(np.float32)
    truth = corners(M)
    found = np.zeros((studies, D, 6))
    found[..., :4] = corners(D)
    copies = rng.random((studies, D)) < 0.5
    found[copies, :4] = truth[:, rng.integers(0, M, D)][copies]
    found[..., 4] = rng.integers(1, 8, (studies, D)) / 8
    found[..., 5] = rng.integers(0, L + 1, (studies, D))
    return found, Drawn(truth, classes, known)


def share(found, box, kind: str) -> float:
    width = max(0, min(found[2], box[2]) - max(found[0], box[0]))
    height = max(0, min(found[3], box[3]) - max(found[1], box[1]))
    own = (found[2] - found[0]) * (found[3] - found[1])
    other = (box[2] - box[0]) * (box[3] - box[1])
    return width * height / (own if kind == "iobb" else own + other - width * height)


def plain(found, drawn: Drawn, label: int, level: float, kind: str):
    """AP and recall; studies may stand several times in a row."""
    rows, boxes = [], 0
    for study in range(len(found)):
        if not drawn.known[study, label]:
            continue
        each = drawn.corners[study], drawn.classes[study]
        truth = [b for b, c in zip(*each, strict=True) if c == label + 1]
        boxes += len(truth)
        taken = [False] * len(truth)
        mine = [d for d in found[study] if d[5] == label + 1]
        for detection in sorted(mine, key=lambda d: -d[4]):
            best, chosen = min(level, 1 - 1e-10), None
            for number, box in enumerate(truth):
                overlap = share(detection, box, kind)
                if not taken[number] and overlap >= best:
                    best, chosen = overlap, number
            if chosen is not None:
                taken[chosen] = True
            rows.append((detection[4], chosen is not None))
    if boxes == 0:
        return np.nan, np.nan
    rows.sort(key=lambda row: -row[0])  # stable, as COCO's
    curve, hits = [], 0
    for number, (_, hit) in enumerate(rows, start=1):
        hits += hit
        curve.append((hits / boxes, hits / number))
    total = 0.0
    for recall in np.linspace(0, 1, 101):
        total += max((p for r, p in curve if r >= recall), default=0.0)
    return total / 101, (curve[-1][0] if curve else 0.0)


def expected(found, drawn: Drawn, label: int) -> list[float]:
    by_iou = [plain(found, drawn, label, level, "iou") for level in IOU_LEVELS]
    by_share = plain(found, drawn, label, 0.5, "iobb")
    precisions, recalls = zip(*by_iou, strict=True)
    return [precisions[0], np.mean(precisions), np.mean(recalls), *by_share]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**20))
def test_figures_are_those_of_a_plain_loop(seed):
    found, drawn = draw(seed)
    result = detection_figures(found[None, None], drawn, np.arange(len(found)), resamples=0)
    for label in range(L):
        ours = [result[name].values[0, 0, label] for name in FIGURES]
        np.testing.assert_allclose(ours, expected(found, drawn, label), atol=1e-12)


def boxes_of(corners, labels, known) -> list[dict[str, object]]:
    """COCO's entries of what has a known label; corners [N, K, 4], labels [N, K]."""
    entries = []
    for study, place in zip(*np.nonzero(labels), strict=True):
        label, (x, y, right, bottom) = int(labels[study, place]), corners[study, place].tolist()
        if known[study, label - 1]:
            sides = [x, y, right - x, bottom - y]
            where = {"image_id": int(study), "category_id": label, "bbox": sides}
            entries.append(where | {"place": place})
    return entries


def by_coco(found, drawn: Drawn) -> np.ndarray:
    """AP at .5, AP and AR of each label [L, 3], NaN where nothing is drawn, by pycocotools."""
    truth, answers = COCO(), boxes_of(found[..., :4], found[..., 5], drawn.known)
    truth.dataset = {
        "images": [{"id": study} for study in range(len(found))],
        "categories": [{"id": label} for label in range(1, L + 1)],
        "annotations": [
            each | {"id": number, "iscrowd": 0, "area": each["bbox"][2] * each["bbox"][3]}
            for number, each in enumerate(
                boxes_of(drawn.corners, drawn.classes, drawn.known), start=1
            )
        ],
    }
    for each in answers:
        each["score"] = found[each["image_id"], each["place"], 4]
    with redirect_stdout(io.StringIO()):
        truth.createIndex()
        judge = COCOeval(truth, truth.loadRes(answers), "bbox")
        judge.evaluate()
        judge.accumulate()
    # [levels, recalls, labels] and [levels, labels] of all sizes and up to 100 detections
    precision, recall = judge.eval["precision"][..., 0, 2], judge.eval["recall"][..., 0, 2]
    figures = [precision[0].mean(axis=0), precision.mean(axis=(0, 1)), recall.mean(axis=0)]
    return np.where(recall[0][:, None] < 0, np.nan, np.stack(figures, axis=1))


def as_coco(result) -> np.ndarray:
    """The figures that `by_coco` gives."""
    return np.stack([result[name].values[0, 0] for name in ("ap50", "ap", "ar")], axis=1)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**20), st.sampled_from([0.0, 0.3, 1.0]))
def test_figures_are_those_of_pycocotools(seed, noise):
    """On the grid scores and overlaps tie; off it overlaps are of any size."""
    found, drawn = draw(seed, studies=8)
    drawn.classes[seed % 8] = 0  # nothing to find in this one
    rng = np.random.default_rng(seed)
    found[..., :4] += noise * rng.normal(size=found[..., :4].shape)
    found[..., 2:4] = np.maximum(found[..., 2:4], found[..., :2] + 0.1)
    result = detection_figures(found[None, None], drawn, np.arange(8), resamples=0)
    np.testing.assert_allclose(as_coco(result), by_coco(found, drawn), atol=1e-6, rtol=0)


def test_of_boxes_that_overlap_equally_the_last_is_taken_as_coco_does():
    """The first detection lies between two boxes, the second on the latter of them."""
    boxes = np.array([[[0.0, 0, 4, 4], [2, 0, 6, 4]]])
    drawn = Drawn(boxes, np.ones((1, 2), dtype=np.int64), np.ones((1, L)))
    found = np.array([[[1.0, 0, 5, 4, 0.9, 1], [2, 0, 6, 4, 0.8, 1]]])
    result = detection_figures(found[None, None], drawn, np.arange(1), resamples=0)
    np.testing.assert_allclose(as_coco(result), by_coco(found, drawn), atol=1e-6, rtol=0)
    assert as_coco(result)[0, 0] == pytest.approx(51 / 101)  # one box of two, at once


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**20))
def test_a_resample_is_the_cohort_with_patients_repeated(seed):
    found, drawn = draw(seed)
    # distinct scores: where detections tie, their order says which copy comes first
    found[..., 4] = np.random.default_rng(seed).permutation(found[..., 4].size).reshape(6, D) / 100
    patients = np.array([0, 0, 1, 2, 3, 3])
    result = detection_figures(found[None, None], drawn, patients, resamples=2)
    ((_, often),) = resampled_weights(patients, resamples=2)
    for resample in (1, 2):
        rows = np.repeat(np.arange(6), often[:, resample].astype(int))
        repeated = Drawn(drawn.corners[rows], drawn.classes[rows], drawn.known[rows])
        for label in range(L):
            ours = [result[name].values[resample, 0, label] for name in FIGURES]
            theirs = expected(found[rows], repeated, label)
            np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_overlaps_are_torchvision_s():
    found, drawn = draw(3)
    iou, iobb = overlaps(found[0, :, :4], drawn.corners[0].astype(float))
    theirs = box_iou(torch.tensor(found[0, :, :4]), torch.tensor(drawn.corners[0]).double())
    np.testing.assert_allclose(iou, theirs)
    loop = [[share(a, b, "iobb") for b in drawn.corners[0]] for a in found[0, :, :4]]
    np.testing.assert_allclose(iobb, loop)


def test_perfect_detections_score_one_and_none_score_zero():
    found, drawn = draw(1)
    found[:] = 0
    found[:, :M, :4], found[:, :M, 5], found[:, :M, 4] = drawn.corners, drawn.classes, 0.9
    same = Drawn(*(np.asarray(each) for each in (drawn.corners, drawn.classes, drawn.known)))
    arms = np.stack([found, np.zeros_like(found)])[:, None]
    result = detection_figures(arms, same, np.arange(6), resamples=20)
    for figure in result.values():
        assert figure.macro(0).mean == pytest.approx(1)
        assert figure.macro(0).ci95 == pytest.approx((1, 1))
        assert figure.macro(1).mean == 0
        assert figure.difference(0, 1).mean == pytest.approx(1)


def test_figures_are_undefined_where_nothing_was_drawn():
    found, drawn = draw(2)
    empty = Drawn(drawn.corners, np.zeros_like(drawn.classes), drawn.known)
    result = detection_figures(found[None, None], empty, np.arange(6), resamples=5)
    assert all(f.macro(0).mean is None and f.macro(0).ci95 is None for f in result.values())


def test_seeds_are_averaged():
    (first, drawn), (second, _) = draw(5), draw(6)
    both = np.stack([first, second])[None]
    result = detection_figures(both, drawn, np.arange(6), resamples=0)
    each = [detection_figures(f[None, None], drawn, np.arange(6), resamples=0) for f in both[0]]
    for name in FIGURES:
        mean = np.mean([one[name].values for one in each], axis=0)
        np.testing.assert_allclose(result[name].values, mean)


def test_a_study_counts_for_the_labels_it_knows():
    found, drawn = draw(4)
    unknown = Drawn(drawn.corners, drawn.classes, np.zeros_like(drawn.known))
    assert [len(each.scores) for each in match_boxes(found, unknown)] == [0, 0]
