"""The files that a user has: where they are, what is in them, and what was understood."""

from wagle_trainer.data.reading.examples import Examples, read_examples, read_table

__all__ = ["Examples", "read_examples", "read_table"]
