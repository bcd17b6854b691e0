"""Modules with a large forget gradient that points elsewhere than the retain gradient."""

import torch
from torch import Tensor

from wagle_trainer.attribution.scores.score import register_score


@register_score("memflex")
def memflex(forget_grad: Tensor, retain_grad: Tensor) -> Tensor:
    """mean |g_f| * (1 - cos(g_f, g_r)) of the whole tensor: modules to change without retaining (arXiv 2407.01920).

    The paper takes the modules with mean |g_f| above one threshold and cosine below another; the product is the order
    that both agree on, and the density cuts."""
    forget, retain = forget_grad.flatten(), retain_grad.flatten()
    norms = forget.norm() * retain.norm()
    cosine = torch.where(norms > 0, forget.dot(retain) / norms, 0.0)  # a zero gradient points nowhere
    return (forget.abs().mean() * (1 - cosine).clamp(min=0)).expand_as(forget_grad)
