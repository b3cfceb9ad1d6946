"""What a model is told about its inputs. Free of torch, so that reading a config stays fast."""

from dataclasses import dataclass
from typing import NamedTuple

from medfusion.data.task import Task


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """Public sizes of the model's inputs and outputs.

    Attributes
    ----------
    columns
        K, the number of tabular input columns (0: the task has no features).
    labels
        L, the number of labels, classes or targets, which is also the number of outputs.
    image_channels
        Channels of an image (0: the task has no images).
    image_size
        Height and width in pixels, or the three sides of a volume in voxels ((0, 0): the task
        has no images).
    max_tokens
        T, the tokens kept of a note (0: the task has no notes).
    """

    columns: int
    labels: int
    image_channels: int
    image_size: tuple[int, int] | tuple[int, int, int]
    max_tokens: int

    @property
    def plane(self) -> tuple[int, int]:
        """Height and width of an image, for networks that read no volumes."""
        assert len(self.image_size) == 2, "the registry refuses volumes here"
        return self.image_size

    @property
    def solid(self) -> tuple[int, int, int]:
        """The three sides of a volume."""
        assert len(self.image_size) == 3, "an image has no third side"
        return self.image_size

    @property
    def column_values(self) -> int:
        """Numbers that describe one column: value, missing, selected, one indicator per label."""
        return 3 + self.labels


class FeatureAxis(NamedTuple):
    """Where a parameter is indexed by tabular columns.

    Along ``axis``, column k owns the entries ``[k * width, (k + 1) * width)``; the axis has
    K * width entries.
    """

    axis: int
    width: int


def input_spec(task: Task) -> InputSpec:
    """Sizes that follow from the task alone."""
    return InputSpec(
        columns=len(task.columns),
        labels=len(task.labels.names),
        image_channels=task.image.channels if task.image else 0,
        image_size=task.image.size if task.image else (0, 0),
        max_tokens=task.text.max_tokens if task.text else 0,
    )
