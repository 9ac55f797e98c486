"""A plan file with some words changed and its checksum right."""

import dataclasses
import struct
import zlib

from hasten.lower import plan

CHECKSUM = struct.calcsize("<8sIIQ")  # where it stands in the header


@dataclasses.dataclass(frozen=True)
class Section:
    begin: int
    record: int
    count: int


def sections(file):
    """Where the parts of a plan begin, the bytes of a record, and how many there are."""
    header = plan.HEADER.unpack_from(file)
    tensors, ops, inputs, outputs, tensors_at, ops_at, ports_at, _, data_at = header[6:15]
    return {
        "header": Section(0, plan.HEADER.size, 1),
        "tensor": Section(tensors_at, plan.TENSOR.size, tensors),
        "op": Section(ops_at, plan.OP.size, ops),
        "port": Section(ports_at, plan.PORT.size, inputs + outputs),
        "data": Section(data_at, len(file) - data_at, 1),
    }


def mended(file, changes):
    """changes: (section, which record, which 32-bit word of it, value), the numbers taken modulo how many there are."""
    parts, changed = sections(file), bytearray(file)
    for kind, record, word, value in changes:
        part = parts[kind]
        struct.pack_into("<I", changed, part.begin + record % part.count * part.record + word % (part.record // 4) * 4, value)
    struct.pack_into("<I", changed, CHECKSUM, zlib.crc32(changed[plan.HEADER.size :]))
    return bytes(changed)
