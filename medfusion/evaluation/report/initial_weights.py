"""The report's words on what a run began from, which its epsilon does not count."""

from collections.abc import Mapping
from typing import Any

from medfusion.evaluation.report.wording import epsilon, number

_KINDS = {
    "torchvision": "a network in torchvision's format",
    "medfusion": "an earlier MedFusion model",
}


def initial_weights_in_words(card: Mapping[str, Any]) -> str:
    """Say where the initial weights came from; empty if the run drew all of them.

    Each model may have begun from another one: the card tells of all of them.
    """
    sources = []
    record = card.get("initial_weights")
    while record:
        sources.append(_source_in_words(record))
        record = record.get("initial_weights")
    if not sources:
        return ""
    return (
        f"The initial weights are those of {', which began from '.join(sources)}. They carry "
        "information on the people whose data they were trained on, and no figure of this run "
        "bounds it. A patient in both trainings pays for both."
    )


def _source_in_words(record: Mapping[str, Any]) -> str:
    kind = record.get("kind", "")
    text = f"{_KINDS.get(kind, 'an undescribed file')} (SHA-256 {record.get('sha256')}"
    if kind != "medfusion":
        return text + ")"
    if record.get("epsilon") is None:
        return text + "; it declares no epsilon)"
    simulated = "a simulated " if record.get("simulated") else ""
    return (
        f"{text}; its own run declares {simulated}epsilon {epsilon(record['epsilon'])}, "
        f"delta {number(record.get('delta'))})"
    )
