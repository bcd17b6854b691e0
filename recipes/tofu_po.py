"""Make a model forget a part of TOFU, with preferred refusals (PO) on the weights that WAGLE selects.

accelerate launch recipes/tofu_po.py                        # the bundled people, 2 minutes on 2 CPU cores
accelerate launch recipes/tofu_po.py --config recipes/configs/llama_3.2_1b.yaml
"""

from tofu_common import Report, load_format, load_model, parse_arguments, variants
from trl import get_peft_config

from wagle_trainer import WagleTrainer
from wagle_trainer.data import REFUSALS
from wagle_trainer.data.dataset_arguments import load_forget_and_retain


def main() -> None:
    # Parse, and load questions and answers as the model's tokenizer writes them.
    tofu, args, model_args = parse_arguments("po")
    qa = load_format(tofu, model_args)
    forget, retain = load_forget_and_retain(tofu, qa)
    args.attribution_samples = args.attribution_samples or len(forget)  # as many of each set, like the official code

    # Measure what the model knows.
    report = Report(tofu, args, model_args, qa)
    report.add("before", load_model(model_args.model_name_or_path, model_args, args.device))

    # Unlearn: learn to refuse the forget questions, NLL on the retain set; only selected weights change.
    # First with the score that was asked for, then with each control, all from the same model.
    for label, variant in variants(tofu, args).items():
        trainer = WagleTrainer(
            model=load_model(model_args.model_name_or_path, model_args, args.device),
            args=variant,
            forget_dataset=forget,
            retain_dataset=retain,
            refusals=REFUSALS,
            processing_class=qa.tokenizer,
            peft_config=get_peft_config(model_args),
        )
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
        trainer.save_model()
        report.add(label, trainer.model)

    report.write()


if __name__ == "__main__":
    main()
