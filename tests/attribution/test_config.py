"""`AttributionConfig` is the one place of an attribution's arguments: its checks, its forms, and what is taken from it."""

import dataclasses
import math

import pytest
import torch

from wagle_trainer import AttributionConfig, WagleConfig, WeightAttributionCallback, WeightMask, attribute
from wagle_trainer.attribution.config import as_attribution_config
from wagle_trainer.masking.mask_info import MaskInfo


@pytest.fixture
def batches(make_examples, pad_batches):
    return pad_batches(make_examples(5, seed=1), 5), pad_batches(make_examples(4, seed=2), 4)


@pytest.fixture
def make_wagle_config(tmp_path):
    return lambda **changes: WagleConfig(str(tmp_path), bf16=False, use_cpu=True, **changes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"score": "wagel"}, "Unknown attribution score 'wagel'. Did you mean 'wagle'"),
        ({"score_kwargs": {"eps": 1.0}}, "'wagle' has no option 'eps'"),
        ({"score_kwargs": "eps"}, r"must be a dict, or JSON such as .* got 'eps'"),
        ({"gamma": 0.0}, "gamma must be a positive, finite number"),
        ({"gamma": math.nan}, "gamma must be a positive, finite number"),
        ({"gamma": True}, "gamma must be a positive, finite number.*got True"),
        ({"gamma": "1e-6"}, "gamma must be a positive, finite number.*got '1e-6'"),
        ({"density": 1.01}, r"density must be in \(0, 1\], got 1.01"),
        ({"density": True}, r"density must be in \(0, 1\], got True"),
        ({"density": None}, r"density must be in \(0, 1\], got None"),
        ({"density": "auto", "scope": "row"}, 'density="auto" compares all weights'),
        ({"scope": "layer"}, "Unknown attribution scope 'layer'"),
        ({"offload": "disk"}, 'attribution_offload must be "auto", "cpu" or None, got \'disk\''),
        ({"attribution_loss": "kl"}, "Unknown attribution_loss 'kl'. Known: auto, nll, chosen_nll"),
        ({"samples": 0}, "attribution_samples must be at least 1, got 0"),
        ({"batch_size": -1}, "attribution_batch_size must be at least 1, got -1"),
        ({"dtype": "float8"}, "Unknown attribution_dtype 'float8'. Known: float32, bfloat16"),
        ({"dtype": torch.int32}, "attribution_dtype must be a floating dtype"),
    ],
)
def test_checks(arguments, message):
    with pytest.raises(ValueError, match=message):
        AttributionConfig(**arguments)


def test_what_is_read_from_it(make_llama):
    mask = attribute(make_llama(), None, None, score="random", density=0.5, progress=False)
    config = AttributionConfig(
        score="random", include="proj", exclude_mask=mask, dtype="bfloat16", gamma="auto", density=0.25, seed=3
    )
    assert (config.include, config.exclude, config.dtype) == (["proj"], None, torch.bfloat16)
    assert config.needs == {}
    assert config.requested_info() == {
        "score": "random",
        "score_kwargs": None,
        "scope": "global",
        "include": ["proj"],
        "exclude": None,
        "exclude_mask": mask.digest,
        "requested_density": 0.25,
        "density_rule": None,
        "seed": 3,
    }
    by_rule = AttributionConfig(gamma="auto", density="auto").mask_info(0.5, 0.75)
    assert (by_rule["gamma"], by_rule["gamma_rule"]) == (0.5, "auto")
    assert (by_rule["requested_density"], by_rule["density_rule"]) == (0.75, "auto")
    assert MaskInfo(**by_rule).score == "wagle"


def test_it_does_not_change():
    config = AttributionConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.density = 2.0
    with pytest.raises(ValueError, match="density must be"):
        dataclasses.replace(config, density=2.0)


def test_both_forms_give_the_same_mask(make_llama, batches):
    arguments = {"score": "wagle", "gamma": 0.05, "density": 0.3, "scope": "tensor", "exclude": ["norm"]}
    keywords = attribute(make_llama(), *batches, **arguments, progress=False)
    config = attribute(make_llama(), *batches, AttributionConfig(**arguments), progress=False)
    assert config == keywords
    assert config.info == keywords.info


def test_one_form_at_a_time(make_llama, batches):
    with pytest.raises(TypeError, match="An AttributionConfig and the arguments density are given"):
        attribute(make_llama(), *batches, AttributionConfig(), density=0.3)
    with pytest.raises(TypeError, match="An AttributionConfig and the arguments score are given"):
        WeightAttributionCallback(config=AttributionConfig(), score="snip")
    with pytest.raises(TypeError, match="must be an AttributionConfig, got dict"):
        as_attribution_config({"density": 0.3}, {})
    with pytest.raises(TypeError, match="desnity"):
        attribute(make_llama(), *batches, desnity=0.3)
    with pytest.raises(TypeError, match="samples has no effect here: attribute uses its batches as they are"):
        attribute(make_llama(), *batches, samples=3)


def test_flat_fields_have_its_defaults_and_help(make_wagle_config):
    """The command line and YAML offer the same arguments under other names."""
    assert make_wagle_config().attribution_config() == AttributionConfig()
    flat = {one.name: one for one in dataclasses.fields(WagleConfig)}
    names = {"score": "attribution", "score_kwargs": "attribution_kwargs", "density": "density", "seed": "seed"}
    names["attribution_loss"] = "attribution_loss"
    for one in dataclasses.fields(AttributionConfig):
        field = flat[names.get(one.name, f"attribution_{one.name}")]
        assert field.default == one.default, one.name
        if one.name != "seed":
            assert field.metadata["help"].startswith(one.metadata["help"]), one.name
            assert field.metadata.get("choices") == one.metadata.get("choices"), one.name


def test_every_flat_field_arrives(make_wagle_config, make_llama, tmp_path):
    attribute(make_llama(), None, None, score="random", density=0.5, progress=False).save_pretrained(tmp_path / "m")
    values = {
        "score": "module",
        "score_kwargs": {"patterns": ["mlp"]},
        "gamma": "balanced",
        "density": 0.1,
        "scope": "row",
        "include": ["proj"],
        "exclude": ["q_proj"],
        "exclude_mask": str(tmp_path / "m"),
        "attribution_loss": "nll",
        "samples": 3,
        "batch_size": 2,
        "dtype": "bfloat16",
        "offload": "cpu",
        "seed": 7,
    }
    assert values.keys() == {one.name for one in dataclasses.fields(AttributionConfig)}
    names = {"score": "attribution", "score_kwargs": "attribution_kwargs", "density": "density", "seed": "seed"}
    names["attribution_loss"] = "attribution_loss"
    config = make_wagle_config(**{names.get(name, f"attribution_{name}"): value for name, value in values.items()})
    assert config.attribution_config() == AttributionConfig(**values)
    changed = config.attribution_config("snip", score_kwargs=None, include=None)
    assert changed == AttributionConfig(**values | {"score": "snip", "score_kwargs": None, "include": None})
    assert isinstance(changed.earlier_mask, WeightMask)


def test_numbers_from_the_command_line_and_dense_runs(make_wagle_config):
    config = make_wagle_config(attribution="none", attribution_gamma="1e-3", density="0.5")
    assert (config.attribution, config.attribution_gamma, config.density) == (None, 1e-3, 0.5)
    assert config.attribution_config().score == "wagle"
    with pytest.raises(ValueError, match="density must be in .*got True"):
        make_wagle_config(density=True)
