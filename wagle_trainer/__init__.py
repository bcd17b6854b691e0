"""wagle-trainer: make a language model forget, and change only the weights that matter for it.

Names load on first use: `attribute`, `WeightMask`, the scores and the losses need torch, safetensors and numpy only
(and wrapt, by which PEFT gets to know this package's adapters).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from wrapt import when_imported

from wagle_trainer._version import __version__

if TYPE_CHECKING:
    from wagle_trainer.attribution import attribute
    from wagle_trainer.callback import WeightAttributionCallback
    from wagle_trainer.config import WagleConfig
    from wagle_trainer.masking import WeightMask
    from wagle_trainer.trainer import WagleTrainer

_HOMES = {
    "WagleConfig": "wagle_trainer.config",
    "WagleTrainer": "wagle_trainer.trainer",
    "WeightAttributionCallback": "wagle_trainer.callback",
    "WeightMask": "wagle_trainer.masking",
    "attribute": "wagle_trainer.attribution",
}

__all__ = ["WagleConfig", "WagleTrainer", "WeightAttributionCallback", "WeightMask", "__version__", "attribute"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])


@when_imported("peft")  # now, if it is already
def _tell_peft(_: Any) -> None:
    """PEFT has to know the method "WAGLE" to load its adapters; where it is not in use, this package stays light."""
    import_module("wagle_trainer.adapters")
