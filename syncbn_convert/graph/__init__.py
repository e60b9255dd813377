"""Walking graphs, names, constants and types."""
