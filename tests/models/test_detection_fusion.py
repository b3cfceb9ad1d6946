"""What a square is called is told by a clinical value alone, and the detector asks it.

Beside the proposals; the fusion in space takes longer to learn: `tests/benchmarks/planted_rows.py`
measures it.
"""

from dataclasses import replace

from planted_boxes import draw_squares, learn, precision

from medfusion.models.options import MdfNetOptions


def test_a_vector_beside_the_proposals_tells_the_label():
    options = MdfNetOptions(proposals=16, fusion_3d="none")
    model = learn(options, draw_squares(256, seed=0), steps=150, rate=3e-3)
    fresh = draw_squares(200, seed=1)
    assert precision(model, fresh)["ap50"] > 0.9
    # Turned round, the value puts the wrong label first; without it labels share one score.
    value = fresh.tensors["tabular"].clone()
    value[..., 0] = -value[..., 0]
    other = replace(fresh, tensors={**fresh.tensors, "tabular": value})
    assert precision(model, other)["ap50"] < 0.6
