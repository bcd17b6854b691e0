"""Free memory, as the host and a container's limit tell of it."""

import os
from types import SimpleNamespace

import psutil
import pytest
import torch

from wagle_trainer.utils import free_memory as module
from wagle_trainer.utils.free_memory import free_memory

CPU = torch.device("cpu")


@pytest.fixture
def container(tmp_path, monkeypatch):
    """Writes files of a cgroup, which are read instead of this machine's."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=5000 * 1024))
    monkeypatch.setattr(module, "_CGROUP", tmp_path)
    monkeypatch.setattr(module, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)

    def write(limit, used, cached, group="", names=("max", "current")):
        folder = tmp_path / group
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in zip((*names, "stat"), (limit, used, f"anon 12\ninactive_file {cached}"), strict=True):
            (folder / f"memory.{name}").write_text(f"{text}\n")

    return write


def test_this_machine():
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 <= free_memory(CPU) < total


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


def test_the_narrowest_of_nested_groups_counts(container, tmp_path):
    container("max", 0, 0)
    container(4000, 1000, 0, "jobs/7")
    container(9000, 1000, 0, "jobs")
    (tmp_path / "own").write_text("0::/jobs/7\n")
    assert free_memory(CPU) == 3000
    container(2500, 1000, 100, "jobs")
    assert free_memory(CPU) == 1600


def test_a_limit_of_the_first_kind_of_groups(container, tmp_path):
    container(2000, 500, 0, "memory/docker/1", ("limit_in_bytes", "usage_in_bytes"))
    (tmp_path / "own").write_text("3:cpu,cpuacct:/other\n2:memory:/docker/1\n")
    assert free_memory(CPU) == 1500


def test_processes_of_a_run_share_the_host(container, monkeypatch):
    container(1000, 200, 0)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_memory(CPU) == 200


def test_other_devices_promise_nothing(container):
    assert free_memory(torch.device("xpu")) == 0
    assert free_memory(torch.device("mps")) == free_memory(CPU)
