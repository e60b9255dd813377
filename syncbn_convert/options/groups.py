"""The groups in which `--help` shows flags, in their order."""

from __future__ import annotations

from cyclopts import Group

CHOICE = Group("What to convert", sort_key=1)
LAYERS = Group("Layer parameters (by default as the node has them)", sort_key=2)
UNFUSING = Group("What to unfuse", sort_key=1)
FOLDING = Group("What to fold", sort_key=1)
LOSS = Group("Loss and parameters", sort_key=1)
OPTIMIZER = Group("Optimizer", sort_key=2)
LEARNING_RATE = Group("Learning rate", sort_key=3)
DATA = Group("Data", sort_key=4)
STATISTICS = Group("Statistics", sort_key=4)
CHECKPOINTS = Group("Checkpoints", sort_key=5)
REPLICAS = Group("Replicas", sort_key=6)
ACCELERATORS = Group("Accelerators (the xla engine)", sort_key=6.5)
PASSES = Group("Passes", sort_key=7)
VERIFICATION = Group("Verification", sort_key=8)
READING = Group("Reading", sort_key=9)
OUTPUT = Group("Output", sort_key=10)
DISPLAY = Group("Display", sort_key=11)
