"""`ForgetSettings`: what a run of `forget` can be told, defined, documented and checked here alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

# A try ends when it has reached this share of the goal.
ROOM = 0.5
# Per token, so that the loss fades at the same probability whatever the length of the answer.
_NPO = {"beta": 4.0, "length_normalized": True}
EMBEDDINGS = ("last", "never", "always")
ATTACKS = ("relearning", "paraphrase", "jailbreak", "quantization")


@dataclass(frozen=True)
class ForgetSettings:
    """How much is to be forgotten, what has to stay, and what is tried.

    Args:
        forget_goal: the mean probability of the forget answers must fall to this share of what it was, in (0, 1).
        utility_floor: the mean probability of the retain answers, and that of the unseen answers, must stay above this
            share of what it was, in (0, 1].
        score: attribution score that ranks the weights, of `list_scores()`.
        embeddings: when the patch may change word embeddings and the output head, of `EMBEDDINGS`. "last": in the second round,
            and only such tries count as within the floor after which the model still has the words; "never"; "always":
            whatever becomes of the words. A retain set does not protect a word that only the forget answers have, and a model
            without the word is silenced, not made to forget.
        densities: sizes of the patch that are tried, as shares of all weights, from small to large.
        learning_rates: learning rates that a try may take, from small to large: it starts low, and takes the next one
            where it is too slow (see `course`).
        max_tries: patches that are trained at most.
        steps: optimizer steps of each try at most; it ends when half of the goal is reached within the floor, goes back
            to the last state that met goal and floor where it loses too much on the way, and is given up where more
            steps do not help.
        check_every: optimizer steps between two looks at goal and floor.
        batch_size: forget examples, and retain examples, in each step.
        loss_type: unlearning objective, of `list_losses()`.
        loss_kwargs: its arguments; by default those of NPO that suit short and long answers alike, and that stop pushing an
            answer at the goal.
        retain_weight: factor of the retain loss.
        neighbours: number of neighbours to make where no retain set is given; half of them are trained on. None: twelve
            times the forget set, from 192 to 480.
        known: an answer counts as known to the model from this probability on.
        attacks: attacks on the result, of `ATTACKS`.
        save_generations: keep questions, answers and what the model generates in `results.json`, and show three in the report;
            by default neither they nor the verdict hold text of the sets, since the forget set may be private.
        relearning_rate: learning rate of the relearning attack, which trains all weights.
        eval_batch_size: examples per forward pass and prompts per batch of generation.
        seed: of everything random.

    Raises:
        ValueError: a value is out of range or unknown.
    """

    forget_goal: float = 0.1
    utility_floor: float = 0.9
    score: str = "curvature"
    embeddings: str = "last"
    densities: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
    learning_rates: tuple[float, ...] = (3e-4, 6e-4, 1.2e-3, 2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2)
    max_tries: int = 10
    steps: int = 160
    check_every: int = 5
    batch_size: int = 8
    loss_type: str = "npo"
    loss_kwargs: dict[str, Any] | None = None
    retain_weight: float = 8.0
    neighbours: int | None = None
    known: float = 0.1
    attacks: tuple[str, ...] = ATTACKS
    save_generations: bool = False
    relearning_rate: float = 1e-4
    eval_batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        from wagle_trainer.attribution.scores import arguments_of, get_score
        from wagle_trainer.losses.objective import Objective

        for name in ("densities", "learning_rates", "attacks"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not 0 < self.forget_goal < 1:
            raise ValueError(f"forget_goal is a share between 0 and 1, got {self.forget_goal}.")
        reads = arguments_of(get_score(self.score))
        if self.embeddings not in EMBEDDINGS:
            raise ValueError(f"embeddings is one of {', '.join(EMBEDDINGS)}, got {self.embeddings!r}.")
        if self.embeddings != "always" and any(name.endswith("_targets") for name in reads):
            raise ValueError(
                f'score={self.score!r} ranks rows of the output head, which embeddings={self.embeddings!r} leaves out ("last": in the first round): '
                'take embeddings="always" (--embeddings always).'
            )
        if not isinstance(self.loss_kwargs, dict | None):
            raise ValueError(f"loss_kwargs are names and values, got {self.loss_kwargs!r}.")
        if not 0 <= self.retain_weight < float("inf"):
            raise ValueError(f"retain_weight must be a finite number that is not negative, got {self.retain_weight}.")
        if (
            "chosen"
            in Objective.from_arguments(self.loss_type, self.objective_arguments(), 1.0, self.retain_weight).needs
        ):
            raise ValueError(
                f"loss_type={self.loss_type!r} needs a chosen answer beside each one to forget, and the file has none. "
                "`wagle unlearn` takes preferences."
            )
        if not 0 < self.utility_floor <= 1:
            raise ValueError(f"utility_floor is a share in (0, 1], got {self.utility_floor}.")
        for name, top in (("densities", 1.0), ("learning_rates", float("inf"))):
            values = getattr(self, name)
            if not values or list(values) != sorted(set(values)) or not 0 < values[0] <= values[-1] <= top:
                raise ValueError(f"{name} must be positive numbers that rise, at most {top:g}; got {list(values)}.")
        if not 0 <= self.known < 1:
            raise ValueError(f"known is a probability in [0, 1), got {self.known}.")
        if not 0 < self.relearning_rate < float("inf"):
            raise ValueError(f"relearning_rate must be a positive number, got {self.relearning_rate}.")
        for name in ("max_tries", "steps", "check_every", "batch_size", "eval_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.neighbours is not None and self.neighbours < 16:
            raise ValueError(
                f"neighbours must be at least 16, half to train and half to measure; got {self.neighbours}."
            )
        unknown = sorted(set(self.attacks) - set(ATTACKS))
        if unknown:
            raise ValueError(f"Unknown attack {', '.join(unknown)}. Known here: {', '.join(ATTACKS)}.")

    def objective_arguments(self) -> dict[str, Any]:
        """Arguments of the objective: those that were given, or the default, which depends on the goal."""
        if self.loss_kwargs is not None:
            return dict(self.loss_kwargs)
        return {**_NPO, "target": self.forget_goal} if self.loss_type == "npo" else {}

    def number_of_neighbours(self, forget_rows: int) -> int:
        """How many neighbours are made for a forget set of this size.

        Args:
            forget_rows: rows of the forget set.
        """
        return self.neighbours or usual_neighbours(forget_rows)

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON and YAML can hold them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def usual_neighbours(forget_rows: int) -> int:
    """How many neighbours are made for a forget set of this size where no number is given."""
    return min(480, max(192, 12 * forget_rows))
