"""Which weights may change (`WeightMask`), and what keeps all others as they are (`MaskedUpdates`)."""

from wagle_trainer.masking.mask import MaskMismatchError, WeightMask
from wagle_trainer.masking.mask_info import MaskInfo
from wagle_trainer.masking.updates import MaskedUpdates

__all__ = ["MaskInfo", "MaskMismatchError", "MaskedUpdates", "WeightMask"]
