"""Many answers to one question in one forward pass, in which they branch off: what they share is computed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from wagle_trainer.evaluation.kept_prompts import KeptPrompts
from wagle_trainer.evaluation.prompt_states import Continued, PromptStates, pad_right, prompt_length
from wagle_trainer.models.architecture import keeps_some_logits
from wagle_trainer.models.log_probs import IGNORE_INDEX, TokenLogProbs


@dataclass
class AnswerTree:
    """The tokens of examples that begin alike; each token is a node below the one before it.

    Attributes:
        tokens: of each node; a node comes after its parent.
        parents: node that comes before; -1 for the first.
        depths: how many nodes come before.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    _children: dict[tuple[int, int], int] = field(default_factory=dict)

    def add(self, tokens: Sequence[int]) -> list[int]:
        """Enter an example; the node of each of its tokens."""
        path, node = [], -1
        for depth, token in enumerate(tokens):
            child = self._children.setdefault((node, token), len(self.tokens))
            if child == len(self.tokens):
                self.tokens.append(token)
                self.parents.append(node)
                self.depths.append(depth)
            path.append(child)
            node = child
        return path

    def ancestors(self) -> Tensor:
        """Which nodes each attends to, itself and all before it: bool (nodes, nodes)."""
        seen = torch.eye(len(self.tokens), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] |= seen[parent]
        return seen


@dataclass
class TreeLogProbs(TokenLogProbs):
    """Log-probabilities whose `logits` belong to nodes.

    Attributes:
        places: row of each example in `logits`, and of each label the node that predicts it.
    """

    places: tuple[Tensor, Tensor] | None = None

    def logits_of(self, example: int) -> Tensor:
        """float32 logits that predict the target tokens of one example, (target tokens, vocabulary)."""
        assert self.logits is not None and self.places is not None
        lines, nodes = self.places
        return self.logits[lines[example], nodes[example][self.mask[example]]].float()


def tree_log_probs(
    model: nn.Module,
    rows: Sequence[Mapping[str, Sequence[int]]],
    common: PromptStates | None = None,
    *,
    top1: bool = False,
    keep_logits: bool = False,
    kept: KeptPrompts | None = None,
) -> TreeLogProbs:
    """Log-probabilities of answers, with everything that they share run once; call it without gradients.

    The tokens of a question lie in one row of the batch. Each attends to those before it in its own answer, which the
    attention mask says, and has the position that it has there.

    Args:
        model: see `can_branch` in `shared_prompts`.
        rows: `input_ids` and `labels`; those with the same tokens before the first label form one tree.
        common: states that all prompts begin with.
        top1, keep_logits: as for `token_log_probs`.
        kept: keeps the states of prompts.

    Returns:
        What `token_log_probs` gives, aligned with the answers: column 0 is the first token after the prompt.
    """
    start = 0 if common is None else int(common.lengths[0])
    starts = [prompt_length(row) for row in rows]
    trees: dict[tuple[int, ...], AnswerTree] = {}
    owners, paths = [], []
    for row, begin in zip(rows, starts, strict=True):
        prompt = tuple(row["input_ids"][:begin])
        owners.append(prompt)
        # The last token of an example predicts nothing.
        paths.append(trees.setdefault(prompt, AnswerTree()).add(row["input_ids"][start:-1]))
    places = pack([len(tree.tokens) for tree in trees.values()])
    number = 1 + max(row for row, _ in places)
    states = PromptStates.empty(model, number) if common is None else common.repeat(number)
    first = min(starts) - 1 - start  # before it, no node predicts a label
    logits = _logits(model, list(zip(trees.values(), places, strict=True)), states, first)
    of = dict(zip(trees, places, strict=True))
    if kept is not None:
        for question, (line, column) in of.items():  # its nodes are the first of its tree
            kept.keep(model, question, states.cache, line, start, column)
    labels, nodes = (
        pad_right(values, filler, logits.device)
        for values, filler in (
            ([row["labels"][begin:] for row, begin in zip(rows, starts, strict=True)], IGNORE_INDEX),
            # The place in `logits` of the node that predicts each label.
            (
                [
                    [of[owner][1] + node - first for node in path[begin - 1 - start :]]
                    for owner, path, begin in zip(owners, paths, starts, strict=True)
                ],
                0,
            ),
        )
    )
    lines = torch.tensor([of[owner][0] for owner in owners], device=logits.device)
    return _score(logits, lines, nodes, labels, top1, keep_logits)


def pack(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Row of the batch and first column of each tree: small ones share a row as long as the largest tree's."""
    places: dict[int, tuple[int, int]] = {}
    filled: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        row = next((row for row, used in enumerate(filled) if used + sizes[index] <= max(sizes)), len(filled))
        filled += [0] * (row == len(filled))
        places[index] = (row, filled[row])
        filled[row] += sizes[index]
    return [places[index] for index in range(len(sizes))]


def _logits(
    model: nn.Module, placed: Sequence[tuple[AnswerTree, tuple[int, int]]], states: PromptStates, first: int
) -> Tensor:
    """Logits (rows, nodes - first, vocabulary) at the nodes from `first` on; `placed`: trees and their places."""
    device = states.mask.device
    size, before = max(len(tree.tokens) for tree, _ in placed), states.mask.shape[1]
    ids, depths = (torch.zeros(len(states.mask), size, dtype=torch.long) for _ in range(2))
    # Padding attends to itself: a row of the mask without a place to look at would give numbers that are none.
    seen = torch.eye(size, dtype=torch.bool).repeat(len(ids), 1, 1)
    for tree, (row, column) in placed:
        own = slice(column, column + len(tree.tokens))
        ids[row, own], depths[row, own] = torch.tensor(tree.tokens), torch.tensor(tree.depths)
        seen[row, own, own] = tree.ancestors()
    allowed = torch.cat([torch.ones(len(ids), size, before, dtype=torch.bool), seen], dim=-1).to(device)
    dtype = next(model.parameters()).dtype
    mask = torch.zeros(allowed.shape, dtype=dtype, device=device).masked_fill_(~allowed, torch.finfo(dtype).min)
    positions = states.lengths[:, None] + depths.to(device)
    inputs: dict[str, Any] = {"position_ids": positions, "attention_mask": mask[:, None]}
    if keeps_some_logits(model):
        kept = torch.arange(first, size, device=device)
        return Continued(model, states).resume(ids.to(device), **inputs, logits_to_keep=kept).logits
    return Continued(model, states).resume(ids.to(device), **inputs).logits[:, first:]


def _score(
    logits: Tensor, lines: Tensor, nodes: Tensor, labels: Tensor, top1: bool, keep_logits: bool
) -> TreeLogProbs:
    """Log-probabilities of labels.

    Args:
        logits: (rows, nodes, vocabulary).
        lines: the row of each example, (examples,).
        nodes: the node that predicts each label, (examples, labels).
        labels: (examples, labels), -100 behind the end.
        top1, keep_logits: as for `token_log_probs`.
    """
    mask = labels != IGNORE_INDEX
    targets = labels.masked_fill(~mask, 0)
    # Once for each node, however many answers go through it.
    totals = torch.stack([row.float().logsumexp(-1) for row in logits])
    of = lines[:, None].expand_as(nodes)
    log_probs = (logits[of, nodes, targets].float() - totals[of, nodes]).masked_fill(~mask, 0.0)
    is_top1 = (logits.argmax(-1)[of, nodes] == targets) & mask if top1 else None
    result = TreeLogProbs(log_probs, mask, is_top1, labels=labels, places=(lines, nodes))
    result.logits = logits if keep_logits else None
    return result
