"""What was run, with which versions, on which machine."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from wagle_trainer._version import __version__
from wagle_trainer.utils.secrets import redacted_arguments

_PACKAGES = (
    *("wagle-trainer", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "evaluate", "numpy", "scipy"),
    *("safetensors", "rouge_score", "matplotlib"),
)


def environment() -> dict[str, Any]:
    """Command line (without secrets), time, versions and machine, as JSON can hold them."""
    machine: dict[str, Any] = {"system": platform.platform(), "processor": _processor(), "CPU cores": os.cpu_count()}
    torch = sys.modules.get("torch")  # a report alone needs no torch
    if torch is not None:
        machine["torch threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            machine["GPUs"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "command": _command(redacted_arguments(sys.argv)),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()} | installed_versions(_PACKAGES),
        "machine": machine,
    }  # fmt: skip


def _command(arguments: Sequence[str]) -> str:
    """What was typed: the name of an installed script stands for itself, a file needs its interpreter."""
    script, *rest = arguments
    name = os.path.basename(script)
    return shlex.join([name, *rest] if name == "wagle" else [os.path.basename(sys.executable), script, *rest])


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Package -> its version; without those that are not installed. A checkout need not be installed to know its own."""
    found = {}
    for package in packages:
        try:
            found[package] = __version__ if package == "wagle-trainer" else version(package)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    """The processor's name; platform.processor() is empty or the architecture on most Linux systems."""
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
