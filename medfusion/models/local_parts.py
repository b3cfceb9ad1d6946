"""Parameters that a hospital keeps for itself: the head of FedPer, the norms of FedBN.

``head`` keeps what belongs to single labels, the read-outs and their constants (FedPer [1]_, and
FedRep [2]_ if it trains in turn with the rest, `medfusion.training.turns`). ``norms`` keeps scale
and offset of every normalisation layer (FedBN [3]_, with the norms that there are in place of batch
norms). They train inside the clip and the noise of the same steps as all else, and never travel.

References
----------
.. [1] Arivazhagan et al., "Federated learning with personalization layers", 2019,
   arXiv 1912.00818.
.. [2] Collins et al., "Exploiting shared representations for personalized federated learning",
   ICML 2021, arXiv 2102.07078.
.. [3] Li et al., "FedBN: federated learning on non-IID features via local batch normalization",
   ICLR 2021, arXiv 2102.07623.
"""

from torch import nn

from medfusion.errors import ConfigError
from medfusion.models.contract import Model, trainable_state
from medfusion.models.label_rows import label_rows
from medfusion.training.personalisation_options import LocalPart

_NORMS = (nn.LayerNorm, nn.GroupNorm)


def local_parts(model: Model, kept: LocalPart) -> frozenset[str]:
    """Return the names of the trained parameters that stay at each site.

    Raises
    ------
    ConfigError
        If the model has none of the kind, or nothing but these.
    """
    if kept == "none":
        return frozenset()
    trained = trainable_state(model)
    if kept == "head":
        names = label_rows(model)
    else:
        modules = [m for m in model.modules() if isinstance(m, _NORMS)]
        ids = {id(value) for module in modules for value in module.parameters()}
        names = frozenset(name for name, value in trained.items() if id(value) in ids)
    if not names or len(names) == len(trained):
        what = "nothing to keep" if not names else "nothing to share beside it"
        raise ConfigError(f"personalisation.local = {kept!r}: this model has {what}")
    return names
