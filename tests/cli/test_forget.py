"""`wagle forget` on a model that knows nothing of the file, and its dry run; the whole is in tests/forgetting."""

import json

import pytest
import yaml

from wagle_trainer.cli import forget
from wagle_trainer.forgetting import ForgetSettings

# Every setting with another value than its default.
CHANGED = {
    "forget_goal": 0.2,
    "utility_floor": 0.8,
    "score": "gradient",
    "embeddings": "never",
    "densities": [0.01, 0.1],
    "learning_rates": [0.001],
    "max_tries": 3,
    "steps": 20,
    "check_every": 2,
    "batch_size": 4,
    "loss_type": "simnpo",
    "loss_kwargs": {"beta": 2.0},
    "retain_weight": 1.5,
    "neighbours": 32,
    "known": 0.2,
    "attacks": [],
    "save_generations": True,
    "relearning_rate": 0.001,
    "eval_batch_size": 8,
    "seed": 1,
}


def test_dry_run(files, wagle):
    code, out, err = wagle(
        "forget", files.model, "--forget_file", files.forget, "--output_dir", "nowhere", "--dry_run"
    )
    assert code == 0, err
    assert "To forget: 6 rows of question and answer" in out
    assert "Expected: about" in out


def test_dry_run_as_json(files, wagle):
    arguments = (
        "--forget_file",
        files.forget,
        "--output_dir",
        "nowhere",
        "--dry_run",
        "--json",
        "--densities",
        "0.01",
        "0.1",
    )
    code, out, _ = wagle("forget", files.model, *arguments)
    assert code == 0
    assert json.loads(out)["rows"] == 6 and json.loads(out)["settings"]["densities"] == [0.01, 0.1]


def test_what_cannot_be_read_is_refused_before_the_model_is_loaded(files, wagle, tmp_path):
    code, _, err = wagle("forget", "no-such-model", "--forget_file", tmp_path / "none.jsonl", "--output_dir", tmp_path)
    assert code == 1 and "none.jsonl" in err
    code, _, err = wagle(
        *("forget", "no-such-model", "--forget_file", files.forget, "--output_dir", tmp_path, "--forget_goal", "2")
    )
    assert code == 1 and "forget_goal is a share" in err


def test_a_forget_set_without_names_needs_a_retain_file(files, wagle, tmp_path):
    code, _, err = wagle("forget", files.model, "--forget_file", files.forget, "--output_dir", tmp_path)
    assert code == 1
    assert "--retain_file" in err
    assert not (tmp_path / "verdict.json").exists()


def test_exit_code_and_sentences(files, wagle, tmp_path, monkeypatch):
    from wagle_trainer.forgetting import run

    class Verdict:
        exit_code = 3

        @staticmethod
        def as_dict():
            return {"sentences": ["Not forgotten: ...", "..."], "next": "Next: ...", "forgotten": False}

    monkeypatch.setattr(run, "forget", lambda *args, **kwargs: Verdict())
    code, out, _ = wagle("forget", files.model, "--forget_file", files.forget, "--output_dir", tmp_path)
    assert (code, out) == (3, "Not forgotten: ...\n...\nNext: ...\n")


def test_config_of_another_run(files, wagle, tmp_path):
    """What a run writes can be given again; the command line counts more."""
    config = {"model": files.model, "forget_file": files.forget, "output_dir": "nowhere", "style": "plain"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config | ForgetSettings(max_tries=3).as_dict()))
    code, out, err = wagle(
        "forget", "--config", tmp_path / "config.yaml", "--forget_goal", "0.2", "--dry_run", "--json"
    )
    assert code == 0, err
    settings = json.loads(out)["settings"]
    assert settings == ForgetSettings(max_tries=3, forget_goal=0.2).as_dict()
    (tmp_path / "config.yaml").write_text("colour: red")
    code, _, err = wagle("forget", "--config", tmp_path / "config.yaml")
    assert code == 1 and "options that are unknown: colour" in err


def settings_of(*arguments):
    options = forget.parse(["model", "--forget_file", "f.jsonl", "--output_dir", "out", *map(str, arguments)])
    return ForgetSettings(**forget.chosen_settings(options)).as_dict()


def test_every_setting_arrives(tmp_path):
    """From the command line and from a file, where YAML's 1e-3 is text and a list of one may be written without brackets."""
    assert CHANGED.keys() == ForgetSettings().as_dict().keys()
    given = []
    for name, value in CHANGED.items():
        texts = [json.dumps(value)] if isinstance(value, dict) else value if isinstance(value, list) else [value]
        given += [f"--{name}", *([] if value is True else texts)]
    assert settings_of(*given) == CHANGED
    assert settings_of() == ForgetSettings().as_dict()
    file = tmp_path / "config.yaml"
    file.write_text(
        yaml.safe_dump(CHANGED | {"dtype": None}).replace("learning_rates:\n- 0.001", "learning_rates: 1e-3")
    )
    assert "1e-3" in file.read_text()
    assert settings_of("--config", file) == CHANGED


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("densities: [small]", 2, "argument --densities: invalid float value: 'small'"),
        ("dtype: float8", 2, "argument --dtype: invalid choice: 'float8'"),
        ("score: [snip, random]", 1, "score takes one value"),
        ("[1, 2]", 1, "holds no options"),
    ],
)
def test_a_file_is_checked_as_the_command_line_is(text, code, message, wagle, tmp_path):
    (tmp_path / "config.yaml").write_text(text)
    found, _, err = wagle("forget", "--config", tmp_path / "config.yaml")
    assert found == code and message in err


def test_what_is_required(wagle):
    code, _, err = wagle("forget", "model", "--output_dir", "out")
    assert code == 2 and "the following arguments are required: --forget_file" in err
