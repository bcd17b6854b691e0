"""LoRA beside or in place of a mask: every objective, gradient checkpointing, modules chosen by a score, quantised bases."""

import json
import logging
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from wagle_trainer import WagleTrainer, WeightMask, attribute
from wagle_trainer.adapters.lora import check_adapted_modules, check_full_weights, lora_modules
from wagle_trainer.losses import get_loss, list_losses
from wagle_trainer.masking import MaskInfo
from wagle_trainer.models.architecture import linear_weights

pytestmark = pytest.mark.slow

BUILT_IN = [name for name in list_losses() if get_loss(name).__module__.startswith("wagle_trainer.")]
KWARGS = {"rmu": {"layer": 1}, "pdu": {"retain_eps": 0.05}, "jensun": {"target": "w3 w4"}}


@pytest.fixture(scope="module")
def sets(make_set):
    return make_set(8, "preference"), make_set(8, seed=1)


@pytest.fixture
def make_trainer(make_llama, sets, arguments, word_tokenizer):
    """make_trainer(changes of the config) -> a WagleTrainer of a fresh LoRA on the tiny Llama."""

    def make(loss_type="npo", model=None, target_modules="all-linear", lora=None, **changes):
        kwargs = {**KWARGS.get(loss_type, {}), **changes.pop("loss_kwargs", {})}
        trainer = {name: changes.pop(name) for name in ("mask", "quantization_config") if name in changes}
        peft_config = LoraConfig(r=2, target_modules=target_modules, task_type="CAUSAL_LM", **(lora or {}))
        return WagleTrainer(
            make_llama() if model is None else model,
            arguments(
                **{"attribution": None, "max_steps": 2, "loss_type": loss_type, "loss_kwargs": kwargs} | changes
            ),
            forget_dataset=sets[0],
            retain_dataset=sets[1],
            processing_class=word_tokenizer,
            peft_config=None if isinstance(model, PeftModel) else peft_config,
            **trainer,
        )

    return make


def is_lora(name):
    return "lora_" in name


def bits(tensor):
    return tensor.detach().view(torch.int32)


# Every objective


@pytest.mark.parametrize("loss_type", BUILT_IN)
def test_every_objective_trains_the_adapter_alone(loss_type, make_trainer, make_llama, weights_of):
    trainer = make_trainer(loss_type)
    before, base = weights_of(trainer.model), weights_of(make_llama())
    trainer.train()
    after = dict(trainer.model.named_parameters())
    assert {name for name, weight in after.items() if weight.requires_grad} == set(filter(is_lora, after))
    moved = {name for name, weight in after.items() if not torch.equal(before[name], weight)}
    assert moved
    assert all(map(is_lora, moved))
    plain = {
        n.removeprefix("base_model.model.").replace(".base_layer", ""): w for n, w in after.items() if n not in moved
    }
    assert all(torch.equal(bits(base[name]), bits(plain[name])) for name in base)
    for layer in (0, 1):
        assert any(f"layers.{layer}." in name and "lora_A" in name for name in moved)
        assert any(f"layers.{layer}." in name and "lora_B" in name for name in moved)


@pytest.mark.parametrize(
    ("loss_type", "loss_kwargs"),
    [
        ("npo", {"retain_loss": "kl"}),
        ("npo", {"retain_loss": "js"}),
        ("npo", {"retain_loss": "embed_diff", "retain_layer": 0}),
        ("undial", {}),
        ("tnpo", {}),
        ("rmu", {"adaptive": True, "layer": 0}),
    ],
    ids=lambda value: value if isinstance(value, str) else value.get("retain_loss", ""),
)
def test_the_reference_is_the_adapter_switched_off(loss_type, loss_kwargs, make_trainer):
    """Whatever was kept of the reference model equals what the trained model gives without its adapter."""
    trainer = make_trainer(loss_type, loss_kwargs=loss_kwargs, learning_rate=0.05, max_steps=4)
    trainer.train()
    model = trainer.model.eval()
    checked = 0
    for role in ("forget", "retain"):
        head, states = trainer.references.logits.get(role), trainer.references.states.get(role)
        references = trainer.references.log_probs.get(role)
        for row in sorted((head or states).hidden) if head or states else range(8 if references is not None else 0):
            example = getattr(trainer.train_dataset, role)[row]
            ids, labels = torch.tensor([example["input_ids"]]), torch.tensor(example["labels"])
            kept = labels[1:] != -100
            with torch.no_grad(), model.disable_adapter():
                off = model(ids, output_hidden_states=True)
            with torch.no_grad():
                on = model(ids, output_hidden_states=True)
            if head is not None:
                found, expected, changed = head.values([row], ids.device), *(o.logits[0, :-1][kept] for o in (off, on))
            elif states is not None:
                found = states.values([row], ids.device)
                expected, changed = (o.hidden_states[1][0, 1:][kept] for o in (off, on))  # of layer 0
            else:
                log_p = [o.logits[0, :-1].log_softmax(-1)[kept, labels[1:][kept]] for o in (off, on)]
                found, (expected, changed) = references[row][: int(kept.sum())], log_p
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            assert not torch.allclose(found, changed, rtol=1e-2, atol=1e-2)
            checked += 1
    assert checked >= 4


# Gradient checkpointing


@pytest.mark.parametrize("given", ["peft_config", "PeftModel"])
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_trains_the_first_layers_adapter(use_reentrant, given, make_trainer, make_llama):
    """With frozen embeddings, reentrant checkpointing would cut the gradient off without `enable_input_require_grads`."""
    gradients = []
    for on in (False, True):
        config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
        torch.manual_seed(0)
        model = get_peft_model(make_llama(), config) if given == "PeftModel" else make_llama()
        trainer = make_trainer(
            target_modules=["q_proj", "down_proj"],
            model=model,
            gradient_checkpointing=on,
            gradient_checkpointing_kwargs={"use_reentrant": use_reentrant} if on else None,
            loss_kwargs={"retain_loss": "kl"},
        )
        trainer.train()  # after it lora_B is not zero, so that lora_A has gradients, too
        assert trainer.model.is_gradient_checkpointing == on
        batch = trainer.data_collator([trainer.train_dataset[pair] for pair in ((0, 0), (1, 4))])
        trainer.model.train().zero_grad()
        trainer.compute_loss(trainer.model, batch).backward()
        gradients.append({n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.requires_grad})
    first = [name for name in gradients[1] if "layers.0." in name]
    assert len(first) == 4
    assert all(gradients[1][name].abs().max() > 1e-6 for name in first)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)


# Modules chosen by a score


def share_by_hand(mask):
    """Linear module -> selected share of its weights."""
    return {name.removesuffix(".weight"): mask[name].float().mean().item() for name in mask}


def adapted(model):
    """The modules that an adapter stands beside."""
    return {name.removeprefix("base_model.model.") for name, m in model.named_modules() if hasattr(m, "lora_A")}


def test_the_score_chooses_the_modules(make_trainer, make_llama, sets, pad_batches, tmp_path, caplog):
    trainer = make_trainer(target_modules="wagle", density=0.1, attribution_gamma=1e-2)
    # By hand: the same sets as plain batches, scored on a model of the same weights, Linear weights only.
    batches = {}
    for role in ("forget", "retain"):
        rows = getattr(trainer.train_dataset, role)
        batches[role] = pad_batches([(row["input_ids"], row["labels"]) for row in rows], 4)
    mask = attribute(make_llama(), *batches.values(), gamma=1e-2, density=0.1, include=["proj"], progress=False)
    share, overall = share_by_hand(mask), mask.num_selected / mask.num_weights
    expected = {module for module in share if share[module] >= overall}
    assert 0 < len(expected) < len(share)
    assert adapted(trainer.model) == set(trainer.lora_modules) == expected
    assert [share[module] for module in trainer.lora_modules] == sorted((share[m] for m in expected), reverse=True)

    trainer.train()
    trainer.save_model()
    saved = json.loads((tmp_path / "out" / "adapter_config.json").read_text())["target_modules"]
    assert set(saved) == expected  # plain names, so that PEFT alone can read it
    assert adapted(PeftModel.from_pretrained(make_llama(), tmp_path / "out")) == expected
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| LoRA modules | {', '.join(trainer.lora_modules)} |" in card
    assert "AutoPeftModelForCausalLM" in card and "library_name: peft" in card


def test_number_of_modules_and_the_control(make_trainer, caplog):
    logging.getLogger("wagle_trainer").addHandler(caplog.handler)
    with caplog.at_level(logging.INFO, "wagle_trainer"):
        trainer = make_trainer(target_modules="random", density=0.1, lora_modules=3)
    logging.getLogger("wagle_trainer").removeHandler(caplog.handler)
    assert len(adapted(trainer.model)) == 3
    assert "LoRA adapts 3 of 14 Linear modules, chosen by the score 'random'" in caplog.text
    assert all(module in caplog.text for module in trainer.lora_modules)


def test_a_model_given_by_name(make_trainer, make_llama, tmp_path, recwarn):
    make_llama().save_pretrained(tmp_path / "base")
    settings = {"density": 0.1, "attribution_include": [r"layers\.1"]}
    by_name = make_trainer(
        target_modules="wagle", model=str(tmp_path / "base"), model_init_kwargs={"dtype": "float32"}, **settings
    )
    assert by_name.lora_modules == make_trainer(target_modules="wagle", **settings).lora_modules
    assert all("layers.1" in module for module in by_name.lora_modules)
    assert by_name.args.model_init_kwargs == {"dtype": "float32"}


@given(data=st.data())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_lora_modules_against_counting(data, make_llama):
    model = make_llama()
    shapes = {name: model.get_parameter(name).shape for name in linear_weights(model).values()}
    masks = {
        name: torch.rand(shape, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
        < data.draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
        for name, shape in shapes.items()
    }
    masks["model.embed_tokens.weight"] = torch.ones(57, 32, dtype=torch.bool)  # no Linear module: counts for nothing
    mask = WeightMask.from_dict(masks)
    share = {name.removesuffix(".weight"): masks[name].double().mean().item() for name in shapes}
    overall = sum(masks[n].sum().item() for n in shapes) / sum(masks[n].numel() for n in shapes)
    chosen = lora_modules(mask, model)
    assert set(chosen) == {module for module in share if share[module] >= overall - 1e-12}
    number = data.draw(st.integers(1, len(shapes)))
    top = lora_modules(mask, model, number)
    assert [share[m] for m in top] == sorted(share.values(), reverse=True)[:number]
    assert len(set(top)) == number


def test_linear_weights_are_those_of_all_linear(make_llama, make_gpt2):
    """PEFT's own reading of "all-linear" is the oracle, with Linear (Llama) and Conv1D (GPT-2)."""
    for model in (make_llama(), make_gpt2()):
        modules = set(linear_weights(model))
        assert modules == adapted(
            get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
        )


def test_resume_chooses_the_same_modules(make_trainer, tmp_path):
    settings = {"target_modules": "wagle", "density": 0.1, "save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = make_trainer(**settings)
    whole.train()
    checkpoint = str(tmp_path / "out" / "checkpoint-2")
    resumed = make_trainer(**settings)
    resumed.train(resume_from_checkpoint=checkpoint)
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
    other = make_trainer(**settings | {"target_modules": "random", "lora_modules": 2})
    with pytest.raises(ValueError, match=r"adapts other modules.*\n?.*LoraConfig\(target_modules=\['"):
        other.train(resume_from_checkpoint=checkpoint)


def test_what_cannot_be_chosen(make_trainer, make_llama, tmp_path):
    with pytest.raises(ValueError, match=r"a weight mask on top of it is not possible: set attribution=None"):
        make_trainer(target_modules="wagle", attribution="wagle")
    with pytest.raises(ValueError, match=r"a weight mask on top of it is not possible"):
        make_trainer(target_modules="wagle", mask_path=str(tmp_path))
    with pytest.raises(ValueError, match=r"attribution_scope must be 'global', not 'row'"):
        make_trainer(target_modules="wagle", attribution_scope="row")
    with pytest.raises(ValueError, match=r"There are 14 Linear modules to choose from.*lora_modules=15"):
        make_trainer(target_modules="wagle", lora_modules=15)
    with pytest.raises(ValueError, match=r"There are 0 Linear modules"):
        make_trainer(target_modules="wagle", attribution_include=["embed"])
    with pytest.raises(ValueError, match=r"lora_modules must be at least 1, got 0"):
        make_trainer(target_modules="wagle", lora_modules=0)


@pytest.mark.parametrize(("stage", "fsdp", "engine"), [(3, None, "DeepSpeed ZeRO-3"), (None, True, "FSDP2")])
def test_sharded_bases_are_refused(stage, fsdp, engine):
    plugin = None if stage is None else SimpleNamespace(zero_stage=stage)
    with pytest.raises(ValueError, match=f"full base weights, but {engine} shards them"):
        check_full_weights(SimpleNamespace(deepspeed_plugin=plugin, fsdp=fsdp, fsdp_config={}))
    check_full_weights(SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=2), fsdp=None))


def test_fsdp_of_accelerate_is_refused(make_trainer, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="but FSDP1 shards them"):
        make_trainer(target_modules="wagle")


def test_masks_that_point_at_nothing(make_llama):
    model = make_llama()
    masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in model.named_parameters()}
    with pytest.raises(ValueError, match='scope "row".*same share'):
        lora_modules(WeightMask.from_dict(masks, MaskInfo(scope="row")), model)
    with pytest.raises(ValueError, match="no weight of a Linear module"):
        lora_modules(WeightMask.from_dict({"model.norm.weight": masks["model.norm.weight"]}), model)
    with pytest.raises(ValueError, match="lora_modules=15, but the mask scores 14"):
        lora_modules(WeightMask.from_dict(masks), model, 15)


# Masks and adapters


def test_a_mask_on_a_fresh_adapter_is_refused(make_trainer):
    with pytest.raises(ValueError, match=r"lora_B.*is zero.*attribution=None.*target_modules=\"wagle\""):
        make_trainer(attribution="wagle")


def test_a_trained_adapter_can_be_masked(make_trainer, weights_of, assert_only_selected_moved):
    """lora_B is not zero any more, so the gradients of lora_A are not, either."""
    trained = make_trainer()
    trained.train()
    trainer = make_trainer(model=trained.model, attribution="wagle", density=0.3)
    before = weights_of(trainer.model)
    trainer.train()
    assert all(map(is_lora, trainer.mask))
    for name, weight in trainer.model.named_parameters():
        if name in trainer.mask:
            moved = bits(before[name]) != bits(weight)
            assert not bool((moved & ~trainer.mask[name]).any())
            assert bool(moved.any()) == bool(trainer.mask[name].any())
        else:
            assert torch.equal(bits(before[name]), bits(weight))


# Quantised bases


def quantization(kind):
    if kind == "torchao":
        quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
        from transformers import TorchAoConfig

        return TorchAoConfig(quantization.Int8WeightOnlyConfig())
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    from transformers import BitsAndBytesConfig

    if kind == "bitsandbytes-8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)


@pytest.mark.parametrize("kind", ["torchao", "bitsandbytes-8bit", "bitsandbytes-4bit"])
def test_quantised_bases(kind, make_trainer, make_llama, tmp_path):
    config = quantization(kind)
    make_llama(hidden_size=64).save_pretrained(tmp_path / "base")

    def load():
        return AutoModelForCausalLM.from_pretrained(
            tmp_path / "base", quantization_config=config, dtype=torch.float32, device_map="cpu"
        )

    trainer = make_trainer(model=load(), learning_rate=0.05, max_steps=3, loss_kwargs={"retain_loss": "kl"})
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        expected = load()(ids).logits  # of the quantised base
    trainer.train()
    losses = [entry["retain_loss"] for entry in trainer.state.log_history if "retain_loss" in entry]
    assert losses[0] < 2e-3  # the 8-bit products of bitsandbytes round in float16, by batch
    assert losses[-1] > 0.1
    model = trainer.model.eval()
    with torch.no_grad():
        assert not torch.allclose(model(ids).logits, expected, rtol=1e-2, atol=1e-2)
        with model.disable_adapter():
            assert torch.equal(model(ids).logits, expected)
    with pytest.raises(ValueError, match="base weights are quantised.*attribution=None"):
        make_trainer(model=load(), attribution="wagle")
    with pytest.raises(ValueError, match="base weights are quantised"):  # and not the few others alone
        attribute(load(), None, None, score="magnitude")
    with pytest.raises(ValueError, match="Quantised weights cannot be scored"):
        make_trainer(model=load(), target_modules="wagle")
    with pytest.raises(ValueError, match="Quantised weights cannot be scored"):
        make_trainer(model=str(tmp_path / "base"), target_modules="wagle", quantization_config=config)


@pytest.fixture(scope="module")
def make_mixture():
    """make_mixture() -> a tiny DeepSeek-V3: dense and shared MLPs beside fused routed experts."""
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    def make():
        torch.manual_seed(0)
        heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
        attention = {
            "q_lora_rank": 8,
            "kv_lora_rank": 8,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 8,
            "v_head_dim": 8,
        }
        experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1}
        sizes = {"vocab_size": 57, "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16}
        config = DeepseekV3Config(
            num_hidden_layers=2, first_k_dense_replace=1, **sizes, **heads, **attention, **experts
        )
        return DeepseekV3ForCausalLM(config)

    return make


def test_modules_that_peft_would_take_for_experts_are_not_chosen(make_trainer, make_mixture, caplog):
    model = make_mixture()
    assert any(".mlp." in module for module in linear_weights(model))
    trainer = make_trainer(model=model, target_modules="wagle", lora_modules=3)
    adapted = {name for name, module in trainer.model.named_modules() if hasattr(module, "lora_A")}
    assert {name.removeprefix("base_model.model.") for name in adapted} == set(trainer.lora_modules)
    assert len(adapted) == 3 and all("self_attn" in name for name in adapted)
    assert "PEFT puts no LoRA on 6 modules" in caplog.text


def test_an_adapter_on_other_modules_is_refused(make_llama):
    model = get_peft_model(make_llama(), LoraConfig(target_modules=["q_proj"], r=1))
    check_adapted_modules(model, [f"model.layers.{layer}.self_attn.q_proj" for layer in (0, 1)])
    with pytest.raises(ValueError, match="on other modules than those that were chosen.*attribution_exclude"):
        check_adapted_modules(model, ["model.layers.0.self_attn.q_proj"])


def test_modules_that_peft_refuses_are_not_chosen(make_trainer, caplog):
    """PEFT puts no LoRA on `out_proj` of Mamba: it is no candidate, in place of an error after the scoring."""
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "time_step_rank": 2, "pad_token_id": 0}
    model = MambaForCausalLM(MambaConfig(vocab_size=57, bos_token_id=1, eos_token_id=1, **sizes))
    trainer = make_trainer(model=model, target_modules="wagle", lora_modules=3)
    assert len(trainer.lora_modules) == 3
    assert not any("out_proj" in name for name in trainer.lora_modules)
    assert "PEFT puts no LoRA on 2 modules such as backbone.layers.1.mixer.out_proj" in caplog.text
