"""What a sweep is: all that decides its points and their values, and the id that it has if none is given."""

import hashlib
import json
from collections.abc import Mapping

from inat_job.command_options import SweepOptions
from inat_job.search.space import Space
from inat_job.settings import Settings

Definition = Mapping[str, object]


def definition_of(settings: Settings, request: SweepOptions, space: Space) -> Definition:
    """What decides the points of a sweep and their values, as JSON has it."""
    return {
        "part": settings.part,
        "fingerprint": settings.fingerprint(),
        "space": {key: axis.as_dict() for key, axis in space.items()},
        "sampler": request.sampler,
        "pruner": request.pruner,
    }


def sweep_id(definition: Definition) -> str:
    """The id of a sweep without a --run-id: the same for the same search, whatever ends it."""
    digest = hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()
    return f"sweep-{definition['part']}-{digest[:12]}"
