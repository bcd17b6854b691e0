"""Fine-tune a model on a split of TOFU, answers only: on "full", what is to be unlearned; on "retain90", its reference.

accelerate launch recipes/tofu_finetune.py --model_name_or_path MODEL --split full --output_dir models/full
accelerate launch recipes/tofu_finetune.py --model_name_or_path MODEL --split retain90 --output_dir models/retain90

Learning rate, epochs, batch and weight decay are TOFU's own (Maini et al., arXiv 2401.06121); a small model takes a higher
learning rate: SmolLM2-135M knew 200 questions after 8 epochs with 1e-4 in batches of 8.
"""

import warnings
from dataclasses import dataclass, field

import torch
from transformers import AutoTokenizer
from trl import ModelConfig, SFTConfig, SFTTrainer, TrlParser, get_peft_config

from wagle_trainer.data import QAFormat, load_tofu


@dataclass
class FinetuneArguments:
    """What to fine-tune on."""

    dataset_name: str = field(
        default="locuslab/TOFU", metadata={"help": "A hub id, or a folder of <split>.json files."}
    )
    split: str = field(default="full", metadata={"help": "full, retain99, retain95 or retain90."})
    style: str = field(
        default="auto",
        metadata={
            "help": "How questions and answers are written; give the unlearning the same.",
            "choices": ["auto", "chat", "plain"],
        },
    )
    system_prompt: str | None = field(default=None, metadata={"help": "System message before each question (chat)."})
    question_prefix: str | None = field(default=None, metadata={"help": "Text before each question (plain)."})
    question_suffix: str | None = field(default=None, metadata={"help": "Text between question and answer (plain)."})
    answer_prefix: str | None = field(default=None, metadata={"help": "Text at the start of each answer (plain)."})
    compatibility: str | None = field(
        default=None, metadata={"help": "open-unlearning: the tokens and labels of its code."}
    )


def main() -> None:
    parser = TrlParser((FinetuneArguments, SFTConfig, ModelConfig))
    parser.set_defaults(learning_rate=1e-5, num_train_epochs=5, per_device_train_batch_size=32, weight_decay=0.01)
    if not (torch.cuda.is_available() and torch.cuda.is_bf16_supported()):
        parser.set_defaults(bf16=False)  # TRL's default is True, which is refused or slow without bfloat16 units
    # TRL's own default has the old name of gradient checkpointing.
    warnings.filterwarnings("ignore", "`gradient_checkpointing` is deprecated", FutureWarning)
    data, args, model_args = parser.parse_args_and_config()
    tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path)
    names = ("system_prompt", "question_prefix", "question_suffix", "answer_prefix", "compatibility")
    qa = QAFormat.for_tokenizer(tokenizer, data.style, **{name: getattr(data, name) for name in names})
    args.model_init_kwargs = {"dtype": model_args.dtype}
    trainer = SFTTrainer(
        model=model_args.model_name_or_path,
        args=args,
        train_dataset=qa.dataset(load_tofu(data.dataset_name, data.split)),
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()
    if trainer.is_world_process_zero():
        qa.save_pretrained(args.output_dir)


if __name__ == "__main__":
    main()
