"""Object stores behind one small interface: a local folder, a prefix of a bucket, or a web server (read only)."""

from inat_job.storage.base import DamagedFileError, Entry, Role, StorageOptions, Store
from inat_job.storage.open_store import open_store, split_uri

__all__ = ["DamagedFileError", "Entry", "Role", "StorageOptions", "Store", "open_store", "split_uri"]
