"""Make a model forget insults, by calm replies (PO) on the weights that WAGLE selects.

accelerate launch recipes/detox_po.py                        # bundled conversations, 2 minutes on 2 CPU cores
accelerate launch recipes/detox_po.py --config recipes/configs/llama_2_7b_detox.yaml --forget_file pairs.jsonl \
    --retain_file text.jsonl
"""

from tofu_npo import main

if __name__ == "__main__":
    main("detox", "po")
