"""report.html shows the report and its plots, and escapes what it shows."""

from pathlib import Path

from inat_job.reporting import html, report
from tests.reporting.made_reports import REPORT


def test_page_escapes_names_and_embeds_plots(tmp_path: Path) -> None:
    plot = tmp_path / "curves.png"
    plot.write_bytes(b"png")
    page = html.render_page(REPORT, [plot])
    assert "<b>run</b>" not in page
    assert "&lt;b&gt;run&lt;/b&gt;" in page
    assert "A &amp; B" in page
    assert "0.667" in page
    assert 'src="data:image/png;base64,cG5n"' in page
    assert "http" not in page
    assert "5,678 multiply-adds per image. 8 training images, 2 validation images, 4 test images." in page
    assert "Training speed: 1,234.5 images per second. Cost: 7,200 device-seconds, 5.0000 at 2.5 per hour." in page


def test_page_leaves_out_unknown_speed_and_price() -> None:
    unknown = {"throughput": {"train_images_per_s": None}, "cost": report.cost(1, 60.0, None)}
    page = html.render_page(REPORT | unknown, [])
    assert "Cost: 60 device-seconds." in page
    assert "images per second" not in page


def test_page_counts_what_was_not_trained_on() -> None:
    data = {"rejected": [{"id": "x"}], "skipped": [{"name": "a"}] * 1200, "blank": ["b", "c"]}
    page = html.render_page(REPORT | {"data": REPORT["data"] | data}, [])
    unused = ", 1 unreadable images left out, 1,200 other files skipped, 2 images of a single colour."
    assert f"4 test images{unused}" in page
