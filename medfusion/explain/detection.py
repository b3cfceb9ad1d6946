"""Which clinical feature matters for which abnormality that MDF-Net finds: Shapley values [1]_.

The game: the players are the features; a coalition is a study in which all others are missing;
its worth is the score of a label at one box, the one of the region that looks most like the label
when all is known. So the question is what the features say about that place, and scores of all
coalitions are of the same place. Values are estimated from random orders [2]_ and add up to the
score minus that without any feature, in every order and so exactly.

Shapes: B batch, R proposals, K columns, V values of a column, F features, L labels.

References
----------
.. [1] Shapley, "A value for n-person games", 1953.
.. [2] Castro et al., "Polynomial calculation of the Shapley value based on sampling", Computers &
   Operations Research 36:1726-1730, 2009.
"""

import torch
from captum.attr import ShapleyValueSampling
from torch import Tensor

from medfusion.explain.scores import as_in_use
from medfusion.models.fusion import hide_columns
from medfusion.models.mdf_net import Encoded, MdfNet
from medfusion.models.seeding import seeded

ORDERS = 10


@torch.no_grad()
def likeliest_boxes(model: MdfNet, encoded: Encoded) -> Tensor:
    """Return for each label the proposal that looks most like it, corners [B, L, 4]."""
    proposals_BR4, valid_BR = model.propose(encoded)
    logits, _ = model.look_at(encoded, proposals_BR4)
    scores_BRL = logits.softmax(dim=-1)[..., 1:].masked_fill(~valid_BR[..., None], -1.0)
    best_BL = scores_BRL.argmax(dim=1)
    return proposals_BR4.gather(1, best_BL[..., None].expand(-1, -1, 4))


@torch.no_grad()
def scores_at(model: MdfNet, encoded: Encoded, boxes_BL4: Tensor) -> Tensor:
    """Return each label's score at its own box, [B, L]."""
    logits, _ = model.look_at(encoded, boxes_BL4)
    return logits.softmax(dim=-1)[..., 1:].diagonal(dim1=1, dim2=2)


@torch.no_grad()
def shapley_values(
    model: MdfNet, inputs: dict[str, Tensor], column_features: Tensor, *, orders: int = ORDERS
) -> Tensor:
    """Return what each feature adds to each label's score, [B, L, F].

    The model must read columns. ``column_features`` [K] numbers the feature of each column (see
    `medfusion.data.tensors.StudyTensors`); every study meets the same random orders. In a study
    without an image nothing is found, whatever the columns say, and all values are 0.
    """
    x_BKV = inputs["tabular"]
    absent = hide_columns(x_BKV, torch.ones_like(x_BKV[..., 0], dtype=torch.bool))
    with as_in_use(model):
        maps = model.image(inputs["image"])  # no feature has a say in them
        boxes_BL4 = likeliest_boxes(model, model.fuse(maps, inputs))

        def worth(tabular_BKV: Tensor) -> Tensor:
            encoded = model.fuse(maps, {**inputs, "tabular": tabular_BKV})
            return scores_at(model, encoded, boxes_BL4) * inputs["image_present"][:, None]

        method = ShapleyValueSampling(worth)
        of_column = column_features.to(x_BKV.device)[None, :, None]
        players = of_column.repeat(1, 1, x_BKV.shape[2])
        with seeded(0):  # captum draws from torch's own stream
            of_values = method.attribute(
                x_BKV, baselines=absent, feature_mask=players, n_samples=orders
            )
    features = int(column_features.max()) + 1
    first = [int((column_features == number).nonzero()[0]) for number in range(features)]
    values: Tensor = of_values[:, :, first, 0]  # all entries of a feature have its value
    return values
