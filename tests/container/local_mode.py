"""Runs a CreateTrainingJob request in SageMaker's local mode: `python local_mode.py REQUEST.json FOLDER`.

Needs a Python with `sagemaker[local]` 2, whose dependencies conflict with the job's.
"""

import json
import sys
from pathlib import Path

from sagemaker.local import LocalSession

request, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
session = LocalSession()
# as root, because the image's user may not write to the folders of the user who runs the tests
session.config = {"local": {"container_root": str(folder), "container_config": {"user": "0:0"}}}
session.sagemaker_config = {"SchemaVersion": "1.0", "SageMaker": {"PythonSDK": {"Modules": {"TelemetryOptOut": True}}}}
request["ResourceConfig"]["InstanceType"] = "local"
request["OutputDataConfig"] = {"S3OutputPath": f"file://{folder}/artifacts"}
(folder / "artifacts").mkdir()
session.sagemaker_client.create_training_job(**request)
