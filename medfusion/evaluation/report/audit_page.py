"""Writes what an audit found as one HTML file that works offline."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from medfusion.evaluation.report.page import render_page
from medfusion.evaluation.report.svg import (
    DASHES,
    MUTED,
    PALETTE,
    Curve,
    Range,
    line_chart,
    png_uri,
)
from medfusion.evaluation.report.wording import listed, number
from medfusion.privacy.audit.attacks import Floats, Inversion, Membership
from medfusion.privacy.audit.claims import Claim
from medfusion.privacy.audit.run import PlanAudit

_PRIVATE, _OPEN = PALETTE[0], PALETTE[1]
_BINS = 48


@dataclass(frozen=True, kw_only=True)
class AuditFindings:
    """All that the page shows.

    Attributes
    ----------
    run
        Name of the run.
    simulated
        Whether the run drew its noise from its public seed.
    audits
        Each claim with what its canary run found.
    attacked
        The claim whose plan the two attacks used.
    membership, inversion
        Under that plan, then without privacy.
    """

    run: str
    simulated: bool
    audits: Sequence[tuple[Claim, PlanAudit]]
    attacked: Claim
    membership: tuple[Membership, Membership]
    inversion: tuple[Inversion, Inversion]


def build_audit_page(folder: Path, findings: AuditFindings) -> Path:
    """Write ``audit.html`` into a run folder and return its path."""
    return render_page("audit.html.j2", _content(findings), folder / "audit.html")


def verdict_in_words(claim: Claim, audit: PlanAudit) -> str:
    """Say what the figures of one claim mean."""
    if claim.understated:
        return (
            f"broken: the plan costs epsilon {claim.accounted:.3g}, more than the claimed "
            f"{claim.epsilon:.3g}"
        )
    if audit.replayed:
        return f"broken: the noise can be replayed from a public value ({audit.replayed})"
    return {
        "refuted": "broken: the attack succeeds more often than the claim allows",
        "not refuted": "not refuted",
        "cannot tell": (
            "cannot tell: even an attack without an error could not refute this claim with "
            f"{audit.canaries:,} canaries"
        ),
    }[audit.verdict]


def score_chart(audit: PlanAudit) -> Markup:
    """Return how the attacker's scores spread, for canaries that took part and that did not."""
    low, high = float(audit.scores.min()), float(audit.scores.max())
    high = high if high > low else low + 1.0
    edges = np.linspace(low, high, _BINS + 1)
    groups = (
        ("did not take part", ~audit.included, MUTED),
        ("took part", audit.included, _PRIVATE),
    )
    heights = [np.histogram(audit.scores[chosen], edges)[0] for _, chosen, _ in groups]
    curves = [
        Curve(points=_outline(edges, height), color=color, name=name, filled=True)
        for (name, _, color), height in zip(groups, heights, strict=True)
    ]
    top = 1.05 * max(float(height.max()) for height in heights)
    return line_chart(
        curves,
        x="what the releases hold on the canary's coordinate, in clipping norms",
        y="canaries",
        x_range=(low, high),
        y_range=(0.0, top),
        alt="Histograms of the attacker's scores for canaries that took part and that did not",
    )


def roc_chart(private: Membership, plain: Membership) -> Markup:
    """Return the attack's ROC curves under the plan and without privacy."""
    unit: Range = (0.0, 1.0)
    curves = [
        Curve(points=np.array([[0.0, 0.0], [1.0, 1.0]]), color=MUTED, dash="3 4"),
        Curve(
            points=np.stack(private.roc(), axis=1),
            color=_PRIVATE,
            name=f"with the plan, AUROC {private.auroc:.2f}",
        ),
        Curve(
            points=np.stack(plain.roc(), axis=1),
            color=_OPEN,
            dash=DASHES[1],
            name=f"without privacy, AUROC {plain.auroc:.2f}",
        ),
    ]
    return line_chart(
        curves,
        x="share of others taken for members",
        y="share of members recognised",
        x_range=unit,
        y_range=unit,
        alt=f"ROC curves of the attack: AUROC {private.auroc:.2f} with the plan, "
        f"{plain.auroc:.2f} without privacy",
    )


def _outline(edges: Floats, heights: np.ndarray) -> Floats:
    """Return a histogram as a polygon [2 n + 2, 2] that starts and ends at zero."""
    x = np.repeat(edges, 2)
    y = np.concatenate([[0], np.repeat(heights, 2), [0]])
    return np.stack([x, y], axis=1).astype(np.float64)


def _content(findings: AuditFindings) -> dict[str, Any]:
    """Return what the template shows."""
    private, plain = findings.membership
    rows = [
        {
            "sites": listed(claim.sites),
            "figures": (
                number(claim.epsilon),
                number(claim.plan.delta),
                number(claim.accounted),
                f"{audit.guesses.bound:.2f}",
                f"{audit.largest:.2f}",
                f"{audit.guesses.right} of {audit.guesses.guessed_in + audit.guesses.guessed_out}",
            ),
            "verdict": verdict_in_words(claim, audit),
        }
        for claim, audit in findings.audits
    ]
    charts = [
        (f"Canaries at {listed(claim.sites)}", score_chart(audit))
        for claim, audit in findings.audits
    ]
    return {
        "findings": findings,
        "first": findings.audits[0][1],
        "rows": rows,
        "charts": charts,
        "roc": roc_chart(private, plain),
        "strips": _strips(*findings.inversion),
        "attacked": listed(findings.attacked.sites),
    }


def _strips(private: Inversion, plain: Inversion) -> list[tuple[str, list[str]]]:
    """Return rows of images: the originals, and what either update gives back."""
    rows: list[tuple[str, list[str]]] = [
        ("the patient's image", [png_uri(image, -1.0, 1.0) for image in plain.images])
    ]
    for name, attack in (("without privacy", plain), ("with the plan", private)):
        mean = float(np.mean(attack.correlation))
        images = []
        for image in attack.recovered:
            # Each copy gets the greys that show most of it, as an attacker would choose.
            low, high = np.quantile(image, [0.01, 0.99])
            images.append(png_uri(image, float(low), float(high)))
        rows.append((f"read from the update {name} (correlation {mean:.2f})", images))
    return rows
