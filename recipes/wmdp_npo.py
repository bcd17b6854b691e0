"""Make a model forget WMDP's dangerous knowledge, with NPO on the weights that WAGLE selects.

accelerate launch recipes/wmdp_npo.py                        # the bundled, harmless stand-in, 2 minutes on 2 CPU cores
accelerate launch recipes/wmdp_npo.py --config recipes/configs/zephyr_7b.yaml
accelerate launch recipes/wmdp_npo.py --config recipes/configs/zephyr_7b.yaml --dataset_name FOLDER --loss_type rmu
"""

from tofu_npo import main

if __name__ == "__main__":
    main("wmdp", "npo")
