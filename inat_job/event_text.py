"""What a person reads of each event: a sentence, a table row for an epoch, a summary at the end.

Pure text: console.py decides where it goes. An event that is not named here is a detail, shown with --verbose only.
"""

from collections.abc import Callable, Mapping
from typing import Any

Fields = Mapping[str, Any]

UNSEEN = ("phase", "heartbeat", "cache", "check", "bench")
"""Events for machines alone: a person sees the bars, or what the command prints itself."""

PHASES = {
    "preflight": "Checking what the job needs",
    "start": "Starting",
    "pull": "Downloading the data",
    "prepare": "Decoding the images",
    "rendezvous": "Waiting for the other ranks",
    "build": "Building the network",
    "features": "Computing the features of the frozen stem",
    "probe": "Solving for the head",
    "export": "Exporting the network",
    "search": "Searching",
    "retrain": "Training the best settings again",
    "upload": "Storing the results",
}
"""What a person reads of each phase that does not report its progress from the first moment."""

_COLUMNS = (
    ("epoch", 7),
    ("train loss", 11),
    ("val loss", 9),
    ("val accuracy", 13),
    ("", 2),
    ("lr", 9),
    ("images/s", 9),
    ("left", 8),
)
"""Headings and widths of the table of epochs; the column without a heading marks the best so far."""

HEADING = " ".join(f"{name:>{width}}" for name, width in _COLUMNS)
_MISSING = "-"
_CLASSES = 20
"""Classes that the summary lists at most."""


def text_of(event: str, fields: Fields, verbose: bool = False) -> str | None:
    """The lines about an event, or None if it is not for people."""
    if event in _TEXTS:
        return _TEXTS[event](fields)
    if event in UNSEEN or not verbose:
        return None
    if event in _DETAILS:
        return _DETAILS[event](fields)
    return str(fields["message"]) if set(fields) == {"message"} else f"{event}: {_pairs(fields)}"


def printable(text: str, kept: str = "") -> str:
    """`text` with escapes for the characters that could steer a terminal or begin a line of their own.

    Names of runs, classes and files are anyone's. Control characters in `kept` stay.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each in kept else ascii(each)[1:-1] for each in text)


def printable_values(value: Any) -> Any:
    """Plain values with each text in them printable."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {printable_values(name): printable_values(each) for name, each in value.items()}
    return [*map(printable_values, value)] if isinstance(value, list | tuple) else value


def percent(share: float) -> str:
    """A share for people."""
    return f"{100 * share:.1f} %"


def duration(seconds: float) -> str:
    """Seconds as a clock shows them: 0:05, 12:34, 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def counted(number: int, one: str, more: str) -> str:
    """The number before `one` if it is 1, else before `more`."""
    return f"{number} {one if number == 1 else more}"


def _warning(fields: Fields) -> str:
    more = {name: value for name, value in fields.items() if name != "message"}
    return f"Warning: {fields['message']}" + (f" ({_pairs(more)})" if more else "")


def _introduction(fields: Fields) -> str:
    """Model, data and device, in three lines."""
    total, trained = fields["parameters"], fields["trainable_parameters"]
    learns = "all trained" if total == trained else f"{trained:,} trained"
    how = f", strategy {fields['strategy']}" if fields.get("strategy") else ""
    splits = ", ".join(f"{count:,} {name}" for name, count in fields["images"].items() if count)
    ranks = f"{fields['ranks']} ranks" if fields["ranks"] > 1 else "1 device"
    return (
        f"\nModel  {fields['model']}, {total:,} parameters, {learns}{how}\n"
        f"Data   {sum(fields['images'].values()):,} images of {fields['classes']} classes: {splits}\n"
        f"Run    {fields['device']}, {fields['precision']}, {ranks}, in {fields['run']}"
    )


def _resume(fields: Fields) -> str:
    if fields["ended"]:
        return f"Resuming from step {fields['step']}: training is complete."
    return f"Resuming from step {fields['step']} (epoch {fields['epoch']} of {fields['epochs']})"


def _epoch(fields: Fields) -> str:
    values = (
        f"{fields['epoch']}/{fields['epochs']}" if fields.get("epochs") else str(fields["epoch"]),
        _number(fields.get("train_loss"), ".3f"),
        _number(fields.get("val_loss"), ".3f"),
        _MISSING if fields.get("val_accuracy") is None else percent(fields["val_accuracy"]),
        "*" if fields.get("best") else "",
        _number(fields.get("lr"), ".2e"),
        _number(fields.get("images_per_s"), ",.0f"),
        duration(fields["left_s"]) if fields.get("left_s") is not None else _MISSING,
    )
    return " ".join(f"{value:>{width}}" for value, (_, width) in zip(values, _COLUMNS, strict=True)).rstrip()


def _result(fields: Fields) -> str:
    """The accuracies of a finished run but for the test's, which the last line has, and where the report is."""
    recalls = sorted(fields["recall"].items(), key=lambda each: each[1][1])[:_CLASSES]
    few = len(recalls) == len(fields["recall"])
    of_many = f", the {_CLASSES} lowest of {len(fields['recall'])}"
    listed = fields["recall"].items() if few else recalls
    width = max(len(name) for name, _ in listed)
    val = fields["val_accuracy"]
    return "\n".join(
        [
            "",
            f"Test accuracy by class (recall){'' if few else of_many}:",
            *(f"  {name:<{width}}  {percent(recall):>7} of {n:,}" for name, (n, recall) in listed),
            "",
            *([] if val is None else [f"Validation accuracy {percent(val)}"]),
            f"Report  {fields['run']}/report.html, and report.json beside it",
            *([f"Next    {fields['next']}"] if fields["next"] else []),
            "",
        ]
    )


def _tested(fields: Fields) -> str:
    """The results of several checkpoints, one below the other."""
    results = fields["results"]
    width = max(len(each["checkpoint"]) for each in results)
    flips = ["", *(["with --tta flip"] if results[0]["tta_accuracy"] is not None else [])]
    lines = ["", f"{'checkpoint':<{width}}  {'accuracy':>8}  {'95 % interval':>18}  {'images':>7}{'  '.join(flips)}"]
    for each in results:
        low, high = each["ci95"]
        flip = "" if each["tta_accuracy"] is None else f"{percent(each['tta_accuracy']):>17}"
        shown = f"{percent(each['accuracy']):>8}  {f'{percent(low)} to {percent(high)}':>18}  {each['n']:>7,}"
        lines.append(f"{each['checkpoint']:<{width}}  {shown}{flip}")
    return "\n".join(lines)


def _trial(fields: Fields) -> str:
    """A trial that begins or is continued."""
    verb = "continues" if fields["continued"] else "begins"
    return f"Trial {fields['number']} {verb}: {_pairs(fields['values'])}"


def _trial_end(fields: Fields) -> str:
    value, best = fields["value"], fields["best"]
    result = f"{percent(value)} in validation" if value is not None else fields["outcome"]
    why = f" ({fields['why']})" if fields["outcome"] in ("failed", "continue") else ""
    counted = f"{fields['ended']} of {fields['trials']} ended" + (f", best {percent(best)}" if best is not None else "")
    return f"Trial {fields['number']}: {result}{why}; {counted}"


def _retrained(fields: Fields) -> str:
    val = "" if fields["val_accuracy"] is None else f"{percent(fields['val_accuracy'])} in validation, "
    return f"Seed {fields['seed']}: {val}{percent(fields['test_accuracy'])} in the test"


def _tracker(fields: Fields) -> str | None:
    if fields.get("upload"):
        return f"The run is tracked offline; to upload it: {fields['upload']}"
    return f"Tracked at {fields['url']}" if fields.get("url") else None


def _preflight(fields: Fields) -> str:
    counts = f"{fields['ok']} ok, {counted(fields['warn'], 'warning', 'warnings')}, {fields['fail']} failed"
    return f"Preflight: {counts}, in {fields['seconds']} s."


def _state(fields: Fields) -> str:
    why = f" ({fields['why']})" if fields.get("why") else ""
    return f"{fields['job']}: {fields['state']}{why}"


def _number(value: float | None, form: str) -> str:
    return _MISSING if value is None else format(value, form)


def _pairs(fields: Fields) -> str:
    shown = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in fields.items()}
    return ", ".join(f"{name} {value}" for name, value in shown.items())


_TEXTS: Mapping[str, Callable[[Fields], str | None]] = {
    "warning": _warning,
    "introduction": _introduction,
    "resume": _resume,
    "epoch": _epoch,
    "result": _result,
    "tested": _tested,
    "stopping": lambda fields: f"Stopping ({fields['why']}): storing what is done; a second signal ends at once.",
    "tracker": _tracker,
    "preflight": _preflight,
    "trial": _trial,
    "trial-end": _trial_end,
    "retrained": _retrained,
    "submitted": lambda fields: f"Submitted to {fields['target']}: {fields['job']}",
    "state": _state,
    "length": lambda fields: (
        f"{fields['of']} times {fields['images']:,} images is less than --min-images-seen, {fields['least']:,}: there "
        f"are {fields['epochs']:,} epochs."
    ),
    "time-limit": lambda fields: (
        f"--max-time leaves time for {fields['steps']:,} of {fields['of']:,} steps, in {fields['epochs']} epochs: the "
        "learning rate falls to zero by then."
    ),
    "final": lambda fields: str(fields["message"]),
    "waiting": lambda fields: str(fields["message"]),
    "done": lambda fields: str(fields["message"]),
}
"""The events that a person sees without --verbose."""

_DETAILS: Mapping[str, Callable[[Fields], str]] = {
    "checkpoint": lambda fields: (
        f"Checkpoint of step {fields['step']}: {fields['bytes'] / 1e6:.1f} MB, stored in {fields['seconds']:.2f} s"
    ),
    "data": lambda fields: (
        f"Data: {fields['images']:,} images of {fields['classes']} classes, sha256 {fields['digest']}"
    ),
    "split": lambda fields: (
        f"Data: no test set of its own, so {percent(fields['test_share'])} of each class, {fields['test']:,} images, "
        "are split off by content"
    ),
    "run": lambda fields: f"Run {fields['run']} ({fields['state']})",
}
"""Events with a sentence of their own that a person sees with --verbose."""
