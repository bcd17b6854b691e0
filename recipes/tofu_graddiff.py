"""Make a model forget a part of TOFU, with gradient difference on the weights that WAGLE selects.

accelerate launch recipes/tofu_graddiff.py                        # the bundled people, 2 minutes on 2 CPU cores
accelerate launch recipes/tofu_graddiff.py --config recipes/configs/llama_3.2_1b.yaml
"""

from tofu_npo import main

if __name__ == "__main__":
    main("tofu", "grad_diff")
