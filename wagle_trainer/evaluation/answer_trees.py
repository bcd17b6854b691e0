"""Many answers to one question in one forward pass, in which they branch off: what they share is computed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

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


def tree_log_probs(
    model: nn.Module,
    rows: Sequence[Mapping[str, Sequence[int]]],
    common: PromptStates | None = None,
    *,
    top1: bool = False,
    keep_logits: bool = False,
) -> TokenLogProbs:
    """Log-probabilities of answers, with everything that they share run once; call it without gradients.

    The tokens of one question are one row of the batch. Each attends to those before it in its own answer, which the
    attention mask says, and has the position that it has there.

    Args:
        model: see `can_branch` in `shared_prompts`.
        rows: `input_ids` and `labels`; those with the same tokens before the first label form one tree.
        common: states that all prompts begin with.
        top1, keep_logits: as for `token_log_probs`.

    Returns:
        What `token_log_probs` gives, aligned with the answers: column 0 is the first token after the prompt.
    """
    start = 0 if common is None else int(common.lengths[0])
    trees: dict[tuple[int, ...], AnswerTree] = {}
    starts = [prompt_length(row) for row in rows]
    # The last token of an example predicts nothing.
    paths, owners = [], []
    for row, begin in zip(rows, starts, strict=True):
        prompt = tuple(row["input_ids"][:begin])
        tree = trees.setdefault(prompt, AnswerTree())
        owners.append(list(trees).index(prompt))
        paths.append(tree.add(row["input_ids"][start:-1]))
    states = PromptStates.empty(model, len(trees)) if common is None else common.repeat(len(trees))
    first = min(starts) - 1 - start  # before it, no node predicts a label
    logits = _logits(model, list(trees.values()), states, first)
    device = logits.device
    labels = pad_right([row["labels"][begin:] for row, begin in zip(rows, starts, strict=True)], IGNORE_INDEX, device)
    # The node that predicts each label, as a place in `logits`.
    nodes = pad_right([path[begin - 1 - start :] for path, begin in zip(paths, starts, strict=True)], first, device)
    return _score(logits, torch.tensor(owners, device=device), nodes - first, labels, top1, keep_logits)


def _logits(model: nn.Module, trees: Sequence[AnswerTree], states: PromptStates, first: int) -> Tensor:
    """Logits (trees, nodes - first, vocabulary) at the nodes from `first` on."""
    device = states.mask.device
    ids = pad_right([tree.tokens for tree in trees], 0, device)
    size, before = ids.shape[1], states.mask.shape[1]
    # Padding attends to itself: a row of the mask without a place to look at would give numbers that are none.
    seen = torch.eye(size, dtype=torch.bool).repeat(len(trees), 1, 1)
    for index, tree in enumerate(trees):
        seen[index, : len(tree.tokens), : len(tree.tokens)] = tree.ancestors()
    allowed = torch.cat([torch.ones(len(trees), size, before, dtype=torch.bool), seen], dim=-1).to(device)
    dtype = next(model.parameters()).dtype
    mask = torch.zeros(allowed.shape, dtype=dtype, device=device).masked_fill_(~allowed, torch.finfo(dtype).min)
    positions = states.lengths[:, None] + pad_right([tree.depths for tree in trees], 0, device)
    inputs: dict[str, Any] = {"position_ids": positions, "attention_mask": mask[:, None]}
    if keeps_some_logits(model):
        kept = torch.arange(first, size, device=device)
        return Continued(model, states).resume(ids, **inputs, logits_to_keep=kept).logits
    return Continued(model, states).resume(ids, **inputs).logits[:, first:]


def _score(
    logits: Tensor, owners: Tensor, nodes: Tensor, labels: Tensor, top1: bool, keep_logits: bool
) -> TokenLogProbs:
    """Log-probabilities of labels.

    Args:
        logits: (trees, nodes, vocabulary).
        owners: the tree of each example, (examples,).
        nodes: the node that predicts each label, (examples, labels).
        labels: (examples, labels), -100 behind the end.
        top1, keep_logits: as for `token_log_probs`.
    """
    mask = labels != IGNORE_INDEX
    targets = labels.masked_fill(~mask, 0)
    # Once for each node, however many answers go through it.
    totals = torch.stack([tree.float().logsumexp(-1) for tree in logits])
    of = owners[:, None].expand_as(nodes)
    log_probs = (logits[of, nodes, targets].float() - totals[of, nodes]).masked_fill(~mask, 0.0)
    is_top1 = (logits.argmax(-1)[of, nodes] == targets) & mask if top1 else None
    result = TokenLogProbs(log_probs, mask, is_top1, labels=labels)
    if keep_logits:
        result.logits, result.kept = logits[of, nodes], torch.arange(nodes.shape[1], device=nodes.device)
    return result
