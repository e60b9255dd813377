"""The command line `syncbn-convert`."""
