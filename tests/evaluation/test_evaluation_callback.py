"""EvaluationCallback in WagleTrainer and in TRL's own trainer, on one process and on two."""

import importlib.util
import json
import logging
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.utils import logging as transformers_logging
from trl import SFTConfig, SFTTrainer

from wagle_trainer import WagleTrainer
from wagle_trainer.data import fictional_tokenizer
from wagle_trainer.evaluation import EvaluationCallback
from wagle_trainer.evaluation.attacks import forget_knowledge

SCRIPT = Path(__file__).with_name("callback_script.py")


class Recorder(TrainerCallback):
    """Stands for a tracker: what is logged, and the weights after each step."""

    def __init__(self):
        self.logs, self.weights = [], {}

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append((state.global_step, dict(logs)))

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.weights[state.global_step] = [p.detach().clone().view(torch.int32) for p in model.parameters()]


class Scripted:
    """A suite whose numbers are known beforehand: one entry per evaluation."""

    forget_metrics = {"leak": "lower", "quality": "higher"}  # noqa: RUF012
    utility_metrics = {"utility": "higher", "perplexity": "lower"}  # noqa: RUF012

    def __init__(self, *entries):
        self.entries, self.calls = list(entries), []

    def evaluate(self, model, tokenizer, data, **kwargs):
        self.calls.append((data, kwargs, model.training, torch.is_grad_enabled()))
        leak, utility = self.entries[len(self.calls) - 1]
        numbers = {"leak": leak, "utility": utility, "quality": 1 - leak, "perplexity": 1 / utility}
        return {**numbers, "per_example": {"forget": {}}, "settings": {}, "flag": True, "nothing": None}


@pytest.fixture
def make_trainer(make_gpt2, make_set, make_word_tokenizer, arguments, tmp_path):
    """make_trainer(kind, callbacks, **arguments) -> a trainer of a model with dropout, "wagle" or "sft"."""

    def make(kind="wagle", callbacks=(), **changes):
        model, tokenizer = make_gpt2(), make_word_tokenizer()
        args = arguments(max_steps=6, **changes)
        if kind == "wagle":
            sets = {"forget_dataset": make_set(8), "retain_dataset": make_set(12, seed=1)}
            return WagleTrainer(model, args, processing_class=tokenizer, callbacks=list(callbacks), **sets)
        known = {field for field in SFTConfig.__dataclass_fields__ if field != "loss_type"}
        plain = SFTConfig(**{name: value for name, value in vars(args).items() if name in known and name[0] != "_"})
        return SFTTrainer(
            model, plain, train_dataset=make_set(8), processing_class=tokenizer, callbacks=list(callbacks)
        )

    return make


def history_of(trainer):
    return json.loads((Path(trainer.args.output_dir) / "history.json").read_text())


def noisy(model, tokenizer):
    """An evaluation that uses up random numbers of every kind."""
    values = [random.random(), np.random.rand(), torch.rand(()).item()]
    assert not model.training
    return {"noise": sum(values), **forget_knowledge(model, tokenizer, ROWS, max_new_tokens=4)}


ROWS = [{"question": "w1 w2", "answer": "w3"}, {"question": "w4", "answer": "w5 w6 w7"}]


@pytest.mark.parametrize("kind", ["wagle", "sft"])
def test_training_is_untouched_and_every_tracker_sees_the_numbers(make_trainer, kind):
    runs = {}
    for evaluated in (False, True):
        recorder = Recorder()
        callback = EvaluationCallback(noisy, every_n_steps=4)
        trainer = make_trainer(kind, [recorder, *([callback] if evaluated else [])])
        callback.trainer = trainer if kind == "sft" else None  # a WagleTrainer enters itself
        trainer.train()
        assert trainer.model.training or kind == "sft"
        runs[evaluated] = recorder, trainer
    (plain, _), (recorder, trainer) = runs[False], runs[True]
    for step in range(1, 7):
        assert all(map(torch.equal, plain.weights[step], recorder.weights[step])), f"step {step} differs"

    history = history_of(trainer)
    assert [entry["step"] for entry in history] == [0, 4, 6]
    evaluations = [(step, logs) for step, logs in recorder.logs if "eval_probability" in logs]
    assert [step for step, _ in evaluations] == [0, 4, 6]
    for entry, (_, logs) in zip(history, evaluations, strict=True):
        assert set(entry["metrics"]) == {"noise", "probability", "rouge_l_recall"}
        assert {f"eval_{name}": value for name, value in entry["metrics"].items()} == {
            name: value for name, value in logs.items() if name != "epoch"
        }
    logged = [entry for entry in trainer.state.log_history if "eval_probability" in entry]
    assert [entry["step"] for entry in logged] == [0, 4, 6]
    final = forget_knowledge(trainer.model, trainer.processing_class, ROWS, max_new_tokens=4)
    assert {name: history[-1]["metrics"][name] for name in final} == pytest.approx(final)

    # the means over steps that trainers log of their own are not torn apart by ours
    def training_logs(of):
        timed = {"train_runtime", "train_samples_per_second", "train_steps_per_second", "num_tokens"}
        return [
            (step, {name: value for name, value in logs.items() if name not in timed})
            for step, logs in of.logs
            if "eval_probability" not in logs
        ]

    assert training_logs(recorder) == training_logs(plain)


def test_without_its_trainer_trackers_are_warned_of(make_trainer, caplog):
    callback = EvaluationCallback(Scripted(*[(0.5, 0.5)] * 3), every_n_steps=3)
    trainer = make_trainer("sft", [callback])
    trainer.args.report_to = ["tensorboard"]
    transformers_logging.enable_propagation()
    try:
        with caplog.at_level(logging.WARNING):
            trainer.train()
    finally:
        transformers_logging.disable_propagation()
    assert "EvaluationCallback does not know its trainer, so tensorboard will not get its numbers" in caplog.text
    assert [entry["step"] for entry in history_of(trainer)] == [0, 3, 6]
    assert [entry["step"] for entry in trainer.state.log_history if "eval_leak" in entry] == [0, 3, 6]


def test_how_the_suite_is_called(make_trainer):
    suite = Scripted(*[(0.5, 0.5)] * 4)
    data = {"forget": []}
    callback = EvaluationCallback(
        suite, data, every_n_steps=100, metrics=["quality"], at_start=False, utility_floor=0.1, batch_size=7
    )
    trainer = make_trainer("wagle", [callback])
    trainer.train()
    assert suite.calls == [(data, {"across_processes": False, "progress": False, "batch_size": 7}, False, False)]
    assert history_of(trainer) == [
        {"step": 6, "metrics": {"quality": 0.5, "utility": 0.5}}
    ]  # what it decides by stays
    assert all(type(entry["metrics"]["quality"]) is float for entry in history_of(trainer))


def test_stops_under_the_utility_floor(make_trainer, caplog):
    suite = Scripted((0.9, 0.8), (0.5, 0.7), (0.2, 0.4))
    callback = EvaluationCallback(suite, every_n_steps=1, utility_floor=0.6)
    trainer = make_trainer("wagle", [callback])
    transformers_logging.enable_propagation()
    try:
        with caplog.at_level(logging.WARNING):
            trainer.train()
    finally:
        transformers_logging.disable_propagation()
    assert trainer.state.global_step == 2
    reason = "utility is 0.4, on the wrong side of utility_floor=0.6."
    assert [entry.get("stopped") for entry in history_of(trainer)] == [None, None, reason]
    assert f"Training stops at step 2: {reason}" in caplog.text


@pytest.mark.parametrize(
    ("options", "step"),
    [
        ({"forget_goal": 0.3}, 4),
        ({"forget_goal": 0.2}, 4),  # reached is reached
        ({"forget_goal": 0.3, "stop_at_goal": False}, 6),
        ({"forget_goal": 0.19}, 6),
        ({"forget_metric": "quality", "forget_goal": 0.5}, 2),
        ({"utility_metric": "perplexity", "utility_floor": 1.5}, 4),
        ({"utility_metric": "perplexity", "utility_floor": 0.9, "utility_greater_is_better": True}, 6),
    ],
)
def test_goals_and_floors_in_both_directions(make_trainer, options, step):
    suite = Scripted((0.9, 0.8), (0.5, 0.7), (0.2, 0.4), (0.2, 0.4))
    trainer = make_trainer("wagle", [EvaluationCallback(suite, every_n_steps=2, **options)])
    trainer.train()
    assert trainer.state.global_step == step
    assert ("stopped" in history_of(trainer)[-1]) == (step < 6)


@pytest.mark.parametrize("save_strategy", ["no", "steps"])
def test_the_best_checkpoint_is_kept_and_loaded(make_trainer, save_strategy):
    # step 0, 1, ...: only steps 3 to 5 reach the goal, of them 4 has the highest utility
    suite = Scripted((0.9, 1.0), (0.8, 0.9), (0.5, 0.95), (0.2, 0.5), (0.2, 0.8), (0.1, 0.7), (0.4, 0.9))
    recorder = Recorder()
    callback = EvaluationCallback(suite, every_n_steps=1, forget_goal=0.3, keep_best=True, load_best_at_end=True)
    trainer = make_trainer(
        "wagle", [recorder, callback], save_strategy=save_strategy, save_steps=1, save_total_limit=1
    )
    trainer.train()
    assert trainer.state.global_step == 6, "keep_best goes on after the goal"
    assert trainer.state.best_global_step == 4
    assert trainer.state.best_metric == 0.8
    best = Path(trainer.state.best_model_checkpoint)
    assert best.name == "checkpoint-4"
    assert (best / "mask.safetensors").is_file()
    assert not (best.parent / "checkpoint-3").exists()
    weights = [parameter.detach().view(torch.int32) for parameter in trainer.model.parameters()]
    assert all(map(torch.equal, weights, recorder.weights[4]))
    assert not all(map(torch.equal, weights, recorder.weights[6]))
    assert trainer.args.load_best_model_at_end is False


def test_the_best_checkpoint_is_noted_before_another_process_has_written_it(make_trainer):
    """Else the processes would disagree on what to load at the end: those without a file to write come here first."""
    callback = EvaluationCallback(Scripted(), every_n_steps=1, forget_goal=0.3, keep_best=True)
    args = make_trainer("wagle", [callback]).args
    state = TrainerState(global_step=4, best_global_step=4)
    callback.on_save(args, state, TrainerControl())
    assert state.best_model_checkpoint == str(Path(args.output_dir) / "checkpoint-4")
    state.global_step = 5
    callback.on_save(args, state, TrainerControl())
    assert state.best_model_checkpoint.endswith("checkpoint-4")


def test_nothing_to_load_at_the_end_is_said(make_trainer, caplog):
    callback = EvaluationCallback(
        Scripted((0.9, 0.8), (0.5, 0.3)),
        every_n_steps=2,
        forget_goal=0.3,
        utility_floor=0.5,
        keep_best=True,
        load_best_at_end=True,
    )
    trainer = make_trainer("wagle", [callback])
    transformers_logging.enable_propagation()
    try:
        with caplog.at_level(logging.WARNING):
            trainer.train()
    finally:
        transformers_logging.disable_propagation()
    assert trainer.state.global_step == 2
    assert "load_best_at_end has nothing to load" in caplog.text


def test_while_no_evaluation_reaches_the_goal_the_best_is_the_one_that_forgets_most(make_trainer):
    suite = Scripted((0.9, 1.0), (0.8, 0.9), (0.5, 0.8), (0.6, 0.95), (0.4, 0.2))
    callback = EvaluationCallback(suite, every_n_steps=2, forget_goal=0.1, utility_floor=0.5, keep_best=True)
    trainer = make_trainer("wagle", [callback])
    trainer.train()
    assert (trainer.state.best_global_step, trainer.state.best_metric) == (4, 0.5)
    suite = Scripted((0.9, 1.0), (0.5, 0.4))
    callback = EvaluationCallback(suite, every_n_steps=2, forget_goal=0.1, utility_floor=0.5, keep_best=True)
    trainer = make_trainer("wagle", [callback])
    trainer.train()
    assert trainer.state.global_step == 2
    assert trainer.state.best_global_step is None, "an evaluation under the floor was kept as the best"


def test_a_resumed_run_goes_on_with_its_history(make_trainer):
    entries = [(0.9, 1.0), (0.3, 0.9), (0.2, 0.8), (0.1, 0.7)]
    options = {"every_n_steps": 2, "forget_goal": 0.5, "keep_best": True}
    whole = make_trainer(
        "wagle", [EvaluationCallback(Scripted(*entries), **options)], save_strategy="steps", save_steps=3
    )
    whole.train()
    expected = history_of(whole)
    assert [entry["step"] for entry in expected] == [0, 2, 4, 6]
    checkpoints = {path.name for path in Path(whole.args.output_dir).glob("checkpoint-*")}
    assert checkpoints == {"checkpoint-2", "checkpoint-3", "checkpoint-6"}
    shutil.rmtree(Path(whole.args.output_dir) / "checkpoint-6")  # as if it had been killed at step 5

    suite = Scripted(*entries[2:])
    resumed = make_trainer("wagle", [EvaluationCallback(suite, **options)], save_strategy="steps", save_steps=3)
    resumed.train(resume_from_checkpoint=True)
    assert len(suite.calls) == 2
    assert history_of(resumed) == expected
    assert resumed.state.best_global_step == 2
    assert resumed.state.best_model_checkpoint.endswith("checkpoint-2")

    # a new run in the same folder does not
    again = make_trainer("wagle", [EvaluationCallback(Scripted(*[(0.7, 0.7)] * 4), **options)])
    again.train()
    assert [entry["metrics"]["leak"] for entry in history_of(again)] == [0.7] * 4


def test_a_history_of_other_metrics(make_trainer):
    callback = EvaluationCallback(lambda model, tokenizer: {"other": 1.0}, every_n_steps=3)
    make_trainer("wagle", [callback], save_strategy="steps", save_steps=3).train()
    shutil.rmtree(next(Path(callback.trainer.args.output_dir).glob("checkpoint-6")))
    callback = EvaluationCallback(Scripted(*[(0.5, 0.5)] * 4), every_n_steps=3, forget_goal=0.1)
    trainer = make_trainer("wagle", [callback], save_strategy="steps", save_steps=3)
    with pytest.raises(ValueError, match=r"history.json lack leak: the run was begun with other metrics. Resume with"):
        trainer.train(resume_from_checkpoint=True)


def test_a_damaged_history(make_trainer, tmp_path):
    callback = EvaluationCallback(Scripted(*[(0.5, 0.5)] * 4), every_n_steps=3)
    trainer = make_trainer("wagle", [callback], save_strategy="steps", save_steps=3)
    trainer.train()
    (Path(trainer.args.output_dir) / "history.json").write_text('[{"step": 0,')
    callback = EvaluationCallback(Scripted(*[(0.5, 0.5)] * 4), every_n_steps=3)
    with pytest.raises(ValueError, match=r"history.json is no list of .* move it away"):
        make_trainer("wagle", [callback]).train(
            resume_from_checkpoint=str(Path(trainer.args.output_dir) / "checkpoint-3")
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_n_steps": 0}, "every_n_steps must be a whole number"),
        ({"every_n_steps": 1.5}, "every_n_steps must be a whole number"),
        ({"suite": 7}, "suite must be a name, a Suite or a function"),
        ({"suite": noisy, "forget_goal": 0.1}, "forget_goal needs forget_metric"),
        ({"suite": noisy, "utility_floor": 0.1}, "utility_floor needs utility_metric"),
        ({"keep_best": True}, "keep_best .* needs forget_goal and utility_metric"),
        ({"load_best_at_end": True}, "needs keep_best"),
    ],
)
def test_options_that_cannot_work(options, message):
    with pytest.raises(ValueError, match=message):
        EvaluationCallback(**({"suite": Scripted(), "every_n_steps": 1} | options))


def test_what_cannot_work_stops_before_the_first_step(make_trainer):
    def check(message, error=ValueError, entries=((0.9, 0.8),), changes=None, **options):
        trainer = make_trainer("wagle", [EvaluationCallback(Scripted(*entries), every_n_steps=1, **options)])
        for name, value in (changes or {}).items():
            setattr(trainer.args, name, value)
        with pytest.raises(error, match=message):
            trainer.train()
        assert trainer.state.global_step == 0

    check("utility is 0.8 before training, on the wrong side of utility_floor=0.9", utility_floor=0.9)
    check("gives no number bleu. It gives: leak, utility, quality, perplexity", metrics=["bleu"])
    check("'leak' is nan at step 0", FloatingPointError, entries=((float("nan"), 0.5),))
    check(
        "metric_for_best_model='loss'. Leave",
        changes={"metric_for_best_model": "loss"},
        forget_goal=0.1,
        keep_best=True,
    )


def test_a_suite_may_be_given_as_its_class():
    assert isinstance(EvaluationCallback(Scripted, every_n_steps=1).suite, Scripted)


def test_one_callback_per_trainer(make_trainer):
    callbacks = [EvaluationCallback(Scripted((0.5, 0.5)), every_n_steps=1) for _ in range(2)]
    with pytest.raises(ValueError, match="has 2 EvaluationCallbacks, which would overwrite each other's history.json"):
        make_trainer("wagle", callbacks).train()


def test_suites_by_name():
    suites = pytest.importorskip("wagle_trainer.evaluation.suites")
    callback = EvaluationCallback("tofu", {}, every_n_steps=1, forget_goal=0.1, utility_floor=0.5)
    assert type(callback.suite) is type(suites.get_suite("tofu"))
    assert (callback.forget.metric, callback.utility.metric) == ("forget_Q_A_Prob", "model_utility")
    with pytest.raises(ValueError, match="Did you mean 'tofu'"):
        EvaluationCallback("tofuu", {}, every_n_steps=1)
    with pytest.raises(ValueError, match="The suite 'tofu' needs data: EvaluationCallback"):
        EvaluationCallback("tofu", every_n_steps=1)


@pytest.mark.distributed
def test_two_processes_measure_and_decide_as_one(tmp_path, make_llama, run_script):
    spec = importlib.util.spec_from_file_location("callback_script", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    tokenizer = fictional_tokenizer()
    tokenizer.save_pretrained(tmp_path / "model")
    make_llama(vocab_size=len(tokenizer)).save_pretrained(tmp_path / "model")
    one = script.train(tmp_path, tmp_path / "one", 4)
    two = tmp_path / "two"
    run_script(SCRIPT, tmp_path, two, processes=2)
    ranks = [json.loads((two / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert [rank["world"] for rank in ranks] == [2, 2]
    assert ranks[0]["history"] == ranks[1]["history"] == json.loads((two / "history.json").read_text())
    assert [entry["step"] for entry in one["history"]] == [0, 2, 4, 6]
    for ours, theirs in zip(one["history"], ranks[0]["history"], strict=True):
        assert theirs["step"] == ours["step"]
        assert theirs["metrics"] == pytest.approx(ours["metrics"], rel=1e-3, abs=1e-6)
    assert ranks[0]["history"][0]["metrics"] == pytest.approx(one["history"][0]["metrics"], rel=1e-5)
    assert ranks[0]["best"] == ranks[1]["best"] == one["best"]
    assert [entry["step"] for entry in ranks[0]["logged"]] == [0, 2, 4, 6]
    assert (two / f"checkpoint-{one['best']}" / "mask.safetensors").is_file()


def test_a_goal_for_a_number_that_may_be_better_either_way():
    with pytest.raises(
        ValueError, match=r"'privleak' is none of the suite's forget metrics \(.*forget_greater_is_better"
    ):
        EvaluationCallback("tofu", {}, every_n_steps=1, forget_metric="privleak", forget_goal=10)
    EvaluationCallback(
        "tofu", {}, every_n_steps=1, forget_metric="privleak", forget_goal=10, forget_greater_is_better=False
    )
