"""`WagleAdapterConfig`: `adapter_config.json` as PEFT reads it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import PeftConfig

from wagle_trainer.adapters.adapter import (
    CONFIG_NAME,
    FORMAT_VERSION,
    WEIGHTS_NAME,
    check_content,
    check_readable,
    check_version,
    metadata_digest,
    read_config,
)
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
        metadata_digest (`str`, *optional*): SHA-256 of this configuration; files of older versions have none.
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
    metadata_digest: str | None = field(
        default=None,
        compare=False,
        metadata={"help": "SHA-256 of the configuration; computed again when it is saved."},
    )

    loaded_from = "the adapter's file"  # what errors call the weights; no field, so it is not saved

    def __post_init__(self) -> None:
        super().__post_init__()
        # Read from a file, by PeftConfig as well: a file must not switch checks off.
        if getattr(self, "peft_type", None) is not None:
            self.combine, self.ignore_base_mismatch = "error", False
        self.peft_type = peft_type()
        check_version(self.format_version, CONFIG_NAME)
        check_combination(self.combine)
        if self.tensors is not None:
            check_content(vars(self), CONFIG_NAME)

    @classmethod
    def from_json_file(cls, path_json_file: str, **kwargs: Any) -> dict[str, Any]:
        """Read a configuration file, without the choices that are the loading user's.

        Args:
            path_json_file: path of the configuration file.

        Raises:
            ValueError: the file is damaged, or of another method or format version.
        """
        found = read_config(Path(path_json_file))
        return {key: value for key, value in found.items() if key not in NOT_SAVED}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, subfolder: str | None = None, **kwargs: Any) -> Any:
        """As `PeftConfig.from_pretrained`; where the weights lie beside it in a folder, their file is checked, too.

        Raises:
            ValueError: a file is damaged; PEFT would not say which.
        """
        choices = {name: kwargs.pop(name) for name in NOT_SAVED if name in kwargs}
        check_combination(choices.get("combine", "error"))
        config = super().from_pretrained(pretrained_model_name_or_path, subfolder=subfolder, **kwargs)
        for name, choice in choices.items():
            setattr(config, name, choice)
        weights = Path(pretrained_model_name_or_path, subfolder or "", WEIGHTS_NAME)
        if weights.is_file():
            check_readable(weights)
        config.loaded_from = str(weights)
        return config

    def to_dict(self) -> dict[str, Any]:
        """What is saved."""
        saved = {key: value for key, value in super().to_dict().items() if key not in NOT_SAVED}
        return saved | {"metadata_digest": metadata_digest(saved) if self.tensors is not None else None}
