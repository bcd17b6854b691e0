"""Several processes (gloo, on the CPU) do what one does, on every engine that runs here."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from wagle_trainer import WeightMask
from wagle_trainer.adapters import merge

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

SCRIPT = Path(__file__).with_name("engine_script.py")
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


@pytest.fixture(scope="module")
def run(tmp_path_factory, make_llama, make_set, make_word_tokenizer, run_script):
    """run(engine, processes, arguments, checkpoint) -> the output folder; one run for the same arguments."""
    folder = tmp_path_factory.mktemp("engines")
    make_llama().save_pretrained(folder / "model")
    make_word_tokenizer().save_pretrained(folder / "model")
    make_set(16).save_to_disk(str(folder / "forget"))
    make_set(23, seed=1).save_to_disk(str(folder / "retain"))
    done: dict[str, Path] = {}

    def start(engine: str, processes: int = 1, checkpoint: Path | None = None, **arguments) -> Path:
        arguments = {"per_device_train_batch_size": 4 // processes} | arguments
        key = json.dumps([engine, processes, str(checkpoint), arguments])
        if key in done:
            return done[key]
        output = folder / f"{engine}-{len(done)}"
        more = [json.dumps(arguments), *([checkpoint] if checkpoint else [])]
        run_script(SCRIPT, engine, folder, output, *more, processes=processes, **ENVIRONMENTS[engine])
        done[key] = output
        return output

    start.folder = folder
    return start


def results(output: Path, processes: int) -> list[dict]:
    return [json.loads((output / f"rank{rank}.json").read_text()) for rank in range(processes)]


def assert_like_one_process(run, one: Path, many: Path, processes: int, engine: str) -> None:
    ranks = results(many, processes)
    assert [rank["world"] for rank in ranks] == [processes] * processes
    assert ranks[0]["engine"] == engine
    assert len({rank["digest"] for rank in ranks}) == 1
    for rank in ranks:  # evaluations in a training run, dealt out or not
        assert rank["evaluations"] == ranks[0]["evaluations"]
        alone, shared = rank["evaluations"]["alone"], rank["evaluations"]["shared"]
        if alone is not None:
            assert shared["scores"] == pytest.approx(alone["scores"], abs=1e-5)
            assert shared["texts"] == alone["texts"]

    masks = [WeightMask.from_pretrained(folder) for folder in (one, many)]
    assert masks[0].num_selected == masks[1].num_selected == int(0.3 * masks[0].num_weights)
    different = (masks[0] | masks[1]).num_selected - (masks[0] & masks[1]).num_selected
    assert different <= 1e-4 * masks[0].num_weights
    assert masks[0].info.effective_density == pytest.approx(masks[1].info.effective_density, abs=1e-3)

    before = load_file(run.folder / "model" / "model.safetensors")
    after_one, after_many = (load_file(folder / "weights.safetensors") for folder in (one, many))
    for name in masks[1]:
        frozen, both = ~masks[1][name], masks[0][name] == masks[1][name]
        assert torch.equal(before[name][frozen].view(torch.int32), after_many[name][frozen].view(torch.int32)), name
        torch.testing.assert_close(after_many[name][both], after_one[name][both], rtol=1e-3, atol=1e-4)
    moved = sum(int((before[name] != after_many[name]).sum()) for name in masks[1])
    assert moved > 0.9 * masks[1].num_selected

    # What is logged is of all processes, too; the clipped norm is that of the selected weights.
    logs = [results(folder, 1)[0]["log"] for folder in (one, many)]
    for key in ("forget_loss", "retain_loss", "grad_norm"):
        values = [[entry[key] for entry in log if key in entry] for log in logs]
        assert values[0] == pytest.approx(values[1], rel=1e-3, abs=1e-4), key


def assert_same_weights(first: Path, second: Path) -> None:
    weights = [load_file(folder / "weights.safetensors") for folder in (first, second)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("loss_kwargs", [{"beta": 0.5}, {"retain_loss": "kl"}], ids=["nll", "kl"])
def test_data_parallel(run, loss_kwargs):
    one, two = run("one", loss_kwargs=loss_kwargs), run("ddp", 2, loss_kwargs=loss_kwargs)
    assert_like_one_process(run, one, two, 2, "MULTI_CPU")


def test_data_parallel_resumes_in_the_middle_of_an_epoch(run):
    two = run("ddp", 2, loss_kwargs={"beta": 0.5})
    resumed = run("ddp", 2, two / "checkpoint-3", loss_kwargs={"beta": 0.5})
    assert_same_weights(resumed, two)
    assert results(resumed, 1)[0]["digest"] == results(two, 1)[0]["digest"]


def test_resume_on_one_process_after_two(run):
    two = run("ddp", 2, loss_kwargs={"beta": 0.5})
    one = run("one", 1, two / "checkpoint-3", loss_kwargs={"beta": 0.5})
    assert_like_one_process(run, one, two, 2, "MULTI_CPU")


def test_data_parallel_saves_and_resumes_adapters(run):
    options = {"save_adapter": True, "optim": "adamw_torch"}
    two = run("ddp", 2, **options)
    last = max(two.glob("checkpoint-*"), key=lambda folder: int(folder.name.split("-")[1]))
    model = merge(AutoModelForCausalLM.from_pretrained(run.folder / "model"), last)
    weights = load_file(two / "weights.safetensors")
    assert all(torch.equal(parameter, weights[name]) for name, parameter in model.named_parameters())
    assert_same_weights(run("ddp", 2, two / "checkpoint-3", **options), two)


@pytest.mark.parametrize("optim", ["sgd", "adamw_torch"])
def test_fsdp2(run, optim):
    # Plain Adam's first steps have no size, only a sign: epsilon keeps rounding from deciding it.
    options = {"optim": optim, "adam_epsilon": 1e-3}
    one, two = run("one", **options), run("fsdp2", 2, **options)
    assert_like_one_process(run, one, two, 2, "FSDP")


def test_fsdp2_resumes_on_as_many_processes_and_on_others(run):
    options = {"optim": "adamw_torch", "adam_epsilon": 1e-3}
    two = run("fsdp2", 2, **options)
    assert_same_weights(run("fsdp2", 2, two / "checkpoint-3", **options), two)
    four = run("fsdp2", 4, two / "checkpoint-3", **options)
    assert_like_one_process(run, run("one", **options), four, 4, "FSDP")


@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_gamma_density_and_earlier_masks_reach_the_attribution(run, engine):
    """By rule, and with an earlier mask's weights left out; tests/attribution/test_processes.py has every score."""
    earlier = run("one", max_steps=1, attribution="random")
    options = {
        "attribution_gamma": "balanced",
        "density": "auto",
        "attribution_exclude_mask": str(earlier),
        "max_steps": 1,
    }
    masks = [WeightMask.from_pretrained(run(*where, **options)) for where in (("one", 1), (engine, 2))]
    different = (masks[0] | masks[1]).num_selected - (masks[0] & masks[1]).num_selected
    assert masks[0].num_selected == masks[1].num_selected
    assert different <= 1e-4 * masks[0].num_weights
    assert masks[0].info.requested_density == masks[1].info.requested_density
    assert masks[0].info.gamma == pytest.approx(masks[1].info.gamma, rel=1e-4)
    assert masks[0].info.exclude_mask == masks[1].info.exclude_mask == WeightMask.from_pretrained(earlier).digest


def test_fsdp1_trains_with_a_given_mask(run):
    one = run("one")
    two = run("fsdp1", 2, mask_path=str(one))
    assert_like_one_process(run, one, two, 2, "FSDP")
    assert_same_weights(run("fsdp1", 2, two / "checkpoint-3", mask_path=str(one)), two)


@needs_deepspeed
@pytest.mark.parametrize("stage", [1, 2])
def test_zero_1_and_2(run, stage):
    one, two = run("one"), run(f"zero{stage}", 2)
    assert_like_one_process(run, one, two, 2, "DEEPSPEED")
    if stage == 2:
        assert_same_weights(run("zero2", 2, two / "checkpoint-3"), two)


@needs_deepspeed
def test_zero_3_trains_with_a_given_mask(run):
    one = run("one")
    two = run("zero3", 2, mask_path=str(one))
    assert_like_one_process(run, one, two, 2, "DEEPSPEED")
    assert_same_weights(run("zero3", 2, two / "checkpoint-3", mask_path=str(one)), two)
