"""Recipes: named settings for a run, which fill what its ``config.toml`` leaves unset.

``[training] recipe = "private"`` stands for the settings below. A key that the config (or
``--set``) gives is never replaced; the resolved ``config.toml`` of the run folder shows them all,
and reads as the same run whatever the recipe comes to hold later.

``private``, for training whose every step is clipped and noised:

==========================  ==================================================================
setting                     why
==========================  ==================================================================
``training.batch_size``     The noise on the mean gradient falls with the batch faster than
                            sampling takes from its privacy [1]_: few steps on large batches.
                            A site with fewer patients takes them all, each step. What fits
                            into memory at once is the site's ``physical_batch``, not this.
``training.optimizer``      SGD without momentum. Adam divides by the root of a mean square that
                            under privacy is the noise's for the most part.
``training.learning_rate``  2, with the gradient over C: a step moves the weights by 2 at most,
                            before the noise.
``training.schedule``       A constant rate: averaging the rounds does what a falling one does.
``privacy.unit_norm``       The gradient over C [1]_: learning rates keep their meaning when C
                            is changed.
``privacy.max_grad_norm``   C, as chosen for logistic regression on fed-heart's training patients.
``server.ema``              Averages noise out of the last rounds' models [1]_, as
                            post-processing.
==========================  ==================================================================

Beside it, because they say what a model is or need data that a recipe cannot know of: weights
of convolutions are standardised always [1]_ [2]_; fixed features in place of learned ones are
``model.name = "logistic"`` with all modalities, or ``model.linear_path`` [3]_; a frozen public
trunk is ``model.init`` with ``model.frozen_stages`` [3]_; several views of each study are
``training.augmentation = "light"`` with ``training.views`` [1]_, at that many times the
computation.

References
----------
.. [1] De et al., "Unlocking high-accuracy differentially private image classification through
   scale", 2022, arXiv 2204.13650.
.. [2] Qiao et al., "Micro-batch training with batch-channel normalization and weight
   standardization", 2019, arXiv 1903.10520.
.. [3] Tramèr and Boneh, "Differentially private learning needs better features (or much more
   data)", ICLR 2021, arXiv 2011.11660.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from medfusion.errors import did_you_mean

_Settings = Mapping[str, Mapping[str, Any]]  # section -> key -> value

RECIPES: Mapping[str, _Settings] = MappingProxyType(
    {
        "private": {
            "training": {
                "batch_size": 1024,
                "optimizer": "sgd",
                "learning_rate": 2.0,
                "schedule": "constant",
            },
            "privacy": {"max_grad_norm": 1.0, "unit_norm": True},
            "server": {"ema": 0.9},
        },
    }
)


def check_recipe(name: str) -> str:
    """Return ``name`` if it is that of a recipe; raises `ValueError`."""
    if name not in RECIPES:
        raise ValueError(f"expected one of {', '.join(RECIPES)}" + did_you_mean(name, RECIPES))
    return name


def with_recipe(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config's content, as TOML gives it, with what its recipe says of unset keys.

    Where the config names another optimiser than the recipe does, the recipe's learning rate is
    not meant for it, and stays out. A content that names no recipe, or an unknown one, comes back
    as it is; so does a section that is no table. Validation has its say on those.

    Parameters
    ----------
    data
        Section -> key -> value; left as it is.
    """
    training = data.get("training")
    name = training.get("recipe") if isinstance(training, Mapping) else None
    recipe = RECIPES.get(name, {}) if isinstance(name, str) else {}
    filled = dict(data)
    for section, settings in recipe.items():
        given = filled.get(section, {})
        if isinstance(given, Mapping):
            filled[section] = {**_that_fit(settings, given), **given}
    return filled


def _that_fit(settings: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a section's settings, without the learning rate of an optimiser that is not used."""
    same = given.get("optimizer", settings.get("optimizer")) == settings.get("optimizer")
    return {key: value for key, value in settings.items() if same or key != "learning_rate"}
