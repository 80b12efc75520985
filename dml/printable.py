"""Names as they are, on any console and in any file: what a user's folders are called is not ours to choose."""

import io
import sys


def printable(text: str) -> str:
    """Text in one line, with \\n and the like in the place of what no terminal, table or picture can show.

    A name of the file system that is not UTF-8 has lone surrogates in Python, which no encoder takes.
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def tolerant_output() -> None:
    """Have standard output show a character that it has no bytes for as \\xNN, where it would raise an error."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
