"""What this package relies on in other libraries beyond their public API. A failure names the file of ours to fix."""

import importlib
import inspect
from typing import ClassVar

import pytest
import torch
import transformers
from transformers import Trainer, TrainerCallback
from trl import SFTConfig, SFTTrainer

from wagle_trainer import WagleConfig, WagleTrainer


@pytest.mark.parametrize(
    ("owner", "name", "parameters", "ours"),
    [
        (
            SFTTrainer,
            "_prepare_dataset",
            ["dataset", "processing_class", "args", "packing", "formatting_func", "dataset_name"],
            "wagle_trainer/data/preparation.py",
        ),
        (Trainer, "_save_checkpoint", ["model", "trial"], "wagle_trainer/trainer.py"),
        (Trainer, "_get_output_dir", ["trial"], "wagle_trainer/trainer.py"),
        (Trainer, "_save", ["output_dir", "state_dict"], "wagle_trainer/trainer.py"),
        (Trainer, "_load_from_checkpoint", ["resume_from_checkpoint", "model"], "wagle_trainer/trainer.py"),
        (Trainer, "_load_best_model", [], "wagle_trainer/trainer.py"),
        (Trainer, "_track_num_input_tokens", ["inputs"], "wagle_trainer/trainer.py"),
        (Trainer, "get_batch_samples", ["epoch_iterator", "num_batches", "device"], "wagle_trainer/trainer.py"),
        (transformers.trainer_utils, "seed_worker", None, "wagle_trainer/data/pair_loader.py"),
    ],
)
def test_private_methods_have_the_arguments_that_we_pass(owner, name, parameters, ours):
    function = getattr(owner, name, None)
    assert function is not None, f"{owner.__name__}.{name} is gone: fix {ours}"
    found = [p for p in inspect.signature(function).parameters if p != "self"]
    expected = ["worker_id", "num_workers", "rank"] if parameters is None else parameters
    assert found == expected, f"{owner.__name__}.{name} now takes {found}: fix {ours}"


@pytest.mark.parametrize(
    ("module", "name", "ours"),
    [
        ("trl.data_utils", "get_dataset_column_names", "wagle_trainer/data/preparation.py"),
        ("trl.data_utils", "maybe_extract_prompt", "wagle_trainer/data/preparation.py"),
        ("trl", "get_training_chat_template", "wagle_trainer/data/preparation.py"),
        ("trl.chat_template_utils", "has_generation_markers", "wagle_trainer/data/preparation.py"),
        ("transformers.trainer", "TRAINER_STATE_NAME", "wagle_trainer/utils/complete_checkpoints.py"),
        ("transformers.trainer_utils", "PREFIX_CHECKPOINT_DIR", "wagle_trainer/utils/complete_checkpoints.py"),
        ("transformers.trainer", "TRAINING_ARGS_NAME", "wagle_trainer/trainer.py (_save)"),
        ("peft.mapping", "PEFT_TYPE_TO_CONFIG_MAPPING", "wagle_trainer/adapters/registration.py"),
        ("peft.utils", "register_peft_method", "wagle_trainer/adapters/registration.py"),
        ("peft.tuners.tuners_utils", "BaseTuner.inject_adapter", "wagle_trainer/adapters/model.py"),
        ("peft.tuners.tuners_utils", "BaseTuner._create_and_replace", "wagle_trainer/adapters/model.py"),
        ("peft.tuners.tuners_utils", "BaseTuner._cast_adapter_dtype", "wagle_trainer/adapters/model.py"),
        ("peft.tuners.tuners_utils", "BaseTuner._get_adapter_state_dict", "wagle_trainer/adapters/model.py"),
        ("peft.tuners.tuners_utils", "BaseTuner._remove_adapter_name_from_key", "wagle_trainer/adapters/model.py"),
        (
            "peft.tuners.tuners_utils",
            "BaseTuner._remap_adapter_state_dict_for_load",
            "wagle_trainer/adapters/model.py",
        ),
        (
            "peft.tuners.tuners_utils",
            "BaseTunerLayer._move_adapter_to_device_of_base_layer",
            "wagle_trainer/adapters/layer.py",
        ),
        ("peft.tuners.tuners_utils", "BaseTunerLayer._disable_adapters", "wagle_trainer/adapters/layer.py"),
        ("peft.tuners.tuners_utils", "BaseTunerLayer._active_adapter", "wagle_trainer/adapters/layer.py"),
        ("peft.tuners.tuners_utils", "BaseTunerLayer.merged_adapters", "wagle_trainer/adapters/layer.py"),
        ("accelerate.utils", "parse_flag_from_env", "wagle_trainer/engines/engine.py (planned_engine)"),
        ("accelerate.state", "AcceleratorState._shared_state", "wagle_trainer/engines/engine.py (current_engine)"),
        ("accelerate.utils", "gather_object", "wagle_trainer/attribution/attribution_callback.py"),
        ("trl.trainer.utils", "create_model_from_path", "wagle_trainer/trainer_setup.py (load_model)"),
        ("trl.trainer.sft_trainer", "add_fused_lm_head", "wagle_trainer/trainer_setup.py (_model_as_found)"),
        ("trl", "SFTConfig._VALID_DICT_FIELDS", "wagle_trainer/config.py"),
        ("trl", "SFTTrainer._tag_names", "wagle_trainer/trainer.py"),
        ("trl", "SFTTrainer._name", "wagle_trainer/trainer.py"),
        ("trl", "SFTTrainer._paper", "wagle_trainer/trainer.py and reporting/model_card.py"),
        ("trl", "SFTTrainer.create_model_card", "wagle_trainer/trainer.py"),
    ],
)
def test_what_we_import_or_override_is_there(module, name, ours):
    thing = importlib.import_module(module)
    for part in name.split("."):
        assert hasattr(thing, part), f"{module} has no {name} any more: fix {ours}"
        thing = getattr(thing, part)


# The rest of what we rely on


def test_evaluation_batches_go_to_trls_loss():
    found = list(inspect.signature(SFTTrainer.compute_loss).parameters)
    assert found == ["self", "model", "inputs", "return_outputs", "num_items_in_batch"], (
        "SFTTrainer.compute_loss has other arguments: fix WagleTrainer.compute_loss"
    )


def test_configurations_hide_their_tokens(tmp_path):
    """`as_wagle_config` reads fields that end in _token from the object, since `to_dict` replaces their values."""
    from wagle_trainer.trainer_setup import as_wagle_config

    config = SFTConfig(str(tmp_path), hub_token="secret", use_cpu=True, bf16=False)
    assert config.to_dict()["hub_token"] != "secret", "as_wagle_config may take to_dict as it is"
    assert as_wagle_config(config, None).hub_token == "secret", "fix as_wagle_config in wagle_trainer/trainer_setup.py"


def test_trl_refuses_data_parallel(make_llama, make_set, make_word_tokenizer, tmp_path):
    """It would cut batches of pairs apart."""
    config = WagleConfig(str(tmp_path), use_cpu=True, bf16=False)
    config._setup_devices  # noqa: B018 (which would set the number)
    config._n_gpu = 2
    with pytest.raises(ValueError, match="does not support `nn.DataParallel`"):
        WagleTrainer(
            make_llama(),
            config,
            forget_dataset=make_set(4),
            retain_dataset=make_set(4),
            processing_class=make_word_tokenizer(),
        )


def test_trls_collator_is_where_we_import_it_from():
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    batch = DataCollatorForLanguageModeling(pad_token_id=9)(
        [{"input_ids": [1, 2], "labels": [-100, 2]}, {"input_ids": [3], "labels": [3]}]
    )
    assert batch["input_ids"].tolist() == [[1, 2], [3, 9]], (
        "fix wagle_trainer/data/length_sorted_batches.py (make_collator)"
    )
    assert batch["labels"].tolist() == [[-100, 2], [3, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]


def test_torchs_modules_hold_what_they_hold_where_we_look():
    linear = torch.nn.Linear(2, 2)
    assert list(linear._parameters) == ["weight", "bias"], "fix wagle_trainer/adapters/layer.py and model.py"
    assert list(torch.nn.Sequential(linear)._modules) == ["0"], "fix wagle_trainer/adapters/model.py"
    before = linear.weight._version
    with torch.no_grad():
        linear.weight.zero_()
    assert linear.weight._version > before, "fix wagle_trainer/adapters/layer.py (_Rebuilt)"


def test_wrappers_have_the_names_that_we_take_away():
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import _CHECKPOINT_WRAPPED_MODULE
    from torch.distributed.fsdp._common_utils import FSDP_WRAPPED_MODULE

    from wagle_trainer.engines.sharding import named_parameters

    linear = torch.nn.Linear(2, 2)
    compiled = torch.compile(linear, backend="eager")
    assert compiled._orig_mod is linear, "fix wagle_trainer/models/architecture.py (unwrap)"
    assert list(named_parameters(compiled)) == ["weight", "bias"], "fix wagle_trainer/engines/sharding.py (_WRAPPERS)"
    for name in (_CHECKPOINT_WRAPPED_MODULE, FSDP_WRAPPED_MODULE):
        wrapper = torch.nn.ModuleDict({name: linear})
        assert list(named_parameters(wrapper)) == ["weight", "bias"], (
            "fix wagle_trainer/engines/sharding.py (_WRAPPERS)"
        )


def test_deepspeed_is_where_we_look_for_it():
    """`masking/flat.py` knows ZeRO by the names of its optimizers, and reads stage 3's slices."""
    pytest.importorskip("deepspeed", reason="deepspeed is not installed (pip install -e '.[deepspeed]')")
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

    assert DeepSpeedZeroOptimizer.__name__ == "DeepSpeedZeroOptimizer"
    assert DeepSpeedZeroOptimizer_Stage3.__name__.startswith("DeepSpeedZeroOptimizer")
    assert callable(safe_set_full_fp32_param) and callable(safe_set_local_fp32_param)


def test_pefts_list_of_methods_can_be_added_to():
    """`adapters/registration.py` adds a member to an enumeration, with what `register_peft_method` looks at."""
    import peft

    import wagle_trainer.adapters  # noqa: F401

    for name in ("_member_names_", "_member_map_", "_value2member_map_"):
        assert "WAGLE" in getattr(peft.PeftType, name), "fix wagle_trainer/adapters/registration.py"


# The order of events in a run


class Recording(SFTTrainer):
    """Notes which of its methods run, in `events`; the callback below notes its own, and the optimizer its steps."""

    events: ClassVar[list[str]] = []


def note(name):
    method = getattr(SFTTrainer, name)

    def noted(self, *arguments, **options):
        self.events.append(name)
        return method(self, *arguments, **options)

    setattr(Recording, name, noted)


for _name in (
    "training_step",
    "_clip_grad_norm",
    "_load_from_checkpoint",
    "_load_optimizer_and_scheduler",
    "save_model",
    "_save_optimizer_and_scheduler",
):
    note(_name)


class Notes(TrainerCallback):
    def on_train_begin(self, args, state, control, optimizer=None, **kwargs):
        Recording.events.append("on_train_begin")
        optimizer.optimizer.register_step_pre_hook(lambda *_: Recording.events.append("step"))

    def on_epoch_begin(self, *_, **__):
        Recording.events.append("on_epoch_begin")

    def on_pre_optimizer_step(self, *_, **__):
        Recording.events.append("on_pre_optimizer_step")

    def on_optimizer_step(self, *_, **__):
        Recording.events.append("on_optimizer_step")


@pytest.fixture(scope="module")
def run(make_llama, make_word_tokenizer, make_set, tmp_path_factory):
    """run(steps, resume) -> (events of a run on four rows, its first checkpoint), in the same folder again."""
    folder = tmp_path_factory.mktemp("upstream")

    def go(steps: int, resume: bool):
        Recording.events.clear()
        args = SFTConfig(
            str(folder),
            max_steps=steps,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            save_steps=1,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
        )
        trainer = Recording(
            make_llama(), args, train_dataset=make_set(4), processing_class=make_word_tokenizer(), callbacks=[Notes()]
        )
        trainer.train(resume_from_checkpoint=resume)
        return list(Recording.events), folder / "checkpoint-1"

    return go


@pytest.fixture(scope="module")
def first(run):
    return run(1, False)


STEP = [
    "training_step",
    "training_step",
    "_clip_grad_norm",
    "on_pre_optimizer_step",
    "step",
    "on_optimizer_step",
    "save_model",
    "_save_optimizer_and_scheduler",
]


def test_masks_act_between_the_backward_pass_and_the_step(first):
    """The callback relies on this order: gradients are masked before they are clipped, steps are watched after."""
    events, _ = first
    assert events == ["on_train_begin", "on_epoch_begin", *STEP], (
        "Trainer has another order: fix attribution/attribution_callback.py, trainer.py and trainer_callbacks.py"
    )


def test_a_run_goes_through_its_epochs_one_by_one():
    """`WagleTrainer._run_epoch` looks at the state before an epoch begins; `tests/test_resume.py` shows what for."""
    assert callable(Trainer._run_epoch), "Trainer._run_epoch is gone: fix WagleTrainer._run_epoch"


def test_checkpoints_end_with_the_trainers_state(first):
    """`is_complete` takes trainer_state.json for the end of a checkpoint; `WagleTrainer._save` writes the rest."""
    _, folder = first
    written = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert written["trainer_state.json"] == max(written.values()), "fix wagle_trainer/utils/complete_checkpoints.py"
    assert {"training_args.bin", "tokenizer.json", "tokenizer_config.json"} <= set(written), "fix WagleTrainer._save"


def test_training_begins_after_the_checkpoint_is_read(first, run):
    events, _ = run(2, True)
    assert events[:4] == [
        "_load_from_checkpoint",
        "_load_optimizer_and_scheduler",
        "on_train_begin",
        "on_epoch_begin",
    ], "fix WeightAttributionCallback.on_train_begin"


def test_fused_experts_have_the_interface_that_activations_read():
    """`Activations` computes the inputs of each expert's projections from what the module is called with."""
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
    from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

    ours = "fix wagle_trainer/attribution/activations.py"
    for experts, config in ((Qwen3MoeExperts, "Qwen3MoeConfig"), (GptOssExperts, "GptOssConfig")):
        module = experts(getattr(transformers, config)(hidden_size=8, intermediate_size=8, num_local_experts=2))
        for name in (
            "num_experts",
            "has_gate",
            "has_bias",
            "is_transposed",
            "gate_up_proj",
            "down_proj",
            "_apply_gate",
        ):
            assert hasattr(module, name), f"{experts.__name__}.{name} is gone: {ours}"
        hidden, routed, *_ = inspect.signature(module.forward).parameters
        assert hidden == "hidden_states", ours
        assert routed in ("top_k_index", "router_indices"), ours
    assert NemotronHExperts.forward.__wrapped__ is not None


def test_uploads_leave_out_what_begins_with_an_underscore():
    """The key of the digests in checkpoints lies in the output folder: it must not go with it."""
    from wagle_trainer.utils.keyed_digests import KEY_NAME

    assert KEY_NAME.startswith("_")
    for method in (Trainer.push_to_hub, Trainer._push_from_checkpoint):
        assert 'ignore_patterns=["_*"' in inspect.getsource(method), "fix wagle_trainer/utils/keyed_digests.py"


def test_peft_reads_configurations_by_the_method_that_names_the_file(tmp_path):
    """`_name_unreadable_files` in wagle_trainer/adapters/registration.py wraps it."""
    from peft import PeftConfig, PeftModel

    import wagle_trainer.adapters  # noqa: F401

    (tmp_path / "adapter_config.json").write_text("{")
    for read in (PeftConfig.from_pretrained, lambda path: PeftModel.from_pretrained(torch.nn.Linear(2, 2), path)):
        with pytest.raises(ValueError, match=r"adapter_config\.json is not a readable adapter configuration"):
            read(tmp_path)
