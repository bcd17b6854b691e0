"""Making the method "WAGLE" known to PEFT, whose list of methods is a closed enumeration."""

from __future__ import annotations

from functools import wraps
from pathlib import Path
from typing import Any

from peft import PeftConfig
from peft.utils import PeftType, register_peft_method

from wagle_trainer.adapters.adapter import PEFT_TYPE, read_config, unreadable_config


def peft_type() -> Any:
    """`PeftType.WAGLE`, added to the enumeration if need be."""
    if PEFT_TYPE not in PeftType.__members__:
        member: Any = str.__new__(PeftType, PEFT_TYPE)
        member._name_ = member._value_ = PEFT_TYPE
        # An enumeration's members are pickled by value, which a process that has not imported us does not know yet.
        member.__reduce_ex__ = lambda protocol: (peft_type, ())
        type.__setattr__(PeftType, PEFT_TYPE, member)
        PeftType._member_names_.append(PEFT_TYPE)
        PeftType._member_map_[PEFT_TYPE] = PeftType._value2member_map_[PEFT_TYPE] = member
    return PeftType[PEFT_TYPE]


def register(config_class: type, model_class: type) -> None:
    """Enter the method into PEFT's tables, once."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    if peft_type() not in PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(name=PEFT_TYPE.lower(), config_cls=config_class, model_cls=model_class)
        _name_unreadable_files()


def _name_unreadable_files() -> None:
    """Have PEFT say which `adapter_config.json` is damaged.

    PEFT reads the file before it knows the method, so that no class of ours is asked; its errors are those of `json`,
    without a file name. Only files that PEFT cannot read either are concerned.
    """
    read = PeftConfig.from_json_file.__func__

    @wraps(read)
    def from_json_file(cls: type[PeftConfig], path_json_file: str, **kwargs: Any) -> dict[str, Any]:
        try:
            found: dict[str, Any] = read(cls, path_json_file, **kwargs)
        except (ValueError, RecursionError) as error:
            raise unreadable_config(path_json_file, error) from error
        kind = found.get("peft_type") if isinstance(found, dict) else None
        if kind == PEFT_TYPE:
            return read_config(Path(path_json_file))
        ours = isinstance(found, dict) and {"format_version", "metadata_digest", "tensors"} <= found.keys()
        if ours or not isinstance(found, dict):
            raise unreadable_config(path_json_file, ValueError(f"its peft_type is {str(kind)[:50]!r}"))
        return found

    PeftConfig.from_json_file = classmethod(from_json_file)
