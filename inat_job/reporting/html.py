"""report.html: the report as one page, with its plots inside."""

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from inat_job.reporting.report import per_class_rows, result_sentence

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; }}
td, th {{ padding: .2rem .8rem; border-bottom: 1px solid #ccc; text-align: right; }}
td:first-child, th:first-child {{ text-align: left; }} img {{ max-width: 100%; }} pre {{ overflow-x: auto; }}
</style>
<h1>{title}</h1>
<p><strong>{sentence}</strong></p>
<p>{summary}</p>
<h2>Classes</h2>
{classes}
{plots}
<h2>Settings</h2>
<pre>{settings}</pre>
</html>
"""


def render_page(report: Mapping[str, Any], plots: Sequence[Path]) -> str:
    """The HTML of a report, with the plots as data URIs."""
    return _PAGE.format(
        title=escape(report["run_id"]),
        sentence=escape(result_sentence(report)),
        summary=escape(_summary(report)),
        classes=_table(("class", "n", "precision", "recall", "F1"), per_class_rows(report)),
        plots="\n".join(_image(path) for path in plots),
        settings=escape(json.dumps(report["settings"], indent=2)),
    )


def _summary(report: Mapping[str, Any]) -> str:
    model, data = report["model"], report["data"]
    return (
        f"{model['name']}: {model['parameters']:,} parameters, {model['macs']:,} multiply-adds per image. "
        f"{data['n_train']:,} training images, {data['n_val']:,} validation images, {data['n_test']:,} test images"
        f"{_unused(data)}. "
        f"{_cost(report)}"
    )


def _unused(data: Mapping[str, Any]) -> str:
    """What was not trained on, or may be broken; older reports do not say."""
    counts = {
        "unreadable images left out": len(data.get("rejected", ())),
        "other files skipped": len(data.get("skipped", ())),
        "images of a single colour": len(data.get("blank", ())),
    }
    return "".join(f", {count:,} {what}" for what, count in counts.items() if count)


def _cost(report: Mapping[str, Any]) -> str:
    cost, rate = report["cost"], report["throughput"]["train_images_per_s"]
    speed = f"Training speed: {rate:,.1f} images per second. " if rate else ""
    price = "" if cost["total"] is None else f", {cost['total']:,.4f} at {cost['price_per_hour']:g} per hour"
    return f"{speed}Cost: {cost['device_seconds']:,.0f} device-seconds{price}."


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = ["<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{escape(_cell(cell))}</td>" for cell in row) + "</tr>" for row in rows]
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _image(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{escape(path.stem)}" src="data:image/png;base64,{data}">'
