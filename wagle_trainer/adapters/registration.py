"""Making the method "WAGLE" known to PEFT, whose list of methods is a closed enumeration."""

from __future__ import annotations

from typing import Any

from peft.utils import PeftType, register_peft_method

from wagle_trainer.adapters.adapter import PEFT_TYPE


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
