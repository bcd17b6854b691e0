"""A share of the weights in percent, however small."""


def percent(share: float) -> str:
    """Return a share as text with three digits that count: patches may hold a hundred-thousandth of the weights.

    Example:
        >>> percent(0.05), percent(1 / 3), percent(1.0), percent(0.00001)
        ('5%', '33.3%', '100%', '0.001%')
    """
    return f"{100 * share:.3g}%"
