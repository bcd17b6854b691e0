"""Every objective in a short run of `WagleTrainer`, on a tiny model that knows its sets by heart."""

import itertools
import shutil

import pytest
import torch
from datasets import Dataset

from wagle_trainer import WagleTrainer
from wagle_trainer.losses import UnlearningLoss, get_loss, list_losses, register_loss

pytestmark = pytest.mark.slow

BUILT_IN = [name for name in list_losses() if get_loss(name).__module__.startswith("wagle_trainer.")]
KWARGS = {
    "rmu": {"layer": 0, "coefficient": 5.0},
    "pdu": {"retain_eps": 0.05},
    "jensun": {"target": "w3 w4"},
    "l1_sparse": {"gamma": 1e-3},
    "satimp": {"beta2": 0.1},  # the paper's 1 spares what this model knows by heart, which is everything
}
DO_NOT_AIM_AT_FORGETTING = {"finetune", "l1_sparse"}  # they hope for it, over many steps


@pytest.fixture(scope="module")
def sets(make_set):
    return make_set(8, "preference"), make_set(12, seed=1)


def answer_log_prob(model, dataset):
    """Mean log-probability per answer token."""
    values = []
    for row in dataset:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
        with torch.no_grad():
            log_p = model.eval()(ids).logits[0, :-1].log_softmax(-1)
        kept = labels[1:] != -100
        values.append(log_p[kept, labels[1:][kept]].mean())
    return torch.stack(values).mean().item()


@pytest.fixture(scope="module")
def memorized(make_llama, make_word_tokenizer, sets, tmp_path_factory):
    """The weights of a model that has learned both sets, and the chosen answers of neither."""
    from wagle_trainer import WagleConfig

    config = WagleConfig(str(tmp_path_factory.mktemp("prepare")), use_cpu=True, bf16=False, report_to="none")
    forget, retain = sets
    model = make_llama()
    trainer = WagleTrainer(
        model, config, forget_dataset=forget, retain_dataset=retain, processing_class=make_word_tokenizer()
    )
    rows = [*trainer.train_dataset.forget, *trainer.train_dataset.retain]
    batch = {key: value for key, value in trainer.data_collator(rows).items() if key != "index"}
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    assert answer_log_prob(model, trainer.train_dataset.forget) > -0.3
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture
def make_trainer(memorized, make_llama, sets, arguments, word_tokenizer):
    def make(loss_type, model=None, forget=None, **changes):
        if model is None:
            model = make_llama()
            model.load_state_dict(memorized)
        kwargs = {**KWARGS.get(loss_type, {}), **changes.pop("loss_kwargs", {})}
        settings = {"max_steps": 8, "learning_rate": 2e-3, "weight_decay": 0.0, "attribution": None}
        return WagleTrainer(
            model,
            arguments(loss_type=loss_type, loss_kwargs=kwargs, **settings | changes),
            forget_dataset=sets[0] if forget is None else forget,
            retain_dataset=sets[1],
            processing_class=word_tokenizer,
        )

    return make


def pairs_of(trainer, pairs):
    return trainer.data_collator([trainer.train_dataset[pair] for pair in pairs])


def assert_parts_are_one_large_batch(trainer):
    """Of pairs in another order and in batches of 3, 3 and 2, losses and gradients add up to those of all at once."""
    trainer.references.load(None, trainer.model, trainer.accelerator)
    trainer.compute_references()
    model = trainer.model.eval()
    start = [parameter.detach().clone() for parameter in model.parameters()]
    with torch.no_grad():  # away from the reference
        for parameter in model.parameters():
            parameter.mul_(1.05)
    pairs, order = [(i, (i + 3) % 8) for i in range(8)], [5, 2, 7, 0, 1, 6, 3, 4]
    found = []
    for parts in (range(8),), (order[:3], order[3:6], order[6:]):
        model.zero_grad()
        batches = [pairs_of(trainer, [pairs[i] for i in part]) for part in parts]
        losses = [trainer.compute_loss(model, batch, num_items_in_batch=torch.tensor(8)) for batch in batches]
        sum(losses).backward()
        found.append(
            (sum(losses).item(), [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()])
        )
    (whole, gradients), (added, sums) = found
    assert added == pytest.approx(whole, rel=1e-4)
    biggest = max(gradient.abs().max().item() for gradient in gradients)
    assert biggest > 0
    for gradient, other in zip(gradients, sums, strict=True):
        torch.testing.assert_close(other, gradient, rtol=0, atol=1e-4 * biggest)
    model.zero_grad()
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), start, strict=True):
            parameter.copy_(value)


@pytest.mark.parametrize("loss_type", BUILT_IN)
def test_every_objective(loss_type, make_trainer, weights_of, assert_only_selected_moved):
    """It is a mean over examples, it trains the selected weights, and it lowers what it aims at."""
    loss_kwargs = {"adaptive": True} if loss_type == "rmu" else {}
    trainer = make_trainer(loss_type, attribution="wagle", density=0.5, loss_kwargs=loss_kwargs)
    assert_parts_are_one_large_batch(trainer)
    forget = trainer.train_dataset.forget
    before, weights = answer_log_prob(trainer.model, forget), weights_of(trainer.model)
    trainer.train()
    moved = sum(float((weights[name] != weight).float().sum()) for name, weight in trainer.model.named_parameters())
    assert moved > 0
    if loss_type == "rmu":  # weights above its layer have no gradient, so not half of the selected ones move
        for name, parameter in trainer.model.named_parameters():
            frozen = ~trainer.mask[name]
            assert torch.equal(weights[name][frozen], parameter[frozen])
    else:
        assert_only_selected_moved(weights, trainer.model, trainer.mask)
    if loss_type not in DO_NOT_AIM_AT_FORGETTING:
        assert answer_log_prob(trainer.model, forget) < before - 0.1


@pytest.mark.parametrize("loss_type", ["pdu", "l1_sparse"])
def test_accumulation_is_one_large_batch(loss_type, make_trainer):
    """Also of what is done once per step: the dual variable and the penalty."""
    settings = {"max_steps": 2, "optim": "sgd", "learning_rate": 0.01, "max_grad_norm": 0.0}
    large = make_trainer(loss_type, per_device_train_batch_size=8, **settings)
    parts = make_trainer(loss_type, per_device_train_batch_size=2, gradient_accumulation_steps=4, **settings)
    start = [parameter.detach().clone() for parameter in large.model.parameters()]
    for trainer in (large, parts):
        trainer.train()
    biggest = max((a - b).abs().max().item() for a, b in zip(start, large.model.parameters(), strict=True))
    assert biggest > 1e-5
    for a, b in zip(large.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-3 * biggest + 1e-7)


@pytest.mark.parametrize("retain_loss", ["nll", "kl", "js", "embed_diff", None])
def test_every_retain_loss(retain_loss, make_trainer):
    trainer = make_trainer("npo", loss_kwargs={"retain_loss": retain_loss, "retain_layer": 1}, max_steps=2)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    if retain_loss is None:
        assert "retain_loss" not in entries[0]
    else:
        at_first = entries[0]["retain_loss"]
        assert at_first > 0 if retain_loss == "nll" else at_first == pytest.approx(0, abs=1e-5)
        assert entries[1]["retain_loss"] > 1e-6


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_keeps_the_gradient_of_hidden_states(use_reentrant, make_trainer):
    kwargs = {"use_reentrant": use_reentrant}
    trainers = [
        make_trainer("rmu", max_steps=2, gradient_checkpointing=on, gradient_checkpointing_kwargs=kwargs)
        for on in (False, True)
    ]
    for trainer in trainers:
        trainer.train()
    for a, b in zip(*(trainer.model.parameters() for trainer in trainers), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("loss_type", "kwargs", "setting"),
    [
        ("npo", {"retain_loss": "kl"}, "retain_loss='kl'"),
        ("npo", {"retain_loss": "js"}, "retain_loss='js'"),
        ("undial", {}, "loss_type='undial'"),
        ("kl_min", {}, "retain_loss='kl'"),
    ],
)
def test_models_that_name_no_head_are_refused_when_the_trainer_is_made(
    loss_type, kwargs, setting, make_trainer, make_llama
):
    """Reference logits are kept as hidden states and a copy of the head."""
    model = make_llama()
    model.get_output_embeddings = lambda: None
    with pytest.raises(ValueError, match=f"{setting} needs the output embeddings of the model, and LlamaForCausalLM"):
        make_trainer(loss_type, model=model, loss_kwargs=kwargs)
    if loss_type == "npo":  # what needs no logits runs
        make_trainer(loss_type, model=model, max_steps=1).train()


def test_hidden_states_below_which_nothing_is_trained(make_trainer, make_llama):
    model = make_llama()
    model.requires_grad_(False)
    model.lm_head.requires_grad_(True)
    with pytest.raises(ValueError, match="hidden states of the .* set carry no gradient: train a weight at or below"):
        make_trainer("rmu", model=model).train()


# Regularised weights, control vectors, dual variables


def test_l1_penalty_and_its_schedule(make_trainer):
    sparse, plain = make_trainer("l1_sparse", loss_kwargs={"gamma": 0.01}), make_trainer("finetune")
    inputs = pairs_of(plain, [(0, 0), (1, 4)])
    gradients = {}
    for progress in (0.0, 0.25):
        for name, trainer in (("sparse", sparse), ("plain", plain)):
            trainer.state.max_steps, trainer.state.global_step = 8, int(8 * progress)
            trainer.model.eval().zero_grad()
            trainer.compute_loss(trainer.model, inputs).backward()
            gradients[name] = {n: p.grad.clone() for n, p in trainer.model.named_parameters()}
        for name, parameter in sparse.model.named_parameters():
            added = 0.01 * (1 - progress) * parameter.detach().sign()
            torch.testing.assert_close(
                gradients["sparse"][name], gradients["plain"][name] + added, rtol=1e-4, atol=1e-6
            )
    constant = get_loss("l1_sparse")(gamma=0.01, schedule="constant")
    expected = 0.01 * sum(p.abs().sum() for p in sparse.model.parameters())
    torch.testing.assert_close(constant.penalty(sparse.model, 0.9), expected)


def test_control_vector_is_that_of_the_seed(make_trainer):
    vectors = [make_trainer("rmu", seed=seed).objective.forget.control_vector(32) for seed in (1, 1, 2)]
    assert torch.equal(vectors[0], vectors[1])
    assert not torch.equal(vectors[0], vectors[2])
    assert vectors[0].norm().item() == pytest.approx(1)
    assert bool((vectors[0] >= 0).all())


@pytest.mark.parametrize("loss_type", ["pdu", "undial", "tnpo", "rmu", "random_label"])
def test_resume(loss_type, make_trainer, memorized, tmp_path):
    """The dual variable, the reference values and the random choices are restored: the run ends with the same bits."""
    loss_kwargs = {"adaptive": True} if loss_type == "rmu" else {}
    settings = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6, "loss_kwargs": loss_kwargs}
    whole = make_trainer(loss_type, **settings)
    whole.train()
    if loss_type == "pdu":
        factors = [entry["retain_factor"] for entry in whole.state.log_history if "retain_factor" in entry]
        assert all(a != b for a, b in itertools.pairwise(factors))
    shutil.rmtree(tmp_path / "out" / "checkpoint-6")
    resumed = make_trainer(loss_type, **settings)
    resumed.train(resume_from_checkpoint=True)
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert whole.objective.forget.state().keys() == resumed.objective.forget.state().keys()
    assert all(
        torch.equal(value, resumed.objective.forget.state()[name])
        for name, value in whole.objective.forget.state().items()
    )


def test_resume_needs_the_reference_model(make_trainer, make_llama, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 3, "max_steps": 3}
    make_trainer("undial", **settings).train()
    with pytest.raises(ValueError, match=r"loss_type='undial' compares with the reference model"):
        make_trainer("undial", model=make_llama(seed=9), **settings).train(resume_from_checkpoint=True)


# What cannot work is said


def test_layers_that_do_not_exist(make_trainer):
    with pytest.raises(ValueError, match=r"loss_type='rmu' needs layer 7, but LlamaForCausalLM has layers 0 to 1"):
        make_trainer("rmu", loss_kwargs={"layer": 7})
    with pytest.raises(ValueError, match=r"retain_loss='embed_diff' needs layer -1"):
        make_trainer("npo", loss_kwargs={"retain_loss": "embed_diff", "retain_layer": -1})
    with pytest.raises(ValueError, match=r'embed_diff\' needs a layer.*counted from 0: .*"retain_layer": 7'):
        make_trainer("npo", loss_kwargs={"retain_loss": "embed_diff"})


def test_answers_that_cross_entropy_unlearning_ignores(make_trainer):
    tokenized = {"input_ids": [[6, 9], [7, 10], [8, 11, 12]], "labels": [[-100, 9], [-100, 10], [-100, 11, 12]]}
    forget = Dataset.from_dict(tokenized)
    with pytest.warns(UserWarning, match="2 of 3 forget answers have no more than 1 target token"):
        make_trainer("ceu", forget=forget)
    with pytest.raises(ValueError, match=r"2 of 2 forget answers .*\"ignore_first_tokens\": 0"):
        make_trainer("ceu", forget=forget.select(range(2)))
    make_trainer("ceu", forget=forget.select(range(2)), loss_kwargs={"ignore_first_tokens": 0})


def test_alternate_answers_are_not_made_of_refusals(make_trainer, make_set):
    with pytest.raises(
        ValueError, match=r"'altpo' needs other answers.*\n.*\"chosen\".*\n.*columns prompt, completion"
    ):
        make_trainer("altpo", forget=make_set(8))
    make_trainer("dpo", forget=make_set(8))


@pytest.mark.parametrize("loss_type", ["finetune", "pdu"])
def test_objectives_that_are_nothing_without_a_retain_loss(loss_type, make_trainer):
    for changes in ({"loss_kwargs": {"retain_loss": None}}, {"retain_weight": 0.0}):
        with pytest.raises(ValueError, match=f"'{loss_type}' is nothing without its retain loss"):
            make_trainer(loss_type, **changes)


def test_missing_argument(make_trainer, monkeypatch):
    monkeypatch.delitem(KWARGS, "pdu")
    with pytest.raises(
        ValueError,
        match=r"do not fit the loss 'pdu'.*retain_eps'\. For example:\n  from .*\n  args = .*\"retain_eps\": 0",
    ):
        make_trainer("pdu")


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        ({"forget", "logits"}, "needs logits, which is unknown. Known: forget, "),
        ({"forget_logits"}, "but not 'forget'"),
    ],
)
def test_needs_that_cannot_be_met(needs, message, make_trainer):
    @register_loss(f"test: {' '.join(sorted(needs))}")
    class Wrong(UnlearningLoss):
        pass

    Wrong.needs = frozenset(needs)
    with pytest.raises(ValueError, match=message):
        make_trainer(f"test: {' '.join(sorted(needs))}")
