"""What draws random numbers in training only, and how it is switched off."""
