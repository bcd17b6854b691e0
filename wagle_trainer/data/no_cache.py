"""Work on a set that leaves no copy of it in the cache of `datasets`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import datasets


@contextmanager
def without_cache() -> Iterator[None]:
    """Have `Dataset.map` write into a folder that is deleted when the process ends, not beside the set's own files.

    A set in memory has no such files at all; one that a user loaded by `datasets.load_dataset` has, and what is made of a
    forget set would stay readable there.
    """
    enabled = datasets.is_caching_enabled()
    datasets.disable_caching()
    try:
        yield
    finally:
        if enabled:
            datasets.enable_caching()
