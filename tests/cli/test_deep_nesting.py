"""YAML and JSON that are nested too deeply are refused like any other wrong value: no traceback, and nothing is run."""

import pytest

DEPTHS = [900, 100_000]  # what the parsers take, and what ends them

OPTIONS = {
    "unlearn, loss_kwargs": ["unlearn", "--loss_kwargs"],
    "unlearn, attribution_kwargs": ["unlearn", "--attribution_kwargs"],
    "unlearn, chat_template_kwargs": ["unlearn", "--chat_template_kwargs"],
    "unlearn, lr_scheduler_kwargs": ["unlearn", "--lr_scheduler_kwargs"],
    "compare, objective_settings": ["compare", "--objective_settings"],
}


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("command", OPTIONS)
def test_json_of_training_options(command, depth, files, wagle, tmp_path):
    name, option = OPTIONS[command]
    value = '{"npo": ' + "[" * depth + "]" * depth + "}"
    config = tmp_path / "run.yaml"
    config.write_text(f"model_name_or_path: {files.model}\nforget_file: {files.forget}\nretain_file: {files.retain}\n")
    code, _, err = wagle(name, "--config", config, option, value, "--output_dir", tmp_path / "out")
    assert code in (1, 2) and err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("depth", DEPTHS)
def test_mappings_in_a_schedules_arguments(depth, files, wagle, tmp_path):
    """Transformers walks through mappings by itself, one call for each level."""
    value = '{"num_cycles": ' * depth + "1" + "}" * depth
    sets = ["--forget_file", files.forget, "--retain_file", files.retain, "--output_dir", tmp_path / "out"]
    code, _, err = wagle("unlearn", "--model_name_or_path", files.model, *sets, "--lr_scheduler_kwargs", value)
    assert code in (1, 2) and err and "Traceback" not in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("depth", DEPTHS)
def test_options_of_evaluations(depth, files, wagle):
    sets = ["--forget_file", files.forget, "--retain_file", files.retain]
    deep = "[" * depth + "]" * depth
    for option in (["--options", f"max_new_tokens={deep}"], ["--chat_template_kwargs", deep]):
        code, _, err = wagle("evaluate", files.model, *sets, *option)
        assert code in (1, 2) and err, option[0]


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("command", ["unlearn", "compare", "forget", "report"])
def test_configuration_files(command, depth, files, wagle, tmp_path):
    config, results = tmp_path / "deep.yaml", tmp_path / "results.json"
    config.write_text("density: " + "[" * depth + "]" * depth)
    results.write_text('{"after": {"forget_Q_A_Prob": 0.5}}')
    given = {"forget": [files.model, "--forget_file", files.forget], "report": [results]}.get(command, [])
    code, _, err = wagle(command, *given, "--config", config, "--output_dir", tmp_path / "out")
    assert code in (1, 2) and err
    assert not list(tmp_path.glob("out/*"))
