"""One run of the study of patch sizes: unlearn within a mask, measure, attack; and where its row is kept."""

from __future__ import annotations

import gc
import hashlib
import math
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
import transformers
import trl
from datasets import Dataset
from patch_size_masks import NO_MASK, attribution_arguments
from tasks.subject import Example, Subject
from transformers import PrinterCallback

from wagle_trainer import WagleTrainer, WeightMask, __version__
from wagle_trainer.data.facts import pad_examples
from wagle_trainer.evaluation import load_results, save_results
from wagle_trainer.evaluation.attacks.quantization import round_to_nearest
from wagle_trainer.forgetting.patches import patch_config
from wagle_trainer.models.log_probs import token_log_probs
from wagle_trainer.models.modes import evaluation_mode


def environment() -> dict[str, Any]:
    """What a row depends on besides its arguments: versions, commit and machine."""
    return {
        "wagle_trainer": __version__,
        "commit": commit(Path(__file__).parent),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "trl": trl.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def commit(folder: Path) -> str | None:
    """The commit that a checkout is at, "+" where tracked files are changed; None outside a checkout."""

    def git(*arguments: str) -> str:
        run = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
        return run.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def differences(row: Mapping[str, Any], again: Mapping[str, Any]) -> list[str]:
    """What a run measured otherwise than a row says; digests of mask and weights count, the time does not.

    What the row does not have was not measured when it was made; but a failure counts, whichever run has it."""
    names = [name for name in again if name != "seconds" and name in row]
    found = [f"{name} was {row[name]} and is {again[name]}" for name in names if row[name] != again[name]]
    for name in FAILURES:
        if (name in row) != (name in again):
            found.append(f"{name} was {row.get(name, 'not there')} and is {again.get(name, 'not there')}")
    return found


def changed(kept: Mapping[str, Any], values: Mapping[str, Any]) -> list[str]:
    """What differs from the settings that rows were made with."""
    return [f"{name} was {kept[name]} and is {value}" for name, value in values.items() if kept[name] != value]


# What a row has in place of measurements: of all of them where unlearning diverged, or of the attack's.
FAILURES = ("failed", "attack_failed")


class Rows:
    """The rows of `results.json`: read at the start, written whole after each run.

    Args:
        path: the file; other processes may not write it at the same time.
        names: what every row has.

    Raises:
        ValueError: the file holds something else.
    """

    def __init__(self, path: Path, names: Sequence[str] = ()):
        self.path = path
        self.content: dict[str, Any] = {"format": 1, "environments": {}, "references": [], "rows": []}
        if path.exists():
            found = load_results(path)
            if not self.content.keys() <= set(found) or not all(
                name in row for row in found["rows"] for name in names
            ):
                raise ValueError(f"{path} holds other results than those of this study. Write to another folder.")
            self.content = found

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self.content["rows"]

    def find(self, where: str = "rows", /, **key: Any) -> dict[str, Any] | None:
        """The row of a run, or ("references") of a reference model; None if it was not run."""
        same = (row for row in self.content[where] if all(row[name] == value for name, value in key.items()))
        return next(same, None)

    def add(self, row: dict[str, Any], environment: Mapping[str, Any], where: str = "rows") -> None:
        """Add a row and write the file."""
        row["environment"] = self.name_of(environment)
        self.content[where].append(row)
        self.save()

    def name_of(self, environment: Mapping[str, Any]) -> str:
        """What rows call an environment; the file has it from the next time that it is written."""
        name = hashlib.sha256(repr(sorted(environment.items())).encode()).hexdigest()[:12]
        self.content["environments"][name] = dict(environment)
        return name

    def save(self) -> None:
        """Write the file."""
        save_results(self.content, self.path)


_REFERENCE: WeakKeyDictionary[Any, dict[str, torch.Tensor]] = WeakKeyDictionary()


def _reference_weights(model: Any) -> dict[str, torch.Tensor]:
    """A copy of the weights that a model was loaded with, made once."""
    if model not in _REFERENCE:
        _REFERENCE[model] = {name: p.detach().clone() for name, p in model.named_parameters()}
    return _REFERENCE[model]


class Bench:
    """A task's model, whose weights are put back before each run, so that it is loaded once.

    Args:
        task: the reference model and its sets.
        seed: of the order of the examples and of the random mask.
        steps, batch_size: optimizer steps and forget examples in each.
        relearning_rates, relearning_steps: of the attack, which counts with its worst rate.
        folder: for the trainer, which writes nothing into it.
        beta: of NPO.
        retain_weight: factor of the retain loss.
    """

    def __init__(
        self,
        task: Subject,
        seed: int,
        *,
        steps: int,
        batch_size: int,
        relearning_rates: Sequence[float],
        relearning_steps: int,
        folder: Path,
        beta: float = 0.1,
        retain_weight: float = 1.0,
    ):
        self.task, self.model, self.seed = task, task.model, seed
        self.steps, self.batch_size = steps, batch_size
        self.relearning_rates, self.relearning_steps = list(relearning_rates), relearning_steps
        self.folder, self.beta, self.retain_weight = folder, beta, retain_weight
        self.weights = _reference_weights(self.model)
        self.masks: dict[tuple[Any, ...], WeightMask] = {}
        self._after: dict[float, dict[str, torch.Tensor]] = {}  # by learning rate, of one mask
        self.given: dict[str, WeightMask] = {}  # masks that no score makes, by the label that stands for them
        forget = task.sets["forget"]
        order = torch.randperm(len(forget), generator=torch.Generator().manual_seed(seed)).tolist()
        half = max(1, len(order) // 2)
        self.taught, self.asked = ([forget[i] for i in sorted(part)] for part in (order[:half], order[half:]))

    def reset(self) -> None:
        """Put the reference weights back."""
        self._put(self.weights)

    @torch.no_grad()
    def _put(self, weights: Mapping[str, torch.Tensor]) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.copy_(weights[name])
            parameter.grad = None
            parameter.requires_grad_(True)
        self.model.eval()

    def known(self, examples: Sequence[Example], model: Any = None) -> float:
        """Mean over examples of the answer's probability (geometric mean over its tokens)."""
        model = self.model if model is None else model
        order = sorted(examples, key=lambda example: -len(example["input_ids"]))
        device, total = next(model.parameters()).device, 0.0
        with evaluation_mode(model):
            for start in range(0, len(order), 32):
                batch = pad_examples(order[start : start + 32])
                total += token_log_probs(model, {k: v.to(device) for k, v in batch.items()}).mean().exp().sum().item()
        value = total / len(order)
        if not math.isfinite(value):
            raise FloatingPointError(f"The mean answer probability is {value}.")
        return value

    def unlearn(
        self, objective: str, score: str, gamma: float | str | None, density: float, rate: float
    ) -> WagleTrainer:
        """A trainer after training, from the reference weights.

        Raises:
            FloatingPointError: the learning rate was too high.
        """
        self.reset()
        key = (score, gamma, density)
        mask = self.given.get(score) or self.masks.get(key)
        if mask is not None:
            attribution: dict[str, Any] = {"attribution": "random"}  # not run, since there is a mask
        else:
            attribution = {"attribution": None} if score == NO_MASK else attribution_arguments(score, self.model)
        args = patch_config(
            self.folder / "trainer",
            rate,
            self.steps,
            self.batch_size,
            self.seed,
            loss_type=objective,
            loss_kwargs={"beta": self.beta} if objective == "npo" else {},
            retain_weight=self.retain_weight,
            **attribution,
            attribution_samples=len(self.task.sets["forget"]),
            density=density,
            attribution_gamma=1e-6 if gamma is None else gamma,
            bf16=False,
        )
        trainer = WagleTrainer(
            model=self.model,
            args=args,
            forget_dataset=Dataset.from_list(self.task.sets["forget"]),
            retain_dataset=Dataset.from_list(self.task.sets["retain"]),
            processing_class=self.task.tokenizer,
            mask=mask,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        if trainer.mask is not None:
            self.masks = {key: trainer.mask}  # the learning rates of one mask follow each other
        return trainer

    def run(
        self, objective: str, score: str, gamma: float | str | None, density: float, rate: float, attack: bool = True
    ) -> dict[str, Any]:
        """Unlearn and measure.

        Args:
            attack: also attack. Without, the weights are kept for `attack_later`, until `forget_runs` is called.

        Returns:
            The measurements of a row; `failed` alone where the loss was not finite, `attack_failed` in place of those
            of the attack where that diverged.
        """
        start = time.perf_counter()
        try:
            trainer = self.unlearn(objective, score, gamma, density, rate)
            row = self.measure()
            row |= self._patch(trainer.mask)
            if attack:
                row |= self._attack_or_failure()
            else:
                self._after[rate] = {name: p.detach().clone() for name, p in self.model.named_parameters()}
            del trainer
        except FloatingPointError as error:
            row = {"failed": str(error)}
        finally:
            self.reset()
            gc.collect()  # a trainer and its optimizer refer to each other
        return row | {
            "steps": self.steps,
            "batch_size": self.batch_size,
            "beta": self.beta,
            "retain_weight": self.retain_weight,
            "seconds": time.perf_counter() - start,
        }

    def attack_later(self, rate: float) -> dict[str, Any] | None:
        """Attack the model of a run whose weights were kept; None if they were not.

        Returns:
            The attack's measurements of a row; `attack_failed` alone where it diverged.
        """
        if rate not in self._after:
            return None
        self._put(self._after[rate])
        try:
            return self._attack_or_failure()
        finally:
            self.reset()

    def _attack_or_failure(self) -> dict[str, Any]:
        try:
            return self.attack()
        except FloatingPointError as error:
            return {"attack_failed": str(error)}

    def forget_runs(self) -> None:
        """Let go of the weights that were kept for `attack_later`."""
        self._after.clear()

    def measure(self) -> dict[str, Any]:
        """Probabilities of the answers of each set."""
        names = {
            **{"forget": "forget", "retain": "retain", "unseen": "held_out", "paraphrased": "forget_paraphrased"},
            "repeated": "forget_repeated",
        }
        return {name: self.known(self.task.sets[key]) for key, name in names.items() if key in self.task.sets}

    def attack(self) -> dict[str, Any]:
        """Relearning with each rate, and rounding to 8 and 4 bits; the weights are as before afterwards.

        Raises:
            FloatingPointError: relearning diverged, and its weights are still there.
        """
        after = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        before_attack = self.known(self.asked)
        relearned = {}
        for rate in self.relearning_rates:
            relearned[f"{rate:g}"] = self.relearn(self.model, rate)
            self._put(after)
        quantized = {}
        for bits in (8, 4):
            self.quantize(bits)
            quantized[str(bits)] = {
                "forget": self.known(self.task.sets["forget"]),
                "held_out": self.known(self.task.sets["unseen"]),
            }
            self._put(after)
        return {
            "asked_half": before_attack,
            "relearned": max(relearned.values()),
            "relearning": relearned,
            "quantized": quantized,
        }

    def relearn(self, model: Any, rate: float) -> float:
        """Fine-tune all weights on one half of the forget set; how well the other half is known then."""
        device = next(model.parameters()).device
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
        batch = {k: v.to(device) for k, v in pad_examples(self.taught).items()}
        model.train()
        for _ in range(self.relearning_steps):
            loss = -token_log_probs(model, batch).mean().mean()
            if not math.isfinite(loss.item()):
                raise FloatingPointError(f"Relearning at {rate:g}: the loss is {loss.item()}.")
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return self.known(self.asked, model)

    @torch.no_grad()
    def quantize(self, bits: int) -> None:
        """Round the weights of all linear layers but the head, as the quantization attack does."""
        head = self.model.get_output_embeddings()
        for module in self.model.modules():
            if isinstance(module, torch.nn.Linear) and module is not head:
                module.weight.copy_(round_to_nearest(module.weight, bits, None if bits > 4 else 64))

    def references(self) -> dict[str, Any]:
        """What the reference model knows, rounded, and relearned; and what a retrained one does.

        Raises:
            FloatingPointError: a relearning rate is too high, and no run could be compared.
        """
        self.reset()
        try:
            row = self.measure() | self.attack()
        except FloatingPointError as error:
            raise FloatingPointError(f"The reference model: {error} Take lower --relearning_rates.") from error
        finally:
            self.reset()
        if self.task.retrained is not None:
            retrained = self.task.retrained
            row["retrained_forget"] = self.known(self.task.sets["forget"], retrained)
            row["retrained_asked_half"] = self.known(self.asked, retrained)
            weights = {name: p.detach().clone() for name, p in retrained.named_parameters()}
            values = {}
            for rate in self.relearning_rates:
                try:
                    values[f"{rate:g}"] = self.relearn(retrained, rate)
                except FloatingPointError as error:
                    raise FloatingPointError(f"The retrained model: {error} Take lower --relearning_rates.") from error
                finally:
                    with torch.no_grad():
                        for name, parameter in retrained.named_parameters():
                            parameter.copy_(weights[name])
                            parameter.grad = None
            row["retrained_relearned"] = max(values.values())
        row["sizes"] = {name: len(examples) for name, examples in self.task.sets.items()}
        return row

    def _patch(self, mask: WeightMask | None) -> dict[str, Any]:
        total = sum(p.numel() for p in self.model.parameters())
        row: dict[str, Any] = {"weights_digest": self.digest()}
        if mask is None:
            return row | {"num_selected": total, "patch_bytes": 4 * total, "mask": None}
        size = 0
        for name in mask:
            selected, numel = mask.num_selected_in(name), math.prod(mask.shape(name))
            size += 4 * selected + min(4 * selected, math.ceil(numel / 8))  # values, and indices or bits
        return row | {
            "num_selected": mask.num_selected,
            "patch_bytes": size,
            "mask": mask.digest,
            "effective_density": mask.info.effective_density,
            "used_gamma": mask.info.gamma,
        }

    def digest(self) -> str:
        """SHA-256 of all weights."""
        return digest_of(self.model)


def digest_of(model: Any) -> str:
    """SHA-256 of the weights of a model in float32, by name; the same on every device."""
    sha = hashlib.sha256()
    for _, parameter in sorted(model.named_parameters()):
        sha.update(parameter.detach().cpu().numpy().data)
    return sha.hexdigest()
