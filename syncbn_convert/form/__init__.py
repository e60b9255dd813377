"""What normalization and its training form are, and what a model remembers."""
