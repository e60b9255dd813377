"""Gradient rules, one family of operators a file; importing the package registers them all."""

from syncbn_convert.passes.gradients import activations as activations
from syncbn_convert.passes.gradients import choice as choice
from syncbn_convert.passes.gradients import convolution as convolution
from syncbn_convert.passes.gradients import cumulative as cumulative
from syncbn_convert.passes.gradients import dropout as dropout
from syncbn_convert.passes.gradients import elementwise as elementwise
from syncbn_convert.passes.gradients import indexing as indexing
from syncbn_convert.passes.gradients import losses as losses
from syncbn_convert.passes.gradients import matrix as matrix
from syncbn_convert.passes.gradients import nondifferentiable as nondifferentiable
from syncbn_convert.passes.gradients import normalization as normalization
from syncbn_convert.passes.gradients import pooling as pooling
from syncbn_convert.passes.gradients import reductions as reductions
from syncbn_convert.passes.gradients import resize as resize
from syncbn_convert.passes.gradients import sample_normalization as sample_normalization
from syncbn_convert.passes.gradients import shapes as shapes
from syncbn_convert.passes.gradients import softmax as softmax
from syncbn_convert.passes.gradients import transposed_convolution as transposed_convolution
from syncbn_convert.passes.gradients import unary as unary
from syncbn_convert.passes.gradients.gradient_tape import GradientTape
from syncbn_convert.passes.gradients.registry import gradient, registered, rule_for

__all__ = ["GradientTape", "gradient", "registered", "rule_for"]
