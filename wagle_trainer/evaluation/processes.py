"""Shards batches over the processes that accelerate started, and gathers their results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, parse_flag_from_env

T = TypeVar("T")


def shard_batches(batches: Sequence[T], across_processes: bool) -> list[T]:
    """The batches that this process runs: r, r + n, ... for process r of n; all of them without `across_processes`.

    Every process gets the same number, since forward passes may have to be synchronised (FSDP, ZeRO-3, DDP's buffers):
    where the number of batches is no multiple of the processes, the last ones run one of the first batches again, while
    they would wait anyway.
    """
    if not across_processes:
        return list(batches)
    state = process_state()
    rounds = math.ceil(len(batches) / state.num_processes)
    turns = (state.process_index + turn * state.num_processes for turn in range(rounds))
    return [batches[turn % len(batches)] for turn in turns]


def gather_results(values: dict[int, T], across_processes: bool) -> dict[int, T]:
    """The results of all processes, by the position of the example; the same on all of them."""
    if not across_processes:
        return values
    return {position: value for part in gather_object([values]) for position, value in part.items()}


def shows_progress(progress: bool, across_processes: bool) -> bool:
    """Whether this process shows a progress bar: one is enough."""
    return progress and (not across_processes or process_state().is_main_process)


def process_state() -> PartialState:
    """Accelerate's state of this process. Without a trainer, accelerate sees all processes on CPUs only if told of CPUs."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())
