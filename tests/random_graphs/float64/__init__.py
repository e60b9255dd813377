"""ONNX in float64, by torch and NumPy, with how far a narrower type may be away.

Every value carries the sum of the magnitudes that it was made of, and an error relative to that: a
product of n terms errs by n roundings of the sum of their magnitudes, whatever cancels in it. A
rewrite that keeps the function computes the same sums in another order, of weights that were
rounded once more.
"""

from tests.random_graphs.float64 import moves, pointwise, sums, windows
from tests.random_graphs.float64.interpreter import Interpreter, Layer
from tests.random_graphs.float64.values import Known

__all__ = ["Interpreter", "Known", "Layer", "moves", "pointwise", "sums", "windows"]
