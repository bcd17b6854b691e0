"""`WagleConfig(preset=...)`: the paper's numbers, where the caller left the default; in Python, YAML and on the command line."""

from pathlib import Path

import pytest
import yaml

from wagle_trainer import WagleConfig
from wagle_trainer.cli.training import parse_training
from wagle_trainer.presets import PRESETS, preset_values

CONFIGS = Path(__file__).parents[1] / "recipes" / "configs"
# The configuration that holds the same numbers with the source of each line.
WRITTEN_DOWN = {
    ("wagle-paper", "npo"): "llama_2_7b",
    ("wagle-paper", "grad_diff"): "llama_2_7b_grad_diff",
    ("wagle-paper", "po"): "llama_2_7b_po",
    ("wagle-paper-wmdp", "npo"): "zephyr_7b",
    ("wagle-paper-wmdp", "grad_diff"): "zephyr_7b_grad_diff",
}


def test_every_preset_is_compared_with_a_configuration():
    assert set(WRITTEN_DOWN) == {(name, loss) for name, losses in PRESETS.items() for loss in losses}


@pytest.mark.parametrize(("preset", "loss"), WRITTEN_DOWN)
def test_holds_the_numbers_of_the_configuration(preset, loss):
    written = yaml.safe_load((CONFIGS / f"{WRITTEN_DOWN[preset, loss]}.yaml").read_text(encoding="utf-8"))
    values = preset_values(preset, loss)
    assert values == {name: written[name] for name in values}


def config(tmp_path, **changes):
    return WagleConfig(str(tmp_path), bf16=False, use_cpu=True, **changes)


@pytest.mark.parametrize(("preset", "loss"), WRITTEN_DOWN)
def test_sets_what_was_left_at_its_default(tmp_path, preset, loss):
    args = config(tmp_path, preset=preset, loss_type=loss)
    assert {name: getattr(args, name) for name in preset_values(preset, loss)} == preset_values(preset, loss)


def test_what_is_given_wins_even_where_it_is_the_default(tmp_path):
    assert config(tmp_path).density == 0.8
    args = config(tmp_path, preset="wagle-paper", density=float("0.8"), learning_rate=3e-4, loss_kwargs={"beta": 0.5})
    assert (args.density, args.learning_rate, args.loss_kwargs) == (0.8, 3e-4, {"beta": 0.5})
    assert args.num_train_epochs == 5


def parsed(*arguments):
    base = ["--model_name_or_path", "m", "--forget_file", "f.jsonl", "--bf16", "false", "--use_cpu", "true"]
    return parse_training("unlearn", "", "", [*base, *arguments], run=print, show=str).training


def test_on_the_command_line(tmp_path):
    args = parsed("--output_dir", str(tmp_path), "--preset", "wagle-paper", "--loss_type", "grad_diff")
    assert (args.density, args.learning_rate, args.attribution_gamma) == (0.95, 7e-6, 1e-6)
    args = parsed("--output_dir", str(tmp_path), "--preset", "wagle-paper", "--density", "0.8")
    assert (args.density, args.learning_rate) == (0.8, 1e-5)


def test_in_yaml(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(f"preset: wagle-paper-wmdp\noutput_dir: {tmp_path}\ndensity: 0.8\n", encoding="utf-8")
    args = parsed("--config", str(file))
    assert (args.density, args.max_steps, args.weight_decay) == (0.8, 500, 0.0)


def test_refuses_unknown_presets_and_objectives(tmp_path):
    with pytest.raises(ValueError, match="Unknown preset 'paper'. Known: wagle-paper, wagle-paper-wmdp"):
        config(tmp_path, preset="paper")
    with pytest.raises(ValueError, match="has no settings for loss_type='dpo': its source used npo, grad_diff, po"):
        config(tmp_path, preset="wagle-paper", loss_type="dpo")
