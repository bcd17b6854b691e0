"""What a run needs of the reference model, from its first step to its last checkpoint: `ReferenceOutputs`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from wagle_trainer.data.length_sorted_batches import LengthSortedBatches
from wagle_trainer.data.pairing import Collator, PairedDataset, PairSampler, epochs_of_run
from wagle_trainer.engines.engine import current_engine
from wagle_trainer.losses.loss_inputs import LossInputs
from wagle_trainer.losses.objective import Objective
from wagle_trainer.losses.reference_checkpoint import ReferenceFile
from wagle_trainer.models.reference_log_probs import ReferenceLogits, ReferenceStates, align, reference_log_probs
from wagle_trainer.utils.keyed_digests import folder_key, make_folder_key, sealed, users_key


class ReferenceOutputs:
    """The outputs of the reference model, by split ("forget", "chosen" or "retain").

    They are computed once, when a run begins, and no second model is kept. Log-probabilities are saved in every
    checkpoint and read on resume. Logits and hidden states are computed again, from the model that the trainer was made
    with, before the trained weights take its place; the checkpoint's log-probabilities tell whether it is the same one.
    Where an engine shards weights there is no such moment, and checkpoints hold logits and hidden states, too.

    Args:
        objective: says what is needed.
        layers: split -> the layer whose hidden states are needed.
        dataset, sampler, collator: what the run trains on, in which order, and what makes batches of it.
        args: the trainer's.

    Attributes:
        log_probs: split -> float32 (examples, longest answer), as `reference_log_probs` gives it.
        logits: split -> reference logits.
        states: split -> reference hidden states.
    """

    def __init__(
        self,
        objective: Objective,
        layers: dict[str, nn.Module],
        *,
        dataset: PairedDataset,
        sampler: PairSampler,
        collator: Collator,
        args: Any,
    ):
        self.objective, self.layers = objective, layers
        self.dataset, self.sampler, self.collator, self.args = dataset, sampler, collator, args
        self.log_probs: dict[str, Tensor] = {}
        self.logits: dict[str, ReferenceLogits] = {}
        self.states: dict[str, ReferenceStates] = {}

    def load(self, checkpoint: str | None, model: nn.Module, accelerator: Accelerator) -> None:
        """Read a checkpoint's values, and compute logits and hidden states before its weights are loaded.

        Args:
            checkpoint: the folder that the run resumes from; None for a new run.
            model: the unwrapped reference model.

        Raises:
            FileNotFoundError: the folder is not a checkpoint of a WagleTrainer.
            ValueError: it is one of other data, of another objective, or of a run that began with another model.
        """
        saved = None if checkpoint is None else self._read(checkpoint)
        if current_engine().gathers_weights_in_forward:
            self._restore(saved)
            return
        with accelerator.autocast():
            self._compute(model, next(model.parameters()).device)
        if saved is not None:
            for split, output in {**self.logits, **self.states}.items():
                if split in saved.identities:
                    output.check(saved.identities[split])

    def compute_the_rest(self, model: nn.Module, accelerator: Accelerator) -> None:
        """Compute what is needed and not known yet, under the model as it is now: all of it where weights are sharded.

        Args:
            model: the engine's, if it gathers sharded weights.
        """
        device, together = self.args.device, current_engine().gathers_weights_in_forward
        with accelerator.autocast():
            for split in self._missing():
                dataset = self.dataset.splits[split]
                values = reference_log_probs(model, self._batches(dataset), len(dataset), device, together)
                self.log_probs[split] = accelerator.reduce(values.to(device), "sum").cpu()
            if together:
                self._compute(model, device)

    def _compute(self, model: nn.Module, device: torch.device) -> None:
        """Compute logits and hidden states that are needed and not known yet."""
        engine = current_engine()
        full_weights = partial(engine.full_weights, model) if engine.gathers_weights_in_forward else None
        for split, setting in self.objective.references("logits").items():
            if self._is_new(split, self.logits.get(split)):
                batches = self._batches_met(split)
                self.logits[split] = ReferenceLogits(model, batches, device, setting, full_weights)
        for split, setting in self.objective.references("states").items():
            if self._is_new(split, self.states.get(split)):
                layer = self.layers[split]
                self.states[split] = ReferenceStates(model, layer, self._batches_met(split), device, setting)

    def _restore(self, saved: ReferenceFile | None) -> None:
        """Take logits and hidden states from a checkpoint's file."""
        if saved is None:
            return
        kinds: dict[str, Any] = {"logits": (ReferenceLogits, self.logits), "states": (ReferenceStates, self.states)}
        for kind, (output, known) in kinds.items():
            for split, setting in self.objective.references(kind).items():
                tensors = saved.outputs.get(f"{split}_{kind}")
                if tensors is None:
                    raise ValueError(
                        f"The checkpoint does not hold the reference {kind} that {setting} needs, and "
                        f"{current_engine().name} cannot compute them again: resume with the engine that it was made with."
                    )
                known[split] = output.restored(setting, tensors, saved.identities[split], self.args.device)

    def add_to(self, loss_inputs: LossInputs, batch: dict[str, Any]) -> None:
        """Fill in the reference outputs of one batch of forget-retain pairs, whose model outputs are there already."""
        device = self.args.device
        for split, values in self.log_probs.items():
            answers = getattr(loss_inputs, split)
            if answers is not None:
                reference = values[list(_rows(batch[split]))].to(device, non_blocking=True)
                setattr(loss_inputs, f"{split}_reference", reference.sum(-1))
                setattr(loss_inputs, f"{split}_reference_tokens", align(reference, answers.mask))
        for kind, outputs in (("logits", self.logits), ("states", self.states)):
            for split, output in outputs.items():
                values = output.values(_rows(batch[split]), device)
                setattr(loss_inputs, f"{split}_reference_{kind}", values)

    def save(self, checkpoint: Path) -> None:
        """Write the log-probabilities, and what the objective has learned so far, into a checkpoint."""
        key = users_key() or make_folder_key(checkpoint.parent)
        outputs: dict[str, Any] = {}
        if current_engine().gathers_weights_in_forward:
            for kind, known in (("logits", self.logits), ("states", self.states)):
                outputs |= {f"{split}_{kind}": output.tensors() for split, output in known.items()}
        ReferenceFile(
            log_probs=self.log_probs,
            identities={split: output.log_probs for split, output in {**self.logits, **self.states}.items()},
            outputs=outputs,
            objective=self.objective.forget.state(),
            fingerprints={split: sealed(digest, key) for split, digest in self.dataset.fingerprints.items()},
            settings=self._settings(),
        ).save(checkpoint)

    def _read(self, checkpoint: str) -> ReferenceFile:
        """Read a checkpoint; log-probabilities and objective take their part of it."""
        saved = ReferenceFile.load(checkpoint)
        saved.check_settings(self._settings(), checkpoint)
        keys = (users_key(), folder_key(Path(checkpoint).absolute().parent))
        saved.check_data(self.dataset.fingerprints, checkpoint, [key for key in keys if key is not None])
        self.log_probs = dict(saved.log_probs)
        state = {name: saved.objective[name] for name in self.objective.forget.state() if name in saved.objective}
        if self._missing() or len(state) < len(self.objective.forget.state()):
            raise ValueError(
                f"The checkpoint in {checkpoint} does not hold what the loss {self.objective.loss_type!r} needs of the "
                "reference model: it was trained with another loss. Resume with that one, or start a new run."
            )
        self.objective.forget.load_state(state)
        return saved

    def _settings(self) -> dict[str, Any]:
        """The arguments that a resumed run must share with the one that it resumes."""
        objective, args = self.objective, self.args
        return {
            "loss_type": objective.loss_type,
            "loss_kwargs": args.loss_kwargs,
            "retain_loss": objective.retain_type,
            "forget_weight": objective.forget_weight,
            "retain_weight": objective.retain_weight,
            "seed": args.seed,
            "data_seed": args.data_seed,
            "optim": str(getattr(args.optim, "value", args.optim)),
            "optim_args": args.optim_args,
        }

    def _missing(self) -> list[str]:
        """The splits whose log-probabilities are needed and not known."""
        return [split for split in self.objective.references("log_probs") if split not in self.log_probs]

    def _is_new(self, split: str, known: ReferenceLogits | ReferenceStates | None) -> bool:
        """Whether nothing is known of a set. Examples that only a second, longer run meets stay unknown: by then, the
        model is no longer the reference model.

        Raises:
            ValueError: there are such examples.
        """
        if known is None:
            return True
        if not known.hidden.keys() >= set(self._rows_met(split)):
            raise ValueError(
                f"This run meets more of the {split} set than the one before it, and the model has been trained meanwhile: "
                "make a new trainer, with the reference model, and train it for as long as you want at once."
            )
        return False

    def _batches_met(self, split: str) -> LengthSortedBatches:
        """The examples of a set that the run will meet; all of them on every process."""
        return self._batches(self.dataset.splits[split], self._rows_met(split), share=False)

    def _rows_met(self, split: str) -> list[int]:
        return self.sampler.rows(split, range(epochs_of_run(self.args, len(self.dataset))))

    def _batches(self, dataset: Any, rows: Sequence[int] | None = None, share: bool = True) -> LengthSortedBatches:
        return LengthSortedBatches(
            dataset,
            self.args.per_device_train_batch_size,
            self.collator,
            rows=rows,
            process=self.args.process_index if share else 0,
            num_processes=self.args.world_size if share else 1,
        )


def _rows(batch: dict[str, Any]) -> Sequence[int]:
    """Rows of the data set in a batch; the host knows them of batches from the trainer's collator."""
    return batch["layout"].rows if "layout" in batch else batch["index"].tolist()
