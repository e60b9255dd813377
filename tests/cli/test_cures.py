"""Flags that messages advise are flags of the command that says so."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest

import syncbn_convert
from syncbn_convert import VerificationError
from syncbn_convert.cli.app import app
from syncbn_convert.errors import UnknownOperatorError, UsageError
from syncbn_convert.options.verifying import Verifying, VerifyOptions
from tests.cli.conftest import Run
from tests.lenient_models import convolution

ROOT = Path(__file__).parents[2]
FLAG = re.compile(r"--[a-z][a-z-]*")
REWRITES = {"convert", "fold", "fuse"}
ON_REPLICAS = {"calibrate", "train", "unfuse"}
VERIFIED = REWRITES | ON_REPLICAS | {"step", "statistics"}
ALL = VERIFIED | {"inspect", "verify"}
REACHED_BY = {
    "passes/configure_batchnorm.py": {"convert"},
    "passes/add_loss.py": {"train", "step"},
    "passes/differentiate.py": {"train", "step"},
    "passes/losses/compared.py": {"train", "step"},
    "passes/update_parameters.py": {"train", "step"},
    "syncbn_convert/cli/showing.py": ALL,
    "syncbn_convert/commands/calibrate.py": {"calibrate"},
    "syncbn_convert/commands/convert.py": {"convert"},
    "syncbn_convert/commands/run.py": {"convert", "unfuse"},
    "syncbn_convert/commands/statistics.py": {"statistics"},
    "syncbn_convert/commands/train.py": {"train"},
    "syncbn_convert/files/staging.py": VERIFIED,
    "syncbn_convert/form/opset.py": {"convert", "fold"},
    "syncbn_convert/keras/config_screen.py": ALL,
    "syncbn_convert/keras/files.py": ALL,
    "syncbn_convert/keras/predictions.py": VERIFIED,
    "syncbn_convert/options/accelerators.py": ON_REPLICAS,
    "syncbn_convert/options/rewrites.py": {"convert", "fold"},
    "syncbn_convert/options/training.py": {"train", "step"},
    "syncbn_convert/options/verifying.py": VERIFIED | {"verify"},
    "syncbn_convert/page/plots.py": REWRITES | ON_REPLICAS | {"verify"},
    "syncbn_convert/runtime/engines.py": ON_REPLICAS,
    "syncbn_convert/runtime/mpi.py": ON_REPLICAS,
    "syncbn_convert/runtime/replica_run.py": {"calibrate"},
    "syncbn_convert/runtime/replica_threads.py": ON_REPLICAS,
    "syncbn_convert/runtime/threads.py": ON_REPLICAS,
    "syncbn_convert/runtime/torch_distributed.py": ON_REPLICAS,
    "syncbn_convert/training/checkpoint.py": {"train"},
    "syncbn_convert/training/labels.py": {"train"},
    "syncbn_convert/training/loop.py": {"train"},
    "syncbn_convert/training/samples.py": {"train"},
    "syncbn_convert/verification/comparison.py": VERIFIED | {"verify"},
    "syncbn_convert/verification/feeds.py": VERIFIED | {"verify"},
    "syncbn_convert/verification/verdicts.py": VERIFIED,
    "syncbn_convert/xla/devices.py": ON_REPLICAS,
    "syncbn_convert/xla/hosts.py": ON_REPLICAS,
    "syncbn_convert/xla/operators/control_flow.py": ON_REPLICAS,
    "syncbn_convert/xla/program.py": ON_REPLICAS,
    "syncbn_convert/xla/scope.py": ON_REPLICAS,
    "syncbn_convert/xla/translations.py": ON_REPLICAS,
    "syncbn_convert/xla/trouble.py": ON_REPLICAS,
}
"""The commands that can print what a module says; a module that is not here must name the command
that its flags are of, as in `'syncbn-convert fold --fuse'`."""
SINGLE = {
    "syncbn_convert/xla/trouble.py": {"GiB on each device, which has": {"train"}},
    "syncbn_convert/options/rewrites.py": {
        "leave out --no-recognize": {"convert"},
        "--statistics and --from-keras": {"fold"},
    },
}
"""Messages of fewer commands than their module's."""


@functools.cache
def flags_of(command: str) -> set[str]:
    """Return the flags that a command takes."""
    arguments = app[command].assemble_argument_collection(default_parameter=app.default_parameter)
    return {flag for argument in arguments for flag in (*argument.names, *argument.negatives)}


def texts(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """Yield texts that name flags, f-strings in one, and whether each is one of `cures`."""
    cures = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword) and node.arg == "cures"
        for part in ast.walk(node)
    }
    described = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    inside = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in ast.walk(node)
        if part is not node
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            text = "".join(
                str(p.value) if isinstance(p, ast.Constant) else "{}" for p in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value if id(node) not in inside | described else ""
        else:
            continue
        is_message = " " in text and "\n" not in text
        if FLAG.search(text) and is_message:
            yield text, id(node) in cures


def named_for_another(text: str, flag: str) -> bool:
    """Whether the clause says which command a flag is of, and that one has it."""
    text = re.sub(r"'torchrun.*?(?='|$)", lambda found: found[0].replace("--", ""), text)
    if flag not in text:
        return True
    clause = next(part for part in re.split(r"[;:]", text) if flag in part)
    before = clause[: clause.index(flag)]
    named = [command for command in ALL if re.search(rf"\b{command}\b", before)]
    return any(flag in flags_of(command) for command in named)


MODULES = sorted(
    path.relative_to(ROOT)
    for folder in ("syncbn_convert", "passes")
    for path in (ROOT / folder).rglob("*.py")
    if "syncbn_convert/passes" not in str(path.relative_to(ROOT))
)


def test_messages_name_flags_that_the_command_has() -> None:
    seen, wrong = set(), []
    for module in MODULES:
        if module.name in ("app.py", "main.py", "usage.py", "tables.py", "page.css"):
            continue
        for text, is_cure in texts(ast.parse((ROOT / module).read_text())):
            for flag in FLAG.findall(text):
                seen.add(flag)
                commands = REACHED_BY.get(str(module), set())
                for part, fewer in SINGLE.get(str(module), {}).items():
                    commands = fewer if part in text else commands
                has = commands and all(flag in flags_of(command) for command in commands)
                known = flag in VerifyOptions.cure_flags | Verifying.cure_flags
                if not (has or (is_cure and known) or named_for_another(text, flag)):
                    wrong.append(f"{module}: {flag} in {text!r}")
    assert not wrong
    assert len(seen) > 20


@pytest.mark.parametrize(
    ("options", "commands"), [(VerifyOptions, {"verify"}), (Verifying, VERIFIED)]
)
def test_cures_are_flags_of_the_commands(options: type[VerifyOptions], commands: set[str]) -> None:
    for command in commands:
        assert options.cure_flags <= flags_of(command), command


def test_an_error_offers_what_a_command_has() -> None:
    error = UnknownOperatorError("cause", cures=["repair it", "give --data", "pass --no-verify"])
    assert str(error) == "cause; repair it, or give --data, or pass --no-verify"
    assert str(error.offering({"--data"})) == "cause; repair it, or give --data"
    assert isinstance(error.offering(()), UnknownOperatorError)
    assert str(UsageError("cause", cures=["pass --x"]).offering(())) == "cause"


def test_verify_and_convert_advise_their_own_flags(run: Run, tmp_path: Path) -> None:
    model = convolution()
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.STRING
    model.graph.node.insert(0, onnx.helper.make_node("Cast", ["x"], ["number"], to=1))
    model.graph.node[1].input[0] = "number"
    path = str(tmp_path / "m.onnx")
    onnx.save(model, path)
    told = run("verify", path, path).stderr
    assert "no random values can be made for this type; give --data" in told
    assert "--no-verify" not in told
    told = run("convert", path).stderr
    assert "no random values can be made for this type; pass --no-verify" in told
    assert "--data" not in told
    with pytest.raises(VerificationError, match=r"type; pass --no-verify$"):
        syncbn_convert.fuse(model)
