"""Make a model forget WMDP's dangerous knowledge, with gradient difference on the weights that WAGLE selects.

accelerate launch recipes/wmdp_graddiff.py                        # the bundled, harmless stand-in, 2 minutes on 2 CPU cores
accelerate launch recipes/wmdp_graddiff.py --config recipes/configs/zephyr_7b_grad_diff.yaml
"""

from tofu_npo import main

if __name__ == "__main__":
    main("wmdp", "grad_diff")
