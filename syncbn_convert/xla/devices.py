"""The devices that replicas are."""

from __future__ import annotations

import os
from typing import Any

from syncbn_convert.errors import UsageError, first_line
from syncbn_convert.options.replicas import ReplicaOptions

_FORCED = "xla_force_host_platform_device_count"


def prepare(options: ReplicaOptions) -> None:
    """Let JAX have as many CPU devices as are asked for, if it has not looked for devices yet."""
    import jax

    if options.replicas is None or _FORCED in os.environ.get("XLA_FLAGS", ""):
        return
    try:
        jax.config.update("jax_num_cpu_devices", options.replicas)
    except RuntimeError:  # it has looked
        return


def mesh(options: ReplicaOptions) -> Any:
    """Return the mesh of the devices of all hosts, as many of each as are asked for.

    Raises:
        UsageError: if there are none of the kind, or too few.
    """
    import jax
    import numpy as np
    from jax.sharding import Mesh

    from syncbn_convert.xla.train_step import REPLICAS

    platform = options.accelerators.platform
    try:
        found = jax.devices(None if platform == "auto" else platform)
    except RuntimeError as error:
        raise UsageError(
            f"JAX sees no {'device' if platform == 'auto' else platform} here "
            f"({first_line(error)}); install the extra for it (xla-cuda, xla-tpu), or choose "
            "--platform cpu"
        ) from error
    chosen = []
    for host in range(jax.process_count()):
        own = [device for device in found if device.process_index == host]
        wanted = len(own) if options.replicas is None else options.replicas
        if wanted > len(own) or not own:
            raise UsageError(
                f"--replicas {wanted} asks for as many devices, but JAX sees {len(own)} "
                f"({own[0].platform if own else 'none'}); leave --replicas out for all of them"
            )
        chosen += own[:wanted]
    return Mesh(np.array(chosen), (REPLICAS,))


def has_double(mesh: Any) -> bool:
    """Whether the devices compute in float64."""
    return bool(mesh.devices.flat[0].platform != "tpu")


def kind(mesh: Any) -> str:
    """Return what the devices are, for reports."""
    device = mesh.devices.flat[0]
    return f"{mesh.size} {device.platform} device{'s' if mesh.size > 1 else ''}"


def process_index() -> int:
    """Return the number of this host."""
    import jax

    return int(jax.process_index())


def process_count() -> int:
    """Return the number of hosts."""
    import jax

    return int(jax.process_count())
