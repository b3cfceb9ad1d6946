"""Section ``[privacy]`` of a run."""

from math import isclose
from typing import Self

from pydantic import Field, model_validator

from medfusion.options import Options


class Shares(Options):
    """How a site's epsilon is shared out; what a run does not release gives its share back."""

    selection: float = Field(default=0.1, gt=0, lt=1)
    training: float = Field(default=0.8, gt=0, lt=1)
    metrics: float = Field(default=0.1, gt=0, lt=1)

    @model_validator(mode="after")
    def _sums_to_one(self) -> Self:
        total = self.selection + self.training + self.metrics
        if not isclose(total, 1.0, abs_tol=1e-6):
            raise ValueError(f"expected shares that sum to 1, found {total:g}")
        return self


class PrivacyOptions(Options):
    """Patient-level differential privacy of a run, at each site.

    ``target_epsilon`` has no bounds here, because what is possible depends on the site's
    patients and on the run's steps: `medfusion.privacy.plan.make_plan` refuses an impossible
    one and names the nearest that is possible.

    Attributes
    ----------
    max_grad_norm
        C, the largest L2 norm of one patient's contribution to a step.
    clip_quantile
        Share of patients whose gradients are to stay unclipped: C follows it from step to step,
        privately and at no further epsilon, and begins each round at ``max_grad_norm`` (see
        `medfusion.privacy.adaptive_norm`). Unset: C stays.
    unit_norm
        Divide the noised mean gradient by C [1]_: one patient then moves it by at most 1 over
        the expected batch whatever C is, so that C and the learning rate are chosen apart.
        After the noise, it costs nothing. AdamW divides by the gradient's size anyway: there it
        changes next to nothing.

    References
    ----------
    .. [1] De et al., "Unlocking high-accuracy differentially private image classification
       through scale", 2022, arXiv 2204.13650.
    """

    enabled: bool = True
    target_epsilon: float = 8.0
    shares: Shares = Shares()
    max_grad_norm: float = Field(default=1.0, gt=0)
    clip_quantile: float | None = Field(default=None, gt=0, lt=1)
    unit_norm: bool = False


class ClientDpOptions(Options):
    """Section ``[server.client_dp]``: differential privacy of whole sites (`server.client_dp`).

    Attributes
    ----------
    clip
        Largest L2 norm of a site's update in a round.
    noise_multiplier
        Standard deviation of the noise on the sum of the updates, over ``clip``.
    delta
        Of the epsilon that is reported for the run.
    """

    clip: float = Field(gt=0)
    noise_multiplier: float = Field(gt=0)
    delta: float = Field(default=1e-5, gt=0, lt=1)
