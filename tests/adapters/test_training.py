"""`save_adapter`: what WagleTrainer saves, and that runs go on from it as if they had never stopped."""

import copy
import json
import shutil

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import wagle_trainer.adapters.adapter_checkpoints
from wagle_trainer import WagleTrainer, WeightMask
from wagle_trainer.adapters import SparseAdapter, diff, export_supertuning, merge, verify
from wagle_trainer.adapters.adapter import CONFIG_NAME, WEIGHTS_NAME
from wagle_trainer.engines.fsdp2 import FSDP2

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]
STEPS = {"max_steps": 5, "save_strategy": "steps", "save_steps": 2, "save_adapter": True, "optim": "adamw_torch"}


@pytest.fixture
def make_base(make_llama):
    """make_base() -> the model that `make_trainer` begins with. Not a copy of a trainer's: TRL replaces the forward method
    of its model by a function that goes on running that very model from a copy."""
    return lambda: make_llama(attention_dropout=0.1, tie_word_embeddings=True)


@pytest.fixture
def make_trainer(make_base, make_set, arguments, word_tokenizer):
    def make(model=None, mask=None, eval_dataset=None, **changes):
        return WagleTrainer(
            make_base() if model is None else model,
            arguments(**STEPS | changes),
            forget_dataset=make_set(8),
            retain_dataset=make_set(12, seed=1),
            processing_class=word_tokenizer,
            eval_dataset=eval_dataset,
            mask=mask,
        )

    return make


def size_of(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_what_is_saved(make_trainer, make_base, tmp_path, same_bits):
    trainer, base = make_trainer(), make_base()
    trainer.train()
    trainer.save_model()
    out = tmp_path / "out"
    for folder in (out, out / "checkpoint-2", out / "checkpoint-4"):
        assert (folder / WEIGHTS_NAME).is_file() and (folder / CONFIG_NAME).is_file()
        assert not (folder / "mask.safetensors").exists()  # the adapter has the positions
        assert not (folder / "model.safetensors").exists() and not (folder / "config.json").exists()
        assert verify(folder, base)["valid"]
        assert WeightMask.from_pretrained(folder, model=base) == trainer.mask
    adapter = SparseAdapter.from_pretrained(out)
    assert all(torch.equal(adapter.mask[name], trainer.mask[name]) for name in adapter)
    assert adapter.num_values == trainer.mask.num_selected
    assert adapter.info.mask == json.loads(json.dumps(trainer.mask.describe()))
    assert adapter.info.training["objective"] == "npo" and adapter.info.training["steps"] == 5
    assert adapter.info.training["sets"]["forget"]["examples"] == 8
    assert AutoTokenizer.from_pretrained(out).get_vocab() == trainer.processing_class.get_vocab()
    assert (out / "training_args.bin").is_file()

    ids = torch.tensor([[5, 9, 20, 31]])
    trained = trainer.model.eval()
    loaded = PeftModel.from_pretrained(make_base(), out)
    assert torch.equal(loaded(ids).logits, trained(ids).logits)
    assert not torch.equal(loaded(ids).logits, base.eval()(ids).logits)
    assert same_bits(merge(copy.deepcopy(base), out), trained)
    # Where all that is selected has moved, it is the difference of the two.
    assert all(bool((adapter.mask[n] | ~m).all()) for n, m in diff(base, trained).mask.items())


@pytest.mark.parametrize(
    ("after", "changes"),
    [(4, {}), (4, {"density": 0.02}), (2, {"optim": "sgd", "density": 0.7})],
    ids=["compact", "indices", "dense-sgd"],
)
def test_resume_bit_for_bit(after, changes, make_trainer, make_base, tmp_path, same_bits):
    whole = make_trainer(**changes)
    base = make_base()
    whole.train()
    shutil.copytree(tmp_path / "out" / f"checkpoint-{after}", tmp_path / "elsewhere" / f"checkpoint-{after}")
    resumed = make_trainer(output_dir=str(tmp_path / "elsewhere"), **changes)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 5 and same_bits(resumed.model, whole.model)
    resumed.save_model()
    whole.save_model()
    assert SparseAdapter.from_pretrained(tmp_path / "elsewhere") == SparseAdapter.from_pretrained(tmp_path / "out")
    assert verify(tmp_path / "elsewhere", base)["valid"]


def test_resume_without_saving_adapters(make_trainer, tmp_path, same_bits):
    """The adapter in the checkpoint counts, whatever is saved from then on."""
    whole = make_trainer()
    whole.train()
    resumed = make_trainer(save_adapter=False)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    assert same_bits(resumed.model, whole.model)
    resumed.save_model(str(tmp_path / "whole"))
    assert same_bits(AutoModelForCausalLM.from_pretrained(tmp_path / "whole"), whole.model)


@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 0.08), (torch.bfloat16, 0.13)])
def test_size_of_a_checkpoint(dtype, share, make_trainer, make_llama, tmp_path):
    """A model so large that tokenizer, random state and such weigh little. In bfloat16, compact training keeps float32
    masters of the selected weights, and moments in float32."""
    shape = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 2}
    sizes = []
    for name, changes in (("adapter", {"density": 0.05}), ("full", {"attribution": None, "save_adapter": False})):
        trainer = make_trainer(make_llama(**shape).to(dtype), max_steps=2, output_dir=str(tmp_path / name), **changes)
        trainer.train()
        sizes.append(size_of(tmp_path / name / "checkpoint-2"))
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    assert sizes[1] == pytest.approx(3 * dtype.itemsize * parameters, rel=0.02)  # weights and two moments
    assert sizes[0] <= share * sizes[1]


def test_both_are_saved(make_trainer, make_base, tmp_path, same_bits):
    trainer = make_trainer(save_full_model=True)
    base = make_base()
    trainer.train()
    trainer.save_model()
    assert same_bits(AutoModelForCausalLM.from_pretrained(tmp_path / "out"), trainer.model)
    assert same_bits(merge(base, tmp_path / "out" / "adapter"), trainer.model)
    resumed = make_trainer(save_full_model=True)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert same_bits(resumed.model, trainer.model)


def test_best_model_at_the_end(make_trainer, make_base, make_set, tmp_path, same_bits):
    trainer = make_trainer(
        eval_dataset={"forget": make_set(8)},
        load_best_model_at_end=True,
        metric_for_best_model="eval_forget_loss",
        greater_is_better=False,  # so that it is not the last one
        eval_strategy="steps",
        eval_steps=2,
    )
    base = make_base()
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert best.endswith("checkpoint-2")
    assert same_bits(merge(base, best), trainer.model)


def test_train_twice(make_trainer, make_base, tmp_path, same_bits):
    """The second time begins with trained weights; the adapter is to the base model all the same."""
    trainer = make_trainer(save_strategy="no")
    base = make_base()
    trainer.train()
    trainer.train()
    trainer.save_model()
    assert same_bits(merge(copy.deepcopy(base), tmp_path / "out"), trainer.model)
    with pytest.raises(ValueError, match="trained with another mask already"):
        trainer._adapter.begin(trainer.model, ~trainer.mask)


def test_trained_by_tensor_it_fits_pefts_own_format(make_trainer, make_base, tmp_path):
    trainer = make_trainer(attribution_scope="tensor", attribution_include=["_proj"], density=0.07, save_strategy="no")
    base, ids = make_base().eval(), torch.tensor([[5, 9, 20, 31]])
    trainer.train()
    trainer.save_model()
    export_supertuning(tmp_path / "out", base, tmp_path / "exported")
    loaded = PeftModel.from_pretrained(base, tmp_path / "exported")
    torch.testing.assert_close(loaded(ids).logits, trainer.model.eval()(ids).logits, rtol=1e-5, atol=1e-5)


def test_card(make_trainer, make_set, tmp_path):
    trainer = make_trainer()
    trainer.train()
    trainer.save_model()
    text = (tmp_path / "out" / "README.md").read_text()
    assert "import wagle_trainer" in text and "model.unload()" in text
    assert "library_name: peft" in text and "The base model still has the knowledge" in text
    assert "None" not in text
    assert not any(answer.strip() in text for answer in make_set(8)["completion"] if len(answer.split()) > 2)


# What is refused


def test_all_weights_are_trained(make_trainer):
    with pytest.raises(ValueError, match=r"attribution=None trains all of them.*adapters.diff\(base, tuned\)"):
        make_trainer(attribution=None)


def test_sharded_weights(make_trainer, monkeypatch):
    monkeypatch.setattr(wagle_trainer.adapters.adapter_checkpoints, "current_engine", FSDP2)
    with pytest.raises(ValueError, match="save_adapter=True does not work with FSDP2, which shards"):
        make_trainer()


def test_nothing_to_save_yet(make_trainer, tmp_path):
    with pytest.raises(ValueError, match="nothing to save yet.*Call train"):
        make_trainer().save_model()


def test_resume_that_cannot_be(make_trainer, tmp_path):
    trainer = make_trainer()
    trainer.train()
    checkpoint = str(tmp_path / "out" / "checkpoint-4")
    with pytest.raises(ValueError, match="made for another base model"):
        make_trainer(trainer.model).train(resume_from_checkpoint=checkpoint)
    full = make_trainer(output_dir=str(tmp_path / "full"), save_adapter=False)
    full.train()
    with pytest.raises(ValueError, match=r"holds no adapter: it was made without save_adapter=True"):
        make_trainer().train(resume_from_checkpoint=str(tmp_path / "full" / "checkpoint-4"))
    other = make_trainer(output_dir=str(tmp_path / "other"), density=0.2)
    other.train()
    with pytest.raises(ValueError, match="of another base model or mask than this run's"):
        other.train(resume_from_checkpoint=checkpoint)
