"""Losses that are operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from syncbn_convert.xla import sample_axes
from syncbn_convert.xla.sample_axes import Layout
from syncbn_convert.xla.translations import Array, Call, operator


def _placed(at: Call, outputs: Sequence[Array]) -> Sequence[Layout | None]:
    scores, labels = at.layouts[:2]
    if scores != labels or scores is None or scores.axis or any(at.layouts[2:]):
        raise sample_axes.mixes(at)
    kept = scores if at.text("reduction", "mean") == "none" else None
    return [kept, scores][: len(outputs)]


@operator("SoftmaxCrossEntropyLoss", kind="wide", samples=_placed)
def softmax_cross_entropy(
    at: Call, scores: Array, labels: Array, weights: Array | None = None
) -> Any:
    """Weights, ignore_index and every reduction."""
    log_p = jax.nn.log_softmax(scores, axis=1)
    loss = _likelihood(at, log_p, labels, weights)
    return (loss, log_p) if len(at.node.outputs) > 1 else loss


@operator("NegativeLogLikelihoodLoss", kind="wide", samples=_placed)
def negative_log_likelihood(
    at: Call, log_p: Array, labels: Array, weights: Array | None = None
) -> Array:
    """Weights, ignore_index and every reduction."""
    return _likelihood(at, log_p, labels, weights)


def _likelihood(at: Call, log_p: Array, labels: Array, weights: Array | None) -> Array:
    ignored = at.attributes.get("ignore_index")
    classes = log_p.shape[1]
    counted = jnp.ones(labels.shape, bool)
    if ignored is not None:
        counted = counted & (labels != np.asarray(ignored, labels.dtype))
    mask = at.mask(1)
    if mask is not None:
        counted = counted & mask
    safe = jnp.clip(jnp.where(counted, labels, 0), 0, classes - 1)
    picked = jnp.take_along_axis(log_p, jnp.expand_dims(safe, 1), 1).squeeze(1)
    shares = counted.astype(log_p.dtype)
    if weights is not None:
        shares = shares * jnp.take(jnp.asarray(weights).astype(log_p.dtype), safe, mode="clip")
    terms = -picked * shares
    reduction = at.text("reduction", "mean")
    if reduction == "none":
        return terms
    total = terms.sum(dtype=terms.dtype)
    return total if reduction == "sum" else total / shares.sum(dtype=terms.dtype)
