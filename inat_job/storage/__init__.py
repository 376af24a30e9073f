"""Few verbs, many stores, one contract: objects in a local folder, in S3 or on a web server."""

from inat_job.storage.base import Entry, Role, StorageOptions, Store
from inat_job.storage.open_store import open_store, split_uri

__all__ = ["Entry", "Role", "StorageOptions", "Store", "open_store", "split_uri"]
