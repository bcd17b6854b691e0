"""Settings and fixtures that all tests share."""

import os
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import pytest
import torch

torch.set_num_threads(2)

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def tofu_dir() -> Path:
    """The folder with the TOFU files."""
    folder = REPOSITORY / os.environ.get("WAGLE_TOFU_DIR", "../shared/data/tofu")
    if not folder.is_dir():
        pytest.skip(f"no TOFU files in {folder}: set WAGLE_TOFU_DIR")
    return folder
