"""A copy of a model whose output head no longer shares its weight with the embeddings.

python benchmarks/untie.py SMOLLM2_FOLDER UNTIED_FOLDER

It computes the same. What a patch of the head's rows does is then separate from what becomes of the embeddings.
"""

from __future__ import annotations

import argparse

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("output")
    options = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    embeddings = model.get_input_embeddings().weight
    if model.get_output_embeddings().weight is not embeddings:
        raise SystemExit(f"{options.model} has an output head of its own: there is nothing to untie.")
    head = torch.nn.Linear(embeddings.shape[1], embeddings.shape[0], bias=False)
    with torch.no_grad():
        head.weight.copy_(embeddings)
    model.config.tie_word_embeddings = False
    model.set_output_embeddings(head)
    model.save_pretrained(options.output)
    AutoTokenizer.from_pretrained(options.model).save_pretrained(options.output)


if __name__ == "__main__":
    main()
