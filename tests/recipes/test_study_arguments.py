"""Arguments of the two studies: what is wrong is refused before any work, in one line."""

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module", autouse=True)
def recipes():
    """Recipes import each other by their bare names, as they do when they are run."""
    sys.path.insert(0, str(RECIPES))
    yield
    sys.path.remove(str(RECIPES))


@pytest.fixture
def refused(monkeypatch, capsys):
    """refused(recipe, *arguments) -> the line that the recipe ends with."""

    def start(recipe, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{recipe}.py", *arguments])
        with pytest.raises(SystemExit) as ended:
            importlib.import_module(recipe).main()
        assert ended.value.code == 2
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith(f"{recipe}.py: ")
        return line

    return start


BOTH = [
    (["--scores", "snipp"], "Unknown attribution score 'snipp'"),
    (["--seeds", "0", "0"], "seeds must hold at least one value, and none twice"),
    (["--seeds", "-1"], "seeds must be at least 0"),
    (["--densities", "2"], "densities must be between 0 and 1"),
    (["--densities", "nan"], "densities must be between 0 and 1"),
    (["--steps", "0"], "steps must be at least 1"),
    (["--relearning_rates", "0"], "relearning_rates must be above 0"),
    (["--scores", "snip:3"], "'snip:3': the score 'snip' has no gamma. Write 'snip'."),
    (["--scores", "wagle:abc"], "'wagle:abc': attribution gamma must be a positive, finite number"),
    (["--scores", "wagle-body:-1"], "'wagle-body:-1': attribution gamma must be a positive, finite number"),
    (["--scores", "wagle:"], "'wagle:': attribution gamma must be"),
    (["--config", "not-there.yaml"], "not-there.yaml"),
]
PATCH_SIZE = [
    (["--task", "faacts"], "Unknown task 'faacts'. Known: copyright, detox, facts, people, tofu, wmdp."),
    (["--examples", "1"], "examples must be at least 2"),
    (["--forget_share", "5"], "forget_share must be above 0 and at most 1"),
    (["--utility_loss", "-0.1"], "utility_loss must be from 0 to 1"),
    (["--rerun", "-1"], "rerun must be at least 0"),
    (["--runs", "snip 1e-3 inf"], "in runs"),
    (["--objectives", "colour"], "colour"),
    (["--model", "/nonexistent", "--count_missing"], "The model folder /nonexistent does not exist"),
    (["--model", "./a/b/c"], "The model folder ./a/b/c does not exist"),
    (["--rerun", "1"], "no row of these arguments that could be run again"),
]
LOCALIZATION = [
    (["--planted", "1.5"], "planted must be between 0 and 1"),
    (["--ways", "nowhere"], "Unknown way nowhere"),
]


@pytest.mark.parametrize(
    ("recipe", "arguments", "message"),
    [("patch_size", *case) for case in BOTH + PATCH_SIZE] + [("localization", *case) for case in BOTH + LOCALIZATION],
)
def test_wrong_arguments_are_refused_in_one_line(refused, tmp_path, recipe, arguments, message):
    assert message in refused(recipe, "--output_dir", str(tmp_path), *arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_config_that_holds_no_options(refused, tmp_path):
    (tmp_path / "config.yaml").write_text("- task\n")
    assert "holds no options" in refused("patch_size", "--config", str(tmp_path / "config.yaml"))


@pytest.mark.parametrize("recipe", ["patch_size", "localization"])
def test_results_of_something_else_are_not_added_to(refused, tmp_path, recipe):
    text = '{"format": 1, "environments": {}, "references": [], "rows": [{"seed": 0}]}'
    for content in (text, '{"before": {}}'):
        (tmp_path / "results.json").write_text(content)
        assert "holds other results than those of this study" in refused(recipe, "--output_dir", str(tmp_path))
        assert (tmp_path / "results.json").read_text() == content


def test_numbers_that_yaml_reads_as_text():
    arguments = importlib.import_module("study_arguments")

    @dataclass
    class Given:
        rates: list
        share: float = 0.5

    given = Given(["1e-3", 2])
    arguments.check_numbers(given, ["rates", "share"], lambda value: value > 0, "above 0")
    assert given == Given([1e-3, 2], 0.5)
    for wrong in (["x"], [[1]], None, True, {"a": 1}):
        with pytest.raises(ValueError, match="rates must be numbers"):
            arguments.check_numbers(Given(wrong), ["rates"], lambda value: True, "a number")
    with pytest.raises(ValueError, match="rates must be whole numbers"):
        arguments.check_numbers(Given([1.5]), ["rates"], lambda value: True, "a number", whole=True)
    for wrong in (1e-3, "snip", [["snip"]]):
        with pytest.raises(ValueError, match="rates must be a list of values"):
            arguments.check_lists(Given(wrong), ["rates"])


@pytest.mark.parametrize("text", ["scores: [1]", "runs: [3]", "model: 3", "objectives: [2]"])
def test_text_that_yaml_reads_as_a_number(refused, tmp_path, text):
    (tmp_path / "config.yaml").write_text(f"output_dir: {tmp_path}\n{text}\n")
    assert f"{text.split(':')[0]} must be text" in refused("patch_size", "--config", str(tmp_path / "config.yaml"))


def test_a_model_is_a_folder_or_a_hub_id(tmp_path):
    check_model = importlib.import_module("study_arguments").check_model
    for hub_id in ("gpt2", "HuggingFaceTB/SmolLM2-135M-Instruct"):
        check_model(hub_id)
    with pytest.raises(FileNotFoundError, match="holds no config.json"):
        check_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    check_model(str(tmp_path))
