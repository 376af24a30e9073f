"""inat-job: train, test and report an image classifier as one batch job that survives its machine."""

__version__ = "0.1.0"
