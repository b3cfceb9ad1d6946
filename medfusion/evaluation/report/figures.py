"""The report's figures: what they draw, and what they show in words."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from markupsafe import Markup

from medfusion.evaluation.decision_curve import THRESHOLDS, net_benefit, net_benefit_of_all
from medfusion.evaluation.metrics import CALIBRATION_BINS, FloatArray, reliability, sigmoid
from medfusion.evaluation.operating_points import rates
from medfusion.evaluation.report.budget import Budget
from medfusion.evaluation.report.calibration import against_the_rest
from medfusion.evaluation.report.run_folder import Run
from medfusion.evaluation.report.svg import DASHES, MUTED, PALETTE, Curve, Range, line_chart
from medfusion.evaluation.report.wording import number
from medfusion.evaluation.score_histograms import bin_centres

_UNIT: Range = (0.0, 1.0)
_ROUND = "round"
_MOST = len(PALETTE) - 1  # that a reader can tell apart, beside one of all


@dataclass(frozen=True, eq=False)
class Figure:
    """A chart of curves, with its description for those who do not see it."""

    title: str
    curves: tuple[Curve, ...]
    x: str
    y: str
    alt: str
    x_range: Range
    y_range: Range
    note: str = ""

    @property
    def chart(self) -> Markup:
        """The chart as markup."""
        return line_chart(
            self.curves,
            x=self.x,
            y=self.y,
            x_range=self.x_range,
            y_range=self.y_range,
            alt=self.alt,
            whole_x=self.x == _ROUND,
        )


def curve(name: str, x: Sequence[Any], y: Sequence[Any], turn: int = 0) -> Curve:
    """Return a curve of the points whose ``y`` is known, in the ``turn``-th colour and dash."""
    points = [(a, b) for a, b in zip(x, y, strict=True) if b is not None]
    style = turn % len(PALETTE)
    return Curve(
        points=np.array(points, dtype=np.float64).reshape(-1, 2),
        color=PALETTE[style],
        dash=DASHES[style],
        name=name,
    )


def curves_by_round(run: Run) -> list[Figure]:
    """Return curves of what the rounds recorded; a curve needs two points."""
    rounds = run.rounds
    numbers = [line["round"] for line in rounds]
    up, down = ([line[key] / 1e6 for line in rounds] for key in ("bytes_up", "bytes_down"))
    norms = [line.get("update_norm") for line in rounds]
    found = [
        _headline_by_round(run),
        _by_round("Update norm", [curve("L2 norm", numbers, norms)], "L2 norm of the change"),
        _seconds(run, numbers),
        _by_round(
            "Traffic, all hospitals",
            [curve("to the hospitals", numbers, down), curve("to the server", numbers, up, 1)],
            "MB",
        ),
    ]
    return [figure for figure in found if figure is not None]


def _headline_by_round(run: Run) -> Figure | None:
    measured = [(line["round"], line["metrics"]) for line in run.rounds if line.get("metrics")]
    numbers = [number for number, _ in measured]
    headline = run.headline
    curves = [curve(headline.name, numbers, [m.get(headline.key) for _, m in measured])]
    if headline.key == "auroc_macro" and 1 < len(run.labels) <= _MOST:
        curves += [
            curve(label, numbers, [m["auroc"].get(label) for _, m in measured], 1 + turn)
            for turn, label in enumerate(run.labels)
        ]
    title = headline.name[:1].upper() + headline.name[1:]
    return _by_round(title, curves, headline.name, from_zero=headline.key != "auroc_macro")


def _seconds(run: Run, numbers: list[int]) -> Figure | None:
    """Whole rounds, and each hospital's own time where there are few enough to tell apart."""
    names = sorted({name for line in run.rounds for name in line["sites"]})
    curves = [curve("whole round", numbers, [line["seconds"] for line in run.rounds])]
    if len(names) <= _MOST:
        curves += [
            curve(
                name,
                numbers,
                [line["sites"].get(name, {}).get("seconds") for line in run.rounds],
                1 + turn,
            )
            for turn, name in enumerate(names)
        ]
    return _by_round("Seconds until each answered", curves, "seconds")


def _by_round(
    title: str, curves: Sequence[Curve], y: str, *, from_zero: bool = True
) -> Figure | None:
    """Return a chart over rounds; None if no curve has two points."""
    drawn = tuple(one for one in curves if len(one.points) >= 2)
    if not drawn:
        return None
    points = np.concatenate([one.points for one in drawn])
    low, high = float(points[:, 1].min()), float(points[:, 1].max())
    low = min(0.0, low) if from_zero else low
    pad = 0.05 * (high - low) or 1.0
    first, last = drawn[0].points[0], drawn[0].points[-1]
    alt = (
        f"{title} by round: {drawn[0].name} from {number(first[1])} in round {first[0]:g} "
        f"to {number(last[1])} in round {last[0]:g}"
    )
    alone = len(drawn) == 1  # what it is called stands at the axis
    return Figure(
        title,
        (replace(drawn[0], name=""),) if alone else drawn,
        _ROUND,
        y,
        alt,
        x_range=(float(points[:, 0].min()), float(points[:, 0].max())),
        y_range=(low if from_zero else low - pad, high + pad),
    )


def quality_figures(run: Run) -> list[Figure]:
    """Return ROC, reliability and decision curves; none where no label has both classes."""
    if run.counts is None or not (run.counts.sum(axis=-1) > 0).all(axis=-1).any():
        return []
    return [roc_curves(run), reliability_diagram(run), decision_curves(run)]


def roc_curves(run: Run) -> Figure:
    """Return a ROC curve of each label that has both classes, the first few of many labels."""
    assert run.counts is not None
    both = (run.counts.sum(axis=-1) > 0).all(axis=-1)
    curves = [_diagonal("chance")]
    for turn, row in enumerate(np.flatnonzero(both)[:_MOST]):
        sensitivity, specificity = rates(run.counts[row])
        x, y = _drop_inner(1.0 - specificity, sensitivity)
        curves.append(curve(run.labels[row], x.tolist(), y.tolist(), 1 + turn))
    return Figure(
        "ROC by label",
        tuple(curves),
        "false positive rate",
        "true positive rate",
        f"ROC curves of {both.sum()} labels; their areas are in the table above",
        _UNIT,
        _UNIT,
        _first_of(int(both.sum())),
    )


def _first_of(count: int) -> str:
    return f"The first {_MOST} of {count} labels." if count > _MOST else ""


def _diagonal(name: str) -> Curve:
    return Curve(points=np.array([[0.0, 0.0], [1.0, 1.0]]), color=MUTED, dash="3 4", name=name)


def _drop_inner(x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Drop points equal to the one before: empty bins."""
    keep = np.concatenate([[True], (np.diff(x) > 0) | (np.diff(y) > 0)])
    return x[keep].round(5), y[keep].round(5)


def reliability_curve(
    name: str, counts: FloatArray, probabilities: FloatArray, turn: int, *, sized: bool = True
) -> Curve:
    """Return predicted against observed risk of counts [2, U] at ``probabilities`` [U]."""
    size, predicted, observed = reliability(counts, probabilities)
    filled = size > 0
    found = curve(name, predicted[filled].tolist(), observed[filled].tolist(), turn)
    if not sized:
        return found
    radii = 2.0 + 6.0 * np.sqrt(size[filled] / max(size.max(), 1.0))
    return Curve(points=found.points, color=found.color, dash=found.dash, name=name, sizes=radii)


def reliability_diagram(run: Run) -> Figure:
    """Return predicted against observed risk: over all labels and, of few, for each."""
    assert run.counts is not None
    risks = sigmoid(bin_centres(run.counts.shape[-1]))
    curves = [reliability_curve("all labels", run.counts.sum(axis=0), risks, 0)]
    if 1 < len(run.labels) <= _MOST:
        curves += [
            reliability_curve(label, run.counts[row], risks, row + 1, sized=False)
            for row, label in enumerate(run.labels)
        ]
    return _reliability("Reliability", curves, "the calibration errors are in the table above")


def calibrated_reliability(run: Run) -> Figure | None:
    """Return the reliability over all labels before and after calibration; None without one."""
    if run.counts is None or run.calibration is None or run.calibration.method == "none":
        return None
    logits = bin_centres(run.counts.shape[-1])
    told = [_told(run, label, logits) for label in run.labels]
    after, risks = np.concatenate(run.counts, axis=1), np.concatenate(told)
    curves = [
        reliability_curve("before", run.counts.sum(axis=0), sigmoid(logits), 1, sized=False),
        reliability_curve("after", after, risks, 0),
    ]
    return _reliability(
        "Reliability, all labels, before and after",
        curves,
        "the calibration errors before and after are in the table above",
        against_the_rest(run.calibration),
    )


def _reliability(title: str, curves: list[Curve], where: str, note: str = "") -> Figure:
    drawn = (_diagonal("perfect"), *(one for one in curves if len(one.points)))
    return Figure(
        title,
        drawn,
        "predicted probability",
        "observed share of positives",
        f"Reliability diagram: observed share of positives at each predicted probability; {where}",
        _UNIT,
        _UNIT,
        f"Studies in {CALIBRATION_BINS} bins of predicted probability; the larger a dot, the more "
        f"studies. Below the diagonal the model promises too much.{note}",
    )


def decision_curves(run: Run) -> Figure:
    """Return each label's net benefit beyond that of acting on all or on nobody."""
    assert run.counts is not None
    logits = bin_centres(run.counts.shape[-1])
    both = (run.counts.sum(axis=-1) > 0).all(axis=-1)
    curves = [Curve(points=np.array([[0.0, 0.0], [1.0, 0.0]]), color=MUTED, dash="3 4")]
    for turn, row in enumerate(np.flatnonzero(both)[:_MOST]):
        counts = run.counts[row]
        default = np.maximum(net_benefit_of_all(counts), 0.0)
        gain = net_benefit(counts, _told(run, run.labels[row], logits)) - default
        curves.append(curve(run.labels[row], THRESHOLDS.tolist(), gain.tolist(), 1 + turn))
    gains = np.concatenate([one.points[:, 1] for one in curves])
    pad = 0.01 + 0.05 * float(np.ptp(gains))
    return Figure(
        "What acting on it would gain",
        tuple(curves),
        "risk from which one would act",
        "net benefit gained",
        "Decision curves: net benefit of acting on the model beyond that of acting on everybody "
        "or nobody, by the risk from which one would act",
        _UNIT,
        (float(gains.min()) - pad, float(gains.max()) + pad),
        "Above 0 the model is of more use than acting on everybody and than acting on nobody "
        f"(Vickers and Elkin 2006).{against_the_rest(run.calibration)}",
    )


def _told(run: Run, label: str, logits: FloatArray) -> FloatArray:
    """Return the probabilities that hospitals are told: calibrated ones, if there are any.

    Those of classes before they are scaled to add up to 1.
    """
    if run.calibration is None:
        return sigmoid(logits)
    return run.calibration.labels[label].probabilities(logits)


def spending(budgets: Sequence[Budget]) -> Figure | None:
    """Return epsilon by round of each hospital, the first few of many, and the ceilings."""
    curves = [
        curve(one.site, list(one.spent), list(one.spent.values()), turn)
        for turn, one in enumerate(budgets[:_MOST])
    ]
    figure = _by_round("Epsilon released, by round", curves, "epsilon, composed so far")
    if figure is None:
        return None
    ceilings = sorted({one.ceiling for one in budgets if one.ceiling is not None})
    lines = [
        Curve(
            points=np.array([[end, ceiling] for end in figure.x_range]),
            color=MUTED,
            dash="3 4",
            name=f"ceiling {ceiling:g}",
        )
        for ceiling in ceilings
    ]
    top = 1.05 * max([figure.y_range[1], *ceilings])
    return Figure(
        figure.title,
        (*figure.curves, *lines),
        figure.x,
        figure.y,
        figure.alt,
        figure.x_range,
        (0.0, top),
        "Round 0: selection.",
    )
