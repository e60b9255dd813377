"""JAX, which is an extra."""

from __future__ import annotations

from syncbn_convert.errors import UsageError


def require_jax() -> None:
    """Import JAX.

    Raises:
        UsageError: if it is not installed, or does not work here.
    """
    try:
        import jax as jax
    except ImportError as error:
        raise UsageError(
            f"the xla engine needs JAX ({error}): pip install 'syncbn-convert[xla]', on NVIDIA "
            "GPUs [xla-cuda], on TPUs [xla-tpu]"
        ) from error
