"""Data parallelism: every process holds the full model."""

from __future__ import annotations

from accelerate.utils import DistributedType

from wagle_trainer.engines.engine import Engine


class DataParallel(Engine):
    """torch's DistributedDataParallel. It averages gradients before hooks on accumulated gradients run.

    It waits for gradients of all parameters, so that a trainer has to provide zeros.
    """

    name = "data parallelism"
    kinds = frozenset(
        {DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.MULTI_XPU, DistributedType.MULTI_NPU}
    )
    fills_missing_gradients = True
    watched_by = ("test_data_parallel",)
