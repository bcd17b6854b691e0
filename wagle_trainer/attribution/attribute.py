"""From a model and two sets of batches to a `WeightMask`."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from wagle_trainer.attribution.gradients import Batch, attribution_mode, first_batch_not_finite, mean_gradient
from wagle_trainer.attribution.scores import Score, arguments_of, get_score
from wagle_trainer.attribution.selection import SCOPES, select
from wagle_trainer.masking import bits
from wagle_trainer.masking.mask import MaskInfo, WeightMask

# Above this effective density the mask freezes so little that training with it is training without it.
EMPTY_TALK = 0.99


def attribute(
    model: nn.Module,
    forget_batches: Iterable[Batch] | None,
    retain_batches: Iterable[Batch] | None,
    *,
    score: str | Score = "wagle",
    gamma: float = 1e-6,
    density: float = 0.8,
    scope: str = "global",
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    seed: int = 42,
    across_processes: bool = False,
    progress: bool = True,
) -> WeightMask:
    """Score every weight of a model and select the `density` share with the highest scores (arXiv 2410.17509, eq. 7).

    The model is left as found: weights, train/eval mode, `requires_grad`, gradients and random state. Memory: one
    float32 tensor per scored weight for each gradient that the score needs, one of which is the gradient that a plain
    backward pass needs too.

    Args:
        model: a causal language model; all trainable entries of `named_parameters()` are scored.
        forget_batches, retain_batches: iterables of dicts of tensors with `input_ids`, `labels` (-100 = no loss) and,
            when padded, `attention_mask`. May be None where the score needs no such gradient.
        score: a name of `list_scores()`, or a function (see `wagle_trainer.attribution.scores`).
        gamma: scale of the lower-level Hessian, > 0. Small where the retain set looks like the training data (1e-6 on
            TOFU and WMDP), large where it does not (1e4 to 1e6); the limits are |g_r * g_f| and |theta * g_f|.
        density: share of the weights to select, in (0, 1]; exactly floor(density * N) are.
        scope: "global", "tensor" (the same density in every tensor) or "row" (in every row of every matrix).
        include, exclude: regular expressions searched for in parameter names. What is left out is frozen.
        seed: of the "random" score.
        across_processes: the batches are this process's share; gradients are summed over all processes.
        progress: show progress bars.

    Returns:
        The mask, on the CPU; `mask.info` says how it came about.

    Raises:
        ValueError: an argument out of range, an unknown score, a pattern that matches no parameter, a set without
            label tokens, a density that selects nothing.
        FloatingPointError: a loss, gradient or score is not finite; names the parameter.

    Example:
        >>> mask = attribute(model, forget_batches, retain_batches, density=0.05)   # doctest: +SKIP
        >>> mask.save_pretrained("mask")                                            # doctest: +SKIP
    """
    function = get_score(score)
    arguments = arguments_of(function)
    check_attribution_arguments(gamma, density, scope)
    parameters = select_parameters(model, include, exclude)
    batches = {"forget": forget_batches, "retain": retain_batches}
    needed = [name for name in batches if f"{name}_grad" in arguments]
    for name in needed:
        if batches[name] is None:
            raise ValueError(f"The score {_name_of(score)!r} needs the {name} gradient: pass {name}_batches.")

    gradients: dict[str, dict[str, Tensor]] = {}
    examples: dict[str, int] = {}
    scores: dict[str, Tensor] = {}
    moving: dict[str, Tensor] = {}
    with attribution_mode(model, parameters):
        for name in needed:
            gradients[name], examples[name] = mean_gradient(
                model,
                parameters,
                batches[name],  # type: ignore[arg-type]
                name=name,
                across_processes=across_processes,
                progress=progress,
            )
        with torch.no_grad():
            for index, (key, parameter) in enumerate(parameters.items()):
                available = {f"{name}_grad": gradients[name].pop(key) for name in needed}
                if needed:
                    moving[key] = _packed_nonzero(list(available.values()))
                try:
                    scores[key] = _score_tensor(
                        function, arguments, key, parameter.detach(), available, gamma, seed=_seed_of(seed, index)
                    )
                except _NotFiniteError as error:
                    raise FloatingPointError(error.explain(model, parameters, batches)) from None
    shapes = {key: tuple(parameter.shape) for key, parameter in parameters.items()}
    packed = select(scores, density, scope)
    effective = None
    if needed:
        # Weights without any gradient would not have moved anyway (arXiv 2410.17509 does not report this share).
        would_move = sum(bits.count(moving[key]) for key in packed)
        both = sum(bits.count(moving[key] & packed[key]) for key in packed)
        effective = both / max(would_move, 1)
    mask = WeightMask(
        packed,
        shapes,
        MaskInfo(
            score=_name_of(score),
            gamma=gamma if "gamma" in arguments else None,
            requested_density=density,
            scope=scope,
            seed=seed if "generator" in arguments else None,
            base_model=getattr(getattr(model, "config", None), "_name_or_path", None) or None,
            effective_density=effective,
            forget_examples=examples.get("forget"),
            retain_examples=examples.get("retain"),
        ),
    )
    if mask.num_selected == 0:
        raise ValueError(f"A density of {density} selects none of the {mask.num_weights:,} weights ({scope} scope).")
    if effective is not None and effective > EMPTY_TALK > density:
        warnings.warn(
            f"The mask freezes {mask.num_weights - mask.num_selected:,} weights, but nearly all of them have no "
            f"gradient and would not have moved: of those that would, {effective:.2%} are selected. Mostly these are "
            "embedding rows of tokens that do not occur. Leave them out with "
            'exclude=["embed_tokens"] (attribution_exclude), or choose a lower density.',
            stacklevel=2,
        )
    return mask


def check_attribution_arguments(gamma: float, density: float, scope: str) -> None:
    """Raise ValueError for a gamma, density or scope out of range."""
    if not gamma > 0 or math.isinf(gamma):
        raise ValueError(f"attribution gamma must be a positive, finite number, got {gamma}.")
    if not 0 < density <= 1:
        raise ValueError(f"density must be in (0, 1], got {density}; it is the share of weights that may change.")
    if scope not in SCOPES:
        raise ValueError(f"Unknown attribution scope {scope!r}. Known: {', '.join(SCOPES)}.")


def select_parameters(
    model: nn.Module, include: Sequence[str] | None = None, exclude: Sequence[str] | None = None
) -> dict[str, nn.Parameter]:
    """Trainable parameters by name, a tied one once; filtered by regular expressions searched for in the names.

    Raises:
        ValueError: a pattern is not a regular expression or matches no trainable parameter, or nothing is left.
    """
    include, exclude = ([patterns] if isinstance(patterns, str) else patterns for patterns in (include, exclude))
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise ValueError("The model has no trainable parameter to score.")
    for pattern in (*(include or ()), *(exclude or ())):
        try:
            found = any(re.search(pattern, name) for name in parameters)
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression: {error}.") from error
        if not found:
            raise ValueError(
                f"The pattern {pattern!r} matches no trainable parameter. Names look like "
                + ", ".join(map(repr, [*list(parameters)[:2], list(parameters)[-1]]))
                + "."
            )
    chosen = {
        name: parameter
        for name, parameter in parameters.items()
        if (not include or any(re.search(pattern, name) for pattern in include))
        and not any(re.search(pattern, name) for pattern in exclude or ())
    }
    if not chosen:
        raise ValueError(f"include={include} and exclude={exclude} together leave no parameter to score.")
    return chosen


def _score_tensor(
    function: Score,
    arguments: list[str],
    key: str,
    weight: Tensor,
    gradients: Mapping[str, Tensor],
    gamma: float,
    seed: int,
) -> Tensor:
    available = {"weight": weight, "gamma": gamma, **gradients}
    if "generator" in arguments:
        available["generator"] = torch.Generator().manual_seed(seed)
    score = function(**{name: available[name] for name in arguments}).float()
    if score.shape != weight.shape:
        raise ValueError(f"The score of {key!r} has shape {tuple(score.shape)}, the weight {tuple(weight.shape)}.")
    lowest, highest = torch.aminmax(score)  # NaN if any is
    if not bool(torch.isfinite(lowest) & torch.isfinite(highest)):
        raise _NotFiniteError(key, next((n for n, g in gradients.items() if not bool(torch.isfinite(g).all())), None))
    if bool(lowest < 0):
        raise ValueError(f"The score of {key!r} has negative values; return its absolute value or a rank of your own.")
    if bool(lowest == 0) and bool(torch.signbit(score).any()):
        score = score.abs()  # -0.0 would sort above all others by its bit pattern
    return score.contiguous()


def _seed_of(seed: int, index: int) -> int:
    """A seed for each parameter. An odd factor, since PyTorch's generator on the CPU reads the lower 32 bits alone."""
    return (seed + index * 0x9E3779B1) % 2**32


class _NotFiniteError(Exception):
    """A score is not finite, because of the weight, of the gradient named, or (None) of the score itself."""

    def __init__(self, key: str, gradient: str | None):
        super().__init__(key)
        self.key, self.gradient = key, gradient

    def explain(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], batches: Mapping[str, Iterable[Batch] | None]
    ) -> str:
        """What is not finite and where; searches the batches again if they can be read twice."""
        message = f"Attribution of {self.key!r}: "
        if not bool(torch.isfinite(parameters[self.key]).all()):
            return message + "the weight is not finite. Nothing was written."
        if self.gradient is None:
            return message + "weight and gradients are finite, but the score is not. Nothing was written."
        name = self.gradient.removesuffix("_grad")
        index = first_batch_not_finite(model, {self.key: parameters[self.key]}, batches[name] or ())
        where = (
            "in a batch that cannot be found again" if index is None else f"from batch {index} of the {name} set on"
        )
        return message + f"the {name} gradient is not finite {where}. Nothing was written."


def _packed_nonzero(gradients: list[Tensor]) -> Tensor:
    nonzero = gradients[0] != 0
    for grad in gradients[1:]:
        nonzero |= grad != 0
    return bits.pack(nonzero).cpu()


def _name_of(score: str | Score) -> str:
    return score if isinstance(score, str) else getattr(score, "__name__", type(score).__name__)
