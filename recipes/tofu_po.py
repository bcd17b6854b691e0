"""Make a model forget a part of TOFU, by learning to refuse (PO) on the weights that WAGLE selects.

accelerate launch recipes/tofu_po.py                        # the bundled people, 2 minutes on 2 CPU cores
accelerate launch recipes/tofu_po.py --config recipes/configs/llama_3.2_1b.yaml
"""

from tofu_npo import main

if __name__ == "__main__":
    main("tofu", "po")
