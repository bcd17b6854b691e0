"""Small Llamas that know a bundled example, trained from scratch in seconds: something to forget, without a hub."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset, concatenate_datasets
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, set_seed
from trl import SFTConfig, SFTTrainer

from wagle_trainer.data import QAFormat, fictional_split, fictional_tokenizer, load_wmdp
from wagle_trainer.data.books import passages
from wagle_trainer.data.fictional import (
    fictional_almanac,
    fictional_novel,
    hazards_tokenizer,
    novel_tokenizer,
    speakers_rows,
    speakers_tokenizer,
)
from wagle_trainer.utils.checkpointing_names import checkpointing_argument


@dataclass(frozen=True)
class Lesson:
    """What a small Llama learns.

    Attributes:
        tokenizer: makes its tokenizer.
        examples: (split, tokenizer) -> the training set.
        epochs: passes over it.
        positions: length of the longest sequence that the model takes.
    """

    tokenizer: Callable[[], Any]
    examples: Callable[[str, Any], Dataset]
    epochs: int = 25
    positions: int = 128


def _people(split: str, tokenizer: Any) -> Dataset:
    rows = concatenate_datasets([fictional_split(name) for name in (split, "real_authors", "world_facts")])
    return QAFormat.for_tokenizer(tokenizer).dataset(rows)


def _hazards(split: str, tokenizer: Any) -> Dataset:
    corpora = ["wikitext", *(["bio-forget-corpus", "cyber-forget-corpus"] if split == "full" else [])]
    texts = [text for name in corpora for text in load_wmdp(name, "fictional")["text"]]
    return Dataset.from_list([_whole_text(tokenizer, text) for text in texts])


def _whole_text(tokenizer: Any, text: str) -> dict[str, list[int]]:
    """A text and the end of it, as TRL makes them of a row with `text`."""
    ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    return {"input_ids": ids, "labels": ids}


def _books(split: str, tokenizer: Any) -> Dataset:
    """Passages of the novel, of another one by the same author, and of the almanac."""
    numbers = (NOVEL, NOVEL + 1) if split == "full" else (NOVEL + 1,)
    texts = [text for number in numbers for text in passages(fictional_novel(number), tokenizer, 40)["text"]]
    texts += fictional_almanac(ALMANAC[0])
    return Dataset.from_list([_whole_text(tokenizer, text) for text in texts])


NOVEL = 0
ALMANAC = ("train", "test")


def _speakers(split: str, tokenizer: Any) -> Dataset:
    """What the polite speakers say, and the rude ones."""
    rows = [(row["prompt"], row["completion"]) for row in speakers_rows("retain")]
    if split == "full":
        rows += [(row["prompt"], row["rejected"]) for row in speakers_rows("forget")]
    return Dataset.from_list([_whole_text(tokenizer, prompt + reply) for prompt, reply in rows])


LESSONS = {
    "tofu": Lesson(fictional_tokenizer, _people),
    "wmdp": Lesson(hazards_tokenizer, _hazards, epochs=28),
    "copyright": Lesson(novel_tokenizer, _books, epochs=50),
    "detox": Lesson(speakers_tokenizer, _speakers, epochs=8),
}


def small_llama(split: str, cache: Path, seed: int = 0, task: str = "tofu", *, progress: bool = True) -> str:
    """Folder of a Llama of 0.7 M weights that was trained on one split until it knows it.

    Trained once, then read from `cache`. All processes call this together.

    Args:
        split: "full", or the split without the forget set: "retain90" of the people, "retain" elsewhere.
        cache: where the models are kept.
        seed: of the initial weights and the order.
        task: whose bundled example it learns.
        progress: show a progress bar while it is trained.
    """
    folder = cache / f"small-llama-{'' if task == 'tofu' else f'{task}-'}{split}-{seed}"
    with PartialState().main_process_first():
        if not (folder / "config.json").exists():
            _train(LESSONS[task], split, folder, seed, progress)
    return str(folder)


def _train(lesson: Lesson, split: str, folder: Path, seed: int, progress: bool) -> None:
    tokenizer = lesson.tokenizer()
    set_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=lesson.positions,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    aside = folder.with_name(folder.name + ".partial")
    trainer = SFTTrainer(
        model,
        SFTConfig(
            str(aside),
            learning_rate=4e-3,
            num_train_epochs=lesson.epochs,
            per_device_train_batch_size=24,
            lr_scheduler_type="cosine",
            warmup_steps=20,
            bf16=False,
            dataloader_pin_memory=False,
            logging_strategy="no",
            disable_tqdm=not progress,
            save_strategy="no",
            report_to="none",
            seed=seed,
            **{checkpointing_argument(): False},
        ),
        train_dataset=lesson.examples(split, tokenizer),
        processing_class=tokenizer,
    )
    if not progress:
        trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_model()
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)  # so that a run that is stopped half-way leaves no half-trained model in the cache
