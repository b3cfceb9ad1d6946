"""A whole message as one array.

Flower keeps each array of a message, and each part of one, as an object of its own, which costs a
call and a write to the SuperLink's database to send, and as much to fetch: rounds of a small
MedFusionNet (some 250 arrays) took over 90 s in which its sites trained for 3 to 7. So the content
of a deployment's messages travels as one array of bytes, the serialised RecordDict, or as a few
that are it when joined; Flower cuts them into pieces of 5 MiB, which a broken line need not send
again, and keeps an array that several messages hold once.
"""

from collections.abc import Callable

from flwr.app import Array, ArrayRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto

_PACKED = "packed"
_FORM = "medfusion.recorddict"


def to_bytes(content: RecordDict) -> bytes:
    """Serialise the content of a message."""
    data: bytes = recorddict_to_proto(content).SerializeToString()
    return data


def from_bytes(data: bytes) -> RecordDict:
    """Read what `to_bytes` wrote; bytes from outside can raise anything."""
    return recorddict_from_proto(RecordDictProto.FromString(data))


def part(content: RecordDict) -> Array:
    """Return content as one array, for `joined`."""
    return _array(to_bytes(content))


def joined(*parts: Array) -> RecordDict:
    """Return content that holds nothing but other content, given in parts of other records.

    Serialised RecordDicts one behind the other are that of all their records: a protocol buffer's
    repeated field.
    """
    arrays = {str(number): array for number, array in enumerate(parts)}
    return RecordDict({_PACKED: ArrayRecord(arrays)})


def pack(data: bytes) -> RecordDict:
    """Return content that holds nothing but other, serialised content."""
    return RecordDict({_PACKED: ArrayRecord({_PACKED: _array(data)})})


def packed(content: RecordDict) -> bytes | None:
    """Return what was given to `pack`, or in parts to `joined`; None if content is not packed.

    Raises
    ------
    ValueError
        If a part is there twice: one that travels once could stand for any number of bytes.
    """
    record = content.array_records.get(_PACKED)
    if not record or any(array.stype != _FORM for array in record.values()):
        return None
    parts = [array.data for array in record.values() if array.data]
    if len({id(data) for data in parts}) < len(parts):
        raise ValueError("expected each part once")
    return b"".join(parts)


def unpacked(content: RecordDict) -> RecordDict:
    """Return what was packed, or content as it is if it is not; raises as `from_bytes` does."""
    data = packed(content)
    return content if data is None else from_bytes(data)


def answer_as_asked(answer: Callable[[RecordDict], RecordDict], content: RecordDict) -> RecordDict:
    """Answer content; what is asked packed is answered packed."""
    data = packed(content)
    if data is None:
        return answer(content)
    return pack(to_bytes(answer(from_bytes(data))))


def _array(data: bytes) -> Array:
    return Array(dtype="uint8", shape=(len(data),), stype=_FORM, data=data)
