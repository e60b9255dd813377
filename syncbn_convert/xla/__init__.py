"""The training form as one XLA program, through JAX: GPUs, TPUs, several hosts."""
