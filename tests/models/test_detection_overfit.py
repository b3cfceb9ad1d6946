"""A detector learns a few images by heart: no part of it stands in the way."""

from planted_boxes import draw_squares, learn, precision

from medfusion.models.options import MdfNetOptions


def test_eight_images_are_learned_by_heart():
    studies = draw_squares(8, seed=3)
    model = learn(MdfNetOptions(proposals=16), studies, steps=120, rate=2e-3)
    found = precision(model, studies)
    assert found["ap50"] > 0.95
    assert found["ap"] > 0.5
