"""What has to hold for every model family: one function for each column of the table in docs/models.md.

A function returns None where everything is right, or a remark for the table. A named refusal is a ValueError of this
package; anything else that is raised is a failure.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from tiny_models import TOKENIZER, build
from torch import Tensor

from wagle_trainer import WagleConfig, WagleTrainer, attribute
from wagle_trainer.adapters import diff
from wagle_trainer.evaluation import generate_greedy, score_answers
from wagle_trainer.evaluation.attacks.quantization import _quantize
from wagle_trainer.models.architecture import forward_parameters, stands_left_padding, weight_matrices
from wagle_trainer.models.log_probs import token_log_probs

PAD, EOS = TOKENIZER.pad_token_id, TOKENIZER.eos_token_id
DENSITY, GAMMA = 0.2, 0.1


def examples(number: int, seed: int = 0) -> list[dict[str, list[int]]]:
    """Random questions of 2 to 4 tokens and answers of 3 to 6, none of which stands for an image."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, size: int) -> list[int]:
        return torch.randint(low, high, (size,), generator=generator).tolist()

    made = []
    for _ in range(number):
        question, answer = draw(5, 60, draw(2, 5, 1)[0]), draw(5, 60, draw(3, 6, 1)[0])
        made.append({"input_ids": question + answer, "labels": [-100] * len(question) + answer})
    return made


def batch_of(rows: list[dict[str, list[int]]], side: str = "right") -> dict[str, Tensor]:
    """A padded batch."""
    longest = max(len(row["input_ids"]) for row in rows)

    def pad(values: list[int], filler: int) -> list[int]:
        room = [filler] * (longest - len(values))
        return values + room if side == "right" else room + values

    return {
        "input_ids": torch.tensor([pad(row["input_ids"], PAD) for row in rows]),
        "attention_mask": torch.tensor([pad([1] * len(row["input_ids"]), 0) for row in rows]),
        "labels": torch.tensor([pad(row["labels"], -100) for row in rows]),
    }


def plain_log_probs(model: Any, row: dict[str, list[int]]) -> Tensor:
    """Log-probabilities of an answer's tokens, from the logits of the example alone."""
    ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
    cache = {"use_cache": False} if "use_cache" in forward_parameters(model) else {}  # RWKV's state changes in place
    log_probs = model(input_ids=ids, **cache).logits[0, :-1].float().log_softmax(-1)
    positions = (labels[1:] != -100).nonzero().squeeze(-1)
    return log_probs[positions, labels[1:][positions]]


def scores_by_autograd(model: Any, forget: list, retain: list) -> dict[str, Tensor]:
    """WAGLE's score of every weight, from one plain backward pass for each example."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def gradient(rows: list) -> dict[str, Tensor]:
        total = {name: torch.zeros_like(p) for name, p in parameters.items()}
        for row in rows:
            loss = -plain_log_probs(model, row).mean()
            found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            for name, grad in zip(parameters, found, strict=True):
                if grad is not None:
                    total[name] += grad / len(rows)
        return total

    of_forget, of_retain = gradient(forget), gradient(retain)
    return {name: ((p.detach() - of_retain[name] / GAMMA) * of_forget[name]).abs() for name, p in parameters.items()}


def mask(name: str) -> str | None:
    """The mask is that of autograd and a stable sort."""
    model, forget, retain = build(name), examples(3), examples(3, 1)
    found = attribute(
        model, [batch_of(forget)], [batch_of(retain)], density=DENSITY, gamma=GAMMA, progress=False, score="wagle"
    )
    scores = scores_by_autograd(model, forget, retain)
    flat = torch.cat([scores[key].flatten() for key in found])
    wanted = torch.zeros(len(flat), dtype=torch.bool)
    wanted[flat.argsort(descending=True, stable=True)[: int(DENSITY * len(flat))]] = True
    bits = torch.cat([found[key].flatten() for key in found])
    assert int(bits.sum()) == int(wanted.sum()), "another number of weights"
    different = bits != wanted
    if bool(different.any()):  # only where the score lies within rounding of the threshold
        threshold = flat[wanted].min()
        gap = ((flat[different] - threshold).abs() / threshold).max().item()
        assert int(different.sum()) <= max(2, 1e-3 * len(flat)), f"{int(different.sum())} weights differ"
        assert gap < 1e-2, f"a score {gap:.1%} from the threshold is on the other side"
    return None


def log_probs(name: str) -> str | None:
    """Log-probabilities are those of plain logits, on both padding sides, or the probe says that the left is not."""
    model, rows = build(name), examples(4)
    with torch.no_grad():
        wanted = [plain_log_probs(model, row) for row in rows]
        for side in ("right", "left"):
            found = token_log_probs(model, batch_of(rows, side))
            right = all(
                torch.allclose(found.log_probs[i][found.mask[i]], wanted[i], atol=2e-3, rtol=1e-3)
                for i in range(len(rows))
            )
            if side == "left" and not right:
                assert not stands_left_padding(model), "left padding changes log-probabilities, and no one says so"
                return "right padding only"
            assert right, f"{side} padding changes log-probabilities"
    assert stands_left_padding(model), "left padding is right, but the probe says that it is not"
    return None


def sets() -> dict[str, Dataset]:
    """Four forget and four retain examples, already tokenized."""
    return {
        "forget_dataset": Dataset.from_list(examples(4)),
        "retain_dataset": Dataset.from_list(examples(4, 1)),
    }


def trainer_of(model: Any, folder: str, **settings: Any) -> WagleTrainer:
    """A trainer for two steps on the CPU."""
    peft_config = settings.pop("peft_config", None)
    defaults = {
        "loss_type": "grad_diff",
        "density": DENSITY,
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "max_steps": 2,
        "per_device_train_batch_size": 2,
    }
    quiet = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "use_cpu": True, "bf16": False}
    config = WagleConfig(folder, gradient_checkpointing=False, **quiet, **defaults | settings)
    return WagleTrainer(model, config, processing_class=TOKENIZER, peft_config=peft_config, **sets())


def bits(tensor: Tensor) -> Tensor:
    """Contents as integers, so that -0.0 and 0.0 differ."""
    return tensor.detach().view(torch.int32) if tensor.dtype == torch.float32 else tensor.detach()


def training(name: str) -> str | None:
    """Two steps of AdamW with weight decay: unselected weights keep their bits, selected ones move."""
    model = build(name)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(model, folder)
        trainer.train()
        moved = 0
        for key, parameter in trainer.model.named_parameters():
            same = bits(parameter) == bits(before[key])
            frozen = ~trainer.mask[key] if key in trainer.mask else torch.ones_like(same)
            assert bool(same[frozen].all()), f"frozen weights of {key} moved"
            moved += int((~same).sum())
        assert moved > 0.5 * trainer.mask.num_selected, f"only {moved} of {trainer.mask.num_selected} weights moved"
        # What is saved is what was trained, and generates.
        trainer.save_model(f"{folder}/saved")
        with torch.no_grad():
            ids = torch.tensor([examples(1)[0]["input_ids"]])
            wanted = trainer.model.eval()(input_ids=ids).logits
            again = type(trainer.model).from_pretrained(Path(folder, "saved")).eval()
            assert torch.allclose(again(input_ids=ids).logits, wanted, atol=1e-4), "the saved model differs"
    return None


def adapter(name: str) -> str | None:
    """The sparse adapter gives the tuned model's logits, active and merged, and the base model's when unloaded."""
    base = build(name)
    tuned = copy.deepcopy(base)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in tuned.parameters():
            change = torch.rand(parameter.shape, generator=generator) < 0.2
            parameter.add_(change * 0.1 * torch.rand(parameter.shape, generator=generator))
    pristine = copy.deepcopy(base)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        diff(base, tuned).save_pretrained(folder)
        ids = torch.tensor([row["input_ids"][:4] for row in examples(2)])
        wanted, unchanged = tuned(input_ids=ids).logits, pristine(input_ids=ids).logits
        model = PeftModel.from_pretrained(base, folder)
        # Not bit by bit: FalconMamba's logits differ by 5e-7 with where its weights lie in memory.
        close = partial(torch.allclose, rtol=0, atol=1e-5)
        assert not close(wanted, unchanged), "the tuned model is the base model"
        assert close(model(input_ids=ids).logits, wanted), "the active adapter is not the tuned model"
        model.merge_adapter()
        assert close(model(input_ids=ids).logits, wanted), "the merged adapter is not the tuned model"
        model.unmerge_adapter()
        assert close(model.unload()(input_ids=ids).logits, unchanged), "unloading does not give the base model"
        pairs = zip(base.named_parameters(), pristine.named_parameters(), strict=True)
        assert all(torch.equal(bits(p), bits(q)) for (_, p), (_, q) in pairs), "unloading changes the base model"
    return None


def evaluation(name: str) -> str | None:
    """Scores and greedy answers are the same at batch sizes 1 and 8."""
    model, rows = build(name), examples(8, 3)
    names = [f"row {index}" for index in range(len(rows))]
    found = {}
    for size in (1, 8):
        options = {"batch_size": size, "progress": False}
        scores = score_answers(model, rows, names, eos_token_id=EOS, **options)
        prompts = [row["input_ids"][: row["labels"].count(-100)] for row in rows]
        texts = generate_greedy(model, TOKENIZER, prompts, max_new_tokens=3, **options)
        found[size] = [score.mean_log_prob for score in scores], texts
    gap = max(abs(one - eight) for one, eight in zip(found[1][0], found[8][0], strict=True))
    assert gap < 2e-3, f"log-probabilities differ by {gap:.2g}"
    assert found[1][1] == found[8][1], "greedy answers differ"
    return None


def lora(name: str) -> str | None:
    """LoRA is on the modules that the score chose, and trains."""
    with tempfile.TemporaryDirectory() as folder:
        config = LoraConfig(target_modules="wagle", r=2, task_type="CAUSAL_LM")
        settings = {"attribution": None, "lora_modules": 2, "attribution_gamma": GAMMA, "max_steps": 1}
        trainer = trainer_of(build(name), folder, peft_config=config, **settings)
        adapted = {key for key, module in trainer.model.named_modules() if hasattr(module, "lora_A")}
        assert {key.removeprefix("base_model.model.") for key in adapted} == set(trainer.lora_modules)
        trainer.train()
        moved = [key for key, p in trainer.model.named_parameters() if "lora_B" in key and bool(p.any())]
        assert len(moved) == 2, f"{len(moved)} of 2 adapters were trained"
    return None


def quantization(name: str) -> str | None:
    """Every weight matrix but the head is rounded to at most 16 values for each scale."""
    model = build(name)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    _quantize(model, 4, None)
    for key, matrix in weight_matrices(model).items():
        parameter = model.get_parameter(key)
        assert not torch.equal(parameter, before[key]), f"{key} stays in full precision"
        row = matrix.rows(parameter.detach()).flatten(0, -2)[0]
        assert len(row.unique()) <= 16, f"a row of {key} has {len(row.unique())} values"
    return None


CELLS: dict[str, Callable[[str], str | None]] = {
    "mask": mask,
    "log-probabilities": log_probs,
    "training": training,
    "adapter": adapter,
    "evaluation": evaluation,
    "LoRA by score": lora,
    "quantization": quantization,
}


# What is wrong in another library: (cell, family) -> how it shows, and where. A fix there has to take the entry out.
WRONG = {
    ("training", "youtu"): "the saved model differs",
}
REASONS = {
    ("training", "youtu"): "Transformers' save_pretrained and from_pretrained alone change the embeddings; "
    "the trained model in memory is right",
}
NEEDS_CAUSAL = ("mask", "log-probabilities", "training", "evaluation", "LoRA by score")
NOT_REFUSED = "wrong: the model is not causal (its encoder reads the answer), and is not refused"


def outcome(cell: str, family: str) -> str:
    """What a cell of the table says: "yes", a remark, "refused: ..." or "wrong: ..."."""
    try:
        found = CELLS[cell](family) or "yes"
        return NOT_REFUSED if "encoder-decoder" in family and cell in NEEDS_CAUSAL else found
    except ValueError as error:
        return f"refused: {error}"
    except Exception as error:  # whatever it is, the other cells go on
        return f"wrong: {type(error).__name__}: {error}"
