"""A small report with characters that HTML must escape."""

REPORT = {
    "run_id": "<b>run</b>",
    "test": {
        "n": 4,
        "correct": 3,
        "accuracy": 0.75,
        "ci95": [0.3, 0.95],
        "per_class": {"A & B": {"n": 4, "precision": 0.5, "recall": 1.0, "f1": 2 / 3}},
        "confusion": [[3, 1], [0, 0]],
    },
    "model": {"name": "five_block", "parameters": 1234, "macs": 5678},
    "data": {"n_train": 8, "n_val": 2, "n_test": 4},
    "settings": {"train": {"epochs": 1}},
    "throughput": {"train_images_per_s": 1234.5},
    "cost": {"device_seconds": 7200.0, "price_per_hour": 2.5, "total": 5.0},
}
