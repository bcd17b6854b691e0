"""What figures show, read from the figures themselves."""

import io
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from wagle_trainer import WeightMask
from wagle_trainer.reporting import plots
from wagle_trainer.reporting.statistics import Interval


def axes_of(figure):
    return figure.axes[0]


def legend_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_layer_by_module_counts_the_mask_itself():
    torch.manual_seed(0)
    shapes = {
        "model.embed.weight": (9, 4),
        **{f"model.layers.{layer}.attn.q_proj.{kind}": (4, 4) for layer in range(11) for kind in ("weight", "bias")},
        **{f"model.layers.{layer}.mlp.up.weight": (8, 4) for layer in range(10)},
    }
    mask = WeightMask.from_dict({name: torch.rand(shape) < 0.3 for name, shape in shapes.items()})
    layers, modules, shares = plots.layer_by_module(mask.summary())
    assert layers == [*map(str, range(11)), "outside"]
    assert modules == ["embed", "q_proj", "up"]
    for row, module in enumerate(modules):
        for column, layer in enumerate(layers):
            tensors = [
                mask[name]
                for name in mask
                if f".{module}." in name and (f".{layer}." in name or (layer == "outside" and "layers" not in name))
            ]
            if tensors:
                selected = torch.cat([tensor.flatten() for tensor in tensors])
                assert shares[row, column] == pytest.approx(selected.float().mean().item())
            else:
                assert np.isnan(shares[row, column])


def test_heat_map_shows_these_shares(mask):
    layers, modules, shares = plots.layer_by_module(mask.summary())
    axes = axes_of(plots.mask_heat_map(mask.summary()))
    np.testing.assert_array_equal(axes.images[0].get_array().filled(np.nan), shares)
    assert [label.get_text() for label in axes.get_yticklabels()] == modules
    assert len(axes.get_xticklabels()) == len(layers)


def test_score_distribution_shows_every_positive_score(mask):
    histogram = mask.info.score_histogram
    axes = axes_of(plots.score_distribution(histogram))
    scores, selected = (np.array([bar.get_height() for bar in bars]) for bars in axes.containers)
    assert selected.sum() + histogram["zero_selected"] == mask.num_selected
    assert (scores >= selected).all()  # the selected ones stand in front
    assert scores.sum() + histogram["zero_scores"] == mask.num_weights
    # Magnitudes: the bars stand where the weights are, the line at the smallest selected one.
    assert axes.lines[0].get_xdata()[0] == histogram["threshold"]
    left = axes.containers[1][int(np.flatnonzero(selected)[0])]
    assert left.get_x() <= histogram["threshold"] < left.get_x() + left.get_width()


@pytest.mark.parametrize(("selected", "scale"), [(9, "log"), (11, "linear")])
def test_the_weights_of_a_small_patch_are_to_be_seen(selected, scale):
    histogram = {"first_exponent": 0, "scores": [900, 100], "selected": [0, selected], "zero_scores": 0}
    axes = axes_of(plots.score_distribution(histogram | {"threshold": 3.0}))
    assert axes.get_yscale() == scale


def test_scores_without_threshold_and_with_zeros():
    histogram = {"first_exponent": -3, "scores": [4, 2], "selected": [1, 1], "zero_scores": 2, "zero_selected": 0}
    axes = axes_of(plots.score_distribution(histogram | {"threshold": None}))
    assert not axes.lines
    assert axes.get_title() == "2 scores are zero (not shown)"


def test_trade_off_shows_each_point_with_its_interval():
    points = {
        "wagle 0.05": (Interval(0.1, 0.08, 0.12), Interval(0.6, 0.5, 0.7)),
        "wagle 0.2": (Interval(0.2), Interval(0.5)),
        "random 0.05": (Interval(0.3), Interval(0.4)),
    }
    figure = plots.trade_off(points, "forget", "utility", {"before": (Interval(0.9), Interval(0.8))})
    axes = axes_of(figure)
    assert sorted(legend_of(figure)) == sorted([*points, "before"])
    places = {
        container.get_label(): (container[0].get_xdata()[0], container[0].get_ydata()[0])
        for container in axes.containers
    }
    assert places == {label: (x.mean, y.mean) for label, (x, y) in points.items()} | {"before": (0.9, 0.8)}
    [wagle] = [container for container in axes.containers if container.get_label() == "wagle 0.05"]
    across, upright = (collection.get_segments()[0] for collection in wagle[2])
    np.testing.assert_allclose(across, [[0.08, 0.6], [0.12, 0.6]])
    np.testing.assert_allclose(upright, [[0.1, 0.5], [0.1, 0.7]])
    colours = {container.get_label(): container[0].get_color() for container in axes.containers}
    assert colours["wagle 0.05"] == colours["wagle 0.2"] != colours["random 0.05"]


def test_trade_off_of_many_says_where_far_references_are():
    points = {f"wagle 0.{n}": (Interval(0.1 + 0.01 * n), Interval(0.6 + 0.01 * n)) for n in range(1, 7)}
    figure = plots.trade_off(points, "forget", "utility", {"before": (Interval(0.98), Interval(0.71))})
    assert "before (outside: 0.98,\n0.71)" in legend_of(figure)
    assert axes_of(figure).get_xlim()[1] < 0.3


def test_over_steps(history):
    figure = plots.over_steps(history, {"forget_Q_A_Prob": "forget prob", "model_utility": "utility"})
    assert legend_of(figure) == ["forget prob", "utility"]
    for line, name in zip(axes_of(figure).lines, ("forget_Q_A_Prob", "model_utility"), strict=True):
        assert list(line.get_xdata()) == [entry["step"] for entry in history]
        assert list(line.get_ydata()) == [entry["metrics"][name] for entry in history]


def test_attack_curves(attacks):
    line = axes_of(plots.attack_curve({"": attacks["relearning"]})).lines[0]
    assert list(line.get_xdata()) == [1, 5, 20]
    assert list(line.get_ydata()) == [0.025, 0.125, 0.5]
    figure = plots.attack_curve({"wagle": attacks["prompts"], "random": attacks["prompts"]})
    assert [[bar.get_height() for bar in bars] for bars in axes_of(figure).containers] == [[0.0, 0.25]] * 2
    assert [label.get_text() for label in axes_of(figure).get_xticklabels()] == ["prefix", "paraphrase"]
    assert legend_of(figure) == ["wagle", "random"]


def test_png_is_small_and_repeats(mask):
    pictures = [plots.png(plots.mask_heat_map(mask.summary())) for _ in range(2)]
    assert pictures[0] == pictures[1]
    image = Image.open(io.BytesIO(pictures[0])).convert("RGB")
    assert image.width == 960
    assert len(image.getcolors(1 << 20)) > 10, "not blank"
    assert len(pictures[0]) < 60_000


def test_nothing_global_is_touched():
    code = (
        "import sys, matplotlib\n"
        "settings = lambda: {k: matplotlib.rcParams[k] for k in matplotlib.rcParams if 'backend' not in k}\n"
        "before = settings()\n"
        "from wagle_trainer.reporting import plots\n"
        "plots.png(plots.over_steps([{'step': 1, 'metrics': {'a': 1.0}}], {'a': 'a'}))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert settings() == before\n"
        "import wagle_trainer.reporting.statistics\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
