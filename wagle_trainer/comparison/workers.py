"""Processes that make the runs of a comparison side by side."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any

import datasets
import torch
import transformers
from tqdm.auto import tqdm


def prepare_process(threads: int | None) -> None:
    """Quiet, and with so many threads, in each process that makes runs."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    if threads is not None:
        torch.set_num_threads(threads)


class Workers:
    """Processes that stay for the whole comparison, since starting one takes longer than a run of a small model."""

    def __init__(self, processes: int):
        self.pool = None
        if processes > 1:
            os.environ["OMP_NUM_THREADS"] = "1"  # read when a process starts
            self.pool = ProcessPoolExecutor(processes, get_context("spawn"), prepare_process, (1,))

    def map(self, function: Callable[..., None], items: Sequence[tuple[Any, ...]], title: str) -> None:
        """Call the function with the arguments of every item.

        Args:
            function: called once for each item.
            items: arguments of each call.
            title: of the progress display.
        """
        with tqdm(total=len(items), desc=title, unit="run") as bar:
            if self.pool is None:
                for item in items:
                    function(*item)
                    bar.update()
                return
            try:
                for done in as_completed([self.pool.submit(function, *item) for item in items]):
                    done.result()
                    bar.update()
            except BaseException:
                self.pool.shutdown(cancel_futures=True)
                raise
