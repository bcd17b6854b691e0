"""The private parts of Transformers and TRL that this package leans on. A failure here names the file of ours to mend."""

import importlib
import inspect

import pytest
import torch
import transformers
from transformers import Trainer
from trl import SFTTrainer


def source(function):
    return inspect.getsource(function)


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
        (transformers.trainer_utils, "seed_worker", None, "wagle_trainer/data/loading.py"),
    ],
)
def test_private_methods_have_the_arguments_that_we_pass(owner, name, parameters, ours):
    function = getattr(owner, name, None)
    assert function is not None, f"{owner.__name__}.{name} is gone: mend {ours}"
    found = [p for p in inspect.signature(function).parameters if p != "self"]
    expected = ["worker_id", "num_workers", "rank"] if parameters is None else parameters
    assert found == expected, f"{owner.__name__}.{name} now takes {found}: mend {ours}"


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
        ("trl.trainer.utils", "create_model_from_path", "wagle_trainer/adapters/lora.py (load_base)"),
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
        assert hasattr(thing, part), f"{module} has no {name} any more: mend {ours}"
        thing = getattr(thing, part)


def test_masks_act_between_the_backward_pass_and_the_step():
    """The callback relies on this order: gradients are masked before they are clipped, steps are watched after."""
    text = source(Trainer._run_epoch)
    events = [
        "self.training_step(",
        "_clip_grad_norm(",
        "on_pre_optimizer_step(",
        "self.optimizer.step()",
        "on_optimizer_step(",
    ]
    places = [text.index(event) for event in events]
    assert places == sorted(places), (
        "Trainer._run_epoch has another order: mend wagle_trainer/attribution/attribution_callback.py"
    )


def test_training_begins_after_the_checkpoint_is_read_and_the_optimizer_is_made():
    text = source(Trainer._inner_training_loop)
    assert (
        text.index("_init_training_state(") < text.index("_prepare_for_training(") < text.index("on_train_begin(")
    ), "Trainer._inner_training_loop has another order: mend WeightAttributionCallback.on_train_begin"
    assert "_load_optimizer_and_scheduler" in source(Trainer._prepare_for_training)


def test_evaluation_batches_go_to_trls_loss():
    found = list(inspect.signature(SFTTrainer.compute_loss).parameters)
    assert found == ["self", "model", "inputs", "return_outputs", "num_items_in_batch"], (
        "SFTTrainer.compute_loss has other arguments: mend WagleTrainer.compute_loss"
    )


def test_configurations_hide_their_tokens():
    """`as_wagle_config` reads fields that end in _token from the object, since `to_dict` replaces their values."""
    assert 'endswith("_token")' in source(transformers.TrainingArguments.to_dict), (
        "TrainingArguments.to_dict hides other values: mend as_wagle_config in wagle_trainer/trainer_setup.py"
    )


def test_the_loop_reads_what_we_set():
    reads = source(Trainer)
    assert "self._train_batch_size" in reads, "mend WagleTrainer.get_train_dataloader"
    assert "loss_is_scaled_for_ga" in source(Trainer.training_step), "mend WagleTrainer.loss_is_scaled_for_ga"
    assert "on_epoch_begin" in source(Trainer._inner_training_loop), (
        "mend EpochOfPairs in wagle_trainer/trainer_callbacks.py"
    )


def test_checkpoints_end_with_the_trainers_state():
    """`checkpoints.is_complete` takes trainer_state.json for the end of a checkpoint."""
    text = source(Trainer._save_checkpoint)
    assert text.index("save_model") < text.index("_save_optimizer_and_scheduler") < text.index("save_to_json"), (
        "Trainer._save_checkpoint writes in another order: mend wagle_trainer/utils/complete_checkpoints.py"
    )


def test_trl_refuses_data_parallel():
    """It would cut batches of pairs apart."""
    assert "if args.n_gpu > 1:\n            raise ValueError(" in source(SFTTrainer.__init__), (
        "SFTTrainer lets nn.DataParallel in: refuse args.n_gpu > 1 in WagleTrainer.__init__"
    )


def test_trl_builds_labels_and_keeps_the_ones_there_are():
    text = source(SFTTrainer._prepare_dataset)
    for part in ("is_processed", "completion_only_loss", "self.chat_template", "self._tokenizer", '"labels"'):
        assert part in text, (
            f"SFTTrainer._prepare_dataset no longer knows {part}: mend wagle_trainer/data/preparation.py"
        )


def test_trls_collator_is_where_we_import_it_from():
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    batch = DataCollatorForLanguageModeling(pad_token_id=9)(
        [{"input_ids": [1, 2], "labels": [-100, 2]}, {"input_ids": [3], "labels": [3]}]
    )
    assert batch["input_ids"].tolist() == [[1, 2], [3, 9]], (
        "mend wagle_trainer/data/length_sorted_batches.py (make_collator)"
    )
    assert batch["labels"].tolist() == [[-100, 2], [3, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]


def test_torchs_modules_hold_what_they_hold_where_we_look():
    linear = torch.nn.Linear(2, 2)
    assert list(linear._parameters) == ["weight", "bias"], "mend wagle_trainer/adapters/layer.py and model.py"
    assert list(torch.nn.Sequential(linear)._modules) == ["0"], "mend wagle_trainer/adapters/model.py"
    before = linear.weight._version
    with torch.no_grad():
        linear.weight.zero_()
    assert linear.weight._version > before, "mend wagle_trainer/adapters/layer.py (_Rebuilt)"


def test_wrappers_have_the_names_that_we_take_away():
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import _CHECKPOINT_WRAPPED_MODULE
    from torch.distributed.fsdp._common_utils import FSDP_WRAPPED_MODULE

    from wagle_trainer.engines.sharding import named_parameters

    linear = torch.nn.Linear(2, 2)
    compiled = torch.compile(linear, backend="eager")
    assert compiled._orig_mod is linear, "mend wagle_trainer/models/architecture.py (unwrap)"
    assert list(named_parameters(compiled)) == ["weight", "bias"], "mend wagle_trainer/engines/sharding.py (_WRAPPERS)"
    for name in (_CHECKPOINT_WRAPPED_MODULE, FSDP_WRAPPED_MODULE):
        wrapper = torch.nn.ModuleDict({name: linear})
        assert list(named_parameters(wrapper)) == ["weight", "bias"], (
            "mend wagle_trainer/engines/sharding.py (_WRAPPERS)"
        )


def test_deepspeed_is_where_we_look_for_it():
    """`masking/flat.py` knows ZeRO by the names of its optimizers, and reads stage 3's slices."""
    pytest.importorskip("deepspeed", reason="deepspeed is not installed (pip install -e '.[deepspeed]')")
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

    assert DeepSpeedZeroOptimizer.__name__ == "DeepSpeedZeroOptimizer"
    assert DeepSpeedZeroOptimizer_Stage3.__name__.startswith("DeepSpeedZeroOptimizer")
    assert "fp32_partitioned_groups_flat[sub_group_id]" in source(DeepSpeedZeroOptimizer_Stage3._optimizer_step)
    assert callable(safe_set_full_fp32_param) and callable(safe_set_local_fp32_param)


def test_trainer_saves_tokenizer_and_arguments_beside_the_model():
    """`WagleTrainer._save` does the same beside an adapter."""
    text = source(Trainer._save)
    assert "self.processing_class.save_pretrained(output_dir)" in text, "mend WagleTrainer._save"
    assert "torch.save(self.args, os.path.join(output_dir, TRAINING_ARGS_NAME))" in text, "mend WagleTrainer._save"


def test_pefts_list_of_methods_can_be_added_to():
    """`adapters/registration.py` adds a member to an enumeration, with what `register_peft_method` looks at."""
    import peft

    import wagle_trainer.adapters  # noqa: F401

    for name in ("_member_names_", "_member_map_", "_value2member_map_"):
        assert "WAGLE" in getattr(peft.PeftType, name), "mend wagle_trainer/adapters/registration.py"
    text = source(peft.utils.peft_types.register_peft_method)
    assert "name.upper() not in list(PeftType)" in text, "mend wagle_trainer/adapters/registration.py"


def test_peft_loads_adapters_by_the_hooks_that_we_override():
    from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

    assert "_remap_adapter_state_dict_for_load" in source(set_peft_model_state_dict), "mend adapters/model.py"
    assert "_get_adapter_state_dict" in source(get_peft_model_state_dict), "mend adapters/model.py"
    text = source(PeftModel.from_pretrained)
    assert "from_pretrained(\n                model_id, **kwargs\n" in text, (
        "PeftModel.from_pretrained no longer hands ignore_base_mismatch to the configuration: mend adapters/config.py"
    )
    assert "self.base_model.inject_adapter(" in source(PeftModel.add_adapter), "mend adapters/model.py"
    # `_Configs` answers for an adapter that is deleted, as long as this is so.
    assert "self.peft_config[self.active_adapter]" in source(PeftModel.active_peft_config.fget), (
        "PeftModel looks its active adapter up in another way: see whether adapters/model.py still needs _Configs"
    )
