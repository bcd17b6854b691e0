"""python -m wagle_trainer.cli, for where the console script `wagle` is not on the path."""

import sys

from wagle_trainer.cli import main

if __name__ == "__main__":
    sys.exit(main())
