"""What a configuration of Keras would bring to life, judged before any of it is.

A configuration is data, but it names classes, functions and modules, and Keras imports and calls
them. Only the parts that models are made of pass: those that Keras itself has for that, and those
that the user named.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from syncbn_convert.keras.libraries import KERAS, TF_KERAS

TRUST = "--trust-model-code"

_CODE = {
    "Lambda": "a Lambda, whose code is in the file",
    "__lambda__": "a Python lambda, whose code is in the file",
    "TorchModuleWrapper": "a pickled module of PyTorch",
    "TFSMLayer": "a layer that loads another SavedModel",
    "JaxLayer": "a layer that calls a function of JAX from the file",
    "FlaxLayer": "a layer that calls a module of Flax from the file",
    "TensorFlowOpLayer": "an operator of TensorFlow that the file spells out",
    "ClassMethod": "a call of a method that the file names",
    "InstanceMethod": "a call of a method that the file names",
}
_DATA = frozenset(
    ["__tensor__", "__numpy__", "__bytes__", "__ellipsis__", "__slice__", "__keras_tensor__"]
) | {"__tuple__", "TensorShape", "TypeSpec", "CompositeTensor"}
_READS_VOCABULARY = frozenset(["StringLookup", "IntegerLookup", "IndexLookup", "TextVectorization"])
_PUBLIC = (
    "layers",
    "initializers",
    "regularizers",
    "constraints",
    "losses",
    "metrics",
    "optimizers",
    "optimizers.schedules",
    "dtype_policies",
    "quantizers",
    "mixed_precision",
    "layers.experimental",
    "layers.experimental.preprocessing",
)
_MODELS = ("Functional", "Sequential", "Model", "DTypePolicy", "SeedGenerator", "InputSpec")
_FUNCTIONS = ("activations", "losses", "metrics", "initializers", "regularizers", "constraints")
_PROPERTIES = frozenset(
    ["values", "flat_values", "row_splits", "nested_row_splits", "indices", "dense_shape", "shape"]
)
_SPECS = frozenset(["TensorSpec", "RaggedTensorSpec", "SparseTensorSpec", "TensorShape"])
_SAFE_NAMESPACES = frozenset(
    ["__operators__", "math", "nn", "linalg", "signal", "image", "strings", "bitwise", "dtypes"]
) | {"random", "sparse", "ragged", "quantization", "experimental.numpy"}
_SYMBOLS = """
abs acos acosh add add_n argmax argmin argsort asin asinh atan atan2 atanh batch_to_space
bitcast boolean_mask broadcast_to cast clip_by_norm clip_by_value complex concat cos cosh
cumsum divide einsum equal exp expand_dims eye fill floor gather gather_nd greater
greater_equal identity less less_equal linspace logical_and logical_not logical_or matmul
maximum meshgrid minimum multiply negative norm not_equal one_hot ones ones_like pad pow
range rank realdiv reduce_all reduce_any reduce_logsumexp reduce_max reduce_mean
reduce_min reduce_prod reduce_sum repeat reshape reverse roll round saturate_cast
scatter_nd searchsorted shape sigmoid sign sin sinh size slice sort space_to_batch split
sqrt square squeeze stack stop_gradient strided_slice subtract tan tanh tensordot tile
transpose truediv truncatediv unstack where zeros zeros_like
"""
"""Names directly below `tf` of what only computes."""
_SAFE_SYMBOLS = frozenset(_SYMBOLS.split())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Screen:
    """What may come to life.

    Attributes:
        library: `keras` or `tf_keras`.
        classes: Names of its classes that models are made of.
        functions: Names of its functions that layers call.
        named: Names of classes and functions that the user named, or registered.
        revives: Whether a class that is unknown is no fault, as its graph stands in for it.
    """

    library: str
    classes: frozenset[str]
    functions: frozenset[str]
    named: Collection[str]
    revives: bool = False

    def fault(self, config: Any) -> str:
        """Return which part may not come to life, why and what to do; empty if all may."""
        for part, owner in _parts(config):
            if what := self._part_fault(part):
                return f"layer '{owner}' is {what}"
        return ""

    def _part_fault(self, part: Mapping[str, Any]) -> str:
        name, config = part["class_name"], part.get("config")
        if not isinstance(name, str):
            return f"of a class that is no name; {_cure()}"
        if self._is_named(part, name, config):
            return ""
        if name in _CODE:
            return f"{_CODE[name]}; use a layer of a module in its place, {_cure(trust_only=True)}"
        module = part.get("module")
        if name == "function":
            return self._function_fault(config, module)
        if name == "__typespec__":
            return _spec_fault(part, module)
        if name in _DATA:
            return ""
        if not self._is_known(name, module):
            return f"of class '{_full(name, module)}', which is none of Keras; {_cure()}"
        return _detail_fault(name, config if isinstance(config, Mapping) else {})

    def _is_named(self, part: Mapping[str, Any], name: str, config: Any) -> bool:
        names = (name, part.get("registered_name"), config if name == "function" else None)
        return any(isinstance(other, str) and other in self.named for other in names)

    def _is_known(self, name: str, module: Any) -> bool:
        if module is None:
            return name in self.classes or self.revives or name.rpartition(">")[2] in self.named
        if not isinstance(module, str) or not _is_of(module, self.library):
            return False
        operators = self.library == KERAS and module.startswith(f"{KERAS}.src.ops.")
        return name in self.classes or operators

    def _function_fault(self, name: Any, module: Any) -> str:
        right = isinstance(name, str) and name in self.functions
        place = module in (None, "builtins") or (
            isinstance(module, str)
            and _is_of(module, self.library)
            and any(part in _FUNCTIONS for part in module.split("."))
        )
        if right and place:
            return ""
        return f"given the function '{_full(name, module)}', which is none of Keras; {_cure()}"


def screen_for(library: Any, named: Collection[str], *, revives: bool = False) -> Screen:
    """Return what files of a library may bring to life.

    Args:
        library: `keras` or `tf_keras`.
        named: Names of what the user gave; what is registered with the library counts, too.
        revives: See `Screen`.
    """
    classes = {*_MODELS}
    functions: set[str] = set()
    for place, found, wanted in (
        *((place, classes, "from_config") for place in _PUBLIC),
        *((place, functions, "__call__") for place in _FUNCTIONS),
    ):
        for name, value in vars(_module(library, place)).items() if _module(library, place) else ():
            if hasattr(value, wanted) and not name.startswith("_"):
                found.add(name)
    if library.__name__ == TF_KERAS:
        classes |= _all_layers()
    functions -= {"get", "serialize", "deserialize"}
    registered = library.saving.get_custom_objects()
    return Screen(
        library=library.__name__,
        classes=frozenset(classes),
        functions=frozenset(functions),
        named={*named, *registered},
        revives=revives,
    )


def _module(library: Any, place: str) -> Any:
    for name in place.split("."):
        library = getattr(library, name, None)
    return library


def _all_layers() -> set[str]:
    """Return the names that tf_keras has for layers in its older files, aliases among them."""
    from tf_keras.src.layers import serialization

    serialization.populate_deserializable_objects()
    return set(serialization.LOCAL.ALL_OBJECTS)


def _parts(config: Any) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Yield everything that names a class, with the name of the layer that it is in."""
    pending = [(config, "model")]
    while pending:
        item, owner = pending.pop()
        if isinstance(item, Mapping):
            if "class_name" in item:
                own = item.get("config")
                name = own.get("name") if isinstance(own, Mapping) else None
                owner = name if isinstance(name, str) else owner
                yield item, owner
            pending += [(value, owner) for value in reversed(list(item.values()))]
        elif isinstance(item, list | tuple):
            pending += [(value, owner) for value in reversed(item)]


def _is_of(module: str, library: str) -> bool:
    package = module.partition(".")[0]
    return package == library or (library == TF_KERAS and package == KERAS)


def _spec_fault(part: Mapping[str, Any], module: Any) -> str:
    right = part.get("spec_name") in _SPECS and part.get("registered_name") is None
    if right and isinstance(module, str) and module.partition(".")[0] in ("tensorflow", "tf"):
        return ""
    return f"given the type '{_full(part.get('spec_name'), module)}'; {_cure(trust_only=True)}"


def _detail_fault(name: str, config: Mapping[str, Any]) -> str:
    """Return what is wrong with the configuration of a known class."""
    if name in _READS_VOCABULARY and isinstance(config.get("vocabulary"), str):
        return (
            f"a {name} that reads the file '{config['vocabulary']}'; save it with its vocabulary "
            f"inside, {_cure(trust_only=True)}"
        )
    if name == "InstanceProperty" and config.get("attr_name") not in _PROPERTIES:
        return f"a look at the property '{config.get('attr_name')}'; {_cure(trust_only=True)}"
    if name == "TFOpLambda" and not _is_safe_symbol(config.get("function")):
        return (
            f"a call of 'tf.{config.get('function')}', which does more than compute; "
            f"use a layer of a module in its place, {_cure(trust_only=True)}"
        )
    return ""


def _is_safe_symbol(symbol: Any) -> bool:
    if not isinstance(symbol, str):
        return False
    namespace, _, name = symbol.removeprefix("compat.v1.").rpartition(".")
    return namespace in _SAFE_NAMESPACES or (not namespace and name in _SAFE_SYMBOLS)


def _full(name: Any, module: Any) -> str:
    return f"{module}.{name}" if isinstance(module, str) else str(name)


def _cure(*, trust_only: bool = False) -> str:
    if trust_only:
        return f"or pass {TRUST} if you trust whoever made the file"
    return f"name its module with --custom-objects, or pass {TRUST} if you trust the file"
