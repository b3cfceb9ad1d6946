"""The report's words and plans of privacy: what epsilon covers, and what it means."""

import math
from typing import Any

from medfusion.evaluation.report.run_folder import Run
from medfusion.evaluation.report.table import Table, table
from medfusion.evaluation.report.wording import counted, epsilon, listed, number


def plans(run: Run) -> dict[str, dict[str, Any]]:
    """Return each site's privacy plan, by name."""
    return dict(sorted((run.privacy.get("sites") or {}).items()))


def privacy_covers(run: Run) -> str:
    """Say which releases the epsilon covers."""
    found = plans(run).values()
    covered = []
    if any(plan["selection_noise"] for plan in found):
        covered.append("the selection of features (noised histograms)")
    covered.append("every training step (clipped and noised gradients of sampled patients)")
    releases = max((plan["metrics_releases"] for plan in found), default=0)
    if releases:
        what = f"noised {run.measures.released}, {counted(releases, 'release')}"
        covered.append(f"the metrics in this report ({what})")
    return (
        f"Each hospital's epsilon covers {listed(covered)}, together. The unit is the patient: "
        "it bounds what anyone who sees everything that left the hospital in this run can learn "
        "about one patient's whole record there. Other runs add to it: medfusion privacy SITE. A "
        "patient known to several hospitals pays the sum."
    )


def largest_right_share(epsilon: float, delta: float) -> float:
    """Return how often, at most, a guess is right whether one patient took part.

    Of a guesser to whom both are equally likely beforehand, from all that was released:
    (e^epsilon + delta) / (e^epsilon + 1), after Kairouz, Oh and Viswanath (*The composition
    theorem for differential privacy*, ICML 2015, theorem 2.1).
    """
    return (1.0 + delta * math.exp(-epsilon)) / (1.0 + math.exp(-epsilon))


def privacy_means(run: Run) -> str:
    """Say in words what the largest epsilon promises a patient; empty without one."""
    found = plans(run)
    if not found:
        return ""
    worst = max(found.values(), key=lambda plan: plan["epsilon"])
    share = largest_right_share(worst["epsilon"], worst["delta"])
    return (
        "What that means: whoever sees all that left a hospital in this run, knows everything "
        "else about a patient, and holds it for equally likely that this patient's record was "
        "used or not, "
        f"guesses right at most {_percent(share)} of the time (a coin: 50%). That bounds every "
        f"attack at epsilon {epsilon(worst['epsilon'])}, however clever; medfusion audit measures "
        "how far some known ones get."
    )


def _percent(share: float) -> str:
    """Write a share without rounding it up to certainty."""
    digits = 1 if share < 0.995 else 2
    return f"{min(100 * share, 99.99):.{digits}f}%"


_PLAN_COLUMNS = {
    "patients_public": "Patients declared",
    "sample_rate": "Sample rate",
    "expected_batch": "Expected batch",
    "steps_per_round": "Steps per round",
    "rounds": "Rounds",
    "max_grad_norm": "Clip norm",
    "noise_multiplier": "Training noise",
    "selection_noise": "Selection noise",
    "metrics_noise": "Metrics noise",
    "metrics_releases": "Metrics releases",
}


def privacy_table(run: Run) -> Table:
    """Return each site's plan; noise is in multiples of the sensitivity."""
    rows = [
        (
            name,
            epsilon(plan["epsilon"]),
            number(plan["delta"]),
            *(number(plan[key]) for key in _PLAN_COLUMNS),
        )
        for name, plan in plans(run).items()
    ]
    head = ("Hospital", "Epsilon", "Delta", *_PLAN_COLUMNS.values())
    return table("Plans", head, rows, words=1)
