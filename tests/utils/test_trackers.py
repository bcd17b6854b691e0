"""Numbers arrive at the trackers; without a tracker's package that is said before any work."""

from types import SimpleNamespace

import pytest
from accelerate import tracking
from accelerate.utils import LoggerType

from wagle_trainer.utils.trackers import check_trackers, log_to_trackers


@pytest.fixture
def logged(monkeypatch):
    """What a tracker in wandb's place is given."""
    seen = SimpleNamespace(config=None, values=None, name=None, finished=False)

    class Recorder(tracking.GeneralTracker):
        name = "wandb"
        requires_logging_directory = False

        def __init__(self, run_name, **options):
            super().__init__()
            seen.project, seen.name = run_name, options["name"]

        def start(self):
            pass

        @property
        def tracker(self):
            return self

        def store_init_configuration(self, values):
            seen.config = values

        def log(self, values, step, **options):
            seen.values = values

        def finish(self):
            seen.finished = True

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Recorder)
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: [LoggerType.WANDB])
    return seen


def test_numbers_and_settings_arrive(logged):
    log_to_trackers(
        ["wandb"], "after", {"model_utility": 0.5, "n": 3}, settings={"suite": "tofu", "hub_token": "hf_a", "x": [1]}
    )
    assert (logged.project, logged.name) == ("wagle", "after")
    assert logged.values == {"model_utility": 0.5, "n": 3.0}
    assert logged.config == {"suite": "tofu", "hub_token": "(not shown)", "x": "[1]"}
    assert logged.finished


def test_what_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="Unknown tracker mlflow. Known: wandb, trackio, tensorboard"):
        check_trackers(["mlflow"])
    monkeypatch.setattr(tracking, "get_available_trackers", list)
    with pytest.raises(ImportError, match="pip install wandb"):
        check_trackers(["wandb"])
