"""wagle-trainer: make a language model forget, and change only a chosen share of its weights.

Names load on first use: `attribute`, `WeightMask`, the scores and the losses need torch, safetensors and numpy only
(and wrapt, by which PEFT gets to know this package's adapters).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from wrapt import when_imported

from wagle_trainer._version import __version__
from wagle_trainer.utils.lazy_names import lazy_names

if TYPE_CHECKING:
    from wagle_trainer.attribution import AttributionConfig, attribute
    from wagle_trainer.attribution.attribution_callback import WeightAttributionCallback
    from wagle_trainer.config import WagleConfig
    from wagle_trainer.masking import WeightMask
    from wagle_trainer.trainer import WagleTrainer

_HOMES = {
    "AttributionConfig": "attribution",
    "WagleConfig": "config",
    "WagleTrainer": "trainer",
    "WeightAttributionCallback": "attribution.attribution_callback",
    "WeightMask": "masking",
    "attribute": "attribution",
}

__all__ = [
    "AttributionConfig",
    "WagleConfig",
    "WagleTrainer",
    "WeightAttributionCallback",
    "WeightMask",
    "__version__",
    "attribute",
]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)


@when_imported("peft")  # now, if it is already
def _tell_peft(_: Any) -> None:
    """PEFT has to know the method "WAGLE" to load its adapters; where it is not in use, this package stays light."""
    import_module("wagle_trainer.adapters")
