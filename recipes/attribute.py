"""Compute a weight mask and save it, without training: for ZeRO-3 and FSDP1, or to use one mask in many runs.

python recipes/attribute.py --config recipes/configs/llama_2_7b.yaml --output_dir masks/wagle --attribution_offload cpu
accelerate launch recipes/tofu_npo.py --config recipes/configs/llama_2_7b.yaml --mask_path masks/wagle
"""

from recipe import load_format, load_model, parse_arguments
from trl import get_peft_config

from wagle_trainer import WagleTrainer
from wagle_trainer.cli.mask import table


def main() -> None:
    task, args, model_args = parse_arguments("tofu", "npo")
    qa = load_format(task, model_args)
    forget, retain = task.training_sets(qa)
    args.attribution_samples = args.attribution_samples or len(forget)  # as in the training recipes

    trainer = WagleTrainer(
        model=load_model(model_args.model_name_or_path, model_args, args.device),
        args=args,
        forget_dataset=forget,
        retain_dataset=retain,
        processing_class=qa.tokenizer,
        peft_config=get_peft_config(model_args),
        qa_format=qa,
    )
    mask = trainer.compute_mask()
    if args.process_index == 0:
        mask.save_pretrained(args.output_dir)
        qa.save_pretrained(args.output_dir)
        print(f"{mask}\nSaved in {args.output_dir}: train with --mask_path {args.output_dir}")
        print(table(mask.summary()["module"]))


if __name__ == "__main__":
    main()
