"""How much memory a device has left."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import torch

_CGROUP = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")


def free_memory(device: torch.device) -> int:
    """Bytes that a process can still allocate on a GPU or on the host, those that PyTorch holds in reserve included.

    The processes of a run on one host take equal shares of it. Of other devices nothing is known: 0, except that "mps" has the
    memory of the host.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    if device.type not in ("cpu", "mps"):
        return 0
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # as launchers set it
    return min(_of_the_host(), _of_the_container()) // processes


def _of_the_host() -> int:
    """What the system says is available; it counts what it would take from caches of files."""
    import psutil  # scoring on a GPU does without

    return psutil.virtual_memory().available


def _of_the_container() -> int:
    """What the limits of the groups leave that the process is in: of a container, a job, a slice."""
    return min((left for folder in _groups() if (left := _left(folder)) is not None), default=2**63)


def _groups() -> Iterator[Path]:
    """Folders of the process's groups with all above them, of cgroup v2 and of v1's memory controller."""
    yield from (_CGROUP, _CGROUP / "memory")
    try:
        lines = _OWN_GROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers or "memory" in controllers.split(","):
            own = PurePosixPath(path.lstrip("/"))
            yield from ((_CGROUP / ("memory" if controllers else "") / part) for part in (own, *own.parents))


def _left(group: Path) -> int | None:
    """Bytes that a group's limit leaves; None if it has none."""
    for names in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        try:
            limit, used = ((group / name).read_text().strip() for name in names)
            cached = _numbers(group / "memory.stat").get("inactive_file", 0)
        except OSError:
            continue
        return None if limit == "max" else max(0, int(limit) - int(used) + cached)
    return None


def _numbers(file: Path) -> dict[str, int]:
    """The lines of a file of names and numbers."""
    return {words[0]: int(words[1]) for words in map(str.split, file.read_text().splitlines()) if len(words) > 1}
