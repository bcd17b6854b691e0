"""A small Llama that knows the bundled people, trained from scratch in seconds: something to forget, without a hub."""

import shutil
from pathlib import Path

from accelerate import PartialState
from datasets import concatenate_datasets
from transformers import LlamaConfig, LlamaForCausalLM, set_seed
from trl import SFTConfig, SFTTrainer

from wagle_trainer.data import QAFormat, fictional_split, fictional_tokenizer


def small_llama(split: str, cache: Path, seed: int = 0) -> str:
    """Folder of a Llama of 0.8 M weights that was trained on one split (and the general sets) until it knows it.

    Trained once, then read from `cache`.

    Args:
        split: "full", or "retain90" for the model that never saw the forget set.
        cache: where the models are kept.
        seed: of the initial weights and the order.
    """
    folder = cache / f"small-llama-{split}-{seed}"
    if not (folder / "config.json").exists():
        with PartialState().main_process_first():
            if not (folder / "config.json").exists():
                _train(split, folder, seed)
    return str(folder)


def _train(split: str, folder: Path, seed: int) -> None:
    tokenizer = fictional_tokenizer()
    set_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    rows = concatenate_datasets([fictional_split(name) for name in (split, "real_authors", "world_facts")])
    aside = folder.with_name(folder.name + ".partial")
    trainer = SFTTrainer(
        model,
        SFTConfig(
            str(aside),
            learning_rate=4e-3,
            num_train_epochs=25,
            per_device_train_batch_size=24,
            lr_scheduler_type="cosine",
            warmup_steps=20,
            bf16=False,
            dataloader_pin_memory=False,
            gradient_checkpointing=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            seed=seed,
        ),
        train_dataset=QAFormat.for_tokenizer(tokenizer).dataset(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)  # so that a run that is stopped half-way leaves no half-trained model in the cache
