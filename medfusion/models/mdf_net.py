"""MDF-Net: a two-stage detector that fuses an image with clinical data, twice.

- Image: a DenseNet or MobileNetV3, with or without a feature pyramid, gives maps; regions are
  proposed on them, and what is under each is classified and its box refined (Faster R-CNN).
- With a mask head (Mask R-CNN) what is under a proposal is also told pixel by pixel from what is
  beside it. That is a lesson in training; what is given out are boxes.
- Clinical data: a vector from the tabular columns. *3-D fusion* makes a map of it and fuses that
  with the image's maps before regions are proposed; *1-D fusion* puts it beside what is under
  each proposal.

After Hsieh et al. 2023 (arXiv 2302.13390). The parts are torchvision's, or agree with them, but
keep the image in the first dimension: its detectors flatten the regions of all images into one
dimension, behind which a region is the unit of privacy and not a patient.

Shapes: B batch, C channels, H height, W width, A anchors, K proposals, R proposals and drawn
boxes, M boxes drawn on an image, D detections, L labels.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from medfusion.models.blocks.anchors import RATIOS, detect, make_anchors, propose
from medfusion.models.blocks.densenet import Norm, group_norm
from medfusion.models.blocks.densenet121 import FixedNorm
from medfusion.models.blocks.detection_heads import BoxHead, RegionHead
from medfusion.models.blocks.detection_losses import anchor_losses, proposal_losses
from medfusion.models.blocks.detection_targets import (
    ANCHORS_DRAWN,
    POSITIVE_PROPOSALS,
    Targets,
    anchor_targets,
    proposal_targets,
)
from medfusion.models.blocks.detection_trunk import DetectionTrunk, TrunkSizes
from medfusion.models.blocks.mask_head import BINS as MASK_BINS
from medfusion.models.blocks.mask_head import MaskHead, MaskTargets, mask_loss, mask_targets
from medfusion.models.blocks.mobilenet import MobileTrunk
from medfusion.models.blocks.roi_align import roi_align_levels
from medfusion.models.blocks.spatialisation import ClinicalEncoder, MapFusion, Spatialisation
from medfusion.models.contract import BOX_CLASSES, BOXES, Model
from medfusion.models.options import MdfNetOptions
from medfusion.models.spec import FeatureAxis, InputSpec

BINS = 7  # a side of what is read of the map under a proposal
LOSSES = ("objectness", "anchor_boxes", "classes", "boxes", "masks")  # the last with a mask head

# Sides of the anchors, as shares of the image's shorter side.
_SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4)
_SHARES_BY_LEVEL = ((1 / 16, 1 / 8), (1 / 5, 1 / 3), (1 / 2, 3 / 4))

SIZES = {
    "tiny": TrunkSizes(stem=16, growth=16, bottleneck=32, layers=(1, 2, 2), width=32),
    "small": TrunkSizes(stem=32, growth=16, bottleneck=64, layers=(3, 4, 6), width=64),
}


@dataclass(frozen=True, eq=False)
class Encoded:
    """What the network makes of its inputs before it looks at single proposals.

    Attributes
    ----------
    maps
        [B, C, H, W] of each level, fused.
    clinical
        The study's vector for the 1-D fusion, [B, C]; None without.
    objectness, deltas
        Of the anchors, [B, A] and [B, A, 4].
    """

    maps: list[Tensor]
    clinical: Tensor | None
    objectness: Tensor
    deltas: Tensor


class Lesson(NamedTuple):
    """What a study's losses compare with: proposals [B, R, 4] and targets; no gradients.

    ``masks`` only with a mask head.
    """

    proposals: Tensor
    anchors: Targets
    regions: Targets
    masks: MaskTargets | None


class MdfNet(Model):
    """The network as `MdfNetOptions` describes it.

    Parameters
    ----------
    options
        Size and switches.
    spec
        Sizes of inputs and outputs.
    modalities
        What the model reads: the image, and the tabular columns if they are fused.

    Attributes
    ----------
    drawn
        How many proposals of an image count in a loss.
    output_shape
        D and 6, of what is found in a study.
    """

    def __init__(
        self, options: MdfNetOptions, spec: InputSpec, modalities: tuple[str, ...]
    ) -> None:
        super().__init__(options, spec, modalities)
        sizes = SIZES[options.size]
        self._image_size, self._options = spec.plane, options
        self.drawn = options.proposals
        self.output_shape = (options.detections, 6)
        norm = FixedNorm if options.init is not None else group_norm
        self.image = _make_trunk(options, spec, norm=norm, pyramid=options.fpn)
        shorter = min(spec.plane)
        shares = _SHARES_BY_LEVEL if options.fpn else (_SHARES,)
        levels = make_anchors(
            [[share * shorter for share in level] for level in shares],
            self.image.grids,
            self.image.strides,
        )
        self._counts = [len(level) for level in levels]
        self._largest = shorter / 2
        self.anchors: Tensor
        self.register_buffer("anchors", torch.cat(levels), persistent=False)
        self.regions = RegionHead(sizes.width, len(shares[0]) * len(RATIOS))
        clinical = sizes.width if "tabular" in modalities else 0
        beside = clinical if options.fusion_1d else 0
        self.boxes = BoxHead(sizes.width * BINS**2, beside, 2 * sizes.width, spec.labels)
        # What is optional comes last, so that it leaves the initial values above as they are.
        self._build_fusion(options, spec, sizes)
        self.mask_head = MaskHead(sizes.width, spec.labels) if options.mask_head else None

    def _build_fusion(self, options: MdfNetOptions, spec: InputSpec, sizes: TrunkSizes) -> None:
        """Add what reads the clinical data, if anything does."""
        reads = "tabular" in self.modalities
        in_space = reads and options.fusion_3d != "none"
        self.tabular = (
            ClinicalEncoder(spec.columns, spec.column_values, sizes.width) if reads else None
        )
        self.fusion = self.spatial = self.spatial_trunk = None
        if not in_space:
            return
        assert options.fusion_3d != "none"
        if options.spatialisation == "features":
            self.spatial = Spatialisation(sizes.width, self.image.grids[0])
        else:
            channels = spec.image_channels
            self.spatial = Spatialisation(sizes.width, spec.plane, channels)
            self.spatial_trunk = _make_trunk(options, spec, norm=group_norm, pyramid=False)
        self.fusion = MapFusion(sizes.width, options.fusion_3d)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return detections [B, D, 6], as `detect` says; in training the `LOSSES`, [B, 4 or 5].

        In training ``inputs`` holds what was drawn: `BOXES` [B, M, 4], corners in pixels, and
        `BOX_CLASSES` int64 [B, M], from 1, 0 where there is no box. The losses of a study
        without an image are 0. The detections of a study are NaN where the network diverged.
        """
        encoded = self.encode(inputs)
        if self.training:
            losses = self.losses(encoded, self.lesson(encoded, inputs))
            return losses * inputs["image_present"][:, None]
        proposals, valid = self.propose(encoded)
        logits, deltas = self.look_at(encoded, proposals)
        there = valid & inputs["image_present"][:, None]
        most = self._options.detections
        found = detect(logits, deltas, proposals, there, image_size=self._image_size, most=most)
        return _broken_shown(found, encoded.objectness, encoded.deltas, logits, deltas)

    def encode(self, inputs: dict[str, Tensor]) -> Encoded:
        """Return what does not depend on single proposals."""
        return self.fuse(self.image(inputs["image"]), inputs)

    def fuse(self, maps: list[Tensor], inputs: dict[str, Tensor]) -> Encoded:
        """Return what `encode` does, given the maps of the images."""
        vector = None if self.tabular is None else self.tabular(inputs["tabular"])
        if self.fusion is not None and self.spatial is not None:
            spread = self.spatial(vector)
            if self.spatial_trunk is not None:
                (spread,) = self.spatial_trunk(spread)
            maps = self.fusion(maps, spread)
        objectness, deltas = self.regions(maps)
        return Encoded(maps, vector if self._options.fusion_1d else None, objectness, deltas)

    def propose(self, encoded: Encoded) -> tuple[Tensor, Tensor]:
        """Return K proposals for each image, [B, K, 4], and which of them are any, [B, K]."""
        return propose(
            encoded.objectness,
            encoded.deltas,
            torch.split(self.anchors, self._counts),
            image_size=self._image_size,
            most=self._options.proposals,
        )

    def look_at(self, encoded: Encoded, proposals_BR4: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `BoxHead` says of proposals."""
        pooled = self._pooled(encoded, proposals_BR4, BINS)
        outputs: tuple[Tensor, Tensor] = self.boxes(pooled.flatten(2), encoded.clinical)
        return outputs

    def _pooled(self, encoded: Encoded, proposals_BR4: Tensor, bins: int) -> Tensor:
        """Return what the maps hold under proposals, [B, R, C, bins, bins]."""
        strides, largest = self.image.strides, self._largest
        return roi_align_levels(
            encoded.maps, proposals_BR4, bins=bins, strides=strides, largest=largest
        )

    @torch.no_grad()
    def lesson(self, encoded: Encoded, inputs: dict[str, Tensor]) -> Lesson:
        """Return what to compare with: what was drawn is among the proposals."""
        drawn, classes = inputs[BOXES].to(encoded.deltas.dtype), inputs[BOX_CLASSES]
        proposals, valid = self.propose(encoded)
        proposals = torch.cat([proposals, drawn], dim=1)
        valid = torch.cat([valid, classes > 0], dim=1)
        regions = proposal_targets(proposals, valid, drawn, classes, drawn=self.drawn)
        masks = None
        if self.mask_head is not None:
            masks = mask_targets(proposals, regions, drawn, most=self._masked)
        return Lesson(proposals, anchor_targets(self.anchors, drawn, classes), regions, masks)

    @property
    def _masked(self) -> int:
        """How many proposals of an image count in the loss of masks."""
        return int(POSITIVE_PROPOSALS * self.drawn)

    def losses(self, encoded: Encoded, lesson: Lesson) -> Tensor:
        """Return each study's `LOSSES`, [B, 4], or [B, 5] with a mask head."""
        found = anchor_losses(
            encoded.objectness, encoded.deltas, lesson.anchors, drawn=ANCHORS_DRAWN
        )
        logits, deltas = self.look_at(encoded, lesson.proposals)
        said = proposal_losses(logits, deltas, lesson.regions, drawn=self.drawn)
        masks = [] if lesson.masks is None else [self._mask_loss(encoded, lesson.masks)]
        return torch.stack([*found, *said, *masks], dim=1)

    def _mask_loss(self, encoded: Encoded, targets: MaskTargets) -> Tensor:
        assert self.mask_head is not None
        pooled = self._pooled(encoded, targets.proposals, MASK_BINS)
        return mask_loss(self.mask_head(pooled), targets, counted=self._masked)

    def label_biases(self) -> tuple[nn.Parameter, ...]:
        """Name none: a proposal's chance of a label is not a patient's."""
        return ()

    def feature_rows(self) -> dict[str, FeatureAxis]:
        """Name the table of the columns' affine maps, a row each."""
        return {} if self.tabular is None else {"tabular.tokens.maps.weight": FeatureAxis(0, 1)}


def _broken_shown(found_BD6: Tensor, *said: Tensor) -> Tensor:
    """Return detections, NaN in a study of which the network ``said`` something not finite.

    Proposals and detections are sorted and compared, in which such numbers would be lost.
    """
    finite_B = torch.stack([each.flatten(1).isfinite().all(dim=1) for each in said]).all(dim=0)
    return found_BD6.masked_fill(~finite_B[:, None, None], torch.nan)


def _make_trunk(
    options: MdfNetOptions, spec: InputSpec, *, norm: Norm, pyramid: bool
) -> DetectionTrunk | MobileTrunk:
    """Return what makes maps of an image, or of what looks like one."""
    channels, sizes = spec.image_channels, SIZES[options.size]
    if options.backbone == "densenet":
        return DetectionTrunk(channels, spec.plane, sizes, pyramid=pyramid)
    return MobileTrunk(channels, spec.plane, sizes.width, norm=norm, pyramid=pyramid)
