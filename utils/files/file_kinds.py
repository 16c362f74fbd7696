"""What a file is that is not what it should be, by its first bytes: with what to do about it."""

from pathlib import Path

HEAD_BYTES = 512

# First bytes -> what the file is, and the remedy.
SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (
        b"version https://git-lfs.github.com/spec/",
        "is a Git LFS pointer, not the file itself: install git-lfs and run `git lfs pull` where it was cloned",
    ),
    (b"\x1f\x8b", "is a gzip file: unpack it with gunzip"),
    (b"BZh", "is a bzip2 file: unpack it with bunzip2"),
    (b"\xfd7zXZ\0", "is an xz file: unpack it with unxz"),
    (b"\x28\xb5\x2f\xfd", "is a Zstandard file: unpack it with unzstd"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive: unpack it"),
    (b"Rar!", "is a RAR archive: unpack it"),
    (b"PAR1", "is a Parquet file: export it as CSV"),
    (b"\x89HDF", "is an HDF5 file"),
    (b"%PDF", "is a PDF file"),
    (b"\xff\xfe\0\0", "is UTF-32 text: save it as UTF-8"),
    (b"\0\0\xfe\xff", "is UTF-32 text: save it as UTF-8"),
    (b"\xff\xfe", "is UTF-16 text: save it as UTF-8"),
    (b"\xfe\xff", "is UTF-16 text: save it as UTF-8"),
)
ZIP, ZIP_WORDS = b"PK\x03\x04", "is a zip archive (or an Excel file): unpack it (or export it as CSV)"
PAGES = (b"<!doctype html", b"<html", b"<?xml", b"<error")
PAGE_WORDS = (
    "is a web page, not the file: download it again, from the address of the file itself (a log-in or an error "
    "page may have come instead)"
)


def foreign_kind(path: Path, zip_expected: bool = False) -> str | None:
    """`is a gzip file: unpack it with gunzip`, and the like; None if nothing speaks against the file.

    Args:
        path: a file that can be read.
        zip_expected: files of tensors are zip archives.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    for signature, words in SIGNATURES:
        if head.startswith(signature):
            return words
    if head.startswith(ZIP) and not zip_expected:
        return ZIP_WORDS
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(PAGES):
        return PAGE_WORDS
    if head[257:262] == b"ustar":
        return "is a tar archive: unpack it"
    if _is_utf16(head) and not zip_expected:
        return "is UTF-16 text: save it as UTF-8"
    return None


def _is_utf16(head: bytes) -> bool:
    """Text without a mark of its encoding: every other byte is NUL."""
    even, odd = head[:-1:2], head[1::2]
    return len(head) >= 8 and any(not any(nul) and all(other) for nul, other in ((even, odd), (odd, even)))


def not_utf8(path: Path) -> str:
    """What to tell, behind its name, of a text in another encoding."""
    content, place = path.read_bytes(), 0
    try:
        content.decode()
    except UnicodeDecodeError as error:
        place = error.start  # the error of a reader counts within what it has in hand
    line = content.count(b"\n", 0, place) + 1
    encodings = "it is in another encoding (GBK, Latin-1, ...) or damaged"
    return f", line {line}: not UTF-8 text (byte {place}): {encodings}; save it as UTF-8"
