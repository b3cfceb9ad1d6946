"""What a square is called is told by a clinical value alone, and the detector asks it.

`tests/benchmarks/planted_rows.py` measures all four rows of the ablation.
"""

from dataclasses import replace

import pytest
from planted_boxes import draw_squares, learn, precision

from medfusion.models.options import MdfNetOptions


@pytest.mark.parametrize(
    "fusion",
    [
        pytest.param({"fusion_3d": "none"}, id="beside the proposals"),
        pytest.param({"fusion_3d": "sum", "fusion_1d": False}, id="in space"),
    ],
)
def test_either_fusion_alone_tells_the_label(fusion):
    options = MdfNetOptions(proposals=16, **fusion)
    model = learn(options, draw_squares(256, seed=0), steps=150, rate=3e-3)
    fresh = draw_squares(200, seed=1)
    assert precision(model, fresh)["ap50"] > 0.9
    # Turned round, the value puts the wrong label first; without it labels share one score.
    value = fresh.tensors["tabular"].clone()
    value[..., 0] = -value[..., 0]
    other = replace(fresh, tensors={**fresh.tensors, "tabular": value})
    assert precision(model, other)["ap50"] < 0.6


def test_without_fusion_squares_are_found_and_labels_guessed():
    options = MdfNetOptions(proposals=16, fusion_3d="none", fusion_1d=False)
    model = learn(options, draw_squares(256, seed=0), steps=150, rate=3e-3)
    assert 0.4 < precision(model, draw_squares(200, seed=1))["ap50"] < 0.65
