"""The unlearning depth score: is an answer gone from the hidden states, or only from the output? (arXiv 2605.24614)

Hidden states of the unlearned model replace those of the reference model, layer by layer, at the positions that predict
the answer. Where the answer stays as likely as before, the layer still holds it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from wagle_trainer.evaluation.metrics.unlearning_depth import KNOWLEDGE_GAP, unlearning_depth_of
from wagle_trainer.evaluation.suites.suite import Suite, register_suite
from wagle_trainer.evaluation.suites.suite_inputs import Row, describe_model, groups_of, read_set
from wagle_trainer.evaluation.suites.suite_metric import mean_of

if TYPE_CHECKING:
    from wagle_trainer.data.qa_format import QAFormat


@register_suite("unlearning_depth")
class UnlearningDepth(Suite):
    """Unlearning depth score (arXiv 2605.24614): how many layers have lost the answers, by activation patching.

    It needs the reference model and a model that never saw the forget set. It changes no number of other suites.
    """

    takes_qa_format: ClassVar = True
    metrics: ClassVar = (
        mean_of(
            "unlearning_depth",
            "forget",
            "unlearning_depth",
            "Share of the retrained model's gap in knowledge, over layers: 0 intact, 1 erased.",
            forget="higher",
            main=True,
            head=("unlearning", "depth"),
        ),
    )

    def load(
        self,
        data: str = "fictional",
        *,
        reference_model: str | None = None,
        retrained_model: str | None = None,
        forget_split: str = "forget10",
        limit: int | None = None,
    ) -> Any:
        """The forget set and where the two other models are.

        Args:
            data: TOFU: a hub id, a folder of `<split>.json` files, or `"fictional"`; or a file of questions and answers.
            reference_model: the model that the unlearned one was made from: folder or Hub id.
            retrained_model: the model that never saw the forget set.
            forget_split: of TOFU.
            limit: rows, drawn evenly over groups; None for all.

        Raises:
            ValueError: one of the two models is not named.
        """
        from pathlib import Path

        if reference_model is None or retrained_model is None:
            raise ValueError(
                "The unlearning depth needs two more models: reference_model, which it was made from, and "
                "retrained_model, one that never saw the forget set (wagle evaluate: --data_options reference_model=PATH "
                "retrained_model=PATH)."
            )
        from wagle_trainer.evaluation.suites.custom import Custom
        from wagle_trainer.evaluation.suites.tofu import Tofu

        if Path(data).is_file():
            rows = Custom().load(data, limit=limit)["forget"]
        else:
            rows = Tofu().load(data, forget_split=forget_split, limit=limit)["forget"]
        return {"forget": rows, "reference_model": reference_model, "retrained_model": retrained_model}

    def evaluate(self, model: Any, tokenizer: Any, data: Any, **kwargs: Any) -> dict[str, Any]:
        """See `evaluate_unlearning_depth`."""
        others = {name: _load(data[name], model) for name in ("reference_model", "retrained_model")}
        return evaluate_unlearning_depth(model, tokenizer, data["forget"], **others, **kwargs)


def _load(model: Any, like: Any) -> Any:
    if not isinstance(model, str):
        return model
    from transformers import AutoModelForCausalLM

    parameter = next(like.parameters())
    return AutoModelForCausalLM.from_pretrained(model, dtype=parameter.dtype).to(parameter.device)


def evaluate_unlearning_depth(
    model: Any,
    tokenizer: Any,
    forget: Iterable[Row],
    *,
    reference_model: Any,
    retrained_model: Any,
    threshold: float = KNOWLEDGE_GAP,
    style: str = "auto",
    qa_format: QAFormat | None = None,
    batch_size: int = 32,
    across_processes: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Unlearning depth score of a model on a forget set.

    For each layer, the hidden states of `model` replace those of `reference_model` at the positions that predict the
    answer; by how much the answer's mean log-probability falls, compared with the same for `retrained_model`, is the
    share that is erased there. See `metrics.unlearning_depth` for the formula.

    The cost: a forward pass for each layer and batch, twice. Three models are in memory.

    Args:
        model: the unlearned causal language model, on its device; all three are left in the mode they were in.
        tokenizer: the tokenizer of all three.
        forget: rows with `question` and `answer`. The answer's words that say what is to be forgotten may be given in
            `span`, as the paper does (its annotations of TOFU are not bundled): only their tokens are patched and
            measured. Without it, all tokens of the answer are.
        reference_model: the model that `model` was made from.
        retrained_model: a model that never saw the forget set.
        threshold: nats by which the retrained model's states must lower the answer, for a layer to count.
        style: how questions and answers become text, see `QAFormat`.
        qa_format: the same as an object; `style` plays no part then.
        batch_size: examples per forward pass; results do not depend on it.
        across_processes: shard the work over accelerate's processes.
        progress: show a progress bar.

    Returns:
        A dict that JSON can hold: `unlearning_depth`; `per_example`, whose set "forget" holds the examples with a layer
        that counts (with `gaps` and `unlearned_gaps` by layer, in nats); and `settings`, with the number of the others.

    Raises:
        ValueError: there are no rows, the models have different layers, a span is not in its answer, or no example has a
            layer that counts: the retrained model knows as much as the reference model.
        FloatingPointError: a log-probability is not finite.
    """
    import math

    from tqdm.auto import tqdm

    from wagle_trainer.data.qa_format import QAFormat
    from wagle_trainer.evaluation.padded_batches import batches_by_length
    from wagle_trainer.evaluation.processes import gather_results, shard_batches, shows_progress
    from wagle_trainer.models.activation_patching import layers_of
    from wagle_trainer.models.modes import evaluation_mode

    rows = read_set({"forget": forget}, "forget", ("question", "answer"))
    models = {"model": model, "reference_model": reference_model, "retrained_model": retrained_model}
    numbers = {name: len(layers_of(one)) for name, one in models.items()}
    if len(set(numbers.values())) > 1:
        raise ValueError(f"The three models must have the same layers, but have {numbers}.")
    qa = qa_format if qa_format is not None else QAFormat.for_tokenizer(tokenizer, style=style)  # type: ignore[arg-type]
    examples = [_example(qa, row, index) for index, row in enumerate(rows)]
    batches = batches_by_length([len(example["input_ids"]) for example in examples], batch_size)
    found: dict[int, tuple[list[float], list[float]]] = {}
    with (
        evaluation_mode(model),
        evaluation_mode(reference_model),
        evaluation_mode(retrained_model),
        tqdm(total=len(rows), desc="Patching layers", disable=not shows_progress(progress, across_processes)) as bar,
    ):
        for batch in shard_batches(batches, across_processes):
            gaps = [
                _gaps(reference_model, source, [examples[index] for index in batch])
                for source in (model, retrained_model)
            ]
            found |= {index: (gaps[0][place], gaps[1][place]) for place, index in enumerate(batch)}
            bar.update(len(batch))
    found = gather_results(found, across_processes)
    for index in range(len(rows)):
        if not all(map(math.isfinite, [*found[index][0], *found[index][1]])):
            raise FloatingPointError(f"Row {index} of the forget set: a log-probability is not finite.")
    depths = {index: unlearning_depth_of(*found[index], threshold=threshold) for index in range(len(rows))}
    counted = [index for index in range(len(rows)) if depths[index] is not None]
    if not counted:
        raise ValueError(
            f"No answer falls by more than {threshold} nats with the states of the retrained model: it knows as much as the "
            "reference model, so there is nothing to forget. Give a model that never saw the forget set."
        )
    per_example = {
        "forget": {
            "row": counted,
            **{name: [rows[index][name] for index in counted] for name in ("question", "answer")},
            "unlearning_depth": [depths[index] for index in counted],
            "unlearned_gaps": [found[index][0] for index in counted],
            "gaps": [found[index][1] for index in counted],
            **groups_of([rows[index] for index in counted]),
        }
    }
    settings = {
        "suite": "unlearning_depth",
        **describe_model(model),
        "reference_model": describe_model(reference_model)["model"],
        "retrained_model": describe_model(retrained_model)["model"],
        "style": qa.style,
        "qa_format": qa.describe(),
        "threshold": threshold,
        "examples": {"forget": len(counted)},
        "examples_without_a_gap": len(rows) - len(counted),
    }
    return {**UnlearningDepth().numbers(per_example, settings), "per_example": per_example, "settings": settings}


def _gaps(reference_model: Any, source: Any, examples: list[dict[str, list[int]]]) -> list[list[float]]:
    """For each example and layer, by how much the answer falls with the states of `source`, in nats."""
    from wagle_trainer.evaluation.padded_batches import pad
    from wagle_trainer.models.activation_patching import patched_log_probs, predicting_positions, states_by_layer
    from wagle_trainer.models.log_probs import IGNORE_INDEX

    device = next(reference_model.parameters()).device
    batch = {
        "input_ids": pad([example["input_ids"] for example in examples], 0, "right").to(device),
        "attention_mask": pad([[1] * len(example["input_ids"]) for example in examples], 0, "right").to(device),
        "labels": pad([example["labels"] for example in examples], IGNORE_INDEX, "right").to(device),
    }
    states = states_by_layer(source, batch, predicting_positions(batch["labels"]))
    intact = patched_log_probs(reference_model, batch)
    return (intact - patched_log_probs(reference_model, batch, states)).T.tolist()


def _example(qa: QAFormat, row: Row, index: int) -> dict[str, list[int]]:
    """Tokens of a row with labels on the span, or on the answer without its end-of-sequence token."""
    encoded = qa.encode(row["question"], row["answer"])
    labels = encoded["labels"]
    targets = [place for place, label in enumerate(labels) if label != -100]
    ends = [place for place in targets if labels[place] == qa.tokenizer.eos_token_id]
    targets = [place for place in targets if not ends or place < ends[-1]]
    if row.get("span"):
        targets = _span(qa, [labels[place] for place in targets], str(row["span"]), targets, index)
    if not targets:
        raise ValueError(f"Row {index} of the forget set has an answer without tokens.")
    kept = set(targets)
    return {
        "input_ids": encoded["input_ids"],
        "labels": [label if place in kept else -100 for place, label in enumerate(labels)],
    }


def _span(qa: QAFormat, tokens: list[int], span: str, targets: list[int], index: int) -> list[int]:
    """The places of the tokens that hold some of the span's characters."""
    lengths = [len(qa.tokenizer.decode(tokens[:end])) for end in range(len(tokens) + 1)]
    start = qa.tokenizer.decode(tokens).find(span.strip())
    if start < 0:
        raise ValueError(f"Row {index} of the forget set: its answer does not contain the span {span!r}.")
    end = start + len(span.strip())
    return [place for k, place in enumerate(targets) if lengths[k] < end and lengths[k + 1] > start]
