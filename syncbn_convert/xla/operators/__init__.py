"""Translations, one family of operators a file; importing the package registers them all."""

from syncbn_convert.xla.operators import activation_functions as activation_functions
from syncbn_convert.xla.operators import arithmetic as arithmetic
from syncbn_convert.xla.operators import control_flow as control_flow
from syncbn_convert.xla.operators import convolving as convolving
from syncbn_convert.xla.operators import interpolation as interpolation
from syncbn_convert.xla.operators import loss_operators as loss_operators
from syncbn_convert.xla.operators import normalizing as normalizing
from syncbn_convert.xla.operators import picking as picking
from syncbn_convert.xla.operators import pools as pools
from syncbn_convert.xla.operators import products as products
from syncbn_convert.xla.operators import random_numbers as random_numbers
from syncbn_convert.xla.operators import reducing as reducing
from syncbn_convert.xla.operators import shaping as shaping
from syncbn_convert.xla.translations import operator_of, registered

__all__ = ["operator_of", "registered"]
