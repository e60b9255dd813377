"""Gradient rules, one family of operators a file; importing the package registers them all."""

from syncbn_convert.passes.gradients.registry import gradient, registered, rule_for
from syncbn_convert.passes.gradients.tape import GradientTape

__all__ = ["GradientTape", "gradient", "registered", "rule_for"]
