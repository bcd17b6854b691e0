"""What a run needs of the model before unlearning, from its first step to its last checkpoint: `ModelBefore`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from wagle_trainer.data.length_sorted_batches import LengthSortedBatches
from wagle_trainer.data.pairing import Collator, PairedDataset, PairSampler
from wagle_trainer.engines.engine import current_engine
from wagle_trainer.losses import Signals, UnlearningLoss
from wagle_trainer.models.log_probs import TokenLogProbs
from wagle_trainer.models.reference_model import ReferenceHead, ReferenceStates, align, reference_log_probs
from wagle_trainer.utils.atomic_files import write_atomically

REFERENCE_NAME = "reference_log_probs.safetensors"


class ModelBefore:
    """The numbers that stand for the model before unlearning, by role ("forget", "preferred" or "retain").

    They are computed once, when a run begins, and no second model is kept. Log-probabilities are saved in every
    checkpoint and read on resume. Logits and hidden states are computed again, from the model that the trainer was made
    with, before the trained weights take its place; the checkpoint's log-probabilities tell whether it is the same one.

    Args:
        loss, retain_loss: the objective: they say what is needed.
        layers: role -> the layer whose hidden states are needed.
        dataset, sampler, collator: what the run trains on, in which order, and what makes batches of it.
        args: the trainer's.

    Attributes:
        log_probs: role -> float32 (examples, longest answer), as `reference_log_probs` gives it.
        heads: role -> reference logits.
        states: role -> reference hidden states.
    """

    def __init__(
        self,
        loss: UnlearningLoss,
        retain_loss: str | None,
        layers: dict[str, nn.Module],
        *,
        dataset: PairedDataset,
        sampler: PairSampler,
        collator: Collator,
        args: Any,
    ):
        self.loss, self.retain_loss, self.layers = loss, retain_loss, layers
        self.dataset, self.sampler, self.collator, self.args = dataset, sampler, collator, args
        self.log_probs: dict[str, Tensor] = {}
        self.heads: dict[str, ReferenceHead] = {}
        self.states: dict[str, ReferenceStates] = {}

    def load(self, checkpoint: str | None, model: nn.Module, accelerator: Accelerator) -> None:
        """What must be there before the weights of a checkpoint are: the checkpoint's values, logits, hidden states.

        Args:
            checkpoint: the folder that the run resumes from; None for a new run.
            model: the unwrapped model before unlearning.

        Raises:
            FileNotFoundError: the folder is not a checkpoint of a WagleTrainer.
            ValueError: it is one of other data, of another objective, or of a run that began with another model.
        """
        saved = {} if checkpoint is None else self._read(checkpoint)
        objective, retain = f"loss_type={self.args.loss_type!r}", f"retain_loss={self.retain_loss!r}"
        with accelerator.autocast():
            if "forget_reference_logits" in self.loss.needs:
                self._add_head("forget", model, objective, "Use another objective")
            if self.retain_loss in ("kl", "js"):
                self._add_head("retain", model, retain, "Use retain_loss='nll'")
            if "forget_reference_states" in self.loss.needs:
                self._add_states("forget", model, objective)
            if self.retain_loss == "embed_diff":
                self._add_states("retain", model, retain)
        for role, before in self._heads_and_states.items():
            if f"{role}_before" in saved:
                before.check(saved[f"{role}_before"])

    def compute_log_probs(self, model: nn.Module, accelerator: Accelerator) -> None:
        """The log-probabilities that are needed and not known yet, under the model as it is now.

        Args:
            model: the engine's, if it gathers sharded weights.
        """
        with accelerator.autocast():
            for role in self._roles_with_log_probs:
                if role not in self.log_probs:
                    dataset, device = getattr(self.dataset, role), self.args.device
                    batches, together = self._batches(dataset), current_engine().gathers_weights_in_forward
                    values = reference_log_probs(model, batches, len(dataset), device, together)
                    self.log_probs[role] = accelerator.reduce(values.to(device), "sum").cpu()

    def add_to(self, signals: Signals, log_probs: dict[str, TokenLogProbs], inputs: dict[str, Any]) -> None:
        """Enter the values of one batch of pairs, `inputs`, whose `log_probs` under the model of now are given."""
        device = self.args.device
        for role, values in self.log_probs.items():
            reference = values[inputs[role]["index"].cpu()].to(device)
            setattr(signals, f"{role}_reference", reference.sum(-1))
            setattr(signals, f"{role}_reference_tokens", align(reference, log_probs[role].mask))
        rows = inputs["forget"]["index"].tolist()
        if "forget" in self.heads:
            signals.forget_reference_logits = self.heads["forget"].logits(rows, device)
        if "forget" in self.states:
            signals.forget_reference_states = self.states["forget"].states(rows, device)

    def save(self, checkpoint: Path) -> None:
        """Write the log-probabilities, and what the objective has learned so far, into a checkpoint."""
        tensors = dict(self.log_probs)
        tensors |= {f"{role}_before": before.log_probs for role, before in self._heads_and_states.items()}
        tensors |= {f"loss.{name}": value for name, value in self.loss.state().items()}
        write_atomically(checkpoint / REFERENCE_NAME, save(tensors, metadata=self.dataset.fingerprints))

    def _read(self, checkpoint: str) -> dict[str, Tensor]:
        """The tensors of a checkpoint, once log-probabilities and objective have taken theirs."""
        path = Path(checkpoint) / REFERENCE_NAME
        if not path.is_file():
            raise FileNotFoundError(f"{checkpoint} has no {REFERENCE_NAME}: it is not a checkpoint of a WagleTrainer.")
        with safe_open(path, "pt") as file:
            keys = file.metadata()
        for role, key in keys.items():
            if self.dataset.fingerprints.get(role) != key:
                raise ValueError(
                    f"The {role} set is not the one that the checkpoint in {checkpoint} was trained on: its tokens "
                    "differ. Resume with the same data and tokenizer, or start a new run."
                )
        saved = load_file(path)
        self.log_probs = {role: saved[role] for role in ("forget", "preferred") if role in saved}
        state = {name: saved[f"loss.{name}"] for name in self.loss.state() if f"loss.{name}" in saved}
        missing = [role for role in self._roles_with_log_probs if role not in self.log_probs]
        if missing or len(state) < len(self.loss.state()):
            raise ValueError(
                f"The checkpoint in {checkpoint} does not hold what the loss {self.args.loss_type!r} needs of "
                f"the model before unlearning: it was trained with another loss. Resume with that one, or start a "
                "new run."
            )
        self.loss.load_state(state)
        return saved

    @property
    def _roles_with_log_probs(self) -> list[str]:
        return [role for role in ("forget", "preferred") if {role, "reference"} <= self.loss.needs]

    @property
    def _heads_and_states(self) -> dict[str, ReferenceHead | ReferenceStates]:
        return {**self.heads, **self.states}

    def _add_head(self, role: str, model: nn.Module, what: str, instead: str) -> None:
        if self._is_new(role, self.heads):
            batches, device = self._batches_met(role), next(model.parameters()).device
            self.heads[role] = ReferenceHead(model, batches, device, what, instead)

    def _add_states(self, role: str, model: nn.Module, what: str) -> None:
        if self._is_new(role, self.states):
            batches, device = self._batches_met(role), next(model.parameters()).device
            self.states[role] = ReferenceStates(model, self.layers[role], batches, device, what)

    def _is_new(self, role: str, known: Mapping[str, ReferenceHead | ReferenceStates]) -> bool:
        """Whether nothing is known of a set. Of the examples that only a second, longer run meets nothing can be known:
        the model is no longer the one before unlearning.

        Raises:
            ValueError: there are such examples.
        """
        if role not in known:
            return True
        if not known[role].hidden.keys() >= set(self._rows_met(role)):
            raise ValueError(
                f"This run meets more of the {role} set than the one before it, and the model has been trained meanwhile: "
                "make a new trainer, with the model before unlearning, and train it for as long as you want at once."
            )
        return False

    def _batches_met(self, role: str) -> LengthSortedBatches:
        """The examples of a set that the run will meet; all of them on every process."""
        return self._batches(getattr(self.dataset, role), self._rows_met(role), share=False)

    def _rows_met(self, role: str) -> list[int]:
        pairs = [pair for epoch in self._epochs() for pair in self.sampler.pairs(epoch)]
        return sorted({pair[("forget", "retain").index(role)] for pair in pairs})

    def _epochs(self) -> range:
        """Those that the Trainer will begin."""
        args = self.args
        if args.max_steps <= 0:
            return range(math.ceil(args.num_train_epochs))
        batches = len(self.dataset) / (args.train_batch_size * args.world_size)
        batches = math.floor(batches) if args.dataloader_drop_last else math.ceil(batches)
        steps = max(1, math.ceil(batches / args.gradient_accumulation_steps))  # of one epoch
        return range(math.ceil(args.max_steps / steps))

    def _batches(self, dataset: Any, rows: Sequence[int] | None = None, share: bool = True) -> LengthSortedBatches:
        return LengthSortedBatches(
            dataset,
            self.args.per_device_train_batch_size,
            self.collator,
            rows=rows,
            process=self.args.process_index if share else 0,
            num_processes=self.args.world_size if share else 1,
        )
