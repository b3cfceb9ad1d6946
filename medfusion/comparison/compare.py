"""Runs a comparison: every arm, seed and fold, in a folder that remembers what is done."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from medfusion.atomic_files import unfinished, write_json
from medfusion.comparison.arms import Arm
from medfusion.comparison.results import Rows, Truth, compare_json, headline_of
from medfusion.comparison.trials import (
    FoldData,
    Trial,
    deal_folds,
    scores_by_site,
    scores_of,
    trials_of,
)
from medfusion.data.site_data import SiteData
from medfusion.errors import UsageError

RESULT = "compare.json"
PAGE = "compare.html"


FinishAll = Callable[[Sequence[Trial]], Iterable[Trial]]
"""Finishes runs, in any order, and yields each when it is done."""


class Observer(Protocol):
    """Hears how a comparison proceeds."""

    def trial_done(self, trial: Trial) -> None:
        """Note that a run is finished, now or earlier."""

    def arm_done(self, index: int, arm: Arm, figure: float | None) -> None:
        """Note that all runs of an arm are; ``figure`` is its headline, within folds."""


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """Everything that will run, known before anything does.

    Attributes
    ----------
    trials
        For each arm and seed, the runs in the order in which their scores are put together.
    """

    arms: tuple[Arm, ...]
    folds: int | None
    seeds: int
    truth: Truth
    trials: tuple[tuple[tuple[Trial, ...], ...], ...]

    @classmethod
    def plan(
        cls, arms: Sequence[Arm], sites: Sequence[SiteData], *, seeds: int, folds: int | None
    ) -> Self:
        """Lay out the runs of ``arms`` over ``sites``.

        Seeds count up from the config's own. With ``folds``, each patient is tested once;
        without, the test part of the sites' own split is used.

        Raises
        ------
        DataError
            If the sites do not share one task.
        """
        dealt = deal_folds(sites, folds)
        trials = tuple(
            tuple(_trials(arm, arm.config.run.seed + extra, dealt) for extra in range(seeds))
            for arm in arms
        )
        return cls(tuple(arms), folds, seeds, Truth.of(dealt), trials)

    @property
    def distinct_trials(self) -> dict[str, Trial]:
        """The runs by name; arms may share some."""
        return {t.name: t for arm in self.trials for seed in arm for t in seed}

    def run(self, finish_all: FinishAll, out: Path, observer: Observer) -> dict[str, Any]:
        """Finish every run and write ``compare.json``, which is also returned.

        Raises
        ------
        MedFusionError
            What stopped a run. Finished runs are kept.
        """
        out.mkdir(parents=True, exist_ok=True)
        for name in (RESULT, PAGE):
            (out / name).unlink(missing_ok=True)  # an earlier comparison in this folder
        scores: list[NDArray[np.float32]] = []
        done: set[str] = set()
        for trial in finish_all(list(self.distinct_trials.values())):
            done.add(trial.name)
            observer.trial_done(trial)
            while len(scores) < len(self.arms) and self._names(len(scores)) <= done:
                index = len(scores)
                scores.append(self._scores(index, out))
                observer.arm_done(index, self.arms[index], headline_of(scores[-1], self.truth))
        result = compare_json(
            self.arms,
            np.stack(scores),
            self.truth,
            seeds=self.seeds,
            folds=self.folds,
            crossed={i: self._crossed(i, out) for i in self._local_arms},
        )
        write_json(out / RESULT, result, durable=False)
        return result

    @property
    def _local_arms(self) -> list[int]:
        return [index for index, arm in enumerate(self.arms) if arm.regime == "local"]

    def _crossed(self, arm: int, out: Path) -> Rows:
        """Return the outputs [S, N, W] of each site's own models at every site, by its name."""
        seeds = []
        for trials in self.trials[arm]:
            names = list(dict.fromkeys(trial.sites[0].name for trial in trials))
            found = [(trial.sites[0].name, scores_by_site(trial, out=out)) for trial in trials]
            seeds.append(
                {
                    home: np.concatenate(
                        [tested[name] for own, tested in found if own == home for name in names]
                    )
                    for home in names
                }
            )
        return {home: np.stack([seed[home] for seed in seeds]) for home in seeds[0]}

    def _names(self, arm: int) -> set[str]:
        return {trial.name for trials in self.trials[arm] for trial in trials}

    def _scores(self, arm: int, out: Path) -> NDArray[np.float32]:
        """Return an arm's outputs [S, N, W]."""
        seeds = [[scores_of(trial, out=out) for trial in trials] for trials in self.trials[arm]]
        return np.stack([np.concatenate(parts) for parts in seeds])


def _trials(arm: Arm, seed: int, folds: Sequence[FoldData]) -> tuple[Trial, ...]:
    return tuple(trial for fold in folds for trial in trials_of(arm, seed, fold))


def check_folder(out: Path) -> None:
    """Refuse a folder that holds anything but a comparison; raises `UsageError`."""
    if not out.exists():
        return
    ours = {*(out / name for name in (RESULT, PAGE, "runs", "cache"))}
    ours |= {*unfinished(out / RESULT), *unfinished(out / PAGE)}
    if not out.is_dir() or set(out.iterdir()) - ours:
        raise UsageError(f"{out}: exists and is not a comparison's folder; choose another --out")
