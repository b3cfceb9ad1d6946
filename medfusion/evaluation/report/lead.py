"""How the report opens: what was trained, how good it is and what it cost, in a few sentences."""

from medfusion.evaluation.detection_measures import DetectionMeasures
from medfusion.evaluation.multiclass_measures import MulticlassMeasures
from medfusion.evaluation.regression_measures import RegressionMeasures
from medfusion.evaluation.report.quality import headline_interval, headline_of, unit_of
from medfusion.evaluation.report.run_folder import Run
from medfusion.evaluation.report.wording import (
    DASH,
    counted,
    duration,
    epsilon,
    interval,
    listed,
    number,
    score,
)

_CHANCE = 0.5  # AUROC of guessing


def key_figures(run: Run) -> list[tuple[str, str, str]]:
    """Return (name, figure, remark) for the head of the page."""
    summary, headline = run.summary, run.headline
    spent = [site["epsilon"] for site in summary["sites"].values() if site["epsilon"] is not None]
    simulated = "simulated" if spent and run.privacy.get("simulated") else ""
    cost = epsilon(max(spent)) if spent else DASH
    value = summary.get(headline.key)
    regression = isinstance(run.measures, RegressionMeasures)
    shown = f"{number(value)}{unit_of(run)}" if regression and value is not None else score(value)
    name = headline.name[:1].upper() + headline.name[1:]
    return [
        (name, shown, headline_interval(run)),
        *_second_figures(run),
        ("Largest epsilon", cost, simulated if spent else "no differential privacy"),
        ("Hospitals", number(len(run.trained)), ""),
        ("Training patients", number(_patients(run)), ""),
        ("Rounds", number(summary["rounds"]), f"in {duration(summary['seconds'])}"),
    ]


def _second_figures(run: Run) -> list[tuple[str, str, str]]:
    summary = run.summary
    if isinstance(run.measures, RegressionMeasures):
        return [("R2", score(summary["r2"]), "0: no better than the mean")]
    if isinstance(run.measures, DetectionMeasures):
        return [("Recall of boxes", score(summary["ar"]), "mean over IoU .5 to .95")]
    if isinstance(run.measures, MulticlassMeasures):
        return [("Balanced accuracy", score(summary["balanced_accuracy"]), "mean recall")]
    return [("Macro AUPRC", score(summary["auprc_macro"]), "mean over labels")]


def _patients(run: Run) -> int:
    return sum(run.summary["sites"][name]["patients"] for name in run.trained)


def in_words(run: Run) -> list[str]:
    """Return the sentences that open the report."""
    return [_who_trained(run), *_averaged(run), _how_well(run), *_privacy_in_words(run)]


def _who_trained(run: Run) -> str:
    model = run.card.get("model") or {}
    what = f"the model {model['name']}" if "name" in model else "one model"
    if model.get("modalities"):
        what += f" on {listed(model['modalities'])}"
    who = f"{counted(len(run.trained), 'hospital')} with {counted(_patients(run), 'patient')}"
    return (
        f"{who} trained {what} together in {counted(run.summary['rounds'], 'round')} "
        f"({duration(run.summary['seconds'])}), without pooling their data. {_purpose(run)}"
    )


def _purpose(run: Run) -> str:
    """Say what the model is asked."""
    names = run.labels
    few = listed(names) if len(names) <= 6 else f"{listed(names[:5])} and {len(names) - 5} more"
    if isinstance(run.measures, RegressionMeasures):
        return f"It predicts {few}{' in' + unit_of(run) if unit_of(run) else ''}."
    if isinstance(run.measures, DetectionMeasures):
        return f"It draws boxes around {few}."
    if isinstance(run.measures, MulticlassMeasures):
        return f"It tells which of {len(names)} classes a study is: {few}."
    return f"It tells how likely a study shows each of {counted(len(names), 'label')}: {few}."


def _averaged(run: Run) -> list[str]:
    ema = run.summary.get("ema", 0.0)
    if not ema:
        return []
    return [
        "The model that is evaluated and delivered is a running average of the models of all "
        f"rounds, in which each round counts {ema:g} times as much as the one after it."
    ]


def _how_well(run: Run) -> str:
    if isinstance(run.measures, RegressionMeasures):
        return _how_near(run)
    if isinstance(run.measures, DetectionMeasures) and run.summary["ap50"] is not None:
        return _how_well_boxes(run)
    known = {label: area for label, area in run.summary["auroc"].items() if area is not None}
    if not known:
        return (
            "No label has both positive and negative test patients that stand out from the noise, "
            "so no AUROC is defined."
            if run.noise
            else "No label has both positive and negative test patients, so no AUROC is defined."
        )
    macro = run.summary["auroc_macro"]
    text = (
        f"On test patients it ranks a patient with the label above one without it "
        f"{100 * macro:.0f} times in 100 (macro AUROC {macro:.3f}; 0.5 is chance, 1 perfect)"
    )
    if len(known) > 1:
        worst, best = min(known, key=lambda name: known[name]), max(known, key=known.__getitem__)
        text += f", from {known[worst]:.3f} for {worst} to {known[best]:.3f} for {best}"
    absent = [label for label in run.summary["auroc"] if label not in known]
    text += f". No AUROC is defined for {listed(absent)}" if absent else ""
    return f"{text}.{_caution(run)}"


def _caution(run: Run) -> str:
    """Say so where the test patients are too few to tell the model from chance."""
    figure = headline_of(run, run.total, run.noise) if run.total is not None else None
    if figure is None or figure.ci95 is None or figure.ci95[0] > _CHANCE:
        return ""
    return (
        f" The 95% interval of the mean, {interval(figure.ci95)}, includes chance: these test "
        "patients are too few to tell."
    )


def _how_well_boxes(run: Run) -> str:
    summary = run.summary
    return (
        f"On test patients the average precision of its boxes is {summary['ap50']:.3f} where a "
        "box counts that shares at least half of its union with a drawn one (IoU .5; 1 is "
        f"perfect), and {summary['ap']:.3f} over stricter overlaps up to .95. It finds "
        f"{100 * summary['ar50_iobb']:.0f} of 100 drawn boxes at least by half of the predicted "
        "box's area."
    )


def _how_near(run: Run) -> str:
    summary, (name,) = run.summary, run.labels
    if summary["mae"] is None:
        return f"{name} is known of too few test patients for a figure."
    text = (
        f"On test patients its prediction of {name} is {number(summary['mae'])}{unit_of(run)} off "
        "on average (mean absolute error)"
    )
    if summary["r2"] is not None:
        text += f"; R2 {summary['r2']:.3f} (0: no better than the test patients' mean; 1: perfect)"
    return text + "."


def _privacy_in_words(run: Run) -> list[str]:
    sites = run.summary["sites"]
    spent = {name: site["epsilon"] for name, site in sites.items() if site["epsilon"] is not None}
    if not spent:
        return ["It was trained without differential privacy: no epsilon bounds what it reveals."]
    name = max(sorted(spent), key=lambda site: spent[site])
    text = (
        f"The largest privacy cost is epsilon {spent[name]:.2f} at {name} "
        f"(delta {number(sites[name]['delta'])})"
    )
    if run.privacy.get("simulated"):
        text += ", simulated: in a deployment each hospital would charge it to its own budget"
    if run.card.get("initial_weights"):
        text += ". It does not cover what the initial weights were trained on"
    return [text + "."]
