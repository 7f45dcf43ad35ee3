"""A store without local files on this machine."""

from pipeline.state.stores import FileStore


class FarStore(FileStore):
    """A folder that can't be memory-mapped, like a bucket: its content must be downloaded."""

    def local_path(self, key: str) -> None:
        return None
