import math
import shutil
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from transformers import (
    DataCollatorForLanguageModeling,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from wagle_trainer import WeightAttributionCallback, WeightMask
from wagle_trainer.attribution import attribute
from wagle_trainer.masking import MaskedUpdates

COMMON = {
    "per_device_train_batch_size": 4,
    "max_steps": 3,
    "learning_rate": 5e-3,
    "weight_decay": 0.1,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "save_steps": 2,
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
}


@pytest.fixture
def callback(make_set):
    def make(forget=None, retain=None, **kwargs):
        return WeightAttributionCallback(
            forget if forget is not None else make_set(8),
            retain if retain is not None else make_set(12, seed=1),
            **({"density": 0.3} | kwargs),
        )

    return make


@pytest.fixture
def make_sft(make_llama, make_set, word_tokenizer, tmp_path):
    def make(callback, trainer_class=SFTTrainer, train_dataset=None, **kwargs):
        return trainer_class(
            model=make_llama(),
            args=SFTConfig(str(tmp_path / "out"), **(COMMON | kwargs)),
            train_dataset=train_dataset if train_dataset is not None else make_set(8),
            processing_class=word_tokenizer,
            callbacks=[callback],
        )

    return make


def check_run(trainer, callback, before, assert_only_selected_moved):
    assert_only_selected_moved(before, trainer.model, callback.mask)
    assert callback.mask.num_selected == math.floor(0.3 * callback.mask.num_weights)
    saved = WeightMask.from_pretrained(f"{trainer.args.output_dir}/checkpoint-2", model=trainer.model)
    assert saved == callback.mask


@pytest.mark.parametrize("form", ["prompt_completion", "text", "tokenized"])
def test_sft_trainer(form, make_sft, make_set, callback, weights_of, assert_only_selected_moved):
    attribution = callback(forget=make_set(8, form))
    trainer = make_sft(attribution, train_dataset=make_set(8, form))
    before = weights_of(trainer.model)
    trainer.train()
    check_run(trainer, attribution, before, assert_only_selected_moved)


def test_mask_is_that_of_attribute(make_sft, make_llama, make_set, callback):
    """The callback adds nothing to `attribute`: the same mask from the same tokens, one example at a time."""
    attribution = callback(make_set(8, "tokenized"), make_set(12, "tokenized", seed=1))
    trainer = make_sft(attribution)
    trainer.train()
    batches = [
        [{key: torch.tensor([row[key]]) for key in ("input_ids", "labels")} for row in dataset]
        for dataset in (make_set(8, "tokenized"), make_set(12, "tokenized", seed=1))
    ]
    expected = attribute(make_llama(), *batches, density=0.3, progress=False)
    agreement = 1 - sum(int((expected[n] ^ attribution.mask[n]).sum()) for n in expected) / expected.num_weights
    assert agreement >= 0.9999
    assert attribution.mask.info.forget_examples == 8


def test_mask_says_which_sets_to_whoever_has_the_key(make_sft, make_set, callback, tmp_path, monkeypatch):
    infos = []
    monkeypatch.setenv("WAGLE_DIGEST_KEY", "a key that is random")
    for seed in (0, 0, 5):
        attribution = callback(make_set(8, seed=seed), make_set(12, seed=1))
        make_sft(attribution).train()
        infos.append(attribution.mask.info)
    assert infos[0].forget_digest == infos[1].forget_digest != infos[2].forget_digest
    assert len({info.retain_digest for info in infos}) == 1
    assert infos[0].forget_digest.startswith("hmac-sha256:")
    attribution.mask.save_pretrained(tmp_path / "mask")
    assert WeightMask.from_pretrained(tmp_path / "mask").info.forget_digest == infos[2].forget_digest
    monkeypatch.delenv("WAGLE_DIGEST_KEY")
    attribution = callback(make_set(8), make_set(12, seed=1))
    make_sft(attribution).train()
    assert attribution.mask.info.forget_digest is attribution.mask.info.retain_digest is None


def test_checkpoint_of_a_run_before_gets_the_new_mask(make_sft, make_set, callback, tmp_path):
    """Another run into the same folder overwrites the checkpoints; their masks, too."""
    for seed in (0, 5):
        attribution = callback(make_set(8, seed=seed), make_set(12, seed=1))
        make_sft(attribution).train()
    assert WeightMask.from_pretrained(tmp_path / "out" / "checkpoint-2") == attribution.mask


@pytest.mark.parametrize("what", ["forget sets", "weight masks"])
def test_processes_that_disagree_are_refused(what, make_sft, make_llama, make_set, callback, monkeypatch, weights_of):
    """Each process has read files of its own: here the other one's digest is made up."""
    mask = attribute(make_llama(), None, None, score="random", density=0.3, progress=False)
    attribution = callback(make_set(8), make_set(12, seed=1), mask=mask if what == "weight masks" else None)
    trainer = make_sft(attribution)
    before = weights_of(trainer.model)
    monkeypatch.setattr(
        "wagle_trainer.attribution.attribution_callback.PartialState", lambda: SimpleNamespace(num_processes=2)
    )
    monkeypatch.setattr(
        "wagle_trainer.attribution.attribution_callback.gather_object", lambda digests: [*digests, "0" * 64]
    )
    with pytest.raises(
        RuntimeError, match=f"The processes hold different {what}.*do they read the same files"
    ) as refusal:
        trainer.train()
    assert ("0" * 12 in str(refusal.value)) == (
        what == "weight masks"
    )  # a set of one row can be guessed by its digest
    assert all(torch.equal(before[name], value) for name, value in weights_of(trainer.model).items())


def test_completion_only_loss_is_that_of_the_trainer(make_sft, callback):
    masks = []
    for only in (None, True, False):
        attribution = callback()
        make_sft(attribution, completion_only_loss=only, max_steps=1).train()
        masks.append(attribution.mask)
    assert masks[0] == masks[1] != masks[2]


@pytest.mark.parametrize("attribution_loss", ["auto", "chosen_nll", "nll"])
def test_dpo_trainer(
    attribution_loss, make_llama, make_set, word_tokenizer, callback, tmp_path, weights_of, assert_only_selected_moved
):
    preferences = make_set(8, "preference")
    attribution = callback(forget=preferences, attribution_loss=attribution_loss)
    make_llama().save_pretrained(tmp_path / "model")  # DPOTrainer makes its reference model by name
    trainer = DPOTrainer(
        model=str(tmp_path / "model"),
        args=DPOConfig(str(tmp_path / "out"), **COMMON),
        train_dataset=preferences,
        processing_class=word_tokenizer,
        callbacks=[attribution],
    )
    before = weights_of(trainer.model)
    trainer.train()
    check_run(trainer, attribution, before, assert_only_selected_moved)
    # The chosen answers give another gradient than the rejected ones.
    answer = "rejected" if attribution_loss == "nll" else "chosen"
    expected = callback(preferences.select_columns(["prompt", answer]).rename_column(answer, "completion"))
    plain = Trainer(
        make_llama(),
        TrainingArguments(str(tmp_path / "plain"), **(COMMON | {"max_steps": 1})),
        train_dataset=make_set(8, "tokenized"),
        processing_class=word_tokenizer,
        data_collator=lambda rows: {"input_ids": torch.tensor([[5, 6]]), "labels": torch.tensor([[5, 6]])},
        callbacks=[expected],
    )
    plain.train()
    assert attribution.mask == expected.mask


def test_plain_trainer(
    make_llama, make_set, word_tokenizer, callback, tmp_path, weights_of, assert_only_selected_moved
):
    attribution = callback()
    trainer = Trainer(
        model=make_llama(),
        args=TrainingArguments(str(tmp_path / "out"), **COMMON),
        train_dataset=Dataset.from_dict({"input_ids": make_set(8, "tokenized")["input_ids"]}),
        data_collator=DataCollatorForLanguageModeling(word_tokenizer, mlm=False),
        processing_class=word_tokenizer,
        callbacks=[attribution],
    )
    before = weights_of(trainer.model)
    trainer.train()
    check_run(trainer, attribution, before, assert_only_selected_moved)


def test_plain_trainer_without_tokenizer(make_llama, make_set, word_tokenizer, callback, tmp_path):
    with pytest.raises(ValueError, match=r"no tokenizer.*processing_class="):
        Trainer(
            model=make_llama(),
            args=TrainingArguments(str(tmp_path / "out"), **COMMON),
            train_dataset=make_set(8, "tokenized"),
            data_collator=DataCollatorForLanguageModeling(word_tokenizer, mlm=False),
            callbacks=[callback()],
        )


@pytest.fixture
def make_plain(make_llama, make_set, word_tokenizer, tmp_path):
    """make_plain(callback) -> a plain Trainer that was given no tokenizer."""

    def make(callback):
        return Trainer(
            model=make_llama(),
            args=TrainingArguments(str(tmp_path / "out"), **COMMON),
            train_dataset=Dataset.from_dict({"input_ids": make_set(8, "tokenized")["input_ids"]}),
            data_collator=DataCollatorForLanguageModeling(word_tokenizer, mlm=False),
            callbacks=[callback],
        )

    return make


def test_masks_that_read_no_data_need_no_tokenizer(make_plain, make_llama, weights_of, assert_only_selected_moved):
    mask = attribute(make_llama(), None, None, score="random", density=0.3, progress=False)
    module = {"score": "module", "score_kwargs": {"patterns": ["mlp"]}}
    for arguments in ({"score": "random"}, {"score": "magnitude"}, module, {"mask": mask}):
        attribution = WeightAttributionCallback(density=0.3, **arguments)
        trainer = make_plain(attribution)
        before = weights_of(trainer.model)
        trainer.train()
        assert (attribution.mask == mask) == (arguments in ({"score": "random"}, {"mask": mask}))
        assert_only_selected_moved(before, trainer.model, attribution.mask)


def test_sequence_classifier(make_llama, make_set, word_tokenizer, tmp_path, weights_of, assert_only_selected_moved):
    """A reward model has no target tokens: scores of gradients are refused, masks that read no data work."""
    from transformers import LlamaForSequenceClassification

    def make(callback):
        classifier = LlamaForSequenceClassification(make_llama(num_labels=1).config)
        return RewardTrainer(
            model=classifier,
            args=RewardConfig(str(tmp_path / "out"), **COMMON),
            train_dataset=make_set(8, "preference"),
            processing_class=word_tokenizer,
            callbacks=[callback],
        )

    with pytest.raises(ValueError, match="LlamaForSequenceClassification does not predict the next token"):
        make(WeightAttributionCallback(make_set(8), make_set(8, seed=1), density=0.3))
    attribution = WeightAttributionCallback(score="random", density=0.3)
    trainer = make(attribution)
    before = weights_of(trainer.model)
    trainer.train()
    assert_only_selected_moved(before, trainer.model, attribution.mask)


def test_a_mask_that_selects_nothing_is_refused(make_sft, make_llama):
    empty = WeightMask.from_dict(
        {n: torch.zeros(p.shape, dtype=torch.bool) for n, p in make_llama().named_parameters()}
    )
    with pytest.raises(ValueError, match="The mask selects none of its"):
        make_sft(WeightAttributionCallback(mask=empty))


def test_custom_score_and_its_needs(make_sft, make_set):
    """A function as score; a score that needs no gradient needs no sets."""

    def small(weight):
        return 1 / (1 + weight.abs())

    attribution = WeightAttributionCallback(score=small, density=0.3)
    make_sft(attribution, max_steps=1).train()
    assert attribution.mask.info.score == "small"
    assert attribution.mask.info.effective_density is None


def test_added_later(make_sft, callback, weights_of, assert_only_selected_moved):
    """`trainer.add_callback` after the trainer was made: then everything is checked when training begins."""
    attribution = callback()
    trainer = make_sft(TrainerCallback())
    trainer.add_callback(attribution)
    before = weights_of(trainer.model)
    trainer.train()
    check_run(trainer, attribution, before, assert_only_selected_moved)


def test_given_mask_is_checked_when_the_trainer_is_made(make_sft, make_llama):
    other = make_llama(hidden_size=64)
    mask = WeightMask.from_dict({n: torch.ones(p.shape, dtype=torch.bool) for n, p in other.named_parameters()})
    with pytest.raises(ValueError, match=r"does not belong to this model.*\(57, 64\).*\(57, 32\)"):
        make_sft(WeightAttributionCallback(mask=mask))


@pytest.mark.parametrize(("learning_rate", "warned"), [(2e-5, True), (1e-2, False)])
def test_warns_of_a_learning_rate_for_all_weights(make_sft, callback, caplog, learning_rate, warned):
    make_sft(callback(score="random", density=0.01), learning_rate=learning_rate, max_steps=1).train()
    assert ("is low for 1% of the weights" in caplog.text) == warned


def test_train_twice(make_sft, callback, weights_of, assert_only_selected_moved):
    attribution = callback()
    trainer = make_sft(attribution)
    before = weights_of(trainer.model)
    trainer.train()
    mask, between = attribution.mask, weights_of(trainer.model)
    assert attribution.updates is None  # nothing stays attached to the model
    trainer.train()
    assert attribution.mask is mask
    assert_only_selected_moved(before, trainer.model, mask)
    assert any(not torch.equal(between[n], p) for n, p in trainer.model.named_parameters())


def test_no_hook_is_left_behind(make_sft, callback):
    trainer = make_sft(callback())
    trainer.train()
    assert not any(p._post_accumulate_grad_hooks for p in trainer.model.parameters())
    inner = trainer.optimizer.optimizer
    assert not [
        hook
        for hook in (inner._optimizer_step_pre_hooks | inner._optimizer_step_post_hooks).values()
        if "Masked" in repr(hook)
    ]


class OutOfMemoryOnce(SFTTrainer):
    """Runs out of memory in its second step, as a GPU would, unless batches are smaller by then."""

    failed = 0

    def training_step(self, *args, **kwargs):
        if self.state.global_step == 1 and not self.failed:
            self.failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        return super().training_step(*args, **kwargs)


def test_smaller_batch_after_out_of_memory(make_sft, callback, weights_of, assert_only_selected_moved):
    attribution = callback()
    trainer = make_sft(attribution, OutOfMemoryOnce, auto_find_batch_size=True)
    before = weights_of(trainer.model)
    trainer.train()
    assert trainer.failed == 1
    assert trainer._train_batch_size < 4
    assert not any(p._post_accumulate_grad_hooks for p in trainer.model.parameters())  # of either attempt
    assert trainer.state.global_step == 3
    check_run(trainer, attribution, before, assert_only_selected_moved)


class HookLessOptimizer(torch.optim.SGD):
    """Steps without the hooks of `torch.optim`, as an engine with a step of its own."""


def test_engine_without_step_hooks_is_an_error(make_sft, callback, monkeypatch):
    trainer = make_sft(callback())
    trainer.optimizer = HookLessOptimizer(trainer.model.parameters(), lr=0.1)
    unhooked = torch.optim.SGD.step
    while hasattr(unhooked, "__wrapped__"):
        unhooked = unhooked.__wrapped__
    monkeypatch.setattr(HookLessOptimizer, "step", torch.no_grad()(lambda self, closure=None: unhooked(self, closure)))
    HookLessOptimizer.step.hooked = True  # so that torch adds none
    with pytest.raises(RuntimeError, match="silently unmasked"):
        trainer.train()


class GradientsFromElsewhere(TrainerCallback):
    """Writes gradients that no hook has seen, as an engine with flat gradients of its own."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)


def test_engine_without_gradient_hooks_is_an_error(make_sft, callback, weights_of):
    trainer = make_sft(callback())
    trainer.add_callback(GradientsFromElsewhere())
    before = weights_of(trainer.model)
    with pytest.raises(RuntimeError, match="silently unmasked"):
        trainer.train()
    assert all(torch.equal(before[n], p) for n, p in trainer.model.named_parameters())


def test_optimizer_of_another_model_is_an_error(make_llama):
    model, other = make_llama(), make_llama()
    mask = WeightMask.from_dict({n: p.detach() > 0 for n, p in model.named_parameters()})
    with pytest.raises(ValueError, match="holds none of the masked parameters"):
        MaskedUpdates(model, mask, torch.optim.SGD(other.parameters(), lr=0.1))


def test_resume_in_an_unchanged_script(
    make_sft, callback, tmp_path, weights_of, assert_only_selected_moved, monkeypatch
):
    """In a second script, `train(resume_from_checkpoint=True)` reads the mask: nothing is computed again."""
    first = callback()
    make_sft(first).train()
    shutil.rmtree(tmp_path / "out" / "checkpoint-3")
    computed = []
    monkeypatch.setattr(
        "wagle_trainer.attribution.attribution_callback.attribute",
        lambda *args, **kwargs: computed.append(args) or first.mask,
    )
    second = callback()
    trainer = make_sft(second)
    before = weights_of(trainer.model)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 3
    assert second.mask == first.mask
    assert not computed
    make_sft(callback(), max_steps=1).train()
    assert len(computed) == 1  # a new run computes: the line above proves something
    assert_only_selected_moved(before, trainer.model, first.mask)


def test_resume_elsewhere_says_what_to_do(make_sft, callback, tmp_path):
    """Trainers do not say where they resume from; a checkpoint outside output_dir cannot be found."""
    make_sft(callback()).train()
    (tmp_path / "out").rename(tmp_path / "old")
    with pytest.raises(FileNotFoundError, match=r"no mask in .*args\.resume_from_checkpoint"):
        make_sft(callback()).train(resume_from_checkpoint=str(tmp_path / "old" / "checkpoint-2"))
    trainer = make_sft(callback(), resume_from_checkpoint=str(tmp_path / "old" / "checkpoint-2"))
    trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    assert trainer.state.global_step == 3
