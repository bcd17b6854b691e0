"""The one progress display of a run."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from logging import WARNING, getLogger

from tqdm.auto import tqdm


class Progress:
    """A single bar over all stages, in per cent of the expected time; one line of text says what is going on.

    Args:
        show: whether to show it.
    """

    def __init__(self, show: bool = True):
        self._bar = tqdm(
            total=100,
            disable=not show,
            bar_format="{desc:<44.44} {percentage:3.0f}% |{bar:24}| {elapsed}",
            leave=False,
            mininterval=0.5 if sys.stderr.isatty() else 15,  # seconds; a log file needs fewer lines
        )
        self._to = 0.0

    def stage(self, text: str, until: float) -> None:
        """Begin a stage.

        Args:
            text: what is going on.
            until: per cent of the whole run that are done when it ends.
        """
        self._set(self._to)
        self._from, self._to = self._to, until
        self._bar.set_description_str(text)

    def within(self, share: float) -> None:
        """Say how much of the stage is done, in [0, 1]."""
        self._set(self._from + share * (self._to - self._from))

    def _set(self, value: float) -> None:
        self._bar.update(max(0.0, value - self._bar.n))

    def close(self) -> None:
        """Take the bar off the screen."""
        self._bar.close()


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep libraries from showing bars and advice of their own, and this package from telling of each try."""
    import datasets
    from transformers.utils import logging

    level, loading, sets = (
        logging.get_verbosity(),
        logging.is_progress_bar_enabled(),
        not datasets.are_progress_bars_disabled(),
    )
    own = getLogger("wagle_trainer")
    own_level = own.level
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    own.setLevel(max(own_level, WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(level)
        own.setLevel(own_level)
        if loading:
            logging.enable_progress_bar()
        if sets:
            datasets.enable_progress_bars()
