"""Figures of subgroups over all sites, and how far they lie apart."""

from typing import Any

from medfusion.evaluation.kinds import measures_of
from medfusion.evaluation.subgroups import attributes_of
from server.federated_metrics import federated_metrics, summed
from server.run_state import Histograms, RunContext

FEWEST_IN_GAP = 10  # patients of a group: the figures of fewer follow chance


def subgroup_figures(context: RunContext, released: Histograms) -> dict[str, Any]:
    """Return the figures of each group of test patients, by feature and group.

    Parameters
    ----------
    released
        By site, what was released of the groups, [G, ...].

    Returns
    -------
    dict
        For each feature ``groups`` (of each ``patients``, as many as the best known label is
        known of, ``auroc_macro``, ``auroc`` by label and the task's headline figure) and ``gap``,
        the difference between the highest and the lowest headline figure, or ``auroc_macro`` where
        no group has one (boxes under privacy), over groups of `FEWEST_IN_GAP` patients or more.
        None where undefined; under privacy the counts are noised.
    """
    measures, noise = measures_of(context.task), context.last_sensitivity
    key, found, at = measures.headline.key, dict[str, Any](), 0
    for attribute in attributes_of(context.config.evaluation.subgroups, context.task):
        groups: dict[str, Any] = {}
        for group in attribute.groups:
            releases = {name: arrays[at] for name, arrays in released.items() if len(arrays)}
            at += 1
            if not releases:
                continue
            figures = federated_metrics(measures, releases, context.plans, sensitivity=noise)
            kept = {name: figures[name] for name in dict.fromkeys(("auroc_macro", "auroc", key))}
            total, spread = summed(releases, context.plans, sensitivity=noise)
            counts = measures.score_counts(total, noise=spread)
            seen = total[0, 0] if counts is None else counts.sum(axis=(1, 2)).max()
            groups[group] = {"patients": float(seen), **kept}
        found[attribute.feature] = {"groups": groups, "gap": _gap(list(groups.values()), key)}
    return found


def _gap(groups: list[dict[str, Any]], headline: str) -> float | None:
    large = [group for group in groups if group["patients"] >= FEWEST_IN_GAP]
    key = headline if any(group[headline] is not None for group in groups) else "auroc_macro"
    told = [group[key] for group in large if group[key] is not None]
    return max(told) - min(told) if len(told) > 1 else None
