"""The last files of model/, once the run is evaluated: the formats of `--export`, timm's config.json, the model card.

A failed export does not fail the run: a warning and the report say why the file is missing.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from inat_job import events, signals
from inat_job.data.augment import cut_views
from inat_job.errors import Preempted
from inat_job.models.export import load_exported
from inat_job.models.model_files import DESCRIPTION, EXPORTS, read_description
from inat_job.models.network_exports import export_verified
from inat_job.models.timm_config import CONFIG, timm_config
from inat_job.reporting.model_card import CARD, render_card
from inat_job.training.context import RunContext

_REASON = 300
"""Letters of a failure's reason in the report: the exporters explain at length."""


def export_formats(context: RunContext) -> dict[str, Any]:
    """Write the files of `--export`; returns the report's section `exports`, by format, empty if none was asked for."""
    formats, folder = context.settings.run.export, _model_folder(context)
    for file in EXPORTS.values():  # of an earlier attempt
        (folder / file).unlink(missing_ok=True)
    if not formats:
        return {}
    events.phase("export")
    with context.clock.phase("export_s"), context.folder.drafts("model") as drafts:
        return {name: _export(context, name, folder, drafts) for name in dict.fromkeys(formats)}


def finish_model(context: RunContext, report: dict[str, Any]) -> None:
    """Write the files that are made of the report: model.json with the exports' digests, config.json, and the card."""
    with context.folder.drafts("model") as drafts:
        _describe(_model_folder(context), drafts, report)


def _model_folder(context: RunContext) -> Path:
    return context.folder.path(f"model/{DESCRIPTION}").parent


def _export(context: RunContext, name: str, model: Path, drafts: Path) -> dict[str, Any]:
    """The facts of a verified export, or why there is none."""

    def views() -> Iterator[tuple[Tensor, Tensor]]:
        for batch in context.images.unsharded_batches(context.images.test_rows, None):
            signals.check(context.stop, f"verifying the export to {name}")
            pixels, maps = batch.pixels.cpu(), batch.maps.cpu()
            yield cut_views(pixels, maps, None, context.settings.data.eval_size), batch.labels.cpu()

    signals.check(context.stop, f"exporting the network to {name}")
    try:
        network, _ = load_exported(model)
        facts = export_verified(name, network, context.settings.data.eval_size, drafts, views)
    except Preempted:
        raise
    except Exception as error:  # the exporters raise almost anything for a network that they do not support
        reason = " ".join(str(error).split())[:_REASON] or type(error).__name__
        events.warn(f"The export to {name} failed, and is left out: {reason}")
        return {"error": reason}
    events.emit("export", format=name, **facts)
    return facts


def _describe(folder: Path, drafts: Path, report: dict[str, Any]) -> None:
    description = read_description(folder / DESCRIPTION)
    exports = {name: each for name, each in report.get("exports", {}).items() if "file" in each}
    description["exports"] = {name: {key: each[key] for key in ("file", "sha256")} for name, each in exports.items()}
    config = timm_config(description)
    (drafts / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    if config:
        (drafts / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (drafts / CARD).write_text(render_card(report, timm=config is not None), encoding="utf-8")
