"""Several processes (gloo, on the CPU) do what one does, on every engine that runs here."""

import importlib.util
import json
import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from wagle_trainer import WeightMask
from wagle_trainer.adapters import merge
from wagle_trainer.engines.ddp import DataParallel
from wagle_trainer.engines.fsdp2 import FSDP2

# Without a limit: how long a launch takes depends on what else the machine does.
pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.timeout(0)]

SCRIPT = Path(__file__).with_name("engine_script.py")
train = runpy.run_path(str(SCRIPT))["train"]
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
ENVIRONMENTS = {
    "one": {"ACCELERATE_USE_CPU": "1"},
    "ddp": {"ACCELERATE_USE_CPU": "1"},
    "fsdp2": FSDP | {"ACCELERATE_USE_CPU": "1", "FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"},
    "fsdp1": FSDP
    | {
        "ACCELERATE_USE_CPU": "1",
        "FSDP_VERSION": "1",
        "FSDP_SHARDING_STRATEGY": "FULL_SHARD",
        "FSDP_USE_ORIG_PARAMS": "true",
        "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    },
    **{f"zero{stage}": {"DS_ACCELERATOR": "cpu"} for stage in (1, 2, 3)},
}
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed (pip install -e '.[deepspeed]')"
)


# What runs on each engine, by name: arguments, and the name of the case whose checkpoint it resumes from.
BETA, KL = {"loss_kwargs": {"beta": 0.5}}, {"loss_kwargs": {"retain_loss": "kl"}}
ADAPTER = {"save_adapter": True, "optim": "adamw_torch"}
# Plain Adam's first steps have no size, only a sign: epsilon keeps rounding from deciding it.
SGD, ADAMW = {"adam_epsilon": 1e-3}, {"optim": "adamw_torch", "adam_epsilon": 1e-3}
EARLIER = {"max_steps": 1, "attribution": "random"}
BY_RULE = {
    "attribution_gamma": "balanced",
    "density": "auto",
    "attribution_exclude_mask": "one/earlier",
    "max_steps": 1,
}
GIVEN = {"mask_path": "one/plain"}
COMPACT = {"density": 0.05, "optim": "adamw_torch", "adam_epsilon": 1e-3, "attribution": "magnitude"}
# Two processes with two examples each: the last batch has one example on one of them, and none on the other.
UNEVEN = {"forget_rows": 5, "attribution": "magnitude", "adam_epsilon": 1e-3, "save_strategy": "no"}
NAN = (GIVEN | {"poison": True}, None)
# Losses that need more of the model than log-probabilities; weights where both processes agree without a score.
LOGITS = KL | {"attribution": "magnitude"}
STATES = {
    # No loss depends on the layer above and the last norm: they have no gradients and do not decay, wherever they run.
    "loss_type": "rmu",
    "loss_kwargs": {"layer": 0, "adaptive": True},
    "retain_weight": 5.0,
    "attribution": "magnitude",
}
NO_MASK = STATES | {"attribution": None, "save_strategy": "no"}
COMPACT_STATES = STATES | COMPACT
# Besides `kl`: of the other retain loss, and of the forget set.
JS = LOGITS | {"loss_kwargs": {"retain_loss": "js"}}
UNDIAL = {"loss_type": "undial", "attribution": "magnitude"}
# One example at a time over all processes; tests/attribution/test_processes.py has FSDP2.
SQUARES = {"attribution": "curvature", "max_steps": 2, "save_strategy": "no"}
ROWS = {"attribution": "answer_rows", "max_steps": 2, "save_strategy": "no"}
PENALTY = {"loss_type": "l1_sparse", "loss_kwargs": {"gamma": 1e-3}, "attribution": "magnitude"}
NEEDING_MORE = {
    "logits": (LOGITS, None),
    "states": (STATES, None),
}
NEEDING_LOGITS = {"js": (JS, None), "undial": (UNDIAL, None)}
ONE = {
    **NEEDING_MORE,
    **NEEDING_LOGITS,
    "compact states": (COMPACT_STATES, None),
    "penalty": (PENALTY, None),
    "squares": (SQUARES, None),
    "rows": (ROWS, None),
    "no mask": (NO_MASK, None),
    "plain": ({}, None),
    "nll": (BETA, None),
    "kl": (KL, None),
    "nll resumed": (BETA, "ddp/nll"),
    "sgd": (SGD, None),
    "adamw": (ADAMW, None),
    "earlier": (EARLIER, None),
    "rule": (BY_RULE, None),
    "uneven": (UNEVEN, None),
    "compact": (COMPACT, None),
}
CASES = {
    "ddp": (
        2,
        {
            "nll": (BETA, None),
            "nll resumed": (BETA, "ddp/nll"),
            "kl": (KL, None),
            "states": (STATES, None),
            "compact states": (COMPACT_STATES, None),
            "no mask": (NO_MASK, None),
            **NEEDING_LOGITS,
            "adapter": (ADAPTER, None),
            "adapter resumed": (ADAPTER, "ddp/adapter"),
            "rule": (BY_RULE, None),
            "uneven": (UNEVEN, None),
            "nan": NAN,
        },
    ),
    "fsdp2": (
        2,
        {
            "sgd": (SGD, None),
            "adamw": (ADAMW, None),
            "adamw resumed": (ADAMW, "fsdp2/adamw"),
            "rule": (BY_RULE, None),
            "uneven": (UNEVEN, None),
            "compact": (COMPACT, None),
            "compact resumed": (COMPACT, "fsdp2/compact"),
            "no mask": (NO_MASK, None),
            **NEEDING_MORE,
            **NEEDING_LOGITS,
            "logits resumed": (LOGITS, "fsdp2/logits"),
            "states resumed": (STATES, "fsdp2/states"),
            "nan": NAN,
        },
    ),
    "fsdp2 on 4": (
        4,
        {"adamw resumed": (ADAMW, "fsdp2/adamw"), "compact resumed": (COMPACT, "fsdp2/compact")},
    ),
    "fsdp1": (
        2,
        {
            "plain": ({}, None),
            "squares": (SQUARES, None),
            "rows": (ROWS, None),
            "no mask": (NO_MASK, None),
            "given": (GIVEN, None),
            "given resumed": (GIVEN, "fsdp1/given"),
            **NEEDING_MORE,
            **NEEDING_LOGITS,
            "logits resumed": (LOGITS, "fsdp1/logits"),
            "states resumed": (STATES, "fsdp1/states"),
            "nan": NAN,
        },
    ),
    "zero1": (2, {"plain": ({}, None), "nan": NAN}),
    "zero2": (
        2,
        {
            "plain": ({}, None),
            "plain resumed": ({}, "zero2/plain"),
            **NEEDING_MORE,
            **NEEDING_LOGITS,
            "penalty": (PENALTY, None),
            "nan": NAN,
        },
    ),
    "zero3": (
        2,
        {
            "plain": ({}, None),
            "squares": (SQUARES, None),
            "rows": (ROWS, None),
            "given": (GIVEN, None),
            "given resumed": (GIVEN, "zero3/given"),
            **NEEDING_MORE,
            **NEEDING_LOGITS,
            "logits resumed": (LOGITS, "zero3/logits"),
            "states resumed": (STATES, "zero3/states"),
            "nan": NAN,
        },
    ),
}


class Runs:
    """Runs by "engine/case": those of one process in this one, all of an engine's in one process group."""

    def __init__(self, folder: Path, run_script):
        self.folder, self.run_script = folder, run_script
        self.failures: dict[str, str] = {}
        self.launched: set[str] = set()

    def __call__(self, name: str) -> Path:
        """The output folder of a run, which is made if need be."""
        engine, case = name.split("/")
        if not (self.output(name) / "done").is_file():
            if engine == "one":
                described = self.describe(name, ONE[case], 1)
                train("one", self.folder, Path(described["output"]), described["arguments"], described["checkpoint"])
                (self.output(name) / "done").touch()
            elif engine not in self.launched:
                self.launch(engine)
        assert (self.output(name) / "done").is_file(), self.failures.get(engine, f"{name} did not run")
        return self.output(name)

    def launch(self, engine: str) -> None:
        self.launched.add(engine)
        processes, cases = CASES[engine]
        described = [self.describe(f"{engine}/{case}", run, processes) for case, run in cases.items()]
        file = self.folder / f"{engine}.json"
        file.write_text(json.dumps(described))
        kind = engine.split()[0]
        try:
            self.run_script(SCRIPT, kind, self.folder, file, processes=processes, **ENVIRONMENTS[kind])
        except AssertionError as error:  # the cases that came before have their results
            self.failures[engine] = str(error)

    def describe(self, name: str, run: tuple[dict, str | None], processes: int) -> dict:
        arguments, resumes = run
        arguments = {"per_device_train_batch_size": 4 // processes} | arguments
        for key in ("mask_path", "attribution_exclude_mask"):
            if key in arguments:
                arguments[key] = str(self(arguments[key]))
        checkpoint = None
        if resumes is not None:
            same = resumes.split("/")[0] == name.split("/")[0]  # runs before it in the same process group
            checkpoint = str((self.output(resumes) if same else self(resumes)) / "checkpoint-3")
        return {"output": str(self.output(name)), "arguments": arguments, "checkpoint": checkpoint}

    def output(self, name: str) -> Path:
        return self.folder / "outputs" / name.replace(" ", "-")


@pytest.fixture(scope="module")
def run(tmp_path_factory, make_llama, make_set, make_word_tokenizer, run_script, one_thread):
    """run("engine/case") -> the output folder."""
    folder = tmp_path_factory.mktemp("engines")
    make_llama().save_pretrained(folder / "model")
    make_word_tokenizer().save_pretrained(folder / "model")
    make_set(16).save_to_disk(str(folder / "forget"))
    make_set(23, seed=1).save_to_disk(str(folder / "retain"))
    return Runs(folder, run_script)


def results(output: Path, processes: int) -> list[dict]:
    return [json.loads((output / f"rank{rank}.json").read_text()) for rank in range(processes)]


def assert_like_one_process(run, one: Path, many: Path, processes: int, engine: str, density: float = 0.3) -> None:
    ranks = results(many, processes)
    assert [rank["world"] for rank in ranks] == [processes] * processes
    assert ranks[0]["engine"] == engine
    assert len({rank["digest"] for rank in ranks}) == 1
    for rank in ranks:  # evaluations in a training run, sharded or not
        assert rank["evaluations"] == ranks[0]["evaluations"]
        alone, shared = rank["evaluations"]["alone"], rank["evaluations"]["shared"]
        if alone is not None:
            assert shared["scores"] == pytest.approx(alone["scores"], abs=1e-5)
            assert shared["texts"] == alone["texts"]

    masks = [WeightMask.from_pretrained(folder) for folder in (one, many)]
    assert masks[0].num_selected == masks[1].num_selected == int(density * masks[0].num_weights)
    different = (masks[0] | masks[1]).num_selected - (masks[0] & masks[1]).num_selected
    assert different <= 1e-4 * masks[0].num_weights
    assert masks[0].info.effective_density == pytest.approx(masks[1].info.effective_density, abs=1e-3)

    before = load_file(run.folder / "model" / "model.safetensors")
    after_one, after_many = (load_file(folder / "weights.safetensors") for folder in (one, many))
    for name in masks[1]:
        frozen, both = ~masks[1][name], masks[0][name] == masks[1][name]
        assert torch.equal(before[name][frozen].view(torch.int32), after_many[name][frozen].view(torch.int32)), name
        torch.testing.assert_close(after_many[name][both], after_one[name][both], rtol=1e-3, atol=1e-4)
    reached = [name for name in masks[1] if not torch.equal(before[name], after_one[name])]
    assert all(torch.equal(before[name], after_many[name]) for name in masks[1] if name not in reached)
    moved = sum(int((before[name] != after_many[name]).sum()) for name in reached)
    assert moved > 0.9 * sum(masks[1].num_selected_in(name) for name in reached)

    # What is logged is of all processes, too; the clipped norm is that of the selected weights.
    logs = [results(folder, 1)[0]["log"] for folder in (one, many)]
    for key in ("forget_loss", "retain_loss", "grad_norm"):
        values = [[entry[key] for entry in log if key in entry] for log in logs]
        assert values[0] == pytest.approx(values[1], rel=1e-3, abs=1e-4), key


def assert_same_weights(first: Path, second: Path) -> None:
    weights = [load_file(folder / "weights.safetensors") for folder in (first, second)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("case", ["nll", "kl", "states", *NEEDING_LOGITS])
def test_data_parallel(run, case):
    assert_like_one_process(run, run(f"one/{case}"), run(f"ddp/{case}"), 2, "MULTI_CPU")


def test_data_parallel_trains_compactly_what_the_loss_depends_on(run):
    two = run("ddp/compact states")
    assert {rank["updates"] for rank in results(two, 2)} == {"CompactUpdates"}
    assert_like_one_process(run, run("one/compact states"), two, 2, "MULTI_CPU", density=0.05)


def test_data_parallel_resumes_in_the_middle_of_an_epoch(run):
    resumed, two = run("ddp/nll resumed"), run("ddp/nll")
    assert_same_weights(resumed, two)
    assert results(resumed, 1)[0]["digest"] == results(two, 1)[0]["digest"]


def test_resume_on_one_process_after_two(run):
    assert DataParallel.resumes_on_other_process_counts
    assert_like_one_process(run, run("one/nll resumed"), run("ddp/nll"), 2, "MULTI_CPU")


def test_data_parallel_saves_and_resumes_adapters(run):
    two = run("ddp/adapter")
    last = max(two.glob("checkpoint-*"), key=lambda folder: int(folder.name.split("-")[1]))
    model = merge(AutoModelForCausalLM.from_pretrained(run.folder / "model"), last)
    weights = load_file(two / "weights.safetensors")
    assert all(torch.equal(parameter, weights[name]) for name, parameter in model.named_parameters())
    assert_same_weights(run("ddp/adapter resumed"), two)


@pytest.mark.parametrize("case", ["sgd", "adamw"])
def test_fsdp2(run, case):
    assert_like_one_process(run, run(f"one/{case}"), run(f"fsdp2/{case}"), 2, "FSDP")


def test_fsdp2_resumes_on_as_many_processes_and_on_others(run):
    assert FSDP2.resumes_on_other_process_counts
    assert_same_weights(run("fsdp2/adamw resumed"), run("fsdp2/adamw"))
    assert_like_one_process(run, run("one/adamw"), run("fsdp2 on 4/adamw resumed"), 4, "FSDP")


def test_fsdp2_trains_compactly_and_resumes_on_any_number_of_processes(run):
    """Gradients, masters and moments of the local rows alone; each process saves its own."""
    two = run("fsdp2/compact")
    assert {rank["updates"] for rank in results(two, 2)} == {"CompactUpdates"}
    assert_like_one_process(run, run("one/compact"), two, 2, "FSDP", density=0.05)
    assert_same_weights(run("fsdp2/compact resumed"), two)
    assert_like_one_process(run, run("one/compact"), run("fsdp2 on 4/compact resumed"), 4, "FSDP", density=0.05)
    masters = [load_file(folder / "masters.safetensors") for folder in (run("one/compact"), two)]
    for name, values in masters[0].items():
        torch.testing.assert_close(masters[1][name], values, rtol=1e-3, atol=1e-4)
        assert masters[1][name].shape == values.shape


@pytest.mark.parametrize(("engine", "kind"), [("ddp", "MULTI_CPU"), ("fsdp2", "FSDP")])
def test_every_example_counts_once_where_processes_get_unequal_numbers(run, engine, kind):
    assert_like_one_process(run, run("one/uneven"), run(f"{engine}/uneven"), 2, kind)


@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_gamma_density_and_earlier_masks_reach_the_attribution(run, engine):
    """By rule, and with an earlier mask's weights left out; tests/attribution/test_processes.py has every score."""
    masks = [WeightMask.from_pretrained(run(f"{where}/rule")) for where in ("one", engine)]
    different = (masks[0] | masks[1]).num_selected - (masks[0] & masks[1]).num_selected
    assert masks[0].num_selected == masks[1].num_selected
    assert different <= 1e-4 * masks[0].num_weights
    assert masks[0].info.requested_density == masks[1].info.requested_density
    assert masks[0].info.gamma == pytest.approx(masks[1].info.gamma, rel=1e-4)
    earlier = WeightMask.from_pretrained(run("one/earlier")).digest
    assert masks[0].info.exclude_mask == masks[1].info.exclude_mask == earlier


@pytest.mark.parametrize("case", ["plain", "given"])
def test_fsdp1(run, case):
    """It computes the mask by itself, or trains with one that is given."""
    assert_like_one_process(run, run("one/plain"), run(f"fsdp1/{case}"), 2, "FSDP")


def test_fsdp1_resumes(run):
    assert_same_weights(run("fsdp1/given resumed"), run("fsdp1/given"))


@needs_deepspeed
@pytest.mark.parametrize("stage", [1, 2])
def test_zero_1_and_2(run, stage):
    two = run(f"zero{stage}/plain")
    assert_like_one_process(run, run("one/plain"), two, 2, "DEEPSPEED")
    if stage == 2:
        assert_same_weights(run("zero2/plain resumed"), two)


@needs_deepspeed
@pytest.mark.parametrize("case", ["plain", "given"])
def test_zero_3(run, case):
    """It computes the mask by itself, or trains with one that is given."""
    assert_like_one_process(run, run("one/plain"), run(f"zero3/{case}"), 2, "DEEPSPEED")


@needs_deepspeed
def test_zero_3_resumes(run):
    assert_same_weights(run("zero3/given resumed"), run("zero3/given"))


@pytest.mark.parametrize("case", [*NEEDING_MORE, *NEEDING_LOGITS])
@pytest.mark.parametrize(
    ("engine", "kind"),
    [
        ("fsdp1", "FSDP"),
        ("fsdp2", "FSDP"),
        *(pytest.param(f"zero{stage}", "DEEPSPEED", marks=needs_deepspeed) for stage in (2, 3)),
    ],
)
def test_losses_that_need_logits_or_hidden_states(run, engine, kind, case):
    """Where weights are sharded, the reference model's are computed by the engine, and kept in checkpoints."""
    assert_like_one_process(run, run(f"one/{case}"), run(f"{engine}/{case}"), 2, kind)
    if engine != "zero2" and case in NEEDING_MORE:
        assert_same_weights(run(f"{engine}/{case} resumed"), run(f"{engine}/{case}"))


@pytest.mark.parametrize("engine", ["ddp", "fsdp1", "fsdp2"])
def test_weights_that_no_loss_depends_on_do_not_decay_without_a_mask_either(run, engine):
    before = load_file(run.folder / "model" / "model.safetensors")
    one, two = (load_file(run(f"{where}/no mask") / "weights.safetensors") for where in ("one", engine))
    unchanged = [name for name in before if torch.equal(before[name], one[name])]
    assert {name.split(".")[2] for name in unchanged if "layers" in name} == {"1"}
    assert "model.norm.weight" in unchanged
    assert len(unchanged) < len(before)
    assert all(torch.equal(before[name], two[name]) for name in unchanged)
    for name in before:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("engine", "kind"), [("fsdp1", "FSDP"), pytest.param("zero3", "DEEPSPEED", marks=needs_deepspeed)]
)
@pytest.mark.parametrize("case", ["squares", "rows"])
def test_scores_that_need_each_examples_gradient_or_the_target_tokens(run, engine, kind, case):
    assert_like_one_process(run, run(f"one/{case}"), run(f"{engine}/{case}"), 2, kind)


@needs_deepspeed
def test_a_penalty_on_weights_that_lie_in_one_piece(run):
    assert_like_one_process(run, run("one/penalty"), run("zero2/penalty"), 2, "DEEPSPEED")


ZERO = [pytest.param(f"zero{stage}", marks=needs_deepspeed) for stage in (1, 2, 3)]


@pytest.mark.parametrize("engine", ["ddp", "fsdp1", "fsdp2", *ZERO])
def test_a_gradient_that_is_nan_on_one_process_changes_no_weight(run, engine):
    """All processes stop before the step; DeepSpeed leaves the step out, as a gradient scaler does, and goes on."""
    output = run(f"{engine}/nan")
    for rank in results(output, 2):
        if engine.startswith("zero"):
            assert (rank["steps"], rank["error"]) == (4, None)
        else:
            assert rank["steps"] == 1
            assert "is NaN or infinite at optimizer step 2" in (rank["error"] or "it was not stopped")
    mask, before = WeightMask.from_pretrained(output), load_file(run.folder / "model" / "model.safetensors")
    after = load_file(output / "weights.safetensors")
    for name in mask:
        assert torch.isfinite(after[name]).all(), name
        assert torch.equal(before[name][~mask[name]], after[name][~mask[name]]), name
    assert (
        sum(int((before[name] != after[name]).sum()) for name in mask) > 0.9 * mask.num_selected
    )  # by the first step
