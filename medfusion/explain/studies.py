"""All that is computed of each study, a batch at a time.

Shapes: B batch, L labels, F features, T tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medfusion.data.site_data import SiteData
from medfusion.data.studies import Studies
from medfusion.data.task import Task
from medfusion.data.tensors import StudyTensors
from medfusion.explain.attention import LabelAttention, label_attention, reads_by_queries
from medfusion.explain.cohort import FloatArray, by_feature
from medfusion.explain.detection import shapley_values
from medfusion.explain.integrated_gradients import column_attributions, token_attributions
from medfusion.models.contract import Model
from medfusion.models.mdf_net import MdfNet
from medfusion.models.medfusion_net import MedFusionNet
from medfusion.models.options import LogisticOptions, MedFusionNetOptions
from medfusion.models.saved import SavedModel
from medfusion.prediction_table import PredictionTable
from medfusion.training.device import choose_device


@dataclass(frozen=True, eq=False, repr=False)
class ToExplain:
    """A model, the studies of a site, and what the model says of them.

    Attributes
    ----------
    tensors, outputs, table
        Of all ``data.studies``, in their order.
    truth
        The same studies with their labels and boxes; None where these are not known.
    """

    saved: SavedModel
    data: SiteData
    tensors: StudyTensors
    outputs: NDArray[np.float32]
    table: PredictionTable
    truth: Studies | None

    @property
    def device(self) -> torch.device:
        """Where the site computes."""
        return choose_device(self.data.config.compute.device)

    @cached_property
    def token_names(self) -> Callable[[NDArray[np.int64]], list[str]]:
        """From the ids of a note's tokens to word pieces."""
        # imported here, since transformers takes a second
        from medfusion.models.blocks.text_encoder import token_names

        options = self.saved.options
        assert isinstance(options, MedFusionNetOptions | LogisticOptions)
        return token_names(options.text)

    def inputs(self, studies: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return the model's inputs of some studies."""
        return self.tensors.inputs(torch.from_numpy(studies), self.device)


@dataclass(frozen=True, eq=False)
class Explained:
    """What speaks for each label in B studies.

    Attributes
    ----------
    features
        [B, L, F], of `medfusion.explain.integrated_gradients` or, of a detector,
        `medfusion.explain.detection`; None where the model reads no columns.
    tokens
        [B, L, T]; None where it reads no notes.
    attention
        None without label queries.
    """

    features: FloatArray | None
    tokens: FloatArray | None
    attention: LabelAttention | None


def explain_batch(
    model: Model,
    inputs: dict[str, Tensor],
    task: Task,
    column_features: Tensor,
    *,
    physical_batch: int,
) -> Explained:
    """Explain the studies of one batch.

    Attributions are in the unit of the model's score: log-odds, for a detector the probability,
    of a regression the unit of the target. No more than ``physical_batch`` images are read at once,
    but those of the batch.
    """
    scale, exclusive = unit_of_scores(task)[1], task.task.kind == "multiclass"
    features = tokens = None
    if "tabular" in model.modalities:
        numbers = column_features.numpy()
        if isinstance(model, MdfNet):
            features = _numpy(shapley_values(model, inputs, column_features))
        else:
            added = column_attributions(
                model, inputs, exclusive=exclusive, images_at_once=physical_batch
            )
            features = scale * by_feature(_numpy(added), numbers)
    if "text" in model.modalities:
        added = token_attributions(
            model, inputs, exclusive=exclusive, images_at_once=physical_batch
        )
        tokens = scale * _numpy(added)
    attention = None
    if isinstance(model, MedFusionNet) and reads_by_queries(model):
        attention = label_attention(model, inputs)
    return Explained(features, tokens, attention)


def explain(what: ToExplain, studies: NDArray[np.int64]) -> Explained:
    """Explain some of a site's studies."""
    model, task = what.saved.module, what.data.task
    return explain_batch(
        model,
        what.inputs(studies),
        task,
        what.tensors.column_features,
        physical_batch=what.data.config.compute.physical_batch,
    )


def unit_of_scores(task: Task) -> tuple[str, float]:
    """Name the unit of what is attributed, and say how much of it 1 of the model's output is."""
    if task.task.kind == "regression":
        low, high = task.labels.range
        return task.labels.unit or "the target's unit", (high - low) / 2
    return ("probability" if task.detects else "log-odds"), 1.0


def join(parts: list[Explained]) -> Explained:
    """Put the studies of several batches into one."""
    of = [part.attention for part in parts if part.attention is not None]
    attention = None
    if of:
        among = [one.among_labels for one in of if one.among_labels is not None]
        attention = LabelAttention(
            {name: torch.cat([one.weights[name] for one in of]) for name in of[0].weights},
            {name: torch.cat([one.evidence[name] for one in of]) for name in of[0].evidence},
            torch.cat(among) if among else None,
        )
    return Explained(
        _joined([part.features for part in parts]),
        _joined([part.tokens for part in parts]),
        attention,
    )


def _joined(arrays: list[FloatArray | None]) -> FloatArray | None:
    there = [array for array in arrays if array is not None]
    return np.concatenate(there) if there else None


def _numpy(values: Tensor) -> NDArray[np.float64]:
    return values.double().cpu().numpy()
