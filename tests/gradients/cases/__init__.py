"""Samples of every operator that has a gradient rule, one family of operators a file."""

from tests.gradients.cases import elementwise as elementwise
from tests.gradients.cases import flat as flat
from tests.gradients.cases import images as images
from tests.gradients.cases import indexing as indexing
from tests.gradients.cases import losses as losses
from tests.gradients.cases import products as products
from tests.gradients.cases import reductions as reductions
from tests.gradients.cases import resize as resize
from tests.gradients.cases import shapes as shapes
from tests.gradients.cases.registry import CASES, Case

__all__ = ["CASES", "Case"]
