"""`UnlearningSetup` alone: what a run can be refused for, or gets, before a model is loaded."""

import pytest
import torch
from datasets import DatasetDict
from peft import LoraConfig
from trl import SFTConfig
from trl.trainer import sft_trainer

from wagle_trainer import WagleConfig, WeightMask
from wagle_trainer.attribution import attribute
from wagle_trainer.trainer_setup import UnlearningSetup, as_wagle_config, load_processing_class
from wagle_trainer.utils.checkpointing_names import checkpointing_argument


@pytest.fixture
def setup(make_set, word_tokenizer, arguments):
    """setup(changes of the configuration, other arguments) -> UnlearningSetup for a model that does not exist."""

    def make(changes=None, **given):
        sets = {"forget_dataset": make_set(4), "retain_dataset": make_set(6, seed=1)}
        given = sets | {"processing_class": word_tokenizer} | given
        return UnlearningSetup.from_arguments("no/such-model", arguments(**(changes or {})), **given)

    return make


def test_no_model_is_loaded(setup):
    found = setup()
    assert {name: len(rows) for name, rows in found.sets.items()} == {"forget": 4, "retain": 6}
    assert (found.objective.loss_type, found.mask, found.lora_score) == ("npo", None, None)
    assert found.masked_attribution().config.density == 0.3


def test_both_sets_in_one_argument(setup, make_set):
    both = DatasetDict({"forget": make_set(3), "retain": make_set(5)})
    found = setup(forget_dataset=None, retain_dataset=None, train_dataset=both)
    assert {name: len(rows) for name, rows in found.sets.items()} == {"forget": 3, "retain": 5}


def test_chosen_answers_where_the_objective_needs_them(setup, make_set):
    forget = make_set(4, "preference")
    assert setup({"loss_type": "dpo"}, forget_dataset=forget).sets.keys() == {"forget", "chosen", "retain"}
    assert setup({"loss_type": "npo"}, forget_dataset=forget).sets.keys() == {"forget", "retain"}
    refused = setup({"loss_type": "po"}, refusals=["w1 w2"])
    assert (
        set(refused.sets["chosen"]["completion"]) == {" w1 w2"} or "w1 w2" in refused.sets["chosen"]["completion"][0]
    )
    with pytest.raises(ValueError, match="loss_type='altpo' needs other answers of your own"):
        setup({"loss_type": "altpo"})


def test_the_split_that_is_scored_follows_the_objective(setup, make_set):
    """PO trains on the chosen answers only, so their gradient is the forget gradient; DPO's is that of both."""
    for loss_type, split in (("po", "chosen"), ("npo", "forget")):
        found = setup({"loss_type": loss_type}, forget_dataset=make_set(4, "preference"))
        assert found.masked_attribution().sets["forget"] is found.sets[split]


def test_dense_runs_and_given_masks(setup, make_llama, tmp_path):
    assert setup({"attribution": None}).masked_attribution() is None
    mask = attribute(make_llama(), None, None, score="random", density=0.1, progress=False)
    mask.save_pretrained(tmp_path)
    for found in (setup(mask=mask), setup({"mask_path": str(tmp_path)}), setup({"attribution": None}, mask=mask)):
        assert found.masked_attribution().given == mask
    assert isinstance(mask, WeightMask)


def test_scores_that_choose_loras_modules(setup):
    found = setup({"attribution": None}, peft_config=LoraConfig(target_modules="wagle"))
    assert found.lora_score == "wagle"
    with pytest.raises(ValueError, match="a weight mask on top of it is not possible"):
        setup(peft_config=LoraConfig(target_modules="wagle"))


def test_other_trainers_arguments(tmp_path, word_tokenizer):
    args = SFTConfig(str(tmp_path), learning_rate=3e-4, hub_token="hf_secret", report_to="none", use_cpu=True)
    config = as_wagle_config(args, "some/model")
    assert isinstance(config, WagleConfig)
    assert (config.learning_rate, config.hub_token, config.loss_type) == (3e-4, "hf_secret", "npo")
    assert as_wagle_config(None, "some/model").output_dir == "model-WAGLE"
    assert as_wagle_config(config, "some/model") is config


@pytest.mark.parametrize("kwargs", [{}, {"gradient_checkpointing": False}, {checkpointing_argument(): False}])
def test_names_of_checkpointing(kwargs, tmp_path, recwarn):
    """No run warns of the name that TRL's default has, and both names mean the same."""
    config = WagleConfig(str(tmp_path), use_cpu=True, **kwargs)
    assert not [warning for warning in recwarn if "checkpointing" in str(warning.message)]
    assert config.gradient_checkpointing == getattr(config, checkpointing_argument()) == (not kwargs)
    options = {"use_reentrant": False}
    config = WagleConfig(str(tmp_path), use_cpu=True, gradient_checkpointing_kwargs=options)
    assert config.gradient_checkpointing_kwargs == options
    assert getattr(config, f"{checkpointing_argument()}_kwargs") == options


def test_memory_is_pinned_where_there_is_a_device(tmp_path):
    config = WagleConfig(str(tmp_path), use_cpu=not torch.accelerator.is_available())
    assert config.dataloader_pin_memory == torch.accelerator.is_available()


def test_a_model_without_a_name_needs_its_tokenizer(make_llama, arguments):
    with pytest.raises(ValueError, match="its tokenizer is not known"):
        load_processing_class(make_llama(), arguments())


def test_what_trl_would_change_is_as_it_was(setup, make_llama):
    """The configuration, the model's configuration and TRL's own function, whatever happens within."""
    found, model, patch = setup(), make_llama(), sft_trainer.add_fused_lm_head
    model.config.output_router_logits, model.config.use_cache = False, True

    def construct():
        with found.for_sft_trainer(model) as given:
            assert given["args"].loss_type == "nll" and len(given["train_dataset"]) == 1
            assert sft_trainer.add_fused_lm_head is not patch
            model.config.output_router_logits, model.config.use_cache = True, False
            raise RuntimeError("within")

    with pytest.raises(RuntimeError, match="within"):
        construct()
    assert found.config.loss_type == "npo"
    assert sft_trainer.add_fused_lm_head is patch
    assert (model.config.output_router_logits, model.config.use_cache) == (False, True)
