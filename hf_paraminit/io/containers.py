"""Outer layers of foreign checkpoint files: compression (joblib) and zip archives (torch).

Uncompressed content is never copied: callers get slices of a read-only memory map. Compressed content is inflated piece
by piece into one buffer that may not outgrow its limit.
"""

import bz2
import lzma
import mmap
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BufferedReader
from typing import Protocol

from hf_paraminit.errors import CheckpointError, UnsafeFileError

CHUNK_BYTES = 1 << 20
# Trained float weights shrink by less than 2; a factor of 100 still admits tables that are nearly constant.
MAX_INFLATION = 100
ALWAYS_ALLOWED_BYTES = 256 << 20  # inflating up to here is harmless whatever the ratio
LZMA_MEMORY_BYTES = 256 << 20  # the strongest preset of xz needs 65 MiB
MAX_DIRECTORY_BYTES = 64 << 20  # of a zip archive, about half a million entries

_COMPRESSIONS = {
    b"\x78": "zlib",
    b"\x1f\x8b": "gzip",
    b"\x42\x5a\x68": "bz2",
    b"\xfd\x37\x7a\x58\x5a\x00": "xz",
    b"\x5d\x00": "lzma",
    b"\x04\x22\x4d\x18": "lz4",
}


def map_file(file: BufferedReader) -> memoryview:
    """Map a non-empty file into memory, read-only. The map lives as long as the view or any slice of it."""
    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def detect_compression(data: memoryview) -> str | None:
    """Name the compression that joblib put around its pickle, judging by the first bytes; None if there is none."""
    head = bytes(data[:6])
    return next((name for magic, name in _COMPRESSIONS.items() if head.startswith(magic)), None)


class _Decompressor(Protocol):
    """What `bz2.BZ2Decompressor` and `lzma.LZMADecompressor` have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _ZlibDecompressor:
    """The same interface for `zlib`, which leaves the keeping of unread input to its caller."""

    def __init__(self, window_bits: int) -> None:
        self._inner = zlib.decompressobj(window_bits)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


_DECOMPRESSORS: dict[str, Callable[[], _Decompressor]] = {
    "zlib": lambda: _ZlibDecompressor(zlib.MAX_WBITS),
    "gzip": lambda: _ZlibDecompressor(zlib.MAX_WBITS | 16),
    "bz2": bz2.BZ2Decompressor,
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=LZMA_MEMORY_BYTES),
    "lzma": lambda: lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=LZMA_MEMORY_BYTES),
}


def inflate(data: memoryview, compression: str, *, max_bytes: int) -> memoryview:
    """Decompress a whole file in memory.

    Args:
        data: the compressed file.
        compression: a name that `detect_compression` gives.
        max_bytes: most bytes that may come out; a lower limit follows from the size of `data`.

    Raises:
        CheckpointError: damaged or truncated input, bytes after its end, or a compression the standard library lacks.
        UnsafeFileError: more output than allowed.
    """
    if compression not in _DECOMPRESSORS:
        raise CheckpointError(
            f"it is compressed with {compression}, which is not supported: write it again without compression "
            "(`joblib.dump(value, path)`), or decompress it with the lz4 command line tool"
        )
    limit = min(max_bytes, max(ALWAYS_ALLOWED_BYTES, MAX_INFLATION * len(data)))
    decompressor = _DECOMPRESSORS[compression]()
    try:
        return memoryview(_inflate_within(data, decompressor, limit)).toreadonly()
    except (zlib.error, lzma.LZMAError, OSError, EOFError) as error:
        raise CheckpointError(f"its {compression} compression is damaged: {error}") from error


def _inflate_within(data: memoryview, decompressor: _Decompressor, limit: int) -> bytearray:
    content = bytearray()
    position = 0
    while not decompressor.eof:
        chunk = b""
        if decompressor.needs_input:
            chunk = bytes(data[position : position + CHUNK_BYTES])
            position += len(chunk)
        piece = decompressor.decompress(chunk, CHUNK_BYTES)
        if not piece and not chunk and position == len(data) and not decompressor.eof:
            raise EOFError("the compressed data are truncated")
        content += piece
        if len(content) > limit:
            raise UnsafeFileError(f"it inflates to more than {limit:,} bytes from {len(data):,}")
    if decompressor.unused_data or position < len(data):
        raise CheckpointError("there are bytes after the end of the compressed data")
    return content


@dataclass(frozen=True, slots=True)
class ZipEntry:
    """An uncompressed entry: its bytes in place, and the checksum they should have."""

    data: memoryview
    crc32: int

    def checked(self) -> memoryview:
        """The bytes, after comparing the checksum."""
        check_crc32(self.data, self.crc32)
        return self.data


def check_crc32(data: memoryview, expected: int) -> None:
    """Compare the CRC-32 of `data`.

    Raises:
        CheckpointError: it differs.
    """
    found = zlib.crc32(data)
    if found != expected:
        raise CheckpointError(
            f"a checksum differs (CRC-32 {found:08x}, expected {expected:08x}): the bytes are damaged"
        )


def read_zip(file: BufferedReader, data: memoryview) -> dict[str, ZipEntry]:
    """List the entries of a torch archive without its root folder, as in "data.pkl" and "data/0".

    Args:
        file: the archive.
        data: its bytes, of which the entries are slices.

    Raises:
        CheckpointError: a damaged directory, or compressed or encrypted entries, which torch does not write.
        UnsafeFileError: entries that overlap, occur twice, or whose names leave the one root folder.
    """
    _check_directory_size(data)
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, OSError) as error:
        raise CheckpointError(f"its zip directory is damaged: {error}") from error
    if sum(info.file_size for info in infos) > len(data):
        raise UnsafeFileError("its zip entries together are larger than the file")
    entries: dict[str, ZipEntry] = {}
    root = infos[0].orig_filename.partition("/")[0] if infos else ""
    for info in infos:
        name = _name_below_root(info.orig_filename, root)
        if name in entries:
            raise UnsafeFileError(f"its zip entry {name!r:.80} occurs twice")
        entries[name] = ZipEntry(_entry_bytes(data, info), info.CRC)
    return entries


def _name_below_root(filename: str, root: str) -> str:
    top, _, name = filename.partition("/")
    if top != root or not name or "\\" in name or any(part in ("", ".", "..") for part in (top, *name.split("/"))):
        raise UnsafeFileError(f"its zip entry {filename!r:.80} does not lie in the one root folder {root!r:.80}")
    return name


def _entry_bytes(data: memoryview, info: zipfile.ZipInfo) -> memoryview:
    """Find the bytes of an entry behind its local header (APPNOTE.TXT 4.3.7), which must agree with the directory."""
    shown = f"its zip entry {info.orig_filename!r:.80}"
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 0x1:
        raise CheckpointError(f"{shown} is compressed or encrypted, expected plain bytes")
    header = data[max(info.header_offset, 0) :][:30]
    if info.header_offset < 0 or len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise CheckpointError(f"{shown} has a damaged local header")
    name_length, extra_length = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
    name_start = info.header_offset + len(header)
    encoding = "utf-8" if info.flag_bits & 0x800 else "cp437"
    if data[name_start : name_start + name_length] != info.orig_filename.encode(encoding):
        raise CheckpointError(f"{shown} has another name in its local header")
    start = name_start + name_length + extra_length
    content = data[start : start + info.file_size]
    if len(content) != info.file_size:
        raise CheckpointError(f"{shown} is truncated")
    return content


def _check_directory_size(data: memoryview) -> None:
    """Refuse huge directories before `zipfile` makes an object of each entry (APPNOTE.TXT 4.3.14 to 4.3.16)."""
    end = data[-22:]
    if end[:4] != b"PK\x05\x06":
        raise CheckpointError("it starts like a zip archive but does not end like one: truncated, or bytes were added")
    size = int.from_bytes(end[12:16], "little")
    if data[-42:-38] == b"PK\x06\x07":
        record = int.from_bytes(data[-34:-26], "little")
        size = int.from_bytes(data[record + 40 : record + 48], "little")
    if size > MAX_DIRECTORY_BYTES:
        raise UnsafeFileError(f"its zip directory takes {size:,} bytes, at most {MAX_DIRECTORY_BYTES:,} are allowed")
