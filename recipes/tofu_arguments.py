"""What the TOFU recipes read from the command line or from a YAML file (`--config`)."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from trl import ModelConfig, TrlParser

from wagle_trainer import WagleConfig

CONFIGS = Path(__file__).parent / "configs"


@dataclass
class TofuArguments:
    """Data, controls and evaluation of a TOFU recipe."""

    dataset_name: str = field(
        default="fictional",
        metadata={"help": "A hub id (locuslab/TOFU), a folder of <split>.json files, or the bundled 'fictional'."},
    )
    forget_split: str = field(default="forget10", metadata={"help": "forget01, forget05 or forget10."})
    style: str = field(
        default="auto",
        metadata={
            "help": "'chat' (the tokenizer's chat template), 'plain' (Question: ... Answer: ...), or 'auto': chat where "
            "there is a template.",
            "choices": ["auto", "chat", "plain"],
        },
    )
    controls: list[str] = field(
        default_factory=list,
        metadata={"help": "Further scores to run for comparison, such as random; none for no mask at all."},
    )
    retrained_model: str | None = field(
        default=None,
        metadata={"help": "A model that never saw the forget set: the reference of the forget quality."},
    )
    evaluation_samples: int | None = field(
        default=40, metadata={"help": "Rows of each evaluation set; the published numbers need all of them (null)."}
    )
    evaluation_batch_size: int = field(default=32, metadata={"help": "Batch size of the evaluation."})


def parse_arguments(default_config: str) -> tuple[TofuArguments, WagleConfig, ModelConfig]:
    """The three groups of arguments; with none at all, those of `configs/<default_config>`."""
    arguments = sys.argv[1:] or ["--config", str(CONFIGS / default_config)]
    tofu, training, model = TrlParser((TofuArguments, WagleConfig, ModelConfig)).parse_args_and_config(arguments)
    if tofu.evaluation_samples is not None and tofu.evaluation_samples < 1:
        tofu.evaluation_samples = None
    return tofu, training, model
