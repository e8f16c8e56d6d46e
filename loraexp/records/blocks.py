"""The blocks that W&B's offline log file is made of."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

HEADER, BLOCK = 7, 32768
FULL, FIRST, LAST = 1, 2, 4  # 3: a part between


def chunks(content: bytes) -> Iterator[bytes]:
    """The records of W&B's log file: 7 bytes of header, then blocks of 32 KiB as in LevelDB's log
    format.

    Every piece has its checksum (4 bytes), length (2) and kind (1): a whole record, or its first, a
    middle or its last part. A block's last bytes are unused where a header does not fit. What a
    process wrote half of when it died is left out.
    """
    at, record = HEADER, b""
    while at + HEADER <= len(content):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        checksum, length, kind = struct.unpack_from("<IHB", content, at)
        piece = content[at + HEADER : at + HEADER + length]
        if len(piece) < length or zlib.crc32(piece, zlib.crc32(bytes([kind]))) != checksum:
            return
        at += HEADER + length
        record = piece if kind in (FULL, FIRST) else record + piece
        if kind in (FULL, LAST):
            yield record
