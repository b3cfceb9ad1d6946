"""Section ``[selection]`` of a run."""

from typing import Literal

from pydantic import Field

from medfusion.options import Options


class SelectionOptions(Options):
    """How features are chosen: over all sites' histograms, at each site alone, or not at all.

    ``top_n`` features are kept for each label; the model sees their union.
    """

    method: Literal["federated", "local", "none"] = "federated"
    top_n: int = Field(default=8, ge=1)
