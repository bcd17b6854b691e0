"""The text of a file: decompressed and decoded, or refused with the option that helps."""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path

_COMPRESSIONS: dict[bytes, tuple[str, Callable[[bytes], bytes]]] = {
    b"\x1f\x8b": ("gzip", gzip.decompress),
    b"BZh": ("bzip2", bz2.decompress),
    b"\xfd7zXZ\x00": ("xz", lzma.decompress),
}
# The first bytes of a file -> its encoding; UTF-32 before UTF-16, whose mark begins with the same bytes.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_NO_TEXT = (
    (b"PK\x03\x04", "a ZIP archive or an Excel file. Unpack it, or save the table as CSV"),
    (b"\xd0\xcf\x11\xe0", "an old Excel or Word file. Save it as CSV or as text"),
    (b"PAR1", "a Parquet file. Give it the ending .parquet"),
    (b"%PDF", "a PDF file. Save its text as .txt, with an empty line between passages"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd. Unpack it first"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the data. Run git lfs pull"),
)


def no_text_but(data: bytes) -> str | None:
    """What a file is, by its first bytes, and what to do with it; None where they are of no known kind."""
    return next((what for mark, what in _NO_TEXT if data.startswith(mark)), None)


def read_bytes(path: Path) -> bytes:
    """The content of a file, decompressed if its first bytes are those of gzip, bzip2 or xz.

    Raises:
        ValueError: the compressed data are damaged.
    """
    data = path.read_bytes()
    for mark, (name, decompress) in _COMPRESSIONS.items():
        if data.startswith(mark):
            try:
                return decompress(data)
            except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
                raise ValueError(f"the data compressed by {name} are damaged: {error}") from error
    return data


def decode(data: bytes, encoding: str | None, notes: list[str]) -> str:
    """The text of `data`.

    Args:
        data: content of a text file.
        encoding: its encoding; None for UTF-8, or for UTF-16 and UTF-32 where a byte-order mark says so.
        notes: what a reader of the text should know is added here.

    Raises:
        ValueError: it is no text, or in another encoding; the message says what to do.
    """
    what = no_text_but(data)
    if what is not None:
        raise ValueError(f"it is {what}.")
    if encoding is None:
        encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
        if encoding.startswith(("utf-16", "utf-32")):
            notes.append(f"read as {encoding.upper()}, by its byte-order mark")
    try:
        text = data.decode(encoding)
    except LookupError as error:
        raise ValueError(
            f"there is no encoding {encoding!r}. Known are utf-8, cp1252, utf-16 and Python's others."
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(_wrong_encoding(data, error, encoding)) from error
    if "\0" in text:
        raise ValueError(
            "it has zero bytes: a binary file, or UTF-16 without a byte-order mark. Pass --encoding utf-16-le (Python: "
            'encoding="utf-16-le"), or save it as UTF-8.'
        )
    return text.removeprefix("\ufeff")


def _wrong_encoding(data: bytes, error: UnicodeDecodeError, encoding: str) -> str:
    line = data.count(b"\n", 0, error.start) + 1
    around = data[max(0, error.start - 10) : error.start + 10].decode("cp1252", errors="replace")
    guess = around.replace("\r", " ").replace("\n", " ").strip()
    return (
        f"line {line} is not in {encoding.upper()} (byte 0x{data[error.start]:02x}). In Windows-1252, Excel's usual encoding, "
        f'it reads {guess!r}: if that is right, pass --encoding cp1252 (Python: encoding="cp1252"); if not, another '
        "encoding, such as cp1251, gb18030 or shift_jis. Or save the file as UTF-8."
    )
