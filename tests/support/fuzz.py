"""What Hypothesis does to files, and the two ends that reading them may have: the right result, or the clear error."""

import contextlib
import resource
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from utils.errors import UserError

DEADLINE_MS = 10_000
MEMORY = 2 << 30  # bytes that reading a small file may take
MAX_MESSAGE = 1_100  # characters

# What readers stumble over.
TOKENS = (
    *(b'"', b",", b"\n", b"\r", b"\r\n", b"\0", b"[", b"]", b"[[", b"{", b"}", b":", b" ", b"\t", b"\\", b"#", b"'"),
    *(b"nan", b"-nan", b"inf", b"-inf", b"Infinity", b"null", b"true", b"None", b"1e400", b"1e-400", b"-0", b"0x10"),
    *(b"-1", b"999999999999", b"9223372036854775807", b"9223372036854775808", b"1" * 400, b"1_000", b"\xd9\xa1"),
    *(
        b"\xef\xbb\xbf",
        b"\xff",
        b"\xed\xa0\x80",
        "ä".encode(),
        "\u2028".encode(),
        b"&a [*a]",
        b"!!python/name:os.system",
    ),
    *(b"[" * 3000, b'{"a":' * 3000, b"x" * 200_000, b"2015-02-29T00:00:00Z", b"0000-00-00T99:99:99Z"),
)


@st.composite
def mutated(draw: st.DrawFn, original: bytes) -> bytes:
    """`original` with a few changes: bits, tokens in place of bytes, parts cut out, repeated or swapped."""
    content = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(content)))
        length = draw(st.sampled_from((0, 1, 1, 2, 5, 20, 200)))
        match draw(st.sampled_from(("bit", "token", "token", "token", "cut", "end", "repeat", "digits", "number"))):
            case "bit" if place < len(content):
                content[place] ^= 1 << draw(st.integers(0, 7))
            case "token":
                content[place : place + length] = draw(st.sampled_from(TOKENS))
            case "cut":
                del content[place : place + length]
            case "end":
                del content[place:]
            case "repeat":
                content[place:place] = content[place : place + length]
            case "digits":
                content[place : place + length] = draw(st.text(string.digits + ".-", max_size=6)).encode()
            case "number":
                # Whole numbers stay well-formed files longest.
                numbers = [i for i in range(len(content)) if chr(content[i]) in string.digits]
                if numbers:
                    content[draw(st.sampled_from(numbers))] = ord(draw(st.sampled_from(string.digits)))
    return bytes(content)


@contextlib.contextmanager
def limited_memory() -> Iterator[None]:
    """Let what asks for more than `MEMORY` fail."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def result_or_error(read: Callable[[], Any], name: str) -> Any:
    """What `read` gives, or None if it ends with the error of a user's mistake in the file `name`."""
    with limited_memory():
        try:
            return read()
        except UserError as error:
            message = str(error)
    assert name in message, message
    assert len(message) < MAX_MESSAGE, f"{len(message)} characters"
    assert message.isprintable(), message
    return None
