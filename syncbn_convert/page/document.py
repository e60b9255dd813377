"""The page itself: HTML without anything that is loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from pathlib import Path

from syncbn_convert.files import staging
from syncbn_convert.page import epochs, plots
from syncbn_convert.page.model_facts import LayerStatistics, ModelFacts
from syncbn_convert.reports import (
    CalibrateReport,
    OutputDifference,
    Record,
    RewriteReport,
    VerifyReport,
)
from syncbn_convert.training.results import TrainReport

PageReport = RewriteReport | CalibrateReport | VerifyReport | TrainReport

_LONG_TABLE = 25
_MOST_PICTURES = 6
_ALWAYS_OPEN = ("skipped", "kept", "frozen")


def write_page(
    path: Path, report: PageReport, *, before: ModelFacts, after: ModelFacts | None = None
) -> None:
    """Write a report as one HTML page that needs no network; it appears whole or not at all.

    Args:
        path: The file; one that is there is replaced.
        report: What a command did.
        before: Its input, or what `verify` compares with.
        after: Its output, or what `verify` compares; None if nothing was written.

    Raises:
        ModelFileError: if the file cannot be written.
        UsageError: if matplotlib is not installed.
    """
    plots.require_matplotlib()
    title = f"{report.command} {before.path.name}"
    body = "\n".join(
        [
            f"<header><p>syncbn-convert {report.command}</p><h1>{escape(before.path.name)}</h1>",
            f"<p class=verdict>{escape(_verdict(report))}</p></header>",
            _cards(report),
            _models(report, before, after),
            *_notes(report),
            *_training(report),
            *_statistics(before, after),
            *_outputs(report),
            *_nodes(report),
        ]
    )
    style = resources.files("syncbn_convert.page").joinpath("page.css").read_text(encoding="utf-8")
    text = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{escape(title)}</title>\n'
        f"<style>\n{style}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )
    with staging.stage_output(path, force=True) as staged:
        staged.path.write_text(text, encoding="utf-8")
        staged.commit()


def _verdict(report: PageReport) -> str:
    if isinstance(report, VerifyReport):
        if report.equal:
            return f"equal in {report.runs} runs"
        return f"different: {report.first_difference}"
    if not report.verified:
        return "not verified"
    if not isinstance(report, RewriteReport) or report.max_relative_error is None:
        return "verified"
    return (
        f"verified: largest relative error {report.max_relative_error:.1e}, "
        f"tolerance {report.tolerance:.1e}"
    )


def _cards(report: PageReport) -> str:
    figures: dict[str, object]
    if isinstance(report, RewriteReport):
        done = {"convert": "converted", "fold": "folded", "fuse": "fused", "unfuse": "inserted"}
        figures = {
            "found": report.found,
            done.get(report.command, "done"): report.converted,
            "left alone": len(report.skipped),
            "AllReduce per step": report.all_reduces,
        }
    elif isinstance(report, CalibrateReport):
        figures = {
            "layers": len(report.layers),
            "samples": report.samples,
            "batches": report.batches,
            "replicas": report.replicas,
        }
    elif isinstance(report, TrainReport):
        figures = epochs.figures(report)
    else:
        figures = {
            "outputs": len(report.outputs),
            "runs": report.runs,
            "largest relative error": f"{report.max_relative_error:.1e}",
            "tolerance": f"{report.tolerance:.1e}",
        }
    items = (f"<li><b>{escape(str(value))}</b> {name}</li>" for name, value in figures.items())
    return f"<ul class=cards>{''.join(items)}</ul>"


def _models(report: PageReport, before: ModelFacts, after: ModelFacts | None) -> str:
    names = ("reference", "candidate") if isinstance(report, VerifyReport) else ("before", "after")
    facts = [before] if after is None else [before, after]
    rows = [
        ("file", *(fact.path.name for fact in facts)),
        ("size", *(_size(fact.nbytes) for fact in facts)),
        ("nodes", *(f"{fact.nodes:,}" for fact in facts)),
        ("BatchNormalization", *(str(fact.batchnorms) for fact in facts)),
        ("SyncBatchNormalization", *(str(fact.synchronized) for fact in facts)),
        ("opset", *(str(fact.opset) for fact in facts)),
    ]
    return _section("Models", _table(("", *names[: len(facts)]), rows))


def _size(nbytes: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= size:
            return f"{nbytes / size:.1f} {unit}"
    return f"{nbytes} B"


def _notes(report: PageReport) -> Iterable[str]:
    if report.notes:
        items = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
        yield _section("Notes", f"<ul>{items}</ul>")


def _training(report: PageReport) -> Iterable[str]:
    if isinstance(report, TrainReport):
        rows = epochs.rows(report)
        yield _section("Training", _pictures(epochs.curves(report)))
        yield _section("Epochs", _folded(_table(epochs.HEAD, rows), len(rows)))


def _statistics(before: ModelFacts, after: ModelFacts | None) -> Iterable[str]:
    later = after.layers if after is not None else {}
    if not before.layers and not later:
        return
    pictures = [
        plots.statistics_by_layer(before.layers, later, what) for what in ("mean", "variance")
    ]
    text = "" if later else "<p>No moving statistics are left after it.</p>" if after else ""
    yield _section("Moving statistics", text + _pictures(pictures))
    moved = _moved_most(before.layers, later)
    if moved is not None:
        old, new = before.layers[moved], later[moved]
        channels = [plots.statistics_by_channel(old, new, what) for what in ("mean", "variance")]
        yield _section(f"Moved most: {moved}", _pictures(channels))


def _moved_most(
    before: dict[str, LayerStatistics], after: dict[str, LayerStatistics]
) -> str | None:
    distances = {
        name: layer.moved_to(after[name]) for name, layer in before.items() if name in after
    }
    name = max(distances, key=lambda key: distances[key], default=None)
    return name if name is not None and distances[name] > 0 else None


def _outputs(report: PageReport) -> Iterable[str]:
    outputs: list[OutputDifference] = []
    if isinstance(report, RewriteReport | VerifyReport):
        outputs = report.outputs
    if not outputs:
        return
    rows = [
        (
            output.name,
            f"{output.max_absolute_error:.1e}",
            f"{output.max_relative_error:.1e}",
            f"{output.tolerance:.1e}",
            output.detail or ("equal" if output.equal else "different"),
        )
        for output in outputs
    ]
    table = _table(("output", "absolute", "relative", "tolerance", ""), rows)
    worst = sorted(
        (output for output in outputs if output.histogram),
        key=lambda output: -output.max_relative_error / (output.tolerance or 1.0),
    )[:_MOST_PICTURES]
    pictures = [
        f"<h3>{escape(output.name)}</h3>{plots.error_histogram(output)}" for output in worst
    ]
    yield _section("Errors of the outputs", table + _pictures(pictures))


def _nodes(report: PageReport) -> Iterable[str]:
    if isinstance(report, CalibrateReport):
        rows = [
            (
                layer.name,
                str(layer.channels),
                f"{layer.mean_shift:.3g}",
                f"{layer.variance_ratio:.3g}",
            )
            for layer in report.layers
        ]
        head = ("layer", "channels", "mean shift", "variance ratio")
        yield _section("Layers, what moved most first", _folded(_table(head, rows), len(rows)))
    elif isinstance(report, RewriteReport):
        left = [record for record in report.records if record.action in _ALWAYS_OPEN]
        if left:
            yield _section("Left alone, and why", _folded(_records(left), len(left)))
        done = [record for record in report.records if record.action not in _ALWAYS_OPEN]
        if done:
            yield _section("Done", _folded(_records(done), len(done)))
    elif isinstance(report, TrainReport) and report.records:
        table = _records(report.records)
        yield _section("Not trained, and why", _folded(table, len(report.records)))


def _records(records: Sequence[Record]) -> str:
    rows = []
    for record in records:
        changes = record.detail.get("changes", ())
        name = f"{record.location} / {record.node}" if record.location else record.node
        rows.append((name, record.action, "; ".join(filter(None, (record.reason, *changes)))))
    return _table(("node", "", ""), rows)


def _folded(table: str, rows: int) -> str:
    if rows <= _LONG_TABLE:
        return table
    return f"<details><summary>{rows} rows</summary>{table}</details>"


def _pictures(pictures: Sequence[str]) -> str:
    return f"<div class=pictures>{''.join(f'<figure>{p}</figure>' for p in pictures)}</div>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    content = f"<thead><tr>{cells}</tr></thead><tbody>{lines}</tbody>"
    return f"<div class=wide><table>{content}</table></div>"


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"
