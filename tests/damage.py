"""Ways to damage a file."""

import os


def flip(file):
    """Change one bit in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(file):
    """Lose the second half."""
    os.truncate(file, file.stat().st_size // 2)


def append(file):
    """Add a line break at the end."""
    with file.open("ab") as opened:
        opened.write(b"\n")
