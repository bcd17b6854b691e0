"""What several processes on a CPU have saved is read again."""

import torch

from wagle_trainer.utils.numbered_cpus import read_numbered_cpus


def test_a_cpu_with_a_number_is_the_cpu(tmp_path):
    saved = {"step": 3, "moments": torch.arange(4.0)}
    torch.save(saved, tmp_path / "optimizer.pt")
    for _ in range(2):  # the second time it is known already
        read_numbered_cpus()
        for location in (torch.device("cpu", 0), "cpu:0", "cpu", None):
            loaded = torch.load(tmp_path / "optimizer.pt", map_location=location, weights_only=True)
            assert loaded["step"] == 3 and loaded["moments"].device == torch.device("cpu")
            assert torch.equal(loaded["moments"], saved["moments"])


def test_other_devices_stay_torchs(tmp_path):
    read_numbered_cpus()
    torch.save(torch.ones(2), tmp_path / "ones.pt")
    assert torch.load(tmp_path / "ones.pt", map_location="meta", weights_only=True).is_meta
