"""Write docs/operators.md from the registry of gradient rules.

How to run::

    python docs/generate_operators.py [FILE]
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

from syncbn_convert.passes.gradients import registered
from syncbn_convert.passes.gradients.nondifferentiable import no_gradient

_HEADER = '''\
# Operators that can be differentiated

Generated from the registry by `python docs/generate_operators.py`. The pass `differentiate` writes
the backward graph with one rule for each operator, found in `passes/gradients/`. Rules take models
of opset 18 and later; they write operators that ONNX Runtime's CPU has in float32 and, where it has
the forward operator so, in float64. Dynamic sizes stay dynamic, and a batch may be empty.

An operator between a trained parameter and the loss that is not in this list is an error, before
anything is written.

## A rule of your own

Registering a rule takes a decorator; a later rule replaces an earlier one. As an example, the
straight-through estimator: rounding lets the gradient pass as if it were not there.

```python
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from syncbn_convert.passes import Differentiate
from syncbn_convert.passes.gradients import gradient


@gradient("Round")
def straight_through(tape, node, gradients):
    """Passes unchanged."""
    return [gradients[0]]


model = onnx.parser.parse_model("""
    <ir_version: 10, opset_import: ["": 18]>
    agraph (float[2, 3] x) => (float loss)
    <float[3] w = {0.4, 1.6, 2.2}> {
        rounded = Round(w)
        product = Mul(x, rounded)
        loss = ReduceSum<keepdims = 0>(product)
    }""")
subject = ir.from_proto(model)
Differentiate(loss="loss")(subject)
session = onnxruntime.InferenceSession(ir.to_proto(subject).SerializeToString())
x = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.float32)
print(session.run(["loss", "w.grad"], {"x": x}))
```

```output
[array(32., dtype=float32), array([5., 7., 9.], dtype=float32)]
```

A rule gets the tape, the node and the gradients of its outputs (None where nothing flows into one),
and returns those of its inputs (None where none flows). `tape.op` writes a node, `tape.wants` says
whether anybody wants an input's gradient, and `tape.refuse` raises an error: cause and cure.
[CONTRIBUTING.md](../CONTRIBUTING.md) shows how a rule becomes part of the package.

## Rules
'''


def render() -> str:
    """Return the text of the page."""
    rules = list(registered())
    lines = [_HEADER, "| operator | remarks | file |", "|---|---|---|"]
    for domain, op_type, rule in rules:
        if rule is not no_gradient:
            name = f"{domain}::{op_type}" if domain else op_type
            module = rule.__module__.rpartition(".")[2]
            lines.append(f"| `{name}` | {_summary(rule)} | `{module}` |")
    flat = ", ".join(f"`{op_type}`" for _, op_type, rule in rules if rule is no_gradient)
    lines += ["", "## Operators that let no gradient through", "", _summary(no_gradient), "", flat]
    return "\n".join(lines) + "\n"


def _summary(rule: object) -> str:
    return (inspect.getdoc(rule) or "").partition("\n")[0]


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("operators.md")
    target.write_text(render(), encoding="utf-8")
