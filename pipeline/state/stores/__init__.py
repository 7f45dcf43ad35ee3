"""Stores: where runs live, and how the command line names a store."""

from pion.errors import BadInput
from pion.files import expand
from pipeline.console.masking import is_url_with_userinfo, userinfo_refused
from pipeline.state.stores.base import (
    Conflict,
    Entry,
    Missing,
    Store,
    StoreError,
    check_run_name,
    write_once,
)
from pipeline.state.stores.local import FileStore

__all__ = [
    "DEFAULT_STORE",
    "Conflict",
    "Entry",
    "FileStore",
    "Missing",
    "Store",
    "StoreError",
    "open_store",
    "split_run",
    "write_once",
]

DEFAULT_STORE = "runs"


def open_store(url: str) -> Store:
    """Return the store at `s3://bucket/prefix`, `hf://user/repo`, `file:///abs/folder` or a plain
    path.

    Nothing is requested or created before the first read or write. Raises `BadInput` for other
    forms, for a URL with a user or a password, and for a path that is not a folder.
    """
    if is_url_with_userinfo(url):
        raise userinfo_refused("the store", url)
    if "\0" in url:
        raise BadInput("store: a name can't have a NUL character.")
    match url.split("://", 1):
        case [path]:
            pass
        case ["file", path]:
            if not path.startswith("/"):
                raise BadInput(
                    f"store {url!r}: file:// needs an absolute path (file:///home/me/runs); "
                    "write a relative path without a scheme (runs)."
                )
        case ["s3", rest]:
            from pipeline.state.stores.s3.store import S3Store

            return S3Store.open(rest)
        case ["hf", rest]:
            from pipeline.state.stores.hub.store import HubStore

            return HubStore.open(rest)
        case [scheme, *_]:
            raise BadInput(
                f"store {url!r}: unknown scheme {scheme!r}. Known: s3://bucket/prefix, "
                "hf://user/repo, file:///abs/folder, or a plain path."
            )
    if not path.strip():
        raise BadInput("store: the path is empty. Use file:///abs/folder or a plain path.")
    if path.startswith("-"):
        raise BadInput(f"store {url!r}: a folder whose name begins with - is written ./{path}.")
    folder = expand(path)
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"store {url!r}: {folder} is a file, not a folder.")
    return FileStore(folder)


def split_run(run: str) -> tuple[str, str]:
    """Split `<store-url>/<name>`, or a bare name in the default store, into (store url, run name).

    Raises `BadInput` if the name is not legal in every store.
    """
    store, separator, name = run.rstrip("/").rpartition("/")
    if separator and (not store or store.endswith((":/", "://"))):
        store += "/"
    return (store if separator else DEFAULT_STORE), check_run_name(name)
