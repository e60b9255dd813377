"""Files that are not models: what they may hold is checked here, once."""
