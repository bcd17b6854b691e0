"""Make a model forget a part of TOFU, with NPO on the weights that WAGLE selects.

    accelerate launch recipes/tofu_npo.py                        # the bundled people, 4 minutes on 2 CPU cores
    accelerate launch recipes/tofu_npo.py --config recipes/configs/llama_3.2_1b_npo.yaml
"""

import copy
from pathlib import Path

from small_llama import small_llama
from tofu_arguments import parse_arguments
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import get_peft_config

from wagle_trainer import WagleTrainer
from wagle_trainer.data import QAFormat, load_tofu, load_tofu_evaluation, retain_split_for
from wagle_trainer.evaluation import evaluate_tofu, results_table, save_results


def main() -> None:
    # Parse. With no argument: the bundled people.
    tofu, args, model_args = parse_arguments("fictional_npo.yaml")
    output = Path(args.output_dir)
    retain_split = retain_split_for(tofu.forget_split)
    if model_args.model_name_or_path is None:
        model_args.model_name_or_path = small_llama("full", output.parent / "models")
        tofu.retrained_model = small_llama(retain_split, output.parent / "models")

    # Load. Questions and answers become prompt-completion examples, in the model's chat template if it has one.
    tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path)
    qa = QAFormat.for_tokenizer(tokenizer, tofu.style)
    forget = qa.dataset(load_tofu(tofu.dataset_name, tofu.forget_split))
    retain = qa.dataset(load_tofu(tofu.dataset_name, retain_split))
    questions = load_tofu_evaluation(tofu.dataset_name, tofu.forget_split, limit=tofu.evaluation_samples)
    args.attribution_samples = args.attribution_samples or len(forget)  # as many of each, as in the official code

    def load_model(path):
        return AutoModelForCausalLM.from_pretrained(path, dtype=model_args.dtype).to(args.device)

    def evaluate(model, reference=None):
        return evaluate_tofu(
            model, tokenizer, questions, style=qa.style, batch_size=tofu.evaluation_batch_size, reference=reference
        )

    retrained = evaluate(load_model(tofu.retrained_model)) if tofu.retrained_model else None
    results = {"before": evaluate(load_model(model_args.model_name_or_path), retrained)}

    # Unlearn: with the score that was asked for, then with each control, all from the same model.
    for score in dict.fromkeys([args.attribution or "none", *tofu.controls]):
        variant = copy.copy(args)
        variant.attribution = None if score == "none" else score
        variant.output_dir = str(output / score)
        trainer = WagleTrainer(
            model=load_model(model_args.model_name_or_path),
            args=variant,
            forget_dataset=forget,
            retain_dataset=retain,
            processing_class=tokenizer,
            peft_config=get_peft_config(model_args),
        )
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
        trainer.save_model()
        label = "after, no mask" if score == "none" else f"after, {score} mask {args.density:g}"
        results[label] = evaluate(trainer.model, retrained)
    if retrained:
        results["retrained without the forget set"] = retrained

    # Report.
    if args.process_index == 0:
        save_results(results, output / "results.json")
        print(f"\n{results_table(results)}\n\nAll numbers, answers and settings: {output / 'results.json'}")


if __name__ == "__main__":
    main()
