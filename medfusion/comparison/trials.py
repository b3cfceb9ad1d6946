"""The runs behind an arm: one for each seed, fold and, in the local regime, site.

A trial's folder is named after everything that its result depends on. A finished one is
therefore never run again, an unfinished one is resumed, and arms that ask for the same run
(a pooled node under two strategies) share it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from medfusion.atomic_files import replacing
from medfusion.comparison.arms import Arm
from medfusion.config import RunConfig, config_text
from medfusion.data.image_files import image_files
from medfusion.data.site_data import SiteData, pool
from medfusion.data.split import TEST, Fold, split_of
from medfusion.digests import sha256_of
from medfusion.errors import DataError, MedFusionError
from medfusion.models.local_files import local_files_sha256
from medfusion.models.saved import PERSONAL, load_model
from medfusion.scoring import score_part

_DIGEST_CHARACTERS = 16
_SCORES = "logits.npy"
DELIVERED = "delivered"


class Runner(Protocol):
    """Runs a federation of ``sites``; leaves ``model/`` and ``summary.json`` in ``out``.

    Where each site selects its own features or makes the model its own, ``delivered/NAME`` holds
    the model as the site uses it, its own one under ``personal``; the folder appears whole, after
    ``summary.json``.

    ``config_path`` is the resolved config on disk; ``cache / NAME`` holds the decoded images of
    a site, for all runs. Called again for an unfinished ``out``, it resumes.
    """

    def __call__(
        self,
        config: RunConfig,
        sites: Sequence[SiteData],
        *,
        config_path: Path,
        out: Path,
        cache: Path,
    ) -> None:
        """Run, or resume."""


@dataclass(frozen=True, eq=False, repr=False)
class FoldData:
    """The sites with the split of one fold (or their usual one), and all of them as one."""

    fold: Fold | None
    sites: tuple[SiteData, ...]
    pooled: SiteData
    digests: dict[str, str]


@dataclass(frozen=True, eq=False, repr=False)
class Trial:
    """One run: ``sites`` take part, and the test studies of each are scored in their order.

    ``personal`` scores each site's with the model that it made its own.

    ``arm`` says in words which arm (the first, if several share the run) it belongs to.
    ``elsewhere`` are sites that take no part and are tested too, each with its data's digest.
    """

    name: str
    arm: str
    config: RunConfig
    sites: tuple[SiteData, ...]
    personal: bool = False
    elsewhere: tuple[tuple[SiteData, str], ...] = ()


def deal_folds(sites: Sequence[SiteData], count: int | None) -> list[FoldData]:
    """Split the sites' studies into ``count`` folds; None: the one split that they have.

    Raises
    ------
    DataError
        If the sites do not share one task.
    """
    content = {site.name: _content_sha256(site) for site in sites}
    folds = [Fold(index, count) for index in range(count)] if count else [None]
    return [_fold_data(sites, fold, content) for fold in folds]


def _fold_data(sites: Sequence[SiteData], fold: Fold | None, content: dict[str, str]) -> FoldData:
    dealt = tuple(site if fold is None else _resplit(site, fold) for site in sites)
    digests = {
        site.name: sha256_of((content[site.name].encode(), site.split.tobytes())) for site in dealt
    }
    pooled = pool(dealt, name="pooled", state=dealt[0].state)
    return FoldData(fold, dealt, pooled, digests)


def _resplit(site: SiteData, fold: Fold) -> SiteData:
    split = split_of(site.studies, site_name=site.name, rule=site.task.split, fold=fold)
    return replace(site, split=split)


def trials_of(arm: Arm, seed: int, data: FoldData) -> Iterator[Trial]:
    """Yield an arm's runs for one seed and fold, in the order of the sites they score.

    Raises
    ------
    ConfigError
        If the file in ``model.init`` is not here, a file under ``init`` or ``text.encoder``
        cannot be read, or the task lacks a modality that the model asks for.
    """
    run = arm.config.run.model_copy(update={"seed": seed})
    config = arm.config.model_copy(update={"run": run})
    files = local_files_sha256(config.model, data.pooled.task)  # the config only names them
    groups: list[tuple[str, tuple[SiteData, ...], list[str]]]
    if arm.regime == "local":
        groups = [(f"local-{s.name}", (s,), [data.digests[s.name]]) for s in data.sites]
    else:
        members = (data.pooled,) if arm.regime == "pooled" else data.sites
        groups = [(arm.regime, members, list(data.digests.values()))]
    fold = [f"fold{data.fold.index + 1}of{data.fold.count}"] if data.fold else []
    for group, taking_part, digests in groups:
        parts = (group, config_text(config), *digests, files)
        content = sha256_of(part.encode() for part in parts)
        name = "-".join([group, f"seed{seed}", *fold, content[:_DIGEST_CHARACTERS]])
        own = {site.name for site in taking_part}
        others = [s for s in data.sites if arm.regime == "local" and s.name not in own]
        yield Trial(
            name,
            str(arm),
            config,
            taking_part,
            personal=arm.regime == "personalised",
            elsewhere=tuple((site, data.digests[site.name]) for site in others),
        )


def finish(trial: Trial, runner: Runner, *, out: Path) -> None:
    """Run the trial and score its test studies, as far as that is not done.

    Raises
    ------
    MedFusionError
        What stopped the run, headed by the arm and the run's name.
    """
    folder, cache = out / "runs" / trial.name, out / "cache"
    lacking = [path for path in _score_paths(trial, folder) if not path.exists()]
    if not lacking:
        return
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if not _has_run(trial, folder):
            path = folder / "config.toml"
            path.write_text(config_text(trial.config), encoding="utf-8")
            runner(trial.config, trial.sites, config_path=path, out=folder, cache=cache)
        for path in lacking:
            _write_scores(path, _score(trial, folder, cache, _score_paths(trial, folder)[path]))
    except MedFusionError as error:
        raise type(error)(f"arm ({trial.arm}), run {trial.name}: {error}") from error


def _score_paths(trial: Trial, folder: Path) -> dict[Path, SiteData | None]:
    """Return where scores belong: of the sites that take part (None), and of each other one."""
    digests = [(site, digest[:_DIGEST_CHARACTERS]) for site, digest in trial.elsewhere]
    others = {folder / f"logits-{site.name}-{digest}.npy": site for site, digest in digests}
    return {folder / _SCORES: None, **others}


def _write_scores(path: Path, scores: NDArray[np.float32]) -> None:
    with replacing(path, durable=True) as partial, partial.open("wb") as file:
        np.save(file, scores, allow_pickle=False)


def _has_run(trial: Trial, folder: Path) -> bool:
    delivered = (folder / DELIVERED).is_dir() or not sites_differ(trial.config)
    return delivered and (folder / "summary.json").exists()


def sites_differ(config: RunConfig) -> bool:
    """Whether each site uses a model of its own: with features or weights that it chose itself."""
    return _uses_delivered(config) or config.personalisation.steps > 0


def _uses_delivered(config: RunConfig) -> bool:
    """Whether the delivered model is another one at each site."""
    return config.selection.method == "local" or config.personalisation.local != "none"


def scores_of(trial: Trial, *, out: Path) -> NDArray[np.float32]:
    """Return the logits [N, L] of a finished trial's test studies."""
    logits: NDArray[np.float32] = np.load(out / "runs" / trial.name / _SCORES, allow_pickle=False)
    return logits


def scores_by_site(trial: Trial, *, out: Path) -> dict[str, NDArray[np.float32]]:
    """Return the logits of a finished local trial at every site, by the site's name."""
    (home,) = trial.sites
    paths = _score_paths(trial, out / "runs" / trial.name)
    return {
        (home if site is None else site).name: np.load(path, allow_pickle=False)
        for path, site in paths.items()
    }


def _score(
    trial: Trial, folder: Path, cache: Path, elsewhere: SiteData | None
) -> NDArray[np.float32]:
    """Score the test studies of each site that takes part, or those of another one."""
    if elsewhere is not None:
        (home,) = trial.sites
        return _score_at(elsewhere, _model_of(trial, home, folder), cache)
    parts = [_score_at(site, _model_of(trial, site, folder), cache) for site in trial.sites]
    return np.concatenate(parts)


def _model_of(trial: Trial, site: SiteData, folder: Path) -> Path:
    """Return the folder of the model that a site uses."""
    if trial.personal:
        return folder / DELIVERED / site.name / PERSONAL
    return folder / DELIVERED / site.name if _uses_delivered(trial.config) else folder / "model"


def _score_at(site: SiteData, model: Path, cache: Path) -> NDArray[np.float32]:
    return score_part(load_model(model), site, TEST, cache=cache / site.name).logits


def _content_sha256(site: SiteData) -> str:
    """Hash what a run reads of a site, the split apart; images by name and size."""
    studies = site.studies
    images = [f"{path}:{_sizes(path)}" if path else "" for path in studies.images]
    described = (site.task.sha256.encode(), site.config.model_dump_json().encode())
    return sha256_of((*described, *studies.content(images)))


def _sizes(path: Path) -> str:
    """Return the size of an image's file, or of a folder's files with their names."""
    try:
        sizes = {file: file.stat().st_size for file in image_files(path)}
    except (OSError, DataError):
        return "-1"  # unreadable since the table was read: the run will say so
    return "/".join(
        str(size) if file == path else f"{file.name}:{size}" for file, size in sizes.items()
    )
