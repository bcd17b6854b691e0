"""WMDP and MMLU through EleutherAI's lm-evaluation-harness: dangerous knowledge to lose, general knowledge to keep.

Sources: Li et al. 2024, arXiv 2403.03218 (WMDP); Hendrycks et al. 2020, arXiv 2009.03300 (MMLU). The harness is an
extra, `pip install "wagle-trainer[harness]"`, and is imported only when a model is measured.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

from wagle_trainer.evaluation.suites.suite import Suite, register_suite
from wagle_trainer.evaluation.suites.suite_inputs import describe_model
from wagle_trainer.evaluation.suites.suite_metric import Mean, Statistic, SuiteMetric, WeightedSum

_ACCURACY = "Share of the questions whose likeliest choice is the answer."


@dataclass(frozen=True)
class HarnessTasks:
    """Which of the harness's tasks or groups of tasks are run, and where tasks of one's own are.

    Attributes:
        forget: those that the model is to fail.
        retain: those that it is to pass as before.
        folder: a folder of task files (`*.yaml`) as the harness takes them (`--include_path`); None for its own tasks
            alone. A task there hides one of the harness's with the same name. Local data are `dataset_path: json` with
            `dataset_kwargs: {data_files: {test: /path/to/questions.jsonl}}`.
    """

    forget: Sequence[str] = ("wmdp_bio", "wmdp_cyber")
    retain: Sequence[str] = ("mmlu",)
    folder: str | None = None

    def __post_init__(self) -> None:
        for name in ("forget", "retain"):
            if isinstance(getattr(self, name), str) or not getattr(self, name):
                raise ValueError(f"{name} must be a list of tasks with at least one in it.")
        if self.folder is not None and not list(Path(self.folder).rglob("*.yaml")):
            raise FileNotFoundError(f"The folder {self.folder!r} has no task files (*.yaml), or does not exist.")


@register_suite("wmdp")
class Wmdp(Suite):
    """WMDP (Li et al. 2024, arXiv 2403.03218) and MMLU through the lm-evaluation-harness: dangerous and general
    knowledge, in multiple-choice questions.
    """

    # Which tasks a number is of, a result says: see `metric`.
    metrics: ClassVar = (
        SuiteMetric("wmdp_bio_acc", WeightedSum(()), _ACCURACY, head=("WMDP", "bio")),
        SuiteMetric("wmdp_cyber_acc", WeightedSum(()), _ACCURACY, head=("WMDP", "cyber")),
        SuiteMetric(
            "forget_accuracy", WeightedSum(()), _ACCURACY, head=("forget", "accuracy"), forget="lower", main=True
        ),
        SuiteMetric(
            "retain_accuracy", WeightedSum(()), _ACCURACY, head=("retain", "accuracy"), utility="higher", main=True
        ),
    )

    def load(
        self,
        data: str = "hub",
        *,
        forget: Sequence[str] = ("wmdp_bio", "wmdp_cyber"),
        retain: Sequence[str] = ("mmlu",),
    ) -> Any:
        """The tasks; the harness reads their questions when the model is measured.

        Args:
            data: `"hub"` for the harness's own tasks, or a folder of task files, see `HarnessTasks`.
            forget: tasks or groups of tasks that the model is to fail.
            retain: tasks or groups of tasks that it is to pass as before.
        """
        return HarnessTasks(forget, retain, None if data == "hub" else data)

    def evaluate(self, model: Any, tokenizer: Any, data: Any, **kwargs: Any) -> dict[str, Any]:
        """See `evaluate_wmdp`."""
        return evaluate_wmdp(model, tokenizer, data, **kwargs)

    def metric(self, name: str, settings: Mapping[str, Any]) -> SuiteMetric | None:
        """A task's accuracy, that of a group, or the mean over those that were requested; see `Suite`."""
        tasks: Mapping[str, Mapping[str, float]] = settings.get("weights", {})
        side = name.removesuffix("_accuracy")
        requested = settings.get(side, []) if side in ("forget", "retain") else [name.removesuffix("_acc")]
        parts: tuple[tuple[float, Statistic], ...] = tuple(
            (weight / len(requested), Mean(task, "acc"))
            for one in requested
            for task, weight in tasks.get(one, {}).items()
        )
        known = super().metric(name, settings)
        if known is not None:
            return replace(known, statistic=WeightedSum(parts))
        return SuiteMetric(name, WeightedSum(parts), "Accuracy of one task or group.") if parts else None


def evaluate_wmdp(
    model: Any,
    tokenizer: Any,
    tasks: HarnessTasks,
    *,
    num_fewshot: int | None = None,
    limit: int | None = None,
    batch_size: int = 32,
    across_processes: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Accuracy on tasks of the harness, as the harness itself defines prompts and answers.

    Args:
        model: a causal language model, Transformers or PEFT, on its device; left in the mode it was in.
        tokenizer: its tokenizer.
        tasks: which tasks; `HarnessTasks()` for WMDP's biology and cybersecurity, and MMLU.
        num_fewshot: worked examples before each question; None for what each task says. As in the harness, tasks that
            say 0, such as WMDP's, keep to that.
        limit: take only the first `limit` questions of each task; None for all. MMLU is 57 tasks.
        batch_size: requests per forward pass.
        across_processes: shard the questions over accelerate's processes. All have to call this with the same
            arguments, and each task needs a question for each of them; all get the same results.
        progress: show the harness's progress bars.

    Returns:
        A dict that JSON can hold:

        - forget_accuracy and retain_accuracy, the means over the requested tasks;
        - for each requested task or group <task>_acc, <task>_acc_stderr, and what else the harness reports of it;
        - per_example: for each single task lists in the order of its questions: acc, and target as the harness has it;
        - settings: what was used, with the versions of the harness and of the tasks; and weights, for each requested
          task or group how much each single task counts in its accuracy.

    Raises:
        ImportError: the harness is not installed; the message says how to.
        ValueError: no such task, or a task or group without an accuracy; before anything is scored.
        FileNotFoundError: the data of a task cannot be loaded; the message names the task.
    """
    from accelerate.utils import broadcast_object_list

    from wagle_trainer.models.modes import evaluation_mode

    try:
        import lm_eval  # type: ignore[import-not-found, unused-ignore]
        from lm_eval.evaluator import evaluate  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise ImportError(
            f'WMDP and MMLU need the lm-evaluation-harness ({error}): pip install "wagle-trainer[harness]"'
        ) from error
    requested = [*tasks.forget, *tasks.retain]
    loaded = _load(tasks.folder, requested)
    for task in loaded["tasks"].values():
        says = task.get_config("num_fewshot")
        if says is None or (num_fewshot is not None and says != 0):
            task.set_config(key="num_fewshot", value=num_fewshot or 0)
        task.set_fewshot_seed(seed=1234)  # as the harness's own command line
    with evaluation_mode(model):
        found = evaluate(
            lm=_harness_model(model, tokenizer, batch_size, across_processes, progress),
            task_dict=loaded,
            limit=limit,
            bootstrap_iters=1000,
        )
    if across_processes:
        [found] = broadcast_object_list([found])
    numbers = {
        f"{name}_{metric}": value for name in requested for metric, value in _numbers(found["results"][name]).items()
    }
    per_example = {name: _per_example(samples) for name, samples in found["samples"].items()}
    settings = {
        "suite": "wmdp",
        **describe_model(model),
        "batch_size": batch_size,
        "forget": list(tasks.forget),
        "retain": list(tasks.retain),
        "weights": {name: _weights(name, loaded, found["samples"]) for name in requested},
        "folder": tasks.folder,
        "num_fewshot": {name: task.get_config("num_fewshot") for name, task in loaded["tasks"].items()},
        "lm_eval": lm_eval.__version__,
        "task_versions": {name: str(found["versions"].get(name)) for name in requested},
        "examples": {name: len(samples) for name, samples in found["samples"].items()},
    }
    return {
        "forget_accuracy": fmean([numbers[f"{name}_acc"] for name in tasks.forget]),
        "retain_accuracy": fmean([numbers[f"{name}_acc"] for name in tasks.retain]),
        **numbers,
        "per_example": per_example,
        "settings": settings,
    }


def _load(folder: str | None, names: Sequence[str]) -> dict[str, Any]:
    """The tasks and groups as the harness takes them, with their data."""
    from lm_eval.tasks import TaskManager  # type: ignore[import-not-found, unused-ignore]

    # The harness's own tasks are thousands of files, which take a while to read: only if they are needed.
    manager = TaskManager(include_path=folder, include_defaults=folder is None)
    if not set(names) <= set(manager.all_tasks):
        manager = TaskManager(include_path=folder)
    loaded: dict[str, Any] = {"tasks": {}, "groups": {}}
    for name in names:
        if name not in manager.all_tasks:
            close = difflib.get_close_matches(name, manager.all_tasks, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(
                f"The harness has no task {name!r}{'' if folder is None else f', nor has {folder}'}.{hint}"
            )
        try:
            found = manager.load([name])
        except (ConnectionError, FileNotFoundError) as error:
            raise FileNotFoundError(
                f"The data of the task {name!r} cannot be loaded ({error}). The harness reads them from the hub; "
                "without a network, pass a folder with a task file that reads local data, see HarnessTasks."
            ) from error
        _check_accuracy(name, found)
        for kind in loaded:
            loaded[kind] |= found[kind]
    return loaded


def _check_accuracy(name: str, loaded: Mapping[str, Any]) -> None:
    """Raise a ValueError if the harness will report no accuracy of `name`: now, not after hours of scoring."""
    if name in loaded["groups"]:
        reported = [config.metric for config in loaded["groups"][name].aggregate_metric_list or []]
    elif name in loaded["tasks"]:
        reported = list(loaded["tasks"][name].aggregation())
    else:
        raise ValueError(
            f"{name!r} is a tag, and the harness reports no number for tags: name {', '.join(loaded['tasks'])}."
        )
    if "acc" not in reported:
        raise ValueError(f"{name!r} has no accuracy ('acc'); the harness reports {', '.join(reported) or 'nothing'}.")


def _harness_model(model: Any, tokenizer: Any, batch_size: int, across_processes: bool, progress: bool) -> Any:
    """`model` as the harness sees it, on one process or one of several."""
    from accelerate.utils import gather, gather_object
    from lm_eval.models.huggingface import HFLM  # type: ignore[import-not-found, unused-ignore]

    from wagle_trainer.evaluation.processes import process_state, shows_progress

    state = process_state() if across_processes else None

    class Wrapped(HFLM):
        """The harness takes a model that exists already for one of a single process, unless these say otherwise."""

        @property
        def rank(self) -> int:
            return state.process_index if state else 0

        @property
        def world_size(self) -> int:
            return state.num_processes if state else 1

        def all_gather(self, tensor: Any) -> Any:
            return gather(tensor) if state else tensor

        def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
            gathered = gather_object([obj]) if state else [obj]
            return gathered if self.rank == dst else None

        def barrier(self) -> None:
            if state:
                state.wait_for_everyone()

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return super().loglikelihood(requests, disable_tqdm=not shows_progress(progress, across_processes))

    # A copy of the tokenizer, since the harness sets its padding.
    return Wrapped(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size)


def _numbers(results: Mapping[str, Any]) -> dict[str, float]:
    """{"acc,none": 0.5, ...} without the filter's name where there is no filter, and without what is not a number."""
    return {key.removesuffix(",none"): value for key, value in results.items() if isinstance(value, float)}


def _weights(name: str, loaded: Mapping[str, Any], samples: Mapping[str, Sequence[Any]]) -> dict[str, float]:
    """How much each single task counts in the accuracy of a task or group."""
    if name not in loaded["groups"]:
        return {name: 1.0}
    group = loaded["groups"][name]
    by_size = next(config.weight_by_size for config in group.aggregate_metric_list if config.metric == "acc")
    counts = {task.task_name: len(samples[task.task_name]) if by_size else 1 for task in group.get_all_tasks()}
    return {task: count / sum(counts.values()) for task, count in counts.items()}


def _per_example(samples: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    rows = sorted(samples, key=lambda sample: sample["doc_id"])
    return {key: [row.get(key) for row in rows] for key in ("target", "acc")}
