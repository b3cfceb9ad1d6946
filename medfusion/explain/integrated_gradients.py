"""Integrated gradients [1]_: what each column, token and voxel adds to a label's score.

They add up to the score minus that of a baseline.

- Columns: the baseline has the middle of every public range, no category, and indicators of 0;
  what is missing or not selected stays so. (Where a missing flag changes, a network jumps, and
  gradients along a path say nothing of a jump.)
- Tokens: the baseline has the encoder's padding in every token's place, and as many of them.
- Pixels and voxels, of HyperFusion: the baseline is black, 0 after the rule of intensities, with
  which volumes are filled up. (From grey, in the middle of the range, nothing would enter the
  first norm, after which next to nothing would look like all.) A linear path keeps the features of
  the whole image, which have one length and so jump where the first of it appears.

Shapes: B batch, L labels, K columns, V values of a column, T tokens, S width of an embedding, [...]
two or three axes of space.

References
----------
.. [1] Sundararajan et al., "Axiomatic attribution for deep networks", ICML 2017, arXiv 1703.01365.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from captum.attr import IntegratedGradients
from torch import Tensor

from medfusion.data.encode import FIRST_INDICATOR, VALUE
from medfusion.explain.scores import ScoresOf, as_in_use, image_read_once, reads_image_anew
from medfusion.models.blocks.text_encoder import TextEncoder
from medfusion.models.contract import Model
from medfusion.models.hyperfusion import HyperFusion

STEPS = 32  # of the path, placed by Gauss and Legendre
IMAGE_STEPS = 64  # the same for images, along which ReLUs and maxima change places
BLACK = -1.0  # as models see it
_AT_ONCE = 128  # studies times steps, at most


def neutral_columns(x_BKV: Tensor) -> Tensor:
    """Return the baseline of tabular inputs: nothing known of what is not missing."""
    neutral = x_BKV.clone()
    neutral[..., VALUE] = 0.0
    neutral[..., FIRST_INDICATOR:] = 0.0
    return neutral


def column_attributions(
    model: Model,
    inputs: dict[str, Tensor],
    *,
    exclusive: bool = False,
    steps: int = STEPS,
    images_at_once: int = _AT_ONCE,
) -> Tensor:
    """Return what each column adds to each label's score, [B, L, K].

    ``exclusive``: see `medfusion.explain.scores.ScoresOf`. Where every step reads the image again,
    it reads no more than ``images_at_once``, but a whole batch.
    """
    at_once = _rows_at_once(model, images_at_once)
    with as_in_use(model), image_read_once(model, inputs) as read:
        scores = ScoresOf(model, read, "tabular", exclusive=exclusive)
        baseline = neutral_columns(scores.changed)
        found = _integrate(scores, scores.changed, baseline, scores.others, steps, at_once)
    return found.sum(dim=-1)


def token_attributions(
    model: Model,
    inputs: dict[str, Tensor],
    *,
    exclusive: bool = False,
    steps: int = STEPS,
    images_at_once: int = _AT_ONCE,
) -> Tensor:
    """Return what each token's embedding adds to each label's score, [B, L, T]; padding adds 0.

    Gradients pass through the whole encoder, frozen or not. The rest is as above.
    """
    tokens_BT, encoder = inputs["tokens"], model.text_encoder
    assert isinstance(encoder, TextEncoder)
    table = encoder.encoder.get_input_embeddings()
    with torch.no_grad():
        x = table(encoder.vocabulary_ids(tokens_BT))
        baseline = table(encoder.vocabulary_ids(torch.zeros_like(tokens_BT)))
    with as_in_use(model), _open(encoder), image_read_once(model, inputs) as read:
        scores = ScoresOf(model, read, "tokens", exclusive=exclusive)

        def from_embeddings(embedded_BTS: Tensor, *others: Tensor) -> Tensor:
            hook = table.register_forward_hook(lambda *_: embedded_BTS)
            try:
                return scores(*others)
            finally:
                hook.remove()

        others, at_once = (tokens_BT, *scores.others), _rows_at_once(model, images_at_once)
        found = _integrate(from_embeddings, x, baseline, others, steps, at_once)
    return found.sum(dim=-1)


def image_attributions(
    model: HyperFusion,
    inputs: dict[str, Tensor],
    labels: Sequence[int],
    *,
    exclusive: bool = False,
    steps: int = IMAGE_STEPS,
    images_at_once: int = _AT_ONCE,
) -> tuple[Tensor, Tensor]:
    """Return what each place adds to the score of each of ``labels``, [B, labels, ...].

    And what it should add up to, [B, labels]: the score minus that of a black image. The rest is
    as above.
    """
    held = dict(inputs)
    if model.linear is not None and "image_features" not in held:
        with torch.no_grad():
            held["image_features"] = model.linear.features(inputs["image"])
    scores = ScoresOf(model, held, "image", exclusive=exclusive, held=True)
    x, others = scores.changed, scores.others
    black = torch.full_like(x, BLACK)
    at_once = _rows_at_once(model, images_at_once)
    with as_in_use(model):
        with torch.no_grad():
            change = (scores(x, *others) - scores(black, *others))[:, list(labels)]
        found = _integrate(scores, x, black, others, steps, at_once, labels)
    return found.sum(dim=2), change


def _rows_at_once(model: Model, images_at_once: int) -> int:
    """Return how many studies times steps pass at once: whole images take the most memory."""
    return min(_AT_ONCE, images_at_once) if reads_image_anew(model) else _AT_ONCE


def _integrate(
    function: Callable[..., Tensor],
    x: Tensor,
    baseline: Tensor,
    others: tuple[Tensor, ...],
    steps: int,
    at_once: int,
    labels: Sequence[int] | None = None,
) -> Tensor:
    """Return attributions of each output, or ``labels``, to each entry of ``x``, [B, L, ...]."""
    if labels is None:
        with torch.no_grad():
            labels = range(function(x, *others).shape[1])
    method = IntegratedGradients(function)
    return torch.stack(
        [
            method.attribute(
                x,
                baselines=baseline,
                target=label,
                additional_forward_args=others,
                n_steps=steps,
                internal_batch_size=max(at_once, len(x)),
            ).detach()
            for label in labels
        ],
        dim=1,
    ).to(x.dtype)


@contextmanager
def _open(encoder: TextEncoder) -> Iterator[None]:
    """Let gradients pass a frozen encoder for a while."""
    frozen, encoder.frozen = encoder.frozen, False
    try:
        yield
    finally:
        encoder.frozen = frozen
