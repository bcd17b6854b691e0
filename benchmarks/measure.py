"""Timing and memory as ratios: everything against a named floor, in one run, on one machine."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from wagle_trainer.evaluation import save_results
from wagle_trainer.utils.text_table import text_table

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def interleaved(
    variants: dict[str, Callable[[], Any]], repeats: int, before: Callable[[str], Any] | None = None
) -> dict[str, float]:
    """Median seconds of each variant; they take turns, so that a slow minute of the machine hits all of them.

    Each begins with no memory left over: else the one that needs the most would pay for all first touches of fresh
    memory. Or, where what counts is how it runs on and on, with what `before(name)` leaves, which is not timed.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, run in variants.items():
            _give_back_memory() if before is None else before(name)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def _give_back_memory() -> None:
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)


def peak_mib(prepare: Callable[..., Callable[[], Any]], *arguments: Any) -> float:
    """Peak memory in MiB of what `prepare(*arguments)` returns, over what there was before it ran, measured in a process
    of its own: of the GPU's memory if there is one, of the process's otherwise."""
    # Freed blocks go back at once, in every variant: else glibc keeps them, and its fragments are measured, too.
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": str(2**20), "MALLOC_TRIM_THRESHOLD_": str(2**20)}
    context = get_context("forkserver")  # so that all these processes import but once
    context.set_forkserver_preload(["measure", "transformers", "trl", "wagle_trainer.trainer"])
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(_peak, prepare, arguments, torch.get_num_threads()).result()


def _peak(prepare: Callable[..., Callable[[], Any]], arguments: tuple[Any, ...], threads: int) -> float:
    torch.set_num_threads(threads)
    run = prepare(*arguments)
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    # Linux: writing 5 resets the high-water mark of the process to what it holds now.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    run()
    return (_status("VmHWM") - before) / 1024


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])


def report(title: str, rows: list[dict[str, Any]], settings: dict[str, Any], output: str) -> None:
    """Print the rows as a table and write them, with versions and machine, as JSON. A row may lack columns."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    values = [[row.get(column, "") for column in columns] for row in rows]
    cells = [columns, *[[f"{v:.3f}" if isinstance(v, float) else str(v) for v in row] for row in values]]
    print(f"\n{title}\n\n{text_table(cells, header=0)}")
    result = {
        "title": title,
        "rows": rows,
        "settings": settings,
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "accelerate", "numpy")},
        "machine": {
            "processor": platform.machine(),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "peak_rss_of_this_process_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    save_results(result, output)
    print(f"\nWritten to {output}")
