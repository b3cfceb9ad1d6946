import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays, scalar_dtypes

from medfusion.transport.packing import (
    answer_as_asked,
    from_bytes,
    joined,
    pack,
    packed,
    part,
    to_bytes,
    unpacked,
)

_NAMES = st.text(min_size=1, max_size=8)
_WHOLE = st.integers(-(2**63), 2**63 - 1)
_REAL = st.floats(allow_nan=False)
_RECORDS = st.one_of(
    st.dictionaries(
        _NAMES, st.one_of(_WHOLE, _REAL, st.text(), st.binary(), st.booleans(), st.lists(_WHOLE))
    ).map(ConfigRecord),
    st.dictionaries(_NAMES, st.one_of(_WHOLE, _REAL)).map(MetricRecord),
    st.dictionaries(
        _NAMES, arrays(scalar_dtypes(), array_shapes(max_dims=2, max_side=3)).map(Array)
    ).map(ArrayRecord),
)
CONTENT = RecordDict({"config": ConfigRecord({"number": 7})})
_CONTENTS = st.dictionaries(_NAMES, _RECORDS, max_size=4).map(RecordDict)


@given(_CONTENTS)
def test_any_content_comes_out_as_it_went_in(content: RecordDict) -> None:
    data = packed(pack(to_bytes(content)))
    assert data is not None
    assert from_bytes(data) == content


@given(_CONTENTS, st.data())
def test_content_in_parts_comes_out_whole(content: RecordDict, data: st.DataObject) -> None:
    first = data.draw(st.sets(st.sampled_from(list(content)))) if content else set()
    parts = [
        RecordDict({name: record for name, record in content.items() if (name in first) == here})
        for here in (True, False)
    ]
    assert unpacked(joined(*map(part, parts))) == content


@given(_CONTENTS)
def test_content_that_was_not_packed_is_not_taken_for_packed(content: RecordDict) -> None:
    assert packed(content) is None


def test_a_part_that_is_there_twice_is_refused() -> None:
    """A megabyte under 200 names would travel as one and be 200."""
    once = part(CONTENT)
    with pytest.raises(ValueError, match="each part once"):
        packed(joined(once, once))


def test_a_record_of_the_same_name_is_not_taken_for_packed() -> None:
    content = RecordDict({"packed": ArrayRecord({"packed": Array(np.zeros(3))})})
    assert packed(content) is None


def test_a_model_of_many_arrays_travels_as_one_object_for_each_part() -> None:
    model = ArrayRecord({str(k): Array(np.zeros(100_000, np.float32)) for k in range(30)})
    content = pack(to_bytes(RecordDict({"arrays": model})))  # 12 MB: three parts
    assert len(get_all_nested_objects(content)) == 6


@given(_CONTENTS)
def test_what_is_asked_packed_is_answered_packed_and_what_is_not_is_not(content):
    def answer(asked: RecordDict) -> RecordDict:
        return RecordDict({"asked": ConfigRecord({"content": to_bytes(asked)})})

    assert answer_as_asked(answer, content) == answer(content)
    told = packed(answer_as_asked(answer, pack(to_bytes(content))))
    assert told is not None
    assert from_bytes(told) == answer(content)
