"""A share of the weights in percent, however small."""

from decimal import Decimal


def percent(share: float) -> str:
    """Return a share as text with three digits that count: patches may hold a hundred-thousandth of the weights.

    Example:
        >>> percent(0.05), percent(1 / 3), percent(1.0), percent(0.00001), percent(0.9999)
        ('5%', '33.3%', '100%', '0.001%', '>99.9%')
    """
    if 0.999 < share < 1:
        return ">99.9%"
    return f"{Decimal(f'{100 * share:.3g}'):f}%"
