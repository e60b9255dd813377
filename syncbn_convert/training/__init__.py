"""Training the exported form: gradient and update graphs, and the loop that runs them."""
