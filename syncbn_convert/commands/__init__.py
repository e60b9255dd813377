"""The commands as Python calls, one file each."""
