"""`WagleAdapterConfig`: `adapter_config.json` as PEFT reads it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig

from wagle_trainer.adapters.adapter import CONFIG_NAME, FORMAT_VERSION, check_version
from wagle_trainer.adapters.composition import COMBINATIONS, check_combination
from wagle_trainer.adapters.registration import peft_type

NOT_SAVED = ("combine", "ignore_base_mismatch")  # choices of whoever loads the adapter


@dataclass
class WagleAdapterConfig(PeftConfig):
    """
    Configuration of the PEFT method "WAGLE": new values at freely chosen positions of any parameters. It is written by
    [`SparseAdapter.save_pretrained`], not by hand.

    Args:
        format_version (`int`): Of the two files.
        digest (`str`): SHA-256 of the adapter's content, see [`SparseAdapter.digest`].
        tensors (`dict`): Parameter name -> `shape`, `dtype`, `num_values` and `base_digest`, the digest of the base
            model's tensor.
        mask (`dict`, *optional*): How the positions were chosen, see [`WeightMask.describe`].
        training (`dict`, *optional*): How the values were trained.
        combine (`str`, defaults to `"error"`): What weights get that several active adapters set: `"error"` refuses,
            `"last"` takes the last active adapter's value, `"sum"` adds the differences to the base model. Not saved;
            pass it to `PeftModel.from_pretrained`, or to `model.base_model.set_adapter([...], combine=...)`.
        ignore_base_mismatch (`bool`, defaults to `False`): Load the adapter on a base model whose values differ from
            those that it was made for. Not saved; pass it to `PeftModel.from_pretrained`. `load_adapter` does not hand it
            on: for a second adapter, call `add_adapter(name, WagleAdapterConfig.from_pretrained(path,
            ignore_base_mismatch=True))` before it.
    """

    format_version: int = field(default=FORMAT_VERSION, metadata={"help": "Version of the file format."})
    digest: str | None = field(default=None, metadata={"help": "SHA-256 of the adapter's content."})
    tensors: dict[str, dict[str, Any]] | None = field(
        default=None, metadata={"help": "Shape, dtype, number of values and base digest of each parameter."}
    )
    mask: dict[str, Any] | None = field(default=None, metadata={"help": "How the positions were chosen."})
    training: dict[str, Any] | None = field(default=None, metadata={"help": "How the values were trained."})
    combine: str = field(
        default="error",
        metadata={"help": f"Rule for weights that several active adapters set: {', '.join(COMBINATIONS)}."},
    )
    ignore_base_mismatch: bool = field(
        default=False, metadata={"help": "Load the adapter on a base model with other values."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_type()
        check_version(self.format_version, CONFIG_NAME)
        check_combination(self.combine)

    def to_dict(self) -> dict[str, Any]:
        """What is saved."""
        return {key: value for key, value in super().to_dict().items() if key not in NOT_SAVED}
