"""What torchmetrics looks for when it is imported."""

hamming = None
