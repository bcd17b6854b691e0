"""Make a model forget a part of TOFU, with NPO on the weights that WAGLE selects.

accelerate launch recipes/tofu_npo.py                        # the bundled people, 2 minutes on 2 CPU cores
accelerate launch recipes/tofu_npo.py --config recipes/configs/llama_3.2_1b.yaml

The other recipes are this page with another task or objective.
"""

from recipe import Report, load_format, load_model, parse_arguments, variants

from wagle_trainer import WagleTrainer


def main(task_name: str = "tofu", loss_type: str = "npo") -> None:
    # Parse, and load the forget and the retain set as the model's tokenizer writes them.
    task, args, model_args = parse_arguments(task_name, loss_type)
    qa = load_format(task, model_args)
    forget, retain = task.training_sets(qa)
    args.attribution_samples = args.attribution_samples or len(forget)  # as many of each set, like the official code

    # Measure what the model knows.
    report = Report(task, args, model_args, qa)
    report.add("before", load_model(model_args.model_name_or_path, model_args, args.device))

    # Unlearn: the objective on the forget set, NLL on the retain set; only selected weights change.
    # First with the requested score, then with each control (--controls), all from the same model.
    for label, variant, peft_config in variants(task, args, model_args):
        trainer = WagleTrainer(
            model=load_model(model_args.model_name_or_path, model_args, args.device),
            args=variant,
            forget_dataset=forget,
            retain_dataset=retain,
            processing_class=qa.tokenizer,
            peft_config=peft_config,
            qa_format=qa,  # saved with the model: whatever measures it later writes questions in the same way
        )
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
        trainer.save_model()
        report.add(label, trainer.model, variant.output_dir)

    report.write()


if __name__ == "__main__":
    main()
