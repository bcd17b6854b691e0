"""Free memory, as the host and a container's limit tell of it."""

import os

import pytest
import torch

from wagle_trainer.utils import free_memory as module
from wagle_trainer.utils.free_memory import free_memory

CPU = torch.device("cpu")


@pytest.fixture
def container(tmp_path, monkeypatch):
    """Writes files of a cgroup, which are read instead of this machine's."""
    (tmp_path / "meminfo").write_text("MemTotal:       9000 kB\nMemFree:         100 kB\nMemAvailable:   5000 kB\n")
    monkeypatch.setattr(module, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(module, "_CGROUP", tmp_path)

    def write(limit, used, cached):
        for name, text in (("max", limit), ("current", used), ("stat", f"anon 12\ninactive_file {cached}")):
            (tmp_path / f"memory.{name}").write_text(f"{text}\n")

    return write


def test_this_machine():
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < free_memory(CPU) < total


def test_the_host_counts_where_there_is_no_limit(container):
    assert free_memory(CPU) == 5000 * 1024
    container("max", 100, 0)
    assert free_memory(CPU) == 5000 * 1024


@pytest.mark.parametrize(
    ("limit", "used", "cached", "free"),
    [(1000, 300, 50, 750), (1000, 2000, 0, 0), (10**9, 0, 0, 5000 * 1024)],
)
def test_the_limit_of_a_container_counts(container, limit, used, cached, free):
    container(limit, used, cached)
    assert free_memory(CPU) == free


def test_a_host_that_does_not_say(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_MEMINFO", tmp_path / "none")
    monkeypatch.setattr(module, "_CGROUP", tmp_path)
    assert free_memory(CPU) == 2**32
