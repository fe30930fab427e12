"""Files that appear complete or not at all."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

_counter = itertools.count()


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file so that whoever reads it sees the old or the new content, never a part.

    Parameters
    ----------
    path : path
        The file; may exist.

    Yields
    ------
    Path
        Beside it, to write to. It takes the file's place when the block ends, and is removed when
        the block fails.

    Raises
    ------
    OSError
        When it cannot be put there.

    Examples
    --------
    >>> with atomic_write("numbers.txt") as part:     # doctest: +SKIP
    ...     part.write_text("1 2 3")
    """
    target = Path(path)
    part = target.with_name(f".{target.name}.{os.getpid()}-{next(_counter)}.tmp")
    try:
        yield part
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
