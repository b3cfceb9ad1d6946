"""A whole message as one array.

Flower keeps each array of a message, and each part of one, as an object of its own, which costs a
call and a write to the SuperLink's database to send, and as much to fetch: rounds of a small
MedFusionNet (some 250 arrays) took over 90 s in which its sites trained for 3 to 7. So the content
of a deployment's messages travels as one array of bytes, the serialised RecordDict, which Flower
cuts into parts of 5 MiB that a broken line need not send again.
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


def pack(data: bytes) -> RecordDict:
    """Return content that holds nothing but other, serialised content."""
    array = Array(dtype="uint8", shape=(len(data),), stype=_FORM, data=data)
    return RecordDict({_PACKED: ArrayRecord({_PACKED: array})})


def packed(content: RecordDict) -> bytes | None:
    """Return what was given to `pack`; None if content is not packed."""
    record = content.array_records.get(_PACKED)
    array = None if record is None else record.get(_PACKED)
    return array.data if array is not None and array.stype == _FORM else None


def unpacked(content: RecordDict) -> RecordDict:
    """Return what was packed, or content as it is if it is not; raises as `from_bytes` does."""
    data = packed(content)
    return content if data is None else from_bytes(data)


def answer_as_asked(answer: Callable[[RecordDict], RecordDict], content: RecordDict) -> RecordDict:
    """Answer content; what is asked packed is answered packed."""
    reply = answer(unpacked(content))
    return reply if packed(content) is None else pack(to_bytes(reply))
