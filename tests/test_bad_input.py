"""Bad input gets a clear error, before any work is lost: what is wrong, where, what to do."""

import logging

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import SFTConfig

from wagle_trainer import WagleConfig, WagleTrainer, WeightAttributionCallback, WeightMask
from wagle_trainer.masking import MaskMismatchError


@pytest.fixture
def build(make_llama, make_set, word_tokenizer, arguments):
    """build(config changes, trainer arguments) -> a WagleTrainer; each test makes one thing wrong."""

    def make(changes=None, **trainer):
        given = {"forget_dataset": make_set(6), "retain_dataset": make_set(9, seed=1)} | trainer
        given = {"model": make_llama(), "processing_class": word_tokenizer} | given
        return WagleTrainer(args=arguments(**(changes or {})), **given)

    return make


def test_what_the_tests_below_make_wrong_is_right_without_it(build):
    build().train()


@pytest.mark.parametrize("name", ["forget", "retain"])
def test_missing_set(name, build):
    with pytest.raises(ValueError, match=f"The {name} set is missing. Pass {name}_dataset"):
        build(**{f"{name}_dataset": None})


@pytest.mark.parametrize("name", ["forget", "retain"])
def test_empty_set(name, build, make_set):
    with pytest.raises(ValueError, match=f"The {name} set is empty"):
        build(**{f"{name}_dataset": make_set(1).select([])})


def test_streamed_set(build, make_set):
    with pytest.raises(TypeError, match="must be a datasets.Dataset"):
        build(forget_dataset=make_set(4).to_iterable_dataset())


def test_train_dataset_without_the_two_splits(build, make_set):
    with pytest.raises(ValueError, match='the splits "forget" and "retain".*got \'train\''):
        build(forget_dataset=None, retain_dataset=None, train_dataset={"train": make_set(4)})


def test_both_ways_of_giving_the_sets(build, make_set):
    with pytest.raises(ValueError, match="not both"):
        build(train_dataset={"forget": make_set(4), "retain": make_set(4)})


def test_wrong_columns(build):
    questions = Dataset.from_dict({"question": ["w1"], "answer": ["w2"]})
    with pytest.raises(ValueError, match=r"forget set has the columns answer, question(.|\n)*prompt-completion"):
        build(forget_dataset=questions)


def test_answer_cut_off_names_the_rows(build):
    long = Dataset.from_dict({"prompt": ["w1", "w1 " * 30, "w2"], "completion": [" w2", " w3", " w4"]})
    with pytest.raises(ValueError, match=r"1 of 3 examples of the forget set .*max_length=8 \(rows 1\)(.|\n)*Raise"):
        build({"max_length": 8}, forget_dataset=long)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"density": 0.0}, r"density must be in \(0, 1\], got 0.0"),
        ({"density": 1.5}, r"density must be in \(0, 1\], got 1.5"),
        ({"attribution_gamma": 0.0}, "gamma must be a positive, finite number"),
        ({"attribution_gamma": -1.0}, "gamma must be a positive, finite number"),
        ({"attribution_gamma": float("nan")}, "gamma must be a positive, finite number"),
        ({"attribution": "wagel"}, "Unknown attribution score 'wagel'. Did you mean 'wagle'.*random"),
        ({"attribution_scope": "layer"}, "Unknown attribution scope 'layer'. Known: global, tensor, row"),
        ({"loss_type": "nop"}, "Unknown loss 'nop'. Did you mean 'npo'.*grad_diff"),
        ({"loss_kwargs": {"retain_loss": "mse"}}, "Unknown retain loss 'mse'.*Known: embed_diff, js"),
        ({"attribution_loss": "loss"}, "Unknown attribution_loss 'loss'. Known"),
        ({"attribution_samples": 0}, "attribution_samples must be at least 1"),
        ({"forget_weight": -1.0}, "forget_weight must be a finite number that is not negative"),
        ({"retain_weight": -0.5}, "retain_weight must be a finite number that is not negative"),
        ({"retain_weight": float("nan")}, "retain_weight must be a finite number"),
        ({"forget_weight": 0.0, "retain_weight": 0.0}, "both 0: there is no loss"),
        ({"packing": True}, "packing=True mixes examples"),
        ({"lr_scheduler_kwargs": {"num_cycles": 2}}, "lr_scheduler_kwargs do not suit lr_scheduler_type='linear'"),
        ({"padding_free": True}, "padding_free=True mixes examples"),
        ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy='group_by_length' has no effect"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1 has no effect"),
    ],
)
def test_configuration(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        WagleConfig(str(tmp_path), bf16=False, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_kwargs": {"betta": 0.1}}, r"loss_kwargs=\{'betta': 0.1\} do not fit the loss 'npo'"),
        ({"loss_kwargs": {"beta": 0.0}}, "beta must be positive"),
        ({"attribution_include": ["lm_haed"]}, "'lm_haed' matches no trainable parameter. Names look like 'model"),
        ({"attribution_exclude": ["("]}, "'\\(' is not a regular expression"),
        ({"assistant_only_loss": True}, "the forget set is not conversational"),
        ({"mask_path": "/nowhere/mask"}, "neither a folder with a saved mask nor a repository"),
    ],
)
def test_trainer(changes, message, build):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        build(changes)


def test_assistant_only_loss_on_texts(build, make_set, chat_tokenizer):
    """TRL asks the forget set alone; all tokens of the other would carry a loss."""
    chats = make_set(6, "messages")
    with pytest.raises(ValueError, match="the retain set is not conversational: its columns are text"):
        build({"assistant_only_loss": True}, forget_dataset=chats, retain_dataset=make_set(6, "text"))


def test_arguments_of_other_trainers(build, make_set):
    with pytest.raises(ValueError, match="compute_loss_func has no effect on unlearning.*register_loss"):
        build(compute_loss_func=lambda outputs, labels, num_items_in_batch: outputs.logits.sum())
    second = WeightAttributionCallback(make_set(6), make_set(6, seed=1), density=0.1)
    with pytest.raises(ValueError, match="makes its WeightAttributionCallback itself"):
        build(callbacks=[second])


def test_arguments_that_exclude_each_other(build):
    with pytest.raises(ValueError, match="Two masks are given, mask= and mask_path"):
        build({"mask_path": "one"}, mask="other")
    with pytest.raises(ValueError, match="lora_modules=3 is how many modules a score chooses for LoRA"):
        build({"lora_modules": 3})


def test_density_that_selects_nothing(build):
    with pytest.raises(ValueError, match="selects none of the"):
        build({"density": 1e-9}).train()


def test_conversation_without_chat_template(build, make_set):
    with pytest.raises(ValueError, match="forget set is conversational, but the tokenizer has no chat template"):
        build(forget_dataset=make_set(4, "conversational"))


def test_mask_of_another_model(build, make_llama):
    other = make_llama(num_hidden_layers=1, hidden_size=16)
    mask = WeightMask.from_dict({n: torch.ones(p.shape, dtype=torch.bool) for n, p in other.named_parameters()})
    with pytest.raises(
        MaskMismatchError, match=r"does not belong to this model: 'model.embed_tokens.weight' has shape"
    ):
        build(mask=mask)


@pytest.mark.parametrize("damage", ["truncated", "altered"])
def test_damaged_mask_file(damage, build, tmp_path):
    trainer = build()
    trainer.train()
    trainer.mask.save_pretrained(tmp_path / "mask")
    file = tmp_path / "mask" / "mask.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-50] if damage == "truncated" else content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match="truncated" if damage == "truncated" else "was altered or replaced"):
        build(mask=tmp_path / "mask")


@pytest.mark.parametrize("loss_type", ["npo", "grad_diff"])
def test_weights_that_are_not_finite(loss_type, build, make_llama, tmp_path):
    model = make_llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    trainer = build({"loss_type": loss_type, "save_strategy": "steps", "save_steps": 1}, model=model)
    with pytest.raises(FloatingPointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        trainer.train()
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def test_weights_that_are_not_finite_without_a_mask(build, make_llama):
    model = make_llama()
    with torch.no_grad():
        model.model.norm.weight[3] = float("inf")
    trainer = build({"loss_type": "grad_diff", "attribution": None}, model=model)
    with pytest.raises(FloatingPointError, match=r"step 1 is not finite.*'model\.norm\.weight'"):
        trainer.train()


def test_quantised_base(build, make_llama):
    model = make_llama()
    model.is_quantized = True
    with pytest.raises(ValueError, match="quantis|quantiz"):
        build(model=model)


def test_attribution_at_the_start_of_lora(build):
    with pytest.raises(ValueError, match=r"lora_B.*is zero.*attribution=None"):
        build(peft_config=LoraConfig(target_modules=["q_proj"]))


def test_tokenizer_without_pad_token_gets_one(build, word_tokenizer, caplog):
    word_tokenizer.pad_token = None
    with caplog.at_level(logging.WARNING):
        build().train()
    assert word_tokenizer.pad_token == word_tokenizer.eos_token
    assert "no pad token: its eos token '<eos>' is used" in caplog.text


def test_chosen_answers_need_prompts(build, make_set):
    with pytest.raises(ValueError, match=r"needs a chosen answer(.|\n)*chosen(.|\n)*It has the columns text"):
        build({"loss_type": "po"}, forget_dataset=make_set(4, "text"))


@pytest.mark.parametrize("changes", [{}, {"max_length": None}, {"max_length": None, "attribution": None}])
def test_examples_without_labels_are_skipped_and_counted(changes, build):
    some = Dataset.from_dict({"input_ids": [[5, 6], [7, 8]], "labels": [[-100, 6], [-100, -100]]})
    with pytest.warns(UserWarning, match=r"1 of 2 examples of the retain set have no target token \(rows 1\)"):
        trainer = build(changes, retain_dataset=some)
    assert len(trainer.train_dataset.retain) == 1
    with pytest.raises(ValueError, match="No example of the retain set has a target token"):
        build(changes, retain_dataset=some.select([1]))


def test_evaluation_set_of_unknown_format(build):
    questions = Dataset.from_dict({"question": ["w1"]})
    with pytest.raises(ValueError, match="The forget evaluation set has the columns question"):
        build(eval_dataset={"forget": questions})
    with pytest.raises(ValueError, match="The eval evaluation set has the columns question"):
        build(eval_dataset=questions)


def test_settings_of_the_loss_that_are_no_json(tmp_path):
    assert WagleConfig(str(tmp_path), bf16=False, loss_kwargs='{"beta": 0.3}').loss_kwargs == {"beta": 0.3}
    with pytest.raises(ValueError, match="loss_kwargs must be a dict, or JSON"):
        WagleConfig(str(tmp_path), bf16=False, loss_kwargs="beta=0.3")


def test_packing_in_other_arguments(build, tmp_path):
    with pytest.raises(ValueError, match="packing=True mixes examples"):
        WagleTrainer("model", SFTConfig(str(tmp_path), packing=True, bf16=False))


def test_no_refusals_to_choose_from(build):
    with pytest.raises(ValueError, match="no refusals"):
        build({"loss_type": "po"}, refusals=[])


def test_model_by_path_is_checked_as_well(build, make_llama, make_set, word_tokenizer, tmp_path, caplog):
    """There the tokenizer is the one beside the model."""
    make_llama().save_pretrained(tmp_path / "model")
    word_tokenizer.pad_token = None
    word_tokenizer.save_pretrained(tmp_path / "model")
    loaded = {"model": str(tmp_path / "model"), "processing_class": None}
    with pytest.raises(ValueError, match="forget set is conversational, but the tokenizer has no chat template"):
        build(**loaded, forget_dataset=make_set(4, "messages"))
    trainer = build(**loaded)
    assert trainer.processing_class.pad_token == "<eos>"
    assert "no pad token" in caplog.text


def test_model_without_a_path_needs_its_tokenizer(build, make_llama):
    with pytest.raises(ValueError, match="pass processing_class=tokenizer"):
        build(model=make_llama(), processing_class=None)


def test_loss_that_overflows_stops_the_run(build, tmp_path):
    """Nothing after it is written: the last checkpoint is the last good one."""
    settings = {"loss_type": "grad_ascent", "learning_rate": 1e30, "max_steps": 5}
    trainer = build({**settings, "save_strategy": "steps", "save_steps": 1})
    with pytest.raises(
        FloatingPointError, match=r"forget loss of step 2 is not finite \(rows \[\d, \d\] of the forget"
    ):
        trainer.train()
    assert [folder.name for folder in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-1"]


@pytest.mark.parametrize("attribution", [None, "wagle"])
def test_gradient_that_is_not_finite_stops_the_run_before_a_weight_changes(attribution, build, make_llama, weights_of):
    """The loss is finite, and clipping would spread the NaN to every weight. It comes in the second step."""
    model, between = make_llama(), {}
    trainer = build({"attribution": attribution, "loss_type": "grad_diff", "density": 0.9}, model=model)
    weight = model.model.layers[1].mlp.up_proj.weight

    def poison(gradient):
        if trainer.state.global_step < 1:
            return gradient
        between.update(weights_of(model))
        return torch.full_like(gradient, float("nan"))

    trainer.add_callback(type("Poison", (TrainerCallback,), {"on_step_begin": lambda *_, **__: hook()})())
    handles = []

    def hook():
        if not handles:
            handles.append(weight.register_hook(poison))

    with pytest.raises(FloatingPointError, match=r"gradient of 'model\.layers\.1\.mlp\.up_proj\.weight'.*step 2"):
        trainer.train()
    assert between
    assert all(torch.equal(between[name], parameter) for name, parameter in model.named_parameters())


def test_retain_loss_that_is_not_finite_is_named(build, monkeypatch):
    trainer = build({"attribution": None})
    monkeypatch.setattr(trainer.objective.retain, "retain_loss", lambda inputs: torch.full((4,), float("inf")))
    with pytest.raises(FloatingPointError, match="The retain loss of step 1 is not finite .*of the retain set"):
        trainer.train()


def test_tokens_that_the_model_does_not_know(build, make_set):
    unknown = Dataset.from_dict({"input_ids": [[5, 6], [5, 57]]})
    with pytest.raises(ValueError, match=r"retain set has the token 57, .* vocabulary ends at 56.*resize_token"):
        build(retain_dataset=unknown)


def test_a_row_without_an_answer(build):
    with pytest.raises(ValueError, match="Row 1 of the forget set holds nothing in the column 'completion'"):
        build(forget_dataset=Dataset.from_list([{"prompt": "w1", "completion": " w2"}, {"prompt": "w3"}]))


def test_texts_without_an_end(build, word_tokenizer):
    word_tokenizer.eos_token = None
    with pytest.raises(ValueError, match="it has none: set tokenizer.eos_token"):
        build()
    build({"eos_token": "<eos>"})


def test_pairs_that_lost_an_answer(build, chat_tokenizer):
    """Otherwise, all answers after the first loss would go with the chosen answers of other questions."""
    chat_tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"

    def said(text):
        return [{"role": "assistant", "content": text}]

    rows = [
        {
            "prompt": [{"role": "user", "content": f"w{row}"}],
            "chosen": said("" if row == 2 else "w8"),
            "rejected": said("" if row == 4 else "w9"),
        }
        for row in range(6)
    ]
    with pytest.raises(ValueError, match="1 of the forget answers have no target token.*take these examples out"):
        build({"loss_type": "dpo"}, forget_dataset=Dataset.from_list(rows))
    with pytest.raises(ValueError, match="1 of the chosen answers have no target token"):
        build({"loss_type": "dpo"}, forget_dataset=Dataset.from_list(rows[:4]))
    assert len(build(forget_dataset=Dataset.from_list(rows[:4])).train_dataset) == 4  # NPO does not ask for them
