"""`wagle forget` on a model that knows nothing of the file, and its dry run; the whole is in tests/forgetting."""

import json


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
            return {"sentences": ["Not forgotten: ...", "..."], "forgotten": False}

    monkeypatch.setattr(run, "forget", lambda *args, **kwargs: Verdict())
    code, out, _ = wagle("forget", files.model, "--forget_file", files.forget, "--output_dir", tmp_path)
    assert (code, out) == (3, "Not forgotten: ...\n...\n")


def test_config_of_another_run(files, wagle, tmp_path):
    """What a run writes can be given again; the command line counts more."""
    import yaml

    from wagle_trainer.forgetting import ForgetSettings

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


def test_what_is_required(wagle):
    code, _, err = wagle("forget", "model", "--output_dir", "out")
    assert code == 2 and "the following arguments are required: --forget_file" in err
