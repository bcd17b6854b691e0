"""What a training run says at its end: how likely the answers were and are, and what to do next."""

from __future__ import annotations

from collections.abc import Mapping


def end_of_run_sentences(
    before: Mapping[str, float], after: Mapping[str, float], base: str, output_dir: str
) -> list[str]:
    """Two sentences: the mean answer probabilities, and the next command.

    Args:
        before, after: "forget" and "retain" -> mean answer probability, in [0, 1].
        base: name or folder of the reference model; empty if it is not known.
        output_dir: where the run is saved.
    """
    parts = [
        f"{name} answers {before[name]:.1%} -> {after[name]:.1%}" for name in ("forget", "retain") if name in after
    ]
    model = base or "MODEL"
    return [
        f"How likely the answers are, before -> after: {', '.join(parts)}.",
        f"Next, once it is saved: wagle attack {model} {output_dir} --forget_file FILE (what can be recovered?), or "
        f"wagle evaluate {output_dir} (all numbers).",
    ]
