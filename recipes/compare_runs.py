"""The comparison of a recipe's task: its arguments, and small Llamas where no model is given."""

from dataclasses import dataclass, field

from tasks import RecipeArguments, list_tasks, task_class
from trl import ModelConfig

from wagle_trainer import WagleConfig, comparison
from wagle_trainer.data import QAFormat
from wagle_trainer.evaluation import get_suite


@dataclass
class CompareArguments(comparison.ComparisonArguments):
    """What is compared, and by what rule."""

    task: str = field(default="tofu", metadata={"help": "What is forgotten.", "choices": list_tasks()})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.given_metrics = (self.forget_metric, self.utility_metric)
        self.read_by(get_suite(task_class(self.task).suite), task_class(self.task).utility_metric)


class Runs(comparison.Runs):
    """The runs of one comparison, each a file in one folder."""

    def __init__(self, compare: CompareArguments, data: RecipeArguments, args: WagleConfig, model_args: ModelConfig):
        self.small = model_args.model_name_or_path is None  # a small Llama for each seed
        task = task_class(compare.task)(data)
        if task.suite != task_class(compare.task).suite:  # MUSE and the harness have suites of their own
            compare.forget_metric, compare.utility_metric = compare.given_metrics
            compare.read_by(get_suite(task.suite), task.utility_metric)
        super().__init__(compare, task, args, model_args)

    @property
    def model_for_each_seed(self) -> bool:
        return self.small or super().model_for_each_seed

    def model(self, seed: int) -> str:
        """Path of the reference model; with the bundled example it is trained at first use."""
        return self.task.small_model(self.models, seed) if self.small else super().model(seed)

    def retrained(self, seed: int) -> str | None:
        """Path of the retrained model, if there is one."""
        return self.task.small_model(self.models, seed, retrained=True) if self.small else super().retrained(seed)

    def train_model(self, seed: int, retrained: bool) -> None:
        """Train a small Llama of the bundled example, unless it is there."""
        self.task.small_model(self.models, seed, retrained)

    def check_settings(self) -> None:
        """Refuse attacks that say nothing about the task, and to add to runs that were made with other settings."""
        self.task.check_attacks(self.compare.attacks)
        super().check_settings()

    def attack_format(self, qa: QAFormat) -> QAFormat:
        """See `Task`."""
        return self.task.attack_format(qa)
