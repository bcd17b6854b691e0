"""The weight mask (`WeightMask`) and the updates that it allows (`MaskedUpdates`)."""

from wagle_trainer.masking.compact_updates import CompactUpdates
from wagle_trainer.masking.mask import MaskMismatchError, WeightMask
from wagle_trainer.masking.mask_info import MaskInfo
from wagle_trainer.masking.masked_updates import MaskedUpdates

__all__ = ["CompactUpdates", "MaskInfo", "MaskMismatchError", "MaskedUpdates", "WeightMask"]
