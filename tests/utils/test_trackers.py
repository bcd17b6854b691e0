"""Numbers arrive at the trackers; without a tracker's package that is said before any work."""

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
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


def test_trackio_is_told_that_its_run_is_over(logged, monkeypatch):
    """Else it ends the run once more at exit, and says so on stdout."""
    told = []
    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(finish=lambda: told.append(logged.finished)))
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "trackio", tracking.LOGGER_TYPE_TO_CLASS["wandb"])
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: [LoggerType.TRACKIO])
    log_to_trackers(["trackio"], "after", {"model_utility": 0.5})
    assert told == [True] and logged.values == {"model_utility": 0.5}


def test_trackio(tmp_path):
    """The real one: numbers and settings are in its file, and nothing is printed once the run is over."""
    pytest.importorskip("trackio")
    script = (
        "import contextlib, sys\n"
        "from wagle_trainer.utils.trackers import log_to_trackers\n"
        "with contextlib.redirect_stdout(sys.stderr):\n"  # as the command line does
        "    for label in ('before', 'after'):\n"
        "        log_to_trackers(['trackio'], label, {'model_utility': 0.5}, settings={'hub_token': 'hf_a', 'n': 3})\n"
        "print('{}')\n"
    )
    environment = os.environ | {"TRACKIO_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout == "{}\n"
    with contextlib.closing(sqlite3.connect(tmp_path / "wagle.db")) as database:
        logged = {name: json.loads(found) for name, found in database.execute("SELECT run_name, metrics FROM metrics")}
        settings = str([row[0] for row in database.execute("SELECT config FROM configs")])
    assert {name: found["model_utility"] for name, found in logged.items()} == {"before": 0.5, "after": 0.5}
    assert '"n"' in settings and "hf_a" not in settings
