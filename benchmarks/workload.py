"""What the benchmarks run on: a model and batches of TOFU questions, real ones or those of the bundled people."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from accelerate.utils import send_to_device
from datasets import Dataset, disable_progress_bars
from measure import DEVICE
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig
from transformers.utils import logging

from wagle_trainer.data import QAFormat, fictional_tokenizer, load_tofu
from wagle_trainer.data.length_sorted_batches import LengthSortedBatches, make_collator

SPLITS = {"forget": "forget10", "retain": "retain90"}
# Shapes of randomly initialised Llamas: (dtype, vocabulary, tied embeddings, hidden, intermediate, layers, heads)
RANDOM_LLAMAS = {
    "tiny": (torch.float32, 256, True, 32, 64, 2, 2),
    "19m": (torch.float32, 49152, True, 256, 704, 8, 4),
    "1b": (torch.bfloat16, 128256, True, 2048, 8192, 16, 32),  # Llama 3.2 1B
    "7b": (torch.bfloat16, 32000, False, 4096, 11008, 32, 32),  # Llama 2 7B
}
disable_progress_bars()
logging.disable_progress_bar()


def arguments(
    description: str | None, output: str, examples: int = 16, batch_size: int = 4
) -> argparse.ArgumentParser:
    """The arguments that all benchmarks share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", help="Folder of a model.")
    parser.add_argument("--random_llama", choices=RANDOM_LLAMAS, help="A Llama of this shape with random weights.")
    parser.add_argument("--tofu", default="fictional", help="Folder with TOFU's files; by default the bundled people.")
    parser.add_argument("--examples", type=int, default=examples, help="Questions to forget, and as many to retain.")
    parser.add_argument("--batch_size", type=int, default=batch_size)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", default=f"benchmarks/results/{output}.json")
    return parser


def load_tokenizer(folder: str | None) -> Any:
    """The tokenizer of a model folder, or without one that of the bundled people."""
    tokenizer = fictional_tokenizer() if folder is None else AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


def load_model(folder: str | None, random_llama: str | None, tokenizer: Any) -> Any:
    """The model of a folder, or one of a shape's name with random weights, on the GPU if there is one."""
    if random_llama is None:
        if folder is None:
            raise SystemExit("Pass --model FOLDER or --random_llama SHAPE.")
        return AutoModelForCausalLM.from_pretrained(folder).to(DEVICE).eval()
    dtype, vocabulary, tied, hidden, intermediate, layers, heads = RANDOM_LLAMAS[random_llama]
    config = LlamaConfig(
        vocab_size=max(vocabulary, len(tokenizer)),
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=4096,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    with torch.device(DEVICE):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def load_questions(tofu: str, examples: int) -> dict[str, Dataset]:
    """The first questions and answers of the forget and of the retain split."""
    sets = {name: load_tofu(tofu, split) for name, split in SPLITS.items()}
    return {name: rows.select(range(min(examples, len(rows)))) for name, rows in sets.items()}


def load(
    model: str | None, tofu: str, examples: int, batch_size: int, random_llama: str | None = None
) -> tuple[Any, list[Any], list[Any]]:
    """A model, and batches of questions to forget and to retain, all on one device."""
    tokenizer = load_tokenizer(model)
    qa = QAFormat.for_tokenizer(tokenizer)
    batches = []
    for rows in load_questions(tofu, examples).values():
        encoded = Dataset.from_list([qa.encode(row["question"], row["answer"]) for row in rows])
        sets = LengthSortedBatches(encoded, batch_size, make_collator(tokenizer.pad_token_id))
        batches.append([to_device(batch) for batch in sets])
    return load_model(model, random_llama, tokenizer), batches[0], batches[1]


def to_device(batch: Any) -> dict[str, Any]:
    """A batch on the model's device."""
    return send_to_device(batch, DEVICE)
