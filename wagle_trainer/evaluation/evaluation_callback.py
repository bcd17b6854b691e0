"""`EvaluationCallback`: measures while a trainer trains, stops it in time, and keeps the best checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from wagle_trainer.evaluation.results import load_results, metrics_of, save_results
from wagle_trainer.evaluation.suites import get_suite
from wagle_trainer.models.modes import evaluation_mode, preserved_rng

logger = logging.get_logger(__name__)

HISTORY_NAME = "history.json"


class EvaluationCallback(TrainerCallback):
    """Measure forgetting and utility every few steps while a `WagleTrainer`, `SFTTrainer` or any other trainer trains.

    The numbers go to the trackers and to `state.log_history` as `eval_<metric>`, and to `history.json` in the output
    folder, a list of `{"step": ..., "metrics": {...}}` with the step 0 before training. A resumed run goes on with the
    list of the steps up to its checkpoint. Training itself is untouched: its final weights are bitwise identical to those without evaluations.

    On several processes, the suite shards the examples. Every process gets the same numbers, and acts alike.

    Args:
        suite: a name of `list_suites()`; a `Suite`; a function like `evaluate_tofu`, called as `suite(model, tokenizer,
            data, across_processes=..., progress=..., **options)`; or, without `data`, any function `(model, tokenizer)
            -> results`, which every process calls. Results are a dict whose numbers at the top level are the metrics.
        data: what the suite evaluates on. Less of it makes evaluations cheaper.
        every_n_steps: optimizer steps between evaluations; the last step is always evaluated.
        metrics: which numbers to keep; all of them if None.
        forget_metric, utility_metric: what `forget_goal` and `utility_floor` are about; by default the suite's first.
        forget_goal: the value of `forget_metric` from which on enough is forgotten.
        utility_floor: the value of `utility_metric` at whose wrong side training stops.
        forget_greater_is_better, utility_greater_is_better: whether a higher value means more forgotten, more kept; by
            default what the suite says, and for metrics that it does not know False and True.
        stop_at_goal: stop training once the goal is met; by default unless `keep_best`, which may find better later.
        keep_best: have the trainer save a checkpoint whenever an evaluation is the best so far, and keep it whatever
            `save_total_limit` says: `trainer.state.best_model_checkpoint`. The best is the one with the highest utility
            among those that reach the forget goal; while none does, the one that forgets most. Evaluations on the wrong
            side of the utility floor do not count.
        load_best_at_end: with `keep_best`, load it when training ends.
        at_start: also evaluate before the first step.
        trainer: the trainer, through which trackers get the numbers. A `WagleTrainer` enters itself; for others, as with
            TRL's own callbacks: `trainer.add_callback(EvaluationCallback(..., trainer=trainer))`. Without it the numbers
            are in the log history and in `history.json` only.
        **options: further arguments of the evaluation, such as `batch_size`.

    Attributes:
        history: what `history.json` holds; an entry at which training was stopped says why under "stopped".

    Raises:
        ValueError: when training begins, before any step: an option out of range, a metric without a name, a floor that
            the model is under before training, or a trainer that chooses its best checkpoint by a metric of its own.

    Example:
        >>> WagleTrainer(
        ...     ..., callbacks=[EvaluationCallback("tofu", data, every_n_steps=50, forget_goal=0.1, utility_floor=0.6)]
        ... )
    """

    def __init__(
        self,
        suite: Any,
        data: Any = None,
        *,
        every_n_steps: int,
        metrics: Sequence[str] | None = None,
        forget_metric: str | None = None,
        utility_metric: str | None = None,
        forget_goal: float | None = None,
        utility_floor: float | None = None,
        forget_greater_is_better: bool | None = None,
        utility_greater_is_better: bool | None = None,
        stop_at_goal: bool | None = None,
        keep_best: bool = False,
        load_best_at_end: bool = False,
        at_start: bool = True,
        trainer: Any = None,
        **options: Any,
    ):
        if isinstance(suite, str):
            name, suite = suite, get_suite(suite)
            if data is None:
                raise ValueError(
                    f"The suite {name!r} needs data: EvaluationCallback({name!r}, get_suite({name!r}).load(...), ...)."
                )
        if isinstance(suite, type):
            suite = suite()
        if not callable(suite) and not hasattr(suite, "evaluate"):
            raise ValueError(f"suite must be a name, a Suite or a function, not {suite!r}.")
        if isinstance(every_n_steps, bool) or not isinstance(every_n_steps, int) or every_n_steps < 1:
            raise ValueError(f"every_n_steps must be a whole number from 1 on, not {every_n_steps!r}.")
        self.suite, self.data, self.options = suite, data, options
        self.every_n_steps, self.at_start, self.trainer = every_n_steps, at_start, trainer
        self.metrics = None if metrics is None else list(metrics)
        self.forget = _Side(suite, "forget", forget_metric, forget_goal, forget_greater_is_better)
        self.utility = _Side(suite, "utility", utility_metric, utility_floor, utility_greater_is_better)
        self.stop_at_goal = not keep_best if stop_at_goal is None else stop_at_goal
        self.keep_best, self.load_best_at_end = keep_best, load_best_at_end
        self.history: list[dict[str, Any]] = []
        if forget_goal is not None and self.forget.metric is None:
            raise ValueError("forget_goal needs forget_metric: the name of the number that it is about.")
        if utility_floor is not None and self.utility.metric is None:
            raise ValueError("utility_floor needs utility_metric: the name of the number that it is about.")
        if keep_best and (forget_goal is None or self.utility.metric is None):
            raise ValueError(
                "keep_best takes the highest utility among the evaluations that reach the forget goal: it needs "
                "forget_goal and utility_metric."
            )
        if load_best_at_end and not keep_best:
            raise ValueError("load_best_at_end=True needs keep_best=True.")

    def on_train_begin(self, args, state, control, model=None, processing_class=None, **kwargs):
        if self.trainer is not None:
            others = [other for other in self.trainer.callback_handler.callbacks if isinstance(other, type(self))]
            if len(others) > 1:
                raise ValueError(
                    f"The trainer has {len(others)} EvaluationCallbacks, which would overwrite each other's {HISTORY_NAME}: "
                    "give it one, with a function that measures everything."
                )
        if self.keep_best and args.metric_for_best_model is not None:
            raise ValueError(
                "keep_best chooses the best checkpoint by forgetting and utility, but the trainer is to choose it by "
                f"metric_for_best_model={args.metric_for_best_model!r}. Leave metric_for_best_model and "
                "load_best_model_at_end unset (load_best_at_end=True of this callback does the latter)."
            )
        if self.trainer is None and args.report_to:
            logger.warning(
                f"EvaluationCallback does not know its trainer, so {', '.join(args.report_to)} will not get its numbers: "
                "trainer.add_callback(EvaluationCallback(..., trainer=trainer)) after making the trainer."
            )
        self.history = _agreed(self._read(args, state) if state.is_world_process_zero else None)
        if self.load_best_at_end:
            # The trainer looks at it, and at the state that is kept below, at its end.
            args.load_best_model_at_end = True
        best = self._best() if self.keep_best else None
        if best is not None:  # a resumed run; a checkpoint's own state may be one evaluation behind
            self._mark_best(state, best)
            checkpoint = _checkpoint(args, best["step"])
            state.best_model_checkpoint = str(checkpoint) if _agreed(checkpoint.is_dir()) else None
        if self.at_start and state.global_step == 0:
            entry = self._evaluate(args, state, control, model, processing_class)
            if self.utility.is_missed(entry):
                raise ValueError(
                    f"{self.utility.describe(entry)} before training, on the wrong side of utility_floor="
                    f"{self.utility.bound}: training would stop at its first evaluation."
                )

    def on_step_end(self, args, state, control, model=None, processing_class=None, **kwargs):
        if state.global_step % self.every_n_steps and not control.should_training_stop:
            return
        entry = self._evaluate(args, state, control, model, processing_class)
        if self.keep_best and self._best() is entry:
            self._mark_best(state, entry)
            control.should_save = True
        if "stopped" in entry:
            logger.warning(f"Training stops at step {state.global_step}: {entry['stopped']}")
            control.should_training_stop = True

    def on_save(self, args, state, control, **kwargs):
        if self.keep_best and state.best_global_step == state.global_step:
            # With save_strategy="no", the trainer saves when it is told to, but does not note what was best. Without a
            # look at the folder: the process that writes it may have only begun.
            state.best_model_checkpoint = str(_checkpoint(args, state.global_step))

    def on_train_end(self, args, state, control, **kwargs):
        if self.load_best_at_end:
            args.load_best_model_at_end = False  # as it was
            if state.best_model_checkpoint is None:
                logger.warning(
                    "load_best_at_end has nothing to load: no evaluation after the first step was on the right side of "
                    "utility_floor, or its checkpoint is gone. The model has the weights of the last step."
                )

    def _evaluate(self, args: Any, state: Any, control: Any, model: Any, processing_class: Any) -> dict[str, Any]:
        """Measure, log, and append to the history."""
        tokenizer = getattr(processing_class, "tokenizer", processing_class)
        with preserved_rng(), evaluation_mode(model):
            measured = _agreed(self._numbers(self._measure(args, model, tokenizer)))
            for name, value in measured.items():
                if not math.isfinite(value):
                    raise FloatingPointError(f"The metric {name!r} is {value} at step {state.global_step}.")
            # Still in eval mode: trainers that add means of the training steps to what they log leave them alone.
            logs = {f"eval_{name}": value for name, value in measured.items()}
            if self.trainer is not None:
                should_log = control.should_log
                self.trainer.log(logs)
                control.should_log = should_log  # logging lowered it: what the trainer logs itself is still to come
            else:
                state.log_history.append({**logs, "epoch": state.epoch, "step": state.global_step})
        entry: dict[str, Any] = {"step": state.global_step, "metrics": measured}
        reason = self._reason_to_stop(entry) if state.global_step else None
        if reason is not None:
            entry["stopped"] = reason
        self.history.append(entry)
        if state.is_world_process_zero:
            save_results(self.history, Path(args.output_dir) / HISTORY_NAME)
        return entry

    def _measure(self, args: Any, model: Any, tokenizer: Any) -> Mapping[str, Any]:
        evaluate: Callable[..., Mapping[str, Any]] = getattr(self.suite, "evaluate", self.suite)
        if self.data is None and evaluate is self.suite:
            return evaluate(model, tokenizer, **self.options)
        shared: dict[str, Any] = {"across_processes": args.world_size > 1, "progress": not args.disable_tqdm}
        qa_format = getattr(self.trainer, "qa_format", None)
        if qa_format is not None and getattr(self.suite, "takes_qa_format", False) and "style" not in self.options:
            shared["qa_format"] = qa_format  # questions are asked as they were trained on
        return evaluate(model, tokenizer, self.data, **(shared | self.options))

    def _numbers(self, results: Mapping[str, Any]) -> dict[str, float]:
        found = metrics_of(results)
        needed = [side.metric for side in (self.forget, self.utility) if side.metric and side.bound is not None]
        needed += [self.utility.metric] if self.keep_best and self.utility.metric else []
        wanted = list(found) if self.metrics is None else self.metrics
        wanted = list(dict.fromkeys([*wanted, *needed]))
        missing = [name for name in wanted if name not in found]
        if missing:
            raise ValueError(f"The evaluation gives no number {', '.join(missing)}. It gives: {', '.join(found)}.")
        return {name: found[name] for name in wanted}

    def _reason_to_stop(self, entry: Mapping[str, Any]) -> str | None:
        if self.utility.is_missed(entry):
            return f"{self.utility.describe(entry)}, on the wrong side of utility_floor={self.utility.bound}."
        if self.stop_at_goal and self.forget.bound is not None and not self.forget.is_missed(entry):
            return f"{self.forget.describe(entry)}, which reaches forget_goal={self.forget.bound}."
        return None

    def _best(self) -> dict[str, Any] | None:
        """The best entry by the rule in the docstring; the earliest of several."""
        candidates = [entry for entry in self.history if entry["step"] > 0 and not self.utility.is_missed(entry)]
        reached = [entry for entry in candidates if not self.forget.is_missed(entry)]
        side = self.utility if reached else self.forget
        return max(reached or candidates, key=side.goodness, default=None)

    def _mark_best(self, state: Any, entry: Mapping[str, Any]) -> None:
        """Tell the trainer which step is the best: it protects that checkpoint, and can load it at the end."""
        side = self.forget if self.forget.is_missed(entry) else self.utility
        state.best_global_step, state.best_metric = entry["step"], entry["metrics"][side.metric]

    def _read(self, args: Any, state: Any) -> list[dict[str, Any]]:
        """The entries up to the step from which the run goes on; none for a new run."""
        path = Path(args.output_dir) / HISTORY_NAME
        if state.global_step == 0 or not path.exists():
            return []
        needed = [
            s.metric for s in (self.forget, self.utility) if s.metric and (self.keep_best or s.bound is not None)
        ]
        try:
            history = [entry for entry in load_results(path) if entry["step"] <= state.global_step]
            missing = sorted({metric for entry in history for metric in needed if metric not in entry["metrics"]})
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f'{path} is no list of {{"step", "metrics"}}: move it away to go on without the evaluations so far.'
            ) from error
        if missing:
            raise ValueError(
                f"The evaluations in {path} lack {', '.join(missing)}: the run was begun with other metrics. Resume with "
                "those, or move the file away to go on without the evaluations so far."
            )
        return history


class _Side:
    """One of the two numbers that decide, which way it is better, and the value that it has to reach."""

    def __init__(self, suite: Any, name: str, metric: str | None, bound: float | None, greater_is_better: bool | None):
        known: Mapping[str, str] = getattr(suite, f"{name}_metrics", {})
        self.metric = metric if metric is not None else next(iter(known), None)
        self.bound = bound
        if greater_is_better is None:
            if bound is not None and known and self.metric not in known:
                raise ValueError(
                    f"{self.metric!r} is none of the suite's {name} metrics ({', '.join(known)}), so it is not known which way "
                    f"it is better: pass {name}_greater_is_better."
                )
            greater_is_better = known.get(self.metric or "", "lower" if name == "forget" else "higher") == "higher"
        self.sign = 1 if greater_is_better else -1

    def goodness(self, entry: Mapping[str, Any]) -> float:
        return self.sign * entry["metrics"][self.metric]

    def is_missed(self, entry: Mapping[str, Any]) -> bool:
        """Whether the value is short of the bound; never without a bound."""
        return self.bound is not None and self.goodness(entry) < self.sign * self.bound

    def describe(self, entry: Mapping[str, Any]) -> str:
        return f"{self.metric} is {entry['metrics'][self.metric]:.6g}"


def _checkpoint(args: Any, step: int) -> Path:
    return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def _agreed(value: Any) -> Any:
    """What the main process has, on all processes: they have to act alike."""
    if PartialState().num_processes == 1:
        return value
    return broadcast_object_list([value])[0]
