"""In place of scipy, for the jobs that tests start. Only the tests need scipy, and the image has none; but torchmetrics
imports it wherever it is installed, which takes a sixth of the start of a job."""
