import copy
import gc
import itertools
import json
import math

import pytest
import torch
import torch.nn.functional as F
from datasets import DatasetDict
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM, TrainerCallback, TrainingArguments
from trl import SFTConfig, SFTTrainer

from wagle_trainer import WagleConfig, WagleTrainer, WeightMask
from wagle_trainer.data.pairing import PairSampler

FORMS = [
    "text",
    "messages",
    "prompt_completion",
    "conversational",
    "preference",
    "conversational_preference",
    "tokenized",
]


@pytest.fixture
def make_trainer(make_llama, make_set, arguments, chat_tokenizer):
    def make(model=None, args=None, forget=None, retain=None, tokenizer=chat_tokenizer, **kwargs):
        changes = {key: kwargs.pop(key) for key in list(kwargs) if key in WagleConfig.__dataclass_fields__}
        return WagleTrainer(
            model if model is not None else make_llama(),
            args if args is not None else arguments(**changes),
            forget_dataset=forget if forget is not None else make_set(8),
            retain_dataset=retain if retain is not None else make_set(12, seed=1),
            processing_class=tokenizer,
            **kwargs,
        )

    return make


def logged(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def per_example(model, rows):
    """(log-probability of the answer, its tokens), for each tokenized row, one at a time: no padding, no batches."""
    values = []
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
        log_probs = F.log_softmax(model(ids).logits[0, :-1], -1)
        chosen = [log_probs[t, labels[t + 1]] for t in range(len(labels) - 1) if labels[t + 1] != -100]
        values.append((torch.stack(chosen).sum(), len(chosen)))
    return values


# Data


@pytest.mark.parametrize("form", FORMS)
def test_every_format_trains_masked(form, make_trainer, make_set, weights_of, assert_only_selected_moved):
    trainer = make_trainer(forget=make_set(8, form), retain=make_set(12, form, seed=1))
    before = weights_of(trainer.model)
    trainer.train()
    assert_only_selected_moved(before, trainer.model, trainer.mask)
    assert trainer.mask.num_selected == math.floor(0.3 * trainer.mask.num_weights)


@pytest.mark.parametrize("form", ["preference", "conversational_preference"])
def test_rejected_is_what_is_forgotten(form, make_trainer, make_set, chat_tokenizer):
    plain = "prompt_completion" if form == "preference" else "conversational"
    trainer = make_trainer(forget=make_set(8, form), loss_type="po")
    forgotten = make_trainer(forget=make_set(8, plain)).train_dataset.forget
    assert trainer.train_dataset.forget["input_ids"] == forgotten["input_ids"]
    assert trainer.train_dataset.forget["labels"] == forgotten["labels"]
    chosen = make_set(8, form)[3]["chosen"]
    chosen = chosen if isinstance(chosen, str) else chosen[0]["content"]
    labels = [token for token in trainer.train_dataset.chosen[3]["labels"] if token != -100]
    assert chat_tokenizer.decode(labels, skip_special_tokens=True).split() == chosen.split()


def test_dataset_dict_is_the_two_sets(make_llama, make_set, arguments, word_tokenizer, make_trainer):
    both = DatasetDict(forget=make_set(8), retain=make_set(12, seed=1))
    trainer = WagleTrainer(make_llama(), arguments(), train_dataset=both, processing_class=word_tokenizer)
    trainer.train()
    same = make_trainer(tokenizer=word_tokenizer)
    same.train()
    assert all(torch.equal(a, b) for a, b in zip(trainer.model.parameters(), same.model.parameters(), strict=True))


def test_each_set_has_labels_by_its_own_format(make_trainer, make_set):
    """TRL decides once per run whether prompts carry a loss; here a text set must not decide it for the other."""
    alone = make_trainer(retain=make_set(12, seed=1)).train_dataset.retain
    mixed = make_trainer(forget=make_set(8, "text"), retain=make_set(12, seed=1)).train_dataset
    assert mixed.retain["labels"] == alone["labels"]
    assert mixed.forget["labels"] == mixed.forget["input_ids"]
    everything = make_trainer(completion_only_loss=False).train_dataset.retain
    assert everything["labels"] == everything["input_ids"] != alone["labels"]


@pytest.mark.slow
def test_dataloader_workers_change_nothing(make_trainer):
    plain, workers = make_trainer(), make_trainer(dataloader_num_workers=1)
    plain.train()
    workers.train()
    assert all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), workers.model.parameters(), strict=True))


# Losses


@pytest.mark.parametrize(
    ("loss_type", "loss_kwargs"),
    [
        ("npo", {"beta": 0.5}),
        ("npo", {"beta": 0.5, "length_normalized": True}),
        ("grad_diff", {}),
        ("grad_ascent", {}),
        ("po", {}),
        ("npo", {"beta": 0.5, "retain_loss": "kl"}),
        ("grad_ascent", {"retain_loss": "nll"}),
        ("npo", {"retain_loss": None}),
    ],
)
def test_logged_losses_are_the_formulas(loss_type, loss_kwargs, make_trainer, make_llama, make_set):
    trainer = make_trainer(
        forget=make_set(8, "preference"),
        loss_type=loss_type,
        loss_kwargs=loss_kwargs,
        forget_weight=0.7,
        retain_weight=1.3,
        attribution=None,
    )
    trainer.train()
    # The losses of the second step, worked out with the weights after the first.
    reference = make_llama()
    first = make_trainer(
        forget=make_set(8, "preference"),
        loss_type=loss_type,
        loss_kwargs=loss_kwargs,
        forget_weight=0.7,
        retain_weight=1.3,
        attribution=None,
        max_steps=1,
    )
    first.train()
    model, sets = first.model.eval(), trainer.train_dataset
    pairs = PairSampler(8, 12, seed=42).pairs(0)[4:8]
    forget_rows = [sets.forget[f] for f, _ in pairs]
    retain_rows = [sets.retain[r] for _, r in pairs]
    with torch.no_grad():
        now, before = per_example(model, forget_rows), per_example(reference, forget_rows)
        if loss_type == "npo":
            beta = loss_kwargs.get("beta", 0.1)
            scale = (lambda n: n) if loss_kwargs.get("length_normalized") else (lambda n: 1)
            forget = [
                2 / beta * math.log1p(math.exp(beta * (a.item() - b.item()) / scale(n)))
                for (a, n), (b, _) in zip(now, before, strict=True)
            ]
        elif loss_type == "po":
            forget = [-a.item() / n for a, n in per_example(model, [sets.chosen[f] for f, _ in pairs])]
        else:
            forget = [a.item() / n for a, n in now]
        default = None if loss_type == "grad_ascent" else "nll"
        if (kind := loss_kwargs.get("retain_loss", default)) == "nll":
            retain = [-a.item() / n for a, n in per_example(model, retain_rows)]
        elif kind == "kl":
            retain = []
            for row in retain_rows:
                ids, labels = torch.tensor([row["input_ids"]]), row["labels"]
                p, q = (F.log_softmax(m(ids).logits[0], -1).double() for m in (reference, model))
                kept = [t - 1 for t in range(1, len(labels)) if labels[t] != -100]
                retain.append((p.exp() * (p - q)).sum(-1)[kept].mean().item())
    entry = logged(trainer)[1]
    expected = 0.7 * sum(forget) / 4
    assert entry["forget_loss"] == pytest.approx(sum(forget) / 4, rel=1e-4)
    if kind is None:
        assert "retain_loss" not in entry
    else:
        assert entry["retain_loss"] == pytest.approx(sum(retain) / 4, rel=1e-3)
        expected += 1.3 * sum(retain) / 4
    assert entry["loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("loss_kwargs", [{}, {"retain_loss": "kl"}])
@pytest.mark.parametrize("rows", [8, 5])
def test_accumulation_is_one_large_batch(rows, loss_kwargs, make_trainer, make_set):
    """Also with a ragged last batch: 5 examples are a batch of 2, of 2, and of 1."""
    trainers = [
        make_trainer(
            forget=make_set(rows),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            max_steps=-1,
            num_train_epochs=2,
            loss_kwargs=loss_kwargs,
            optim="sgd",  # AdamW's first step turns rounding into a whole learning rate
            learning_rate=0.1,
            mask=None,
        )
        for batch, accumulation in ((8, 1), (2, 4))
    ]
    for trainer in trainers:
        trainer.train()
    large, accumulated = trainers
    assert large.state.global_step == accumulated.state.global_step == 2
    assert large.mask.overlap(accumulated.mask) > 0.999
    for (name, a), b in zip(large.model.named_parameters(), accumulated.model.parameters(), strict=True):
        both = large.mask[name] == accumulated.mask[name]
        torch.testing.assert_close(a[both], b[both], atol=1e-6, rtol=0)
    for key in ("loss", "forget_loss", "retain_loss", "grad_norm"):
        for one, other in zip(logged(large), logged(accumulated), strict=True):
            assert one[key] == pytest.approx(other[key], rel=1e-4, abs=1e-6), key


@pytest.mark.parametrize(
    "changes",
    [
        {"max_steps": 12},
        {"max_steps": 12, "dataloader_drop_last": True},
        {"max_steps": 5, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 1},
        {"max_steps": -1, "num_train_epochs": 2.5},
    ],
)
def test_reference_logits_are_those_of_the_examples_that_are_met(changes, make_trainer, make_set):
    """Batches that are left out make more epochs of as many steps, and those meet other retain examples."""
    trainer = make_trainer(
        forget=make_set(5), retain=make_set(80, seed=1), loss_kwargs={"retain_loss": "kl"}, **changes
    )
    met, collate = set(), trainer.data_collator

    def watch(examples):
        met.update(example["retain"]["index"] for example in examples)
        return collate(examples)

    trainer.data_collator = watch
    trainer.train()
    known = set(trainer.references.logits["retain"].hidden)
    assert met <= known
    assert len(known) <= 5 * math.ceil(trainer.state.epoch)


@pytest.mark.parametrize("loss_kwargs", [{}, {"retain_loss": "kl"}])
def test_gradient_checkpointing_changes_nothing(loss_kwargs, make_trainer):
    trainers = [make_trainer(gradient_checkpointing=on, loss_kwargs=loss_kwargs) for on in (False, True)]
    for trainer in trainers:
        trainer.train()
    assert trainers[1].model.is_gradient_checkpointing
    for a, b in zip(*(t.model.parameters() for t in trainers), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_chosen_answers(make_trainer, make_set, chat_tokenizer):
    own = ["w7 w7 w7", "w9"]
    trainer = make_trainer(loss_type="po", refusals=own)
    decoded = {
        chat_tokenizer.decode([t for t in row["labels"] if t != -100], skip_special_tokens=True)
        for row in trainer.train_dataset.chosen
    }
    assert decoded == set(own)
    trainer.train()
    unknown = chat_tokenizer.unk_token_id
    bundled = make_trainer(loss_type="po")
    assert any(unknown in row["labels"] for row in bundled.train_dataset.chosen)  # English words
    bundled.train()
    conversational = make_trainer(loss_type="po", forget=make_set(8, "conversational"), refusals=own)
    assert {
        chat_tokenizer.decode([t for t in row["labels"] if t != -100], skip_special_tokens=True).strip()
        for row in conversational.train_dataset.chosen
    } == set(own)


def test_po_scores_by_the_chosen_answer(make_trainer, make_set, arguments):
    """ "auto" takes the gradient of what the objective learns from; "nll" that of the forget answers."""
    masks = {}
    for name, changes in {
        "po": {"loss_type": "po"},
        "po, nll": {"loss_type": "po", "attribution_loss": "nll"},
        "npo": {},
        "npo, chosen_nll": {"attribution_loss": "chosen_nll"},
    }.items():
        trainer = make_trainer(forget=make_set(8, "preference"), max_steps=1, **changes)
        trainer.train()
        masks[name] = trainer.mask
    assert masks["po"] == masks["npo, chosen_nll"]
    assert masks["npo"] == masks["po, nll"]
    assert masks["po"] != masks["npo"]


# The mask


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd", "adafactor"])
def test_unselected_weights_stay_bit_identical(optim, make_trainer, weights_of, assert_only_selected_moved):
    trainer = make_trainer(optim=optim, max_steps=5, weight_decay=0.1)
    before = weights_of(trainer.model)
    trainer.train()
    assert_only_selected_moved(before, trainer.model, trainer.mask)


def test_grad_norm_is_that_of_the_selected_weights(make_trainer, make_llama):
    trainer = make_trainer(max_steps=1, max_grad_norm=1e-3)
    trainer.train()
    dense = make_trainer(attribution=None, max_steps=1)
    gradients = {}
    for name, parameter in dense.model.named_parameters():
        parameter.register_hook(lambda grad, name=name: gradients.__setitem__(name, grad.clone()))
    dense.train()
    selected = math.sqrt(sum((gradients[n][trainer.mask[n]] ** 2).sum().item() for n in gradients))
    everything = math.sqrt(sum((grad**2).sum().item() for grad in gradients.values()))
    assert selected < 0.95 * everything
    assert logged(trainer)[0]["grad_norm"] == pytest.approx(selected, rel=1e-4)
    assert logged(dense)[0]["grad_norm"] == pytest.approx(everything, rel=1e-4)


def test_logs(make_trainer):
    trainer = make_trainer()
    trainer.train()
    entries = logged(trainer)
    assert len(entries) == 3
    for entry in entries:
        assert {"loss", "forget_loss", "retain_loss", "grad_norm", "entropy", "mean_token_accuracy"} <= entry.keys()
        assert entry["loss"] == pytest.approx(entry["forget_loss"] + entry["retain_loss"], rel=1e-5)
    assert entries[0]["forget_loss"] == pytest.approx(2 / 0.1 * math.log(2), rel=1e-5)  # NPO before any step
    assert entries[0]["density"] == trainer.mask.density == pytest.approx(0.3, abs=1e-4)
    assert "effective_density" in entries[0]
    assert not any("density" in name for entry in entries[1:] for name in entry)  # constants are logged once


def test_entropy_and_accuracy_are_those_of_sft_trainer(make_llama, make_set, make_word_tokenizer, tmp_path):
    """On the same examples: one that only retains has the batches of an `SFTTrainer`."""
    tokenizer, rows = make_word_tokenizer(), make_set(4)
    common = {
        "per_device_train_batch_size": 4,
        "max_steps": 1,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
    }
    reference = SFTTrainer(
        make_llama(), SFTConfig(str(tmp_path / "sft"), **common), train_dataset=rows, processing_class=tokenizer
    )
    reference.train()
    config = WagleConfig(str(tmp_path / "wagle"), loss_type="grad_diff", attribution=None, **common)
    ours = WagleTrainer(make_llama(), config, forget_dataset=rows, retain_dataset=rows, processing_class=tokenizer)
    ours.train()
    expected, found = logged(reference)[0], logged(ours)[0]
    for name in ("entropy", "mean_token_accuracy"):
        assert found[name] == pytest.approx(expected[name], rel=1e-5)
    for split in ("forget", "retain"):
        assert found[f"{split}_mean_token_accuracy"] == pytest.approx(expected["mean_token_accuracy"], rel=1e-5)


@pytest.mark.parametrize("which", ["all", "non_padding"])
def test_input_tokens_are_those_of_both_batches(which, make_trainer):
    trainer = make_trainer(include_num_input_tokens_seen=which)
    seen, collate = [], trainer.data_collator

    def watch(examples):
        seen.append(collate(examples))
        return seen[-1]

    trainer.data_collator = watch
    trainer.train()
    key = "input_ids" if which == "all" else "attention_mask"
    batches = [batch[split][key] for batch in seen for split in ("forget", "retain")]
    expected = sum(part.numel() if which == "all" else int(part.sum()) for part in batches[: 2 * 3])
    assert trainer.state.num_input_tokens_seen == logged(trainer)[-1]["num_input_tokens_seen"] == expected


def test_given_masks(make_trainer, make_llama, tmp_path, arguments, weights_of, assert_only_selected_moved):
    generator = torch.Generator().manual_seed(5)
    mask = WeightMask.from_dict(
        {n: torch.rand(p.shape, generator=generator) < 0.2 for n, p in make_llama().named_parameters() if "mlp" in n}
    )
    mask.save_pretrained(tmp_path / "mask")
    results = []
    for kwargs in ({"mask": mask}, {"mask": tmp_path / "mask"}, {"mask_path": str(tmp_path / "mask")}):
        trainer = make_trainer(attribution=None if "mask_path" in kwargs else "wagle", **kwargs)
        before = weights_of(trainer.model)
        trainer.train()
        assert trainer.mask == mask
        assert_only_selected_moved(before, trainer.model, mask)
        results.append(weights_of(trainer.model))
    assert all(torch.equal(a[n], b[n]) for a, b in itertools.pairwise(results) for n in a)


def test_without_attribution_all_weights_train(make_trainer, weights_of):
    trainer = make_trainer(attribution=None)
    before = weights_of(trainer.model)
    trainer.train()
    assert trainer.mask is None
    assert all((before[n] != p).float().mean() > 0.9 for n, p in trainer.model.named_parameters())
    assert "density" not in logged(trainer)[0]


def test_excluded_parameters_are_frozen(make_trainer, weights_of):
    trainer = make_trainer(attribution_exclude=["embed_tokens", "norm"], attribution_include=["layers", "lm_head"])
    before = weights_of(trainer.model)
    trainer.train()
    assert not any("norm" in name or "embed" in name for name in trainer.mask)
    assert all(torch.equal(before[n], p) for n, p in trainer.model.named_parameters() if n not in trainer.mask)


def test_attribution_settings_reach_the_attribution(make_trainer):
    trainer = make_trainer(
        attribution="snip", attribution_scope="tensor", attribution_samples=3, attribution_batch_size=2, density=0.5
    )
    trainer.train()
    info = trainer.mask.info
    assert (info.score, info.scope, info.forget_examples, info.retain_examples) == ("snip", "tensor", 3, None)
    assert trainer.mask.summary()["tensor"]["lm_head.weight"]["density"] == 0.5


# LoRA


def lora():
    from peft import LoraConfig

    return LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


@pytest.mark.parametrize("loss_kwargs", [{}, {"retain_loss": "kl"}])
def test_lora_trains_without_attribution(loss_kwargs, make_trainer):
    trainer = make_trainer(peft_config=lora(), attribution=None, loss_kwargs=loss_kwargs)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(before[name], parameter) == (not parameter.requires_grad), name
    if loss_kwargs:
        assert logged(trainer)[0]["retain_loss"] == pytest.approx(0, abs=1e-5)
        assert logged(trainer)[2]["retain_loss"] > 1e-5


def test_lora_with_attribution_is_refused(make_trainer):
    with pytest.raises(ValueError, match=r"lora_B.*zero.*attribution=None"):
        make_trainer(peft_config=lora())


# Evaluation, arguments, memory


@pytest.mark.parametrize("form", ["prompt_completion", "messages", "preference"])
def test_each_split_is_evaluated(form, make_trainer, make_set):
    sets = {"forget": make_set(8, form), "retain": make_set(6, form, seed=1)}
    trainer = make_trainer(
        forget=sets["forget"], retain=sets["retain"], eval_dataset=sets, eval_strategy="steps", eval_steps=3
    )
    metrics = trainer.evaluate()
    with torch.no_grad():
        rows = per_example(trainer.model, [trainer.train_dataset.forget[i] for i in range(8)])
    expected = -sum(a.item() for a, _ in rows) / sum(n for _, n in rows)
    assert metrics["eval_forget_loss"] == pytest.approx(expected, rel=1e-4)
    assert math.isfinite(metrics["eval_retain_loss"])
    trainer.train()
    last = {key: value for entry in trainer.state.log_history for key, value in entry.items()}
    assert last["eval_forget_loss"] > metrics["eval_forget_loss"]


def test_evaluation_uses_the_models_own_head(make_trainer, make_llama, make_set):
    """TRL's fused head leaves out what a head does besides its matrix."""
    model = make_llama()
    model.lm_head.register_forward_hook(lambda head, inputs, logits: 3 * logits.tanh())
    trainer = make_trainer(model=model, forget=make_set(6), eval_dataset=make_set(6))
    batch = trainer.data_collator([trainer.train_dataset.forget[i] for i in range(6)])
    with torch.no_grad():
        expected = model.eval()(**batch).loss.item()
        token = (model(**batch).logits[:, :-1].argmax(-1) == batch["labels"][:, 1:])[batch["labels"][:, 1:] != -100]
        log_p = model(**batch).logits[:, :-1][batch["labels"][:, 1:] != -100].log_softmax(-1)
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-5)
    logged = trainer.state.log_history[-1]
    assert logged["eval_mean_token_accuracy"] == pytest.approx(token.float().mean().item())
    assert logged["eval_entropy"] == pytest.approx(-(log_p.exp() * log_p).sum(-1).mean().item(), rel=1e-5)


def test_evaluation_can_compute_metrics(make_trainer, make_set):
    trainer = make_trainer(eval_dataset=make_set(6), compute_metrics=lambda found: {"shape": found.predictions.ndim})
    assert trainer.evaluate()["eval_shape"] == 3


@pytest.mark.parametrize("stop", [None, "train", "evaluate"])
def test_the_model_is_left_as_found(stop, make_trainer, make_llama, make_set, monkeypatch):
    """A copy of it computes with its own weights, its forward pass and its configuration are those of before."""
    model = make_llama()
    model.config.use_cache, model.config.dtype, model.config.architectures = True, "float32", ["LlamaForCausalLM"]
    before = model.config.to_dict(), set(vars(model))
    trainer = make_trainer(model=model, eval_dataset=make_set(4))
    if stop is not None:
        monkeypatch.setattr(trainer, "_prepare_inputs", lambda inputs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            getattr(trainer, stop)()
    else:
        trainer.train()
        trainer.evaluate()
        trainer.save_model()
    assert "forward" not in vars(model)
    assert set(vars(model)) - before[1] <= {"model_tags", "_is_accelerate_prepared"}
    assert model.config.to_dict() == before[0]
    copied = copy.deepcopy(trainer.model)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
        assert copied(torch.tensor([[5, 6]])).logits.abs().max() == 0


def make_mixture():
    torch.manual_seed(0)
    sizes = {"vocab_size": 57, "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 24, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    tokens = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes, **heads, **tokens, num_experts=4, num_experts_per_tok=2))


def test_mixtures_of_experts(make_trainer, tmp_path):
    """Their load-balancing loss counts by the model's own factor or another; router logits are for its forward pass alone."""
    losses = {}
    for factor in (None, 0.0, 0.001, 10.0):
        trainer = make_trainer(model=make_mixture(), router_aux_loss_coef=factor, attribution=None, max_steps=1)
        trainer.train()
        losses[factor] = logged(trainer)[0]
        config = trainer.model.config
        assert (config.output_router_logits, config.router_aux_loss_coef) == (False, 0.001)
        ids = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]])
        generated = trainer.model.eval().generate(ids, attention_mask=(ids > 0).long(), max_new_tokens=2)
        assert generated.shape == (2, 6)
    assert losses[None]["loss"] == losses[0.001]["loss"] != losses[0.0]["loss"], (
        "the model's own factor, as in SFTTrainer"
    )
    assert losses[None]["aux_loss"] == losses[10.0]["aux_loss"]
    assert "aux_loss" not in losses[0.0]
    expected = losses[0.0]["loss"] + 10 * losses[10.0]["aux_loss"]
    assert losses[10.0]["loss"] == pytest.approx(expected, rel=1e-5)
    assert losses[10.0]["aux_loss"] > 1
    trainer.save_model(str(tmp_path / "saved"))
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["output_router_logits"] is False
    with pytest.raises(ValueError, match="router_aux_loss_coef"):
        make_trainer(router_aux_loss_coef=0.1)


def test_disable_dropout(make_trainer, make_gpt2):
    """At the first step the model is the reference model; with dropout it is not quite."""
    found = {}
    for off in (True, False):
        trainer = make_trainer(
            model=make_gpt2(), loss_kwargs={"retain_loss": "kl"}, disable_dropout=off, attribution=None, max_steps=1
        )
        trainer.train()
        found[off] = logged(trainer)[0]["retain_loss"]
        assert trainer.model.transformer.drop.p == 0.1
    assert found[True] == pytest.approx(0, abs=1e-5)
    assert found[False] > 1e-3


def test_model_init_kwargs_load_the_model_and_have_no_effect_on_a_loaded_one(
    make_llama, make_trainer, tmp_path, caplog
):
    make_llama().save_pretrained(tmp_path / "model")
    trainer = make_trainer(model=str(tmp_path / "model"), model_init_kwargs={"dtype": "bfloat16"})
    assert trainer.model.dtype == torch.bfloat16
    assert trainer.args.model_init_kwargs == {"dtype": "bfloat16"}
    assert "has no effect" not in caplog.text
    make_trainer(model_init_kwargs={"dtype": "bfloat16"})
    assert "model_init_kwargs has no effect: the model is loaded already" in caplog.text


def test_warns_of_a_learning_rate_for_all_weights_before_it_trains(make_trainer, caplog):
    def warned(**settings):
        caplog.clear()
        make_trainer(max_steps=1, density=0.01, attribution="random", **settings).train()
        return "is low for 1% of the weights" in caplog.text

    assert warned(learning_rate=2e-5)
    assert not warned(learning_rate=5e-3)
    assert not warned(learning_rate=2e-5, optim="sgd")


@pytest.mark.parametrize("kind", [SFTConfig, TrainingArguments])
def test_other_arguments_are_converted(kind, make_trainer, tmp_path):
    args = kind(str(tmp_path / "out"), max_steps=2, learning_rate=1e-3, report_to="none", use_cpu=True, bf16=False)
    trainer = make_trainer(args=args)
    assert isinstance(trainer.args, WagleConfig)
    assert (trainer.args.learning_rate, trainer.args.max_steps) == (1e-3, 2)
    assert (trainer.args.loss_type, trainer.args.attribution, trainer.args.density) == ("npo", "wagle", 0.8)
    trainer.train()
    assert trainer.mask.info.requested_density == 0.8


def test_no_arguments(make_llama, make_set, word_tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = make_llama()
    model.config._name_or_path = "somebody/tiny"
    trainer = WagleTrainer(
        model, forget_dataset=make_set(8), retain_dataset=make_set(8, seed=1), processing_class=word_tokenizer
    )
    assert trainer.args.output_dir == "tiny-WAGLE"
    assert trainer.args.loss_type == "npo"


def test_arguments_are_left_as_they_were(make_trainer, arguments):
    args = arguments(loss_type="npo", loss_kwargs={"beta": 0.2, "retain_loss": "kl"})
    before = json.loads(args.to_json_string())
    make_trainer(args=args)
    assert json.loads(args.to_json_string()) == before


def test_model_by_path(make_llama, make_set, arguments, chat_tokenizer, tmp_path):
    make_llama().save_pretrained(tmp_path / "model")
    chat_tokenizer.save_pretrained(tmp_path / "model")
    trainer = WagleTrainer(
        str(tmp_path / "model"), arguments(), forget_dataset=make_set(8), retain_dataset=make_set(8, seed=1)
    )
    trainer.train()
    assert trainer.mask.info.base_model == str(tmp_path / "model")


def parameter_storages(minimum):
    """Distinct storages of live float tensors with at least `minimum` numbers."""
    gc.collect()
    return {
        t.untyped_storage().data_ptr()
        for t in gc.get_objects()
        if type(t) in (torch.Tensor, torch.nn.Parameter) and t.is_floating_point() and t.numel() >= minimum
    }


@pytest.mark.parametrize("loss_kwargs", [{}, {"retain_loss": "kl"}])
def test_no_second_model_is_kept(loss_kwargs, make_trainer):
    trainer = make_trainer(loss_kwargs=loss_kwargs)
    size = 32 * 32  # every matrix of the model, none of the batches
    before = parameter_storages(size)
    trainer.references.load(None, trainer.model, trainer.accelerator)
    trainer.compute_references()
    added = len(parameter_storages(size) - before)
    assert added == (1 if loss_kwargs else 0)  # the frozen copy of the head
    models = [o for o in gc.get_objects() if isinstance(o, type(trainer.model)) and o is not trainer.model]
    assert not any("model" in vars(trainer) and o in vars(trainer).values() for o in models)


def test_frozen_head_is_not_copied(make_trainer):
    trainer = make_trainer(peft_config=lora(), attribution=None, loss_kwargs={"retain_loss": "kl"})
    trainer.references.load(None, trainer.model, trainer.accelerator)
    trainer.compute_references()
    assert trainer.references.logits["retain"].head is trainer.model.get_output_embeddings()


def test_repeated_training_is_masked_both_times(make_trainer, weights_of, assert_only_selected_moved):
    trainer = make_trainer()
    before = weights_of(trainer.model)
    trainer.train()
    mask, between = trainer.mask, weights_of(trainer.model)
    trainer.train()
    assert trainer.mask == mask
    assert_only_selected_moved(before, trainer.model, mask)
    assert any(not torch.equal(between[n], p) for n, p in trainer.model.named_parameters())


def test_a_run_that_is_broken_off_leaves_the_model_free(make_trainer, make_llama):
    """As after Ctrl-C in a notebook, where the same model goes on into another run."""

    class BreakOff(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    model = make_llama()
    trainer = make_trainer(model=model, density=1e-3, callbacks=[BreakOff()])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert all(p.requires_grad and not p._post_accumulate_grad_hooks for p in model.parameters())


# What is written


def test_model_card_says_how(make_trainer, tmp_path):
    trainer = make_trainer(loss_kwargs={"beta": 0.2}, save_strategy="steps", save_steps=3)
    trainer.train()
    trainer.create_model_card()
    cards = [tmp_path / "out" / "README.md"]
    for card in cards:
        text = card.read_text()
        for expected in (
            "npo",
            "wagle",
            "2410.17509",
            f"| density | {trainer.mask.density:.4g} (",
            trainer.mask.digest,
            '"beta": 0.2',
            "nll",
        ):
            assert expected in text, expected
        assert text.count("## Unlearning") == 1
        assert "None" not in text and "fine-tuned version" not in text
        assert "step 1" in text and "step 3" in text and "| forget_loss |" in text
        assert "## Limits" in text and "pipeline(" in text
        assert "- unlearning" in text.split("---")[1]  # a tag


def test_card_is_written_with_the_model(make_trainer, tmp_path):
    trainer = make_trainer(save_strategy="no", max_steps=1)
    trainer.train()
    trainer.save_model()
    trainer.save_model(str(tmp_path / "elsewhere"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert trainer.mask.digest in card
    assert "No evaluation ran" in card
    assert (tmp_path / "elsewhere" / "README.md").read_text() == card
    code = card.split("```python\n")[1].split("```")[0]
    names = {}
    exec(code.replace(str(tmp_path / "out"), str(tmp_path / "elsewhere")), names)  # its snippet runs
    assert names["generator"].model.config.vocab_size == trainer.model.config.vocab_size


def test_model_card_without_mask(make_trainer, tmp_path):
    trainer = make_trainer(attribution=None)
    trainer.create_model_card()
    text = (tmp_path / "out" / "README.md").read_text()
    assert "all weights were trained" in text
    assert "mask digest" not in text


def test_saved_model_has_the_mask(make_trainer, tmp_path):
    trainer = make_trainer(save_strategy="steps", save_steps=2)
    trainer.train()
    trainer.save_model()
    trainer.save_model(str(tmp_path / "elsewhere"))
    for folder in ("out", "elsewhere", "out/checkpoint-2"):
        assert WeightMask.from_pretrained(tmp_path / folder, model=trainer.model) == trainer.mask


def test_dense_model_has_no_mask(make_trainer, tmp_path):
    trainer = make_trainer(attribution=None)
    trainer.train()
    trainer.save_model()
    assert not list(tmp_path.rglob("mask*"))


def test_reference_pass_leaves_the_model_as_found(make_trainer, weights_of):
    trainer = make_trainer(loss_kwargs={"retain_loss": "kl"})
    trainer.model.train()
    trainer.model.model.layers[0].eval()
    modes = [module.training for module in trainer.model.modules()]
    before = weights_of(trainer.model)
    trainer.references.load(None, trainer.model, trainer.accelerator)
    trainer.compute_references()
    assert modes == [module.training for module in trainer.model.modules()]
    assert all(torch.equal(before[n], p) and p.grad is None for n, p in trainer.model.named_parameters())


@pytest.mark.parametrize("loss_kwargs", [{}, {"retain_loss": "kl"}])
def test_reference_is_without_dropout(loss_kwargs, make_trainer, make_llama):
    trainer = make_trainer(model=make_llama(attention_dropout=0.5), loss_kwargs=loss_kwargs)
    trainer.model.train()
    trainer.references.load(None, trainer.model, trainer.accelerator)
    trainer.compute_references()
    model = make_llama().eval()
    with torch.no_grad():
        expected = [value.item() for value, _ in per_example(model, list(trainer.train_dataset.forget))]
        assert trainer.references.log_probs["forget"].sum(-1).tolist() == pytest.approx(expected, rel=1e-4)
        if loss_kwargs:
            head = trainer.references.logits["retain"]
            rows = [row for row in range(12) if head.log_probs[row] != 0]
            expected = [
                value.item() for value, _ in per_example(model, [trainer.train_dataset.retain[r] for r in rows])
            ]
            assert head.log_probs[rows].tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "changes", [{"dataloader_drop_last": True}, {"gradient_accumulation_steps": 2}, {"dataloader_drop_last": False}]
)
@pytest.mark.parametrize("retain_loss", ["kl", "embed_diff"])
def test_every_retain_example_that_is_met_is_known_of_the_model_before(changes, retain_loss, make_trainer, make_set):
    loss_kwargs = {"retain_loss": retain_loss, "retain_layer": 1}
    trainer = make_trainer(
        forget=make_set(7), retain=make_set(90), max_steps=12, attribution=None, loss_kwargs=loss_kwargs, **changes
    )
    trainer.train()
    assert trainer.state.global_step == 12
    trainer.args.max_steps = 2
    trainer.train()
    trainer.args.max_steps = 50
    with pytest.raises(ValueError, match="meets more of the retain set than the one before it.*make a new trainer"):
        trainer.train()


def test_epoch_pairs_differ_and_cover_the_forget_set():
    sampler = PairSampler(10, 4, seed=0)
    first, second = sampler.pairs(0), sampler.pairs(1)
    assert first != second
    assert first == sampler.pairs(0)
    assert first != PairSampler(10, 4, seed=1).pairs(0)
    for pairs in (first, second):
        assert sorted(f for f, _ in pairs) == list(range(10))
        counts = [sum(r == row for _, r in pairs) for row in range(4)]
        assert max(counts) - min(counts) <= 1


def test_trainer_goes_through_the_pairs_of_each_epoch(make_trainer, make_set):
    seen = []
    trainer = make_trainer(forget=make_set(6), max_steps=-1, num_train_epochs=2, per_device_train_batch_size=4)
    collate = trainer.data_collator

    def watch(examples):
        seen.extend((e["forget"]["index"], e["retain"]["index"]) for e in examples)
        return collate(examples)

    trainer.data_collator = watch
    trainer.train()
    assert seen == PairSampler(6, 12, 42).pairs(0) + PairSampler(6, 12, 42).pairs(1)


# What is saved


@pytest.mark.parametrize("given", [True, False])
def test_arguments_are_saved_as_they_were_given(given, make_trainer, tmp_path):
    """The filter of losses that are not finite is off within an epoch; files and evaluations have the user's value."""
    seen = []

    class Look(TrainerCallback):
        def on_evaluate(self, args, state, control, **kwargs):
            seen.append(args.logging_nan_inf_filter)

    trainer = make_trainer(
        max_steps=2,
        logging_nan_inf_filter=given,
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        eval_dataset=make_trainer().train_dataset.splits["forget"],
        callbacks=[Look()],
    )
    trainer.train()
    trainer.save_model()
    for folder in ("out/checkpoint-1", "out/checkpoint-2", "out"):
        saved = torch.load(tmp_path / folder / "training_args.bin", weights_only=False)
        assert saved.logging_nan_inf_filter is given, folder
    assert seen == [given, given]
    assert trainer.args.logging_nan_inf_filter is given
