"""Trained values from Keras into ONNX models that were converted before, and back into Keras."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.numpy_helper as onh
import pytest

import syncbn_convert
from syncbn_convert import CalibrateOptions, FoldOptions, ReplicaOptions
from syncbn_convert.cli.main import main
from syncbn_convert.commands.statistics import extract_statistics
from syncbn_convert.errors import UsageError
from syncbn_convert.form import moving_statistics
from syncbn_convert.verification import base_tolerance
from tests.frontends.models import predict
from tests.frontends.test_keras import mixed_model
from tests.frontends.trainings import classifier, digits
from tests.models import DIGITS

pytestmark = pytest.mark.filterwarnings("ignore")

Array = npt.NDArray[Any]
LARGEST_SUM = 144
"""Terms of the longest sum of the classifier: its dense layer reads 3 x 3 pixels x 16 channels."""


def randomize(model: Any, seed: int) -> Any:
    """Give every variable of a model other values."""
    generator = np.random.default_rng(seed)
    for variable in model.weights:
        low, high = (0.3, 0.7) if "variance" in variable.name else (-0.4, 0.4)
        variable.assign(generator.uniform(low, high, variable.shape))
    return model


def made(seed: int, **options: Any) -> Any:
    """Make the classifier of digits with random weights."""
    import keras

    return randomize(classifier(keras, **options), seed)


def weights(model: Any) -> dict[str, Array]:
    return {variable.path: np.array(variable) for variable in model.weights}


def assert_equal(found: Mapping[str, Array], wanted: Mapping[str, Array]) -> None:
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of one architecture: untrained, trained, the form, folded, statistics."""
    path = tmp_path_factory.mktemp("models")
    made(1).save(path / "untrained.keras")
    made(2).save(path / "trained.keras")
    form = path / "form.onnx"
    syncbn_convert.convert_file(path / "untrained.keras", form, verify=False)
    syncbn_convert.fold_file(form, path / "folded.onnx", verify=False)
    moving_statistics.save(extract_statistics(form), path / "moving.safetensors")
    return path


@pytest.fixture
def work(folder: Path, tmp_path: Path) -> Path:
    """A copy of the files."""
    return Path(shutil.copytree(folder, tmp_path / "work"))


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process; return exit code, stdout and stderr."""

    def runs(*arguments: str | Path) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        streams = capsys.readouterr()
        return code, streams.out, streams.err

    return runs


def refused(run: Run, work: Path, code: int, *arguments: str | Path) -> str:
    """Run a command that has to be refused in one line and to write nothing; return the line."""
    before = {path: path.read_bytes() for path in work.rglob("*") if path.is_file()}
    found, out, err = run(*arguments)
    assert (found, out) == (code, ""), err
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    assert {path: path.read_bytes() for path in work.rglob("*") if path.is_file()} == before
    return err


def test_calibrated_statistics_in_keras_predict_what_the_folded_model_does() -> None:
    import keras

    model = made(1)
    images, _ = digits("test")
    form = syncbn_convert.convert(model, verify=False)
    calibrated = syncbn_convert.calibrate(
        form,
        DIGITS.with_name("digits_train.npz"),
        CalibrateOptions(batch_size=96),
        replicas=ReplicaOptions(replicas=2),
    )
    before = weights(model)
    back, report = syncbn_convert.to_keras_with_report(model, extract_statistics(calibrated))
    assert_equal(weights(model), before)
    assert (len(report.variables), report.kept, report.verified) == (6, 10, True)
    assert all(variable.largest_change > 0.01 for variable in report.variables)
    moved = {variable.name for variable in report.variables}
    assert moved == {name for name in before if "/moving_" in name}
    kept = {name: value for name, value in weights(back).items() if name not in moved}
    assert_equal(kept, {name: before[name] for name in kept})

    found = predict(syncbn_convert.fold(calibrated, verify=False), images)
    wanted = back.predict(images, verbose=0)
    # what Keras itself loses against the same model in float64, eight times: the rule of `verify`
    keras.config.set_dtype_policy("float64")
    try:
        exact = classifier(keras)
    finally:
        keras.config.set_dtype_policy("float32")
    exact.set_weights(back.get_weights())
    noise = float(np.abs(exact.predict(images, verbose=0) - wanted).max())
    assert 0 < noise < 1e-5
    base = base_tolerance(np.dtype(np.float32), LARGEST_SUM) * np.abs(wanted).max()
    allowed = max(float(base), 8 * noise)
    assert np.abs(found - wanted).max() <= allowed
    assert np.abs(predict(form, images) - wanted).max() > 1000 * allowed


def test_weights_trained_in_keras_fold_into_form_and_inference_model_alike(
    work: Path, run: Run
) -> None:
    import keras

    trained = keras.models.load_model(work / "trained.keras")
    images, _ = digits("test")
    results = []
    for model, flags in (("form.onnx", ()), ("folded.onnx", ("--no-verify",))):
        output = work / f"from-{model}"
        arguments = ("fold", work / model, "--from-keras", work / "trained.keras", "-o", output)
        code, out, err = run(*arguments, "--json", *flags)
        assert (code, err) == (0, "")
        content = json.loads(out)
        assert (content["converted"], content["verified"]) == (3, not flags)
        assert content["notes"] == [f"weights and statistics of {work / 'trained.keras'} taken"]
        results.append(onnx.load(output))
    assert results[0].graph == results[1].graph
    names = [value.name for value in onnx.load(work / "folded.onnx").graph.initializer]
    assert [value.name for value in results[0].graph.initializer] == names
    values = {tensor.name: onh.to_array(tensor) for tensor in results[0].graph.initializer}
    for name, value in weights(trained).items():
        assert values[name].size == value.size
        if value.ndim == 1:
            np.testing.assert_array_equal(values[name], value)
    fused = FoldOptions(from_keras=trained, fuse=True)
    found = syncbn_convert.fold(work / "form.onnx", fused, verify=False)
    wanted = trained.predict(images, verbose=0)
    assert (predict(found, images).argmax(1) == wanted.argmax(1)).all()


def test_weights_of_an_onnx_model_come_back_bit_by_bit(work: Path, run: Run) -> None:
    import keras

    fold = ("fold", work / "form.onnx", "--from-keras", work / "trained.keras")
    assert run(*fold, "-o", work / "deploy.onnx", "--no-verify", "-q")[0] == 0
    untrained = keras.models.load_model(work / "untrained.keras")
    untrained.compile(keras.optimizers.SGD(0.125), "mse")
    untrained.save(work / "untrained.keras")
    output = work / "back.keras"
    arguments = ("statistics", work / "deploy.onnx", "--to-keras", work / "untrained.keras")
    code, out, err = run(*arguments, "-o", output)
    assert (code, err) == (0, "")
    assert "variables written 16, kept 0" in out
    assert "verified: largest relative error" in out
    back = keras.models.load_model(output)
    trained = keras.models.load_model(work / "trained.keras")
    assert_equal(weights(back), weights(trained))
    assert float(back.optimizer.learning_rate) == 0.125
    assert (back.loss, back.get_layer("stem_bn").synchronized) == ("mse", True)
    images, _ = digits("test")
    np.testing.assert_array_equal(
        back.predict(images, verbose=0), trained.predict(images, verbose=0)
    )


def test_statistics_come_back_in_json(work: Path, run: Run) -> None:
    import keras

    given, output = work / "moving.safetensors", work / "back.keras"
    arguments = ("statistics", "--to-keras", work / "trained.keras", "--statistics", given)
    code, out, err = run(*arguments, "-o", output, "--json")
    assert (code, err) == (0, "")
    content = json.loads(out)
    names = [variable["name"] for variable in content["variables"]]
    assert names == sorted(moving_statistics.load(given).tensors, key=names.index)
    assert (content["command"], content["kept"], content["verified"]) == ("statistics", 10, True)
    assert (content["input"], content["output"]) == (str(work / "trained.keras"), str(output))
    assert content["max_relative_error"] <= content["tolerance"] < 1e-4
    back = weights(keras.models.load_model(output))
    wanted = weights(keras.models.load_model(work / "trained.keras"))
    assert_equal(back, {**wanted, **{k: moving_statistics.load(given).tensors[k] for k in names}})


def test_every_weight_of_hard_layers_finds_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    import keras

    from syncbn_convert.keras import taken_weights

    trained = mixed_model()
    untrained = keras.models.clone_model(trained)
    randomize(untrained, 1)
    randomize(trained, 2)
    form = syncbn_convert.convert(untrained, verify=False)
    folded = syncbn_convert.fold(form, FoldOptions(from_keras=trained), verify=False)
    whole = syncbn_convert.to_keras(untrained, folded)
    assert_equal(weights(whole), weights(trained))
    monkeypatch.setattr(taken_weights, "_BASE", 64)  # as if float32 held no larger number
    by_digits = syncbn_convert.to_keras(untrained, folded, verify=False)
    assert_equal(weights(by_digits), weights(trained))
    assert not whole.get_layer("frozen").trainable


def test_statistics_of_a_part_of_the_layers_come_back(work: Path) -> None:
    import keras

    options = syncbn_convert.ConvertOptions(include=("stem",))
    form = syncbn_convert.convert(work / "untrained.keras", options, verify=False)
    back = syncbn_convert.to_keras(work / "trained.keras", extract_statistics(form), verify=False)
    wanted = weights(keras.models.load_model(work / "trained.keras"))
    untrained = weights(keras.models.load_model(work / "untrained.keras"))
    moving = {name: untrained[name] for name in wanted if name.startswith("stem_bn/moving")}
    assert_equal(weights(back), {**wanted, **moving})


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("library_name", "suffix"), [("keras", ".h5"), ("tf_keras", ".keras"), ("tf_keras", ".h5")]
)
def test_other_files_take_statistics_and_weights(
    library_name: str, suffix: str, tmp_path: Path
) -> None:
    library = importlib.import_module(library_name)
    for name, seed in (("untrained", 1), ("trained", 2)):
        randomize(classifier(library), seed).save(tmp_path / f"{name}{suffix}")
    untrained, trained = (tmp_path / f"{name}{suffix}" for name in ("untrained", "trained"))
    form, folded, back = (tmp_path / f"{name}.onnx" for name in ("form", "folded", "back"))
    syncbn_convert.convert_file(untrained, form, verify=False)
    _, report = syncbn_convert.fold_file(form, folded, FoldOptions(from_keras=trained))
    assert report.verified
    written = tmp_path / f"written{suffix}"
    found = syncbn_convert.to_keras_file(untrained, folded, written)
    assert (len(found.variables), found.kept, found.verified) == (16, 0, True)
    syncbn_convert.fold_file(form, back, FoldOptions(from_keras=written), verify=False)
    assert onnx.load(back) == onnx.load(folded)
    syncbn_convert.to_keras_file(written, extract_statistics(form), written, force=True)
    loaded = {
        name: library.models.load_model(tmp_path / f"{name}{suffix}").get_weights()
        for name in ("untrained", "trained", "written")
    }
    for first, second, third in zip(*loaded.values(), strict=True):
        assert np.array_equal(third, first) or np.array_equal(third, second)
    moving = syncbn_convert.fold(form, FoldOptions(from_keras=written), verify=False)
    assert_equal(extract_statistics(moving).tensors, extract_statistics(form).tensors)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 8}, "weight 'stem_conv/kernel' is float[8,1,3,3] in "),
        ({"hidden": "renamed"}, "weight 'renamed/kernel' of "),
        ({"activation": "ELU"}, "hidden_relu_1/Elu' is Elu and Relu"),
    ],
    ids=["shapes", "renamed", "another activation"],
)
def test_another_architecture_is_refused_both_ways(
    work: Path, run: Run, options: dict[str, Any], message: str
) -> None:
    other = work / "other.keras"
    made(3, **options).save(other)
    output = work / "out.onnx"
    fold = ("fold", work / "form.onnx", "--from-keras", other, "-o", output)
    assert message in refused(run, work, 1, *fold)
    back = ("statistics", work / "form.onnx", "--to-keras", other, "-o", work / "out.keras")
    assert message in refused(run, work, 1, *back)


def test_statistics_that_do_not_fit_are_refused(work: Path, run: Run) -> None:
    found = moving_statistics.load(work / "moving.safetensors")
    name, partner = "stem_bn/moving_mean", "stem_bn/moving_variance"
    without = {key: value for key, value in found.tensors.items() if key != name}
    others: dict[str, dict[str, Array]] = {
        f"'{name}' is missing": without,
        "2 missing, 0 unknown": {k: v for k, v in without.items() if k != partner},
        "'x/moving_mean' is not in the model": {**found.tensors, "x/moving_mean": np.zeros(3)},
        f"'{name}' has shape [3]": {**found.tensors, name: np.zeros(3, np.float32)},
        f"'{name}' is not finite": {**found.tensors, name: found.tensors[name] * np.nan},
        "6 missing, 0 unknown": {},
    }
    given = work / "moving.safetensors"
    arguments = ("statistics", "--to-keras", work / "trained.keras", "--statistics", given)
    for message, tensors in others.items():
        moving_statistics.save(moving_statistics.Statistics(tensors, found.layers_digest), given)
        assert message in refused(run, work, 1, *arguments, "-o", work / "out.keras")
    moving_statistics.save(moving_statistics.Statistics(found.tensors, "0" * 64), given)
    line = refused(run, work, 1, *arguments, "-o", work / "out.keras")
    assert "digest 000000000000, the model's is" in line


def test_a_fused_model_and_weights_that_are_not_finite_are_refused(work: Path, run: Run) -> None:
    import keras

    fused = work / "fused.onnx"
    syncbn_convert.fuse_file(work / "folded.onnx", fused, verify=False)
    back = ("statistics", "--to-keras", work / "trained.keras", "-o", work / "out.keras")
    assert "and not fused since" in refused(run, work, 1, *back, fused)
    broken = keras.models.load_model(work / "trained.keras")
    broken.get_layer("hidden").kernel.assign(np.full((144, 32), np.inf))
    broken.save(work / "broken.keras")
    line = refused(
        run,
        work,
        1,
        *("fold", work / "form.onnx", "--from-keras", work / "broken.keras"),
        *("-o", work / "out.onnx"),
    )
    assert "weight 'hidden/kernel' of " in line
    assert "broken.keras is not finite" in line


def test_predictions_are_compared(work: Path, run: Run) -> None:
    keras = work / "trained.keras"
    fold = ("fold", work / "form.onnx", "--from-keras", keras, "-o", work / "out.onnx")
    back = ("statistics", work / "form.onnx", "--to-keras", keras, "-o", work / "out.keras")
    for arguments in (fold, back):
        line = refused(run, work, 1, *arguments, "--rtol", "1e-12")
        assert "trained.keras: the imported model differs from the framework's predictions" in line
        assert "output 'digit': " in line


def test_files_that_cannot_be_used_are_refused(work: Path, run: Run) -> None:
    keras, form, moving = work / "trained.keras", work / "form.onnx", work / "moving.safetensors"
    for path in (keras, form, moving):
        cut = path.with_stem(f"cut-{path.stem}")
        cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    without_weights = work / "without.keras"
    with zipfile.ZipFile(keras) as old, zipfile.ZipFile(without_weights, "w") as new:
        for name in ("config.json", "metadata.json"):
            new.writestr(name, old.read(name))
    missing = work / "missing.keras"
    output = ("-o", work / "out.keras")
    for broken in (work / "cut-trained.keras", without_weights, missing):
        fold = ("fold", form, "--from-keras", broken, "-o", work / "out.onnx")
        assert f"error: {broken}: " in refused(run, work, 2, *fold)
        back = ("statistics", "--statistics", moving, "--to-keras", broken)
        assert f"error: {broken}: " in refused(run, work, 2, *back, *output)
    no_statistics = ("--statistics", work / "cut-moving.safetensors")
    line = refused(run, work, 2, "statistics", "--to-keras", keras, *no_statistics, *output)
    assert "cut-moving.safetensors: not a .safetensors file" in line
    half = ("statistics", "--to-keras", keras, work / "cut-form.onnx")
    assert "cut-form.onnx: " in refused(run, work, 2, *half, *output)
    onnx_as_keras = ("fold", form, "--from-keras", form, "-o", work / "out.onnx")
    assert "form.onnx: is no model of Keras" in refused(run, work, 2, *onnx_as_keras)


def test_existing_outputs_need_force(work: Path, run: Run) -> None:
    keras = work / "trained.keras"
    back = ("statistics", work / "form.onnx", "--to-keras", keras, "-o")
    assert "is the input itself" in refused(run, work, 2, *back, keras)
    assert "untrained.keras: exists" in refused(run, work, 2, *back, work / "untrained.keras")
    fold = ("fold", work / "form.onnx", "--from-keras", keras, "-o", work / "folded.onnx")
    assert "folded.onnx: exists" in refused(run, work, 2, *fold)
    assert run(*back, keras, "--force", "--no-verify", "-q") == (0, "", "")
    import keras as library

    found, wanted = (
        weights(library.models.load_model(work / name)) for name in (keras, "untrained.keras")
    )
    assert_equal(found, wanted)


def test_contradictions_are_refused(work: Path, run: Run) -> None:
    keras, moving = work / "trained.keras", work / "moving.safetensors"
    output = ("-o", work / "out.keras")
    both = ("statistics", work / "form.onnx", "--to-keras", keras, "--statistics", moving)
    assert "give one of them" in refused(run, work, 2, *both, *output)
    assert "give one of them" in refused(run, work, 2, "statistics", "--to-keras", keras, *output)
    assert "statistics are written of MODEL" in refused(run, work, 2, "statistics", *output)
    alone = ("statistics", work / "form.onnx", "--statistics", moving, *output)
    assert "only with --to-keras" in refused(run, work, 2, *alone)
    folder = ("statistics", work / "form.onnx", "--to-keras", work, "-o", work / "out")
    assert "is a folder" in refused(run, work, 2, *folder)
    other = ("statistics", work / "form.onnx", "--to-keras", keras, "-o", work / "out.h5")
    assert "give it the suffix .keras" in refused(run, work, 2, *other)
    two = ("fold", work / "form.onnx", "--from-keras", keras, "--statistics", moving)
    assert "give one of --statistics and --from-keras" in refused(run, work, 2, *two)
    with pytest.raises(UsageError, match="is no model of Keras"):
        syncbn_convert.to_keras(onnx.ModelProto(), work / "form.onnx")


def test_loss_that_keras_does_not_know_is_noted(work: Path) -> None:
    import keras

    def own_loss(wanted: Any, found: Any) -> Any:
        return keras.ops.mean(wanted - found)

    model = keras.models.load_model(work / "trained.keras")
    model.compile("sgd", own_loss)
    model.save(work / "own.keras")
    report = syncbn_convert.to_keras_file(
        work / "own.keras", work / "form.onnx", work / "out.keras", verify=False
    )
    (note,) = report.notes
    assert note.startswith("optimizer and loss are not in the result: ")
    untrained = keras.models.load_model(work / "untrained.keras")
    assert_equal(weights(keras.models.load_model(work / "out.keras")), weights(untrained))


@pytest.mark.parametrize("command", ["fold", "statistics"])
def test_without_tensorflow_the_extra_is_named(work: Path, command: str) -> None:
    flag = {"fold": "--from-keras", "statistics": "--to-keras"}[command]
    suffix = {"fold": "onnx", "statistics": "keras"}[command]
    arguments = [command, str(work / "form.onnx"), flag, str(work / "trained.keras")]
    arguments += ["-o", str(work / f"out.{suffix}")]
    program = (
        "import sys; sys.modules['tensorflow'] = None\n"
        "from syncbn_convert.cli.main import main\n"
        f"sys.exit(main({arguments!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "pip install 'syncbn-convert[tensorflow]'" in done.stderr
    assert not (work / f"out.{suffix}").exists()
