"""How much memory a device has left."""

from __future__ import annotations

from pathlib import Path

import torch

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
# What a host is taken to have left where it does not say, in bytes.
_UNKNOWN = 2**32


def free_memory(device: torch.device) -> int:
    """Bytes that a process can still allocate on a device, those that PyTorch holds in reserve included."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return min(_of_the_host(), _of_the_container())


def _of_the_host() -> int:
    """What Linux says is available; it counts what it would take from caches of files."""
    try:
        return _numbers(_MEMINFO)["MemAvailable:"] * 1024
    except (OSError, KeyError):
        return _UNKNOWN


def _of_the_container() -> int:
    """What the limit of a container leaves (cgroup v2)."""
    try:
        limit, used = ((_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        cached = _numbers(_CGROUP / "memory.stat").get("inactive_file", 0)
    except OSError:
        return 2**63
    return 2**63 if limit == "max" else max(0, int(limit) - int(used) + cached)


def _numbers(file: Path) -> dict[str, int]:
    """The lines of a file of names and numbers."""
    return {words[0]: int(words[1]) for words in map(str.split, file.read_text().splitlines()) if len(words) > 1}
