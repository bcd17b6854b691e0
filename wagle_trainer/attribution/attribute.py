"""From a model and two sets of batches to a `WeightMask`."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from wagle_trainer.attribution.automatic import (
    CLEAR_GAIN,
    FALLBACK_DENSITY,
    DensityCurve,
    choose_gamma,
)
from wagle_trainer.attribution.config import AttributionConfig, as_attribution_config
from wagle_trainer.attribution.gradients import Batch, SetStatistics, attribution_mode, memory_advice, set_statistics
from wagle_trainer.attribution.host_sums import fits_on_device
from wagle_trainer.attribution.score_histogram import ScoreHistogram
from wagle_trainer.attribution.score_inputs import NotFiniteError, packed_nonzero, score_inputs, score_tensor
from wagle_trainer.attribution.scored_parameters import check_not_quantised, select_parameters
from wagle_trainer.attribution.scores import SETS, name_of
from wagle_trainer.attribution.selection import ONE, Shards, exclude, select
from wagle_trainer.engines.sharding import device_of, gather, is_sharded, local_part, shard
from wagle_trainer.masking import bits
from wagle_trainer.masking.mask import WeightMask
from wagle_trainer.masking.mask_info import MaskInfo
from wagle_trainer.models.architecture import WeightMatrix, layouts_of
from wagle_trainer.models.causality import check_causal_once
from wagle_trainer.utils.percent import percent

# Above this effective density a mask is vacuous: training with it is training without it.
VACUOUS = 0.99
# What statistics are called where a score needs no gradient.
_NAMES = {"activation": "activations", "targets": "target tokens"}
# Fields of `AttributionConfig` that say how sets become batches.
_NOT_FOR_BATCHES = {"attribution_loss", "samples", "batch_size"}


def attribute(
    model: nn.Module,
    forget_batches: Iterable[Batch] | None,
    retain_batches: Iterable[Batch] | None,
    config: AttributionConfig | None = None,
    *,
    across_processes: bool = False,
    progress: bool = True,
    **arguments: Any,
) -> WeightMask:
    """Score every weight of a model and select the `density` share with the highest scores (arXiv 2410.17509, eq. 7).

    The model is left as found: weights, train/eval mode, `requires_grad`, gradients and random state. Memory: one
    number in `dtype` per scored weight for each gradient that the score needs, one of which is the gradient that a
    plain backward pass needs too. With `offload` these numbers and the scores lie in host memory, and the device holds,
    beside weights and activations, one gradient tensor at a time (see `set_statistics`); while scores are computed there
    are no activations, and the arguments of one tensor's score. A model sharded by FSDP2 is scored as it is: every process
    keeps its rows only, sees one full tensor at a time, and ends with the same mask.

    Args:
        model: a causal language model; all trainable entries of `named_parameters()` are scored.
        forget_batches, retain_batches: iterables of dicts of tensors with `input_ids`, `labels` (-100 = no loss) and,
            when padded, `attention_mask`; each (batch, length). May be None where the score needs nothing of them.
        config: how to score and select.
        across_processes: each process has its own shard of the batches; gradients are summed over all processes.
            Always so where FSDP2 shards the model.
        progress: show progress bars.
        arguments: the keyword form: the fields of `AttributionConfig`, in place of `config`.

    Returns:
        The mask, on the CPU; `mask.info` says how it came about.

    Raises:
        ValueError: quantised weights, a model that is not causal, an argument out of range, an unknown score, a pattern
            that matches no parameter, a set without target tokens, a score that is zero everywhere, a density that
            selects nothing, a model that is sharded in another way than FSDP2's.
        TypeError: both forms of arguments are given, or a keyword is unknown.
        FloatingPointError: a loss, gradient or score is not finite; names the parameter.
        OutOfMemoryError: says which options help.

    Example:
        >>> mask = attribute(model, forget_batches, retain_batches, density=0.05)
        >>> config = AttributionConfig(score="snip", density=0.05)
        >>> mask = attribute(model, forget_batches, None, config)
        >>> mask.save_pretrained("mask")
    """
    config = as_attribution_config(config, arguments)
    for unused in _NOT_FOR_BATCHES & arguments.keys():
        raise TypeError(f"{unused} has no effect here: attribute uses its batches as they are.")
    batches = {"forget": forget_batches, "retain": retain_batches}
    name = name_of(config.score)
    for which, wanted in config.needs.items():
        if batches[which] is None:
            what = "gradient" if wanted & {"grad", "square"} else _NAMES[min(wanted)]
            raise ValueError(f"The score {name!r} needs the {which} {what}: pass {which}_batches.")
    check_not_quantised(model)
    if config.needs:
        check_causal_once(model)
    parameters = select_parameters(model, config.include, config.exclude)
    if config.earlier_mask is not None:
        config.earlier_mask.check(model)

    shards = _shards(next(iter(parameters.values()))) if is_sharded(parameters.values()) else ONE
    offload = _keeps_on_host(config, parameters.values())
    with attribution_mode(model, parameters):
        statistics = {
            which: set_statistics(
                model,
                parameters,
                batches[which],  # type: ignore[arg-type]
                name=which,
                wanted=wanted,
                across_processes=across_processes,
                dtype=config.dtype,  # type: ignore[arg-type]
                offload=offload,
                progress=progress,
            )
            for which, wanted in config.needs.items()
        }
        examples = {which: found.examples for which, found in statistics.items()}
        with torch.no_grad(), memory_advice("computing the scores"):
            gamma = config.gamma
            if isinstance(gamma, str) and "gamma" in config.score_arguments:
                gamma = choose_gamma(gamma, lambda: _local_pairs(parameters, statistics["retain"]), shards.reduce)
            layouts = layouts_of(model, parameters)
            selection = _Selection(parameters, layouts, config, shards, offload)
            try:
                for key, available in score_inputs(parameters, statistics, gamma, config.seed, layouts):
                    score = score_tensor(config.score_function, config.score_arguments, key, available)
                    if score is None:
                        selection.leave_out(key)
                    else:
                        selection.add(key, score, available)
            except NotFiniteError as error:
                raise FloatingPointError(error.explain(model, parameters, batches)) from None
    if not selection.parameters:
        raise ValueError(f"The score {name!r} ranks none of the parameters: {_some(selection.unranked)}.")
    if not selection.any_positive:
        raise ValueError(f"The score {name!r} is zero for every weight: it ranks nothing.")
    with memory_advice("selecting by the scores"):
        packed = selection.packed()
    mask = WeightMask(
        packed,
        {key: tuple(parameter.shape) for key, parameter in selection.parameters.items()},
        MaskInfo(
            **config.mask_info(gamma, selection.density),
            base_model=getattr(getattr(model, "config", None), "name_or_path", None) or None,
            unranked_weights=sum(selection.unranked.values()) or None,
            effective_density=selection.effective_density(packed),
            forget_examples=examples.get("forget"),
            retain_examples=examples.get("retain"),
            score_histogram=selection.histogram.as_dict(),
        ),
    )
    if mask.num_selected == 0:
        raise ValueError(
            f"A density of {selection.density} selects none of the {selection.num_candidates:,} weights "
            f"({config.scope} scope)."
        )
    _warn_of_unranked(name, selection.unranked, mask.num_weights)
    _warn_of_vacuous_mask(mask, selection.density)
    return mask


def _some(unranked: Mapping[str, int]) -> str:
    names = list(unranked)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _warn_of_unranked(score: str, unranked: Mapping[str, int], num_weights: int) -> None:
    if unranked:
        weights = sum(unranked.values())
        warnings.warn(
            f"The score {score!r} cannot rank {len(unranked)} parameters ({_some(unranked)}), which have no activations: "
            f"their {weights:,} weights ({percent(weights / (weights + num_weights))} of the scored model) are frozen, and "
            "the density is of the others.",
            stacklevel=3,
        )


def _warn_of_vacuous_mask(mask: WeightMask, density: float) -> None:
    effective = mask.info.effective_density
    if effective is not None and effective > VACUOUS > density:
        warnings.warn(
            f"The mask freezes {mask.num_weights - mask.num_selected:,} weights, but nearly all of them have no "
            f"gradient and would not have moved: {percent(effective)} of those with a gradient are selected. Most frozen "
            "weights are embedding rows of tokens that do not occur. Leave them out with "
            'exclude=["embed_tokens"] (attribution_exclude), or choose a lower density.',
            stacklevel=3,
        )


class _Selection:
    """Takes scores tensor by tensor and selects: at the end with the global scope, else as they come."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        layouts: Mapping[str, WeightMatrix],
        config: AttributionConfig,
        shards: Shards,
        offload: bool,
    ):
        self.parameters, self.layouts = dict(parameters), layouts
        self.scope, self.shards, self.offload = config.scope, shards, offload
        self.unranked: dict[str, int] = {}
        density, exclude_mask = config.density, config.earlier_mask
        self.exclude_mask = exclude_mask
        self.excluded: dict[str, int] = {}
        if exclude_mask is not None:
            self.excluded = {key: exclude_mask.num_selected_in(key) for key in parameters if key in exclude_mask}
        self.num_candidates = sum(p.numel() for p in parameters.values()) - sum(self.excluded.values())
        self.curve = DensityCurve() if isinstance(density, str) else None
        self.density = FALLBACK_DENSITY if isinstance(density, str) else density
        self.any_positive = False
        self.histogram = ScoreHistogram()
        self._scores: dict[str, Tensor] = {}
        self._packed: dict[str, Tensor] = {}
        self._moving: dict[str, Tensor] = {}

    def leave_out(self, key: str) -> None:
        """Freeze a parameter that the score cannot rank."""
        self.unranked[key] = self.parameters.pop(key).numel()
        self.num_candidates -= self.unranked[key] - self.excluded.pop(key, 0)

    def add(self, key: str, score: Tensor, available: Mapping[str, Any]) -> None:
        parameter = self.parameters[key]
        self.any_positive = self.any_positive or bool(score.any())
        moving = packed_nonzero(available)
        if moving is not None:
            self._moving[key] = moving
        if self.exclude_mask is not None and self.excluded.get(key):
            score = exclude(score, self.exclude_mask[key].to(score.device))
        if self.curve is not None:
            self.curve.add(score, *(available[f"{which}_grad"] for which in SETS))
        if self.scope != "global":
            self._packed[key] = self._select_within(key, score)
            return
        part = shard(score, parameter).clone() if self.shards is not ONE else score
        room = next((value for name, value in available.items() if name.endswith("_grad")), None)
        if room is not None and self.shards is ONE and not self.offload:
            # In the memory of a gradient, which is no longer needed: fresh memory takes longer than a copy.
            part = room.copy_(part)
        self._scores[key] = part.cpu() if self.offload else part

    def _select_within(self, key: str, score: Tensor) -> Tensor:
        """Packed bits of one tensor, whose weights compete with each other only."""
        layout, shape = self.layouts[key], score.shape
        by_layout = self.scope == "row" and (layout.transposed or layout.experts)
        scores = {key: layout.flat_rows(score).contiguous() if by_layout else score}
        rows = scores[key].shape
        found = select(scores, self.density, self.scope, excluded=self.excluded, histogram=self.histogram)[key]
        if not by_layout:
            return found
        return bits.pack(layout.from_flat_rows(bits.unpack(found, rows), shape).contiguous())

    def packed(self) -> dict[str, Tensor]:
        """The packed bits of full parameters, on the CPU; the same on all processes."""
        if self.curve is not None:
            self._choose_density(self.curve)
        if self.scope == "global":
            self._packed = select(
                self._scores, self.density, shards=self.shards, excluded=self.excluded, histogram=self.histogram
            )
        if self.scope == "global" and self.shards is not ONE:
            for key, parameter in self.parameters.items():
                rows = bits.unpack(self._packed[key], local_part(parameter).shape)
                self._packed[key] = bits.pack(gather(rows.to(torch.uint8), parameter).bool())
        return {key: self._packed[key].cpu() for key in self.parameters}

    def _choose_density(self, curve: DensityCurve) -> None:
        density, gain = curve.choose()
        if gain >= CLEAR_GAIN:
            self.density = density
            return
        warnings.warn(
            f'density="auto" found no clear knee: at best, at {density:.2f}, the selected share of the forget gradient '
            f"is {gain:.3f} above that of the retain gradient (at least {CLEAR_GAIN} is required). The density is "
            f"{FALLBACK_DENSITY}.",
            stacklevel=4,
        )

    def effective_density(self, packed: Mapping[str, Tensor]) -> float | None:
        """Selected share of the weights with a gradient; None if no gradient is known."""
        if not self._moving:
            return None
        # Weights without any gradient would not have moved anyway (arXiv 2410.17509 does not report this share).
        would_move = sum(bits.count(self._moving[key]) for key in packed)
        both = sum(bits.count(self._moving[key] & packed[key]) for key in packed)
        return both / max(would_move, 1)


def _keeps_on_host(config: AttributionConfig, parameters: Iterable[Tensor]) -> bool:
    """Whether gradients and scores are kept in host memory."""
    if config.offload != "auto":
        return config.offload is not None
    sums = sum(len(wanted & {"grad", "square"}) for wanted in config.needs.values())
    return not fits_on_device(map(local_part, parameters), config.dtype, sums)  # type: ignore[arg-type]


def _local_pairs(parameters: Mapping[str, nn.Parameter], statistics: SetStatistics) -> Iterator[tuple[Tensor, Tensor]]:
    """Weight and retain gradient of each parameter; of sharded ones, the rows on this process."""
    for key, parameter in parameters.items():
        local = local_part(parameter.detach())
        yield local, statistics.grad[key].to(local.device).float()


def _shards(parameter: Tensor) -> Shards:
    """How FSDP2 spreads the scores over processes."""

    def reduce(counts: Tensor) -> None:
        moved = counts.to(device_of(parameter))  # NCCL sums on GPUs only
        dist.all_reduce(moved)
        counts.copy_(moved)

    return Shards(dist.get_rank(), dist.get_world_size(), reduce)
