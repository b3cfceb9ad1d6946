"""Boxes of several readers become one truth by majority."""

from hypothesis import given
from hypothesis import strategies as st

from medfusion.data.cohorts.reader_agreement import agreed_boxes

A, NEAR_A, FAR = (0.0, 0.0, 10.0, 10.0), (0.0, 0.0, 10.0, 12.0), (50.0, 50.0, 60.0, 60.0)


def test_a_majority_at_one_place_gives_the_mean_box():
    assert agreed_boxes({"r": [A], "s": [NEAR_A], "t": []}) == [(0, 0, 10, 11)]
    assert agreed_boxes({"r": [A, FAR], "s": [NEAR_A], "t": []}) == [(0, 0, 10, 11)]
    assert agreed_boxes({"r": [A, FAR], "s": [FAR], "t": [A]}) == [A, FAR]


def test_a_minority_is_outvoted_and_scattered_boxes_are_no_answer():
    assert agreed_boxes({"r": [A], "s": [], "t": []}) == []
    assert agreed_boxes({"r": [A], "s": []}) == []  # half is no majority
    assert agreed_boxes({"r": [], "s": [], "t": []}) == []
    assert agreed_boxes({"r": [A], "s": [FAR], "t": []}) is None


def test_one_reader_is_believed_and_never_counts_twice():
    assert agreed_boxes({"r": [A, NEAR_A]}) == [A, NEAR_A]
    assert agreed_boxes({"r": [A, NEAR_A], "s": [], "t": []}) == []
    # Two like boxes of one reader are no majority of two.
    assert agreed_boxes({"r": [A, NEAR_A], "s": [FAR], "t": []}) is None


def test_the_closest_are_joined_first():
    wide = (0.0, 0.0, 10.0, 14.0)
    found = agreed_boxes({"r": [A], "s": [NEAR_A, wide], "t": []})
    assert found == [(0, 0, 10, 11)]  # IoU .83 before .71


_BOX = st.tuples(*[st.integers(0, 6)] * 2, *[st.integers(1, 6)] * 2).map(
    lambda b: (float(b[0]), float(b[1]), float(b[0] + b[2]), float(b[1] + b[3]))
)
_READING = st.lists(_BOX, max_size=3, unique=True)


@given(st.lists(_READING, min_size=1, max_size=4), st.randoms())
def test_order_changes_nothing_and_a_truth_is_within_what_was_drawn(readings, random):
    drawn = {f"r{number}": boxes for number, boxes in enumerate(readings)}
    found = agreed_boxes(drawn)
    shuffled = [(name, random.sample(boxes, len(boxes))) for name, boxes in drawn.items()]
    random.shuffle(shuffled)
    assert agreed_boxes(dict(shuffled)) == found
    every = [box for boxes in readings for box in boxes]
    for box in found or ():
        for side in range(4):
            assert min(b[side] for b in every) <= box[side] <= max(b[side] for b in every)
    assert len(found or ()) <= len(every) // (len(readings) // 2 + 1)
