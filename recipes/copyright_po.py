"""Make a model forget a book that it knows by heart, by refusals (PO) on the weights that WAGLE selects.

accelerate launch recipes/copyright_po.py                        # a bundled, invented novel, 2 minutes on 2 CPU cores
accelerate launch recipes/copyright_po.py --config recipes/configs/llama_2_7b_copyright.yaml --forget_file book.txt
accelerate launch recipes/copyright_po.py --config recipes/configs/llama_2_7b_muse_books.yaml
"""

from tofu_npo import main

if __name__ == "__main__":
    main("copyright", "po")
