"""A run's files on this machine: in the store's own folder, or in a copy.

A store that can be memory-mapped is its own workspace. For any other store, the files that this
machine wrote or downloaded are below a cache folder, under the same keys as in the store. If these
copies are lost, they are downloaded again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from annotated_types import Predicate
from typing_extensions import TypedDict

from pion.errors import PionError
from pion.files import cache_folder, private_cache_folder
from pion.untrusted import LARGEST_RECORD, read_file
from pipeline.machine.file_hashes import Check, checked_once, file_problem
from pipeline.machine.folders import locked
from pipeline.state.record_json import (
    FORMAT,
    MOST_VALUES,
    Count,
    Damaged,
    Sha256,
    build,
    damaged,
    open_record,
    parse,
    to_json,
)
from pipeline.state.stores import Missing, Store, StoreError
from pipeline.state.stores.base import check_key, is_key
from pipeline.state.stores.local import explained

# The name, size and sha256 of each file of prepared data; in the store, next to the data. It is
# written last.
FILES = "files.json"
# The same of prepared data in a store that is a folder; a hidden file is no key.
_FILES_HERE = ".files.json"
_KEPT = ".kept.json"
# The folder of the copies of remote runs, below the cache folder.
COPIES = "runs"
_TRANSFERS = 4
# The most files of a checkpoint, and of prepared data; the most bytes of the list of the latter.
MOST_FILES = 1024
MOST_DATA_FILES = 1_000_000
_LARGEST_LIST = 256 << 20
# Commas and brackets of a file's entry in a list.
_VALUES_OF_FILE = 3
# So many entries of a list are checked together.
_AT_ONCE = 10_000

# The files that a folder must have: name below the folder → (bytes, sha256).
Files = Mapping[str, tuple[int, str]]
Progress = Callable[[int, int], None]


class Workspace:
    """The files of run `run` of `store` on this machine. Keys are relative to the run.

    Copies of a remote run are for this user alone. Raises BadInput if that is not possible.
    """

    def __init__(self, store: Store, run: str, root: Path | None = None) -> None:
        self.store, self.run = store, run
        self.remote = store.local_path(run) is None
        name = hashlib.sha256(store.url.encode()).hexdigest()[:12]
        if self.remote and root is None:
            private_cache_folder(COPIES)
        self._root = (root or cache_folder() / COPIES) / name / run

    def folder(self, key: str) -> Path:
        """Return where the files under `key` are, or would be, on this machine."""
        local = self.store.local_path(f"{self.run}/{key}")
        return local if local is not None else self._root / key

    def fetch(
        self, key: str, files: Files, *, once: bool = False, later: Collection[str] = ()
    ) -> str | None:
        """Download the `files` that are missing or wrong in `folder(key)`, but not those of
        `later`, which are only deleted if they are wrong.

        Returns what is wrong with the store's files, or None. Only one process of this machine
        fetches a folder at a time. With `once`, files that were right before and have not changed
        since are not hashed again. Raises `StoreError` when the store is down.
        """
        with contextlib.ExitStack() as closing:
            if self.remote:
                closing.enter_context(self._locked(key))
            check: Check = functools.partial(file_problem, self.folder(key))
            if once:
                check = closing.enter_context(checked_once(self.folder(key)))
            pool = closing.enter_context(ThreadPoolExecutor(_TRANSFERS if self.remote else None))
            fetch = functools.partial(self._fetch_file, key, check, later)
            return _first(pool.map(fetch, files, *zip(*files.values())))

    def local_problem(self, key: str, files: Files) -> str | None:
        """Return why this machine's copy of `key` can't be used, or None. This does not read the
        store."""
        check: Check = functools.partial(file_problem, self.folder(key))
        with ThreadPoolExecutor() as pool:
            return _first(pool.map(check, files, *zip(*files.values())))

    def listed(
        self, key: str, manifest: str, limit: int = LARGEST_RECORD, most: int = MOST_FILES
    ) -> Files:
        """Return the files that a manifest under `key` in the store lists.

        Raises `Missing`, `StoreError`, and as `read_files` does.
        """
        path = f"{self.run}/{key}/{manifest}"
        return read_files(self.store.read(path, limit), f"{self.store.url}/{path}", most)

    def bring(self, key: str, *, shards: bool = True) -> Path:
        """Return the folder of the prepared data `key`, downloaded if it is not on this machine.

        Without `shards`, shards of text to train on that are not on this machine may stay in the
        store: training fetches each when it is due. Raises `PionError` if the store's copy is
        missing or damaged.
        """
        try:
            files = self._files_of(key)
            later = (
                [] if shards or not self.remote else [n for n in files if _is_of_shard(n, files)]
            )
            problem = self._not_in_store(key, files, later)
            problem = problem or self.fetch(key, files, once=True, later=later)
            problem = problem or _without_hash(self.folder(key), files)
        except Missing:
            problem = f"{FILES} is missing"
        except Damaged as error:
            problem = f"{FILES} is damaged" if self.remote else str(error)
        if problem is not None:
            raise PionError(
                f"The prepared data at {self.store.url}/{self.run}/{key} can't be used: {problem}. "
                "Nothing was changed. To prepare the data again and train on it again, use --redo "
                "prepare."
            )
        return self.folder(key)

    def has_shards_of(self, key: str, folder: Path) -> bool:
        """Return whether the prepared data `key` should have the shards that are in `folder`, by
        their hashes. Raises `Missing` and `Damaged` for its list of files, and `StoreError`."""
        files = self._files_of(key)
        return all(files.get(name) == about for name, about in _hashes_of_shards(folder).items())

    def _files_of(self, key: str) -> Files:
        if self.remote:
            return self.listed(key, FILES, _LARGEST_LIST, MOST_DATA_FILES)
        return self._listed_here(key)

    def _not_in_store(self, key: str, files: Files, names: Collection[str]) -> str | None:
        """Return which of the files under `key` the store does not have in the right size."""
        if not names:
            return None
        path = f"{self.run}/{key}/"
        present = {entry.key.removeprefix(path): entry.size for entry in self.store.list(path)}
        wrong = (name for name in names if present.get(name) != files[name][0])
        return next((f"{name} is missing, or has another size" for name in wrong), None)

    def _listed_here(self, key: str) -> Files:
        """Return the files of prepared data in a store that is a folder.

        A copy of a remote store has the list of that store.
        """
        folder = self.folder(key)
        for path in (folder / _FILES_HERE, folder / FILES):
            with explained("read", path), contextlib.suppress(FileNotFoundError):
                return read_files(read_file(path, _LARGEST_LIST), str(path), MOST_DATA_FILES)
        return _files_here(folder)  # an early version wrote no list

    def keep(self, key: str, progress: Progress = lambda done, total: None) -> None:
        """Upload this machine's files under `key`. The list of files is written last; in a store
        that is a folder, nothing else is.

        After an interruption, another call uploads only the missing files. `progress` gets the
        bytes uploaded so far and the total bytes.
        """
        from pion.files import sha256_file, write_atomically

        folder = self.folder(key)
        if not self.remote:
            return write_atomically(folder / _FILES_HERE, manifest_of(_files_here(folder)))
        paths = files_below(folder)
        names = [check_key(path.relative_to(folder).as_posix()) for path in paths]
        with ThreadPoolExecutor() as pool:
            shas = list(pool.map(sha256_file, paths))
        sizes = [path.stat().st_size for path in paths]
        total = sum(sizes)
        files = dict(zip(names, zip(sizes, shas)))
        present = {e.key: e.size for e in self.store.list(f"{self.run}/{key}/")}
        records = {
            name
            for name, sha in _read_kept(folder / _KEPT).items()
            if (present.get(f"{self.run}/{key}/{name}"), sha) == files.get(name)
        }

        def send(name: str) -> None:
            if name not in records:
                self.store.write(f"{self.run}/{key}/{name}", folder / name)

        with ThreadPoolExecutor(_TRANSFERS) as pool:
            sent = pool.map(send, names)
            for name, done, _ in zip(names, itertools.accumulate(sizes), sent):
                # If this process ends, its staged writes are lost.
                if name not in records and not self.store.commits:
                    self.record_kept(key, {name: files[name][1]})
                progress(done, total)
        self.store.write(f"{self.run}/{key}/{FILES}", manifest_of(files))

    def kept(self, key: str) -> Mapping[str, str]:
        """Return the sha256 of each file under `key` that was uploaded, as this machine knows."""
        return _read_kept(self.folder(key) / _KEPT)

    def record_kept(self, key: str, uploads: Mapping[str, str]) -> None:
        """Record that files under `key`, with their sha256, were uploaded. Raises StoreError."""
        path = self.folder(key) / _KEPT
        with explained("write", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                # The line before may be torn, if a process was killed while it wrote.
                file.writelines(f"\n{json.dumps({name: sha})}" for name, sha in uploads.items())

    def forget(self, keep: Iterable[str], folder: str = "checkpoints") -> None:
        """Delete this machine's copies of checkpoints that are not in `keep`, to free disk
        space."""
        if not self.remote:
            return
        keys = set(keep)
        for path in self._root.glob(f"{folder}/*/*"):
            if path.is_dir() and path.relative_to(self._root).as_posix() not in keys:
                shutil.rmtree(path, ignore_errors=True)

    def remove_copies(self) -> None:
        """Delete this machine's copies of a remote run."""
        if self.remote:
            shutil.rmtree(self._root, ignore_errors=True)

    def _fetch_file(
        self, key: str, check: Check, later: Collection[str], name: str, size: int, sha256: str
    ) -> str | None:
        """Download a file of a remote store if it is missing or wrong here, now or `later`; return
        what is wrong with the store's file."""
        path = self.folder(key) / name
        problem = check(name, size, sha256)
        if problem is None or not self.remote:
            return problem
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        if name in later:
            return None
        try:
            digest = self.store.download(f"{self.run}/{key}/{name}", path, limit=size)
        except Missing:
            return f"{name} is missing"
        except Damaged:
            return f"{name} has more than {size:,} bytes"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes instead of {size:,}"
        return None if digest == sha256 else f"{name} has been altered (its sha256 differs)"

    @contextlib.contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            with locked(self._root / f".lock-{key.replace('/', '-')}"):
                yield
        except OSError as error:
            raise StoreError("write", str(self._root), error.strerror or str(error)) from error


def _read_kept(path: Path) -> dict[str, str]:
    """Return the sha256 of each file that was uploaded; without lines that can't be read."""
    records: dict[str, str] = {}
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in path.read_text("utf-8").splitlines():
            with contextlib.suppress(ValueError, TypeError):
                records |= json.loads(line)
    return records


@contextlib.contextmanager
def scratch_workspace(run_workspace: Workspace) -> Iterator[Workspace]:
    """Yield a temporary workspace of the same run. If the store is on this machine, yield its own.

    The temporary workspace is on the disk with the copies of remote runs, because /tmp may be
    memory.
    """
    if not run_workspace.remote:
        yield run_workspace
        return
    with tempfile.TemporaryDirectory(prefix="scratch-", dir=private_cache_folder(COPIES)) as folder:
        yield Workspace(run_workspace.store, run_workspace.run, Path(folder))


def files_below(folder: Path) -> list[Path]:
    """Return the files below `folder`, sorted, without hidden ones: those are temporary."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))


def link_or_copy(path: Path, to: Path) -> None:
    """Make `to` a link to the file `path`, all or nothing; a copy if the disk can't link.

    The folder of `to` must exist. Raises OSError.
    """
    part = to.with_name(f".{to.name}.part")
    part.unlink(missing_ok=True)
    try:
        try:
            os.link(path.resolve(), part)
        except OSError:  # another disk, or a disk without hard links
            shutil.copyfile(path, part)
            with part.open("rb") as file:
                os.fsync(file.fileno())
        part.replace(to)
    finally:
        part.unlink(missing_ok=True)  # replacing a link by a link to the same file leaves both


class _ListedFile(TypedDict):
    size: Count
    sha256: Sha256


@open_record
class _Listing(TypedDict):
    """What manifests have in common."""

    files: Mapping[Annotated[str, Predicate(is_key)], _ListedFile]


def read_files(data: bytes, where: str, most: int = MOST_FILES) -> Files:
    """Return the `files` of a manifest, at most `most`. Raises `Damaged`, or `BadInput` for another
    format version."""
    return listed_files(parse(data, where, most=MOST_VALUES + _VALUES_OF_FILE * most), where, most)


def listed_files(raw: Mapping[str, Any], where: str, most: int = MOST_FILES) -> Files:
    """Return the `files` of a manifest that was parsed, at most `most`. Raises `Damaged`."""
    listed = raw.get("files")
    if isinstance(listed, dict) and len(listed) > most:
        raise damaged(where, f"it lists {len(listed):,} files, and {most:,} are possible")
    entries = list(listed.items()) if isinstance(listed, dict) else []
    parts: list[Any] = [dict(entries[i : i + _AT_ONCE]) for i in range(0, len(entries), _AT_ONCE)]
    files: dict[str, tuple[int, str]] = {}
    for some in parts or [listed]:  # the first mistake ends the check
        found = build(_Listing, {"files": some} if "files" in raw else {}, where)["files"]
        files |= {name: (about["size"], about["sha256"]) for name, about in found.items()}
    return files


def manifest_of(files: Files, **more: Any) -> bytes:
    """Return the content of a manifest, for `read_files`: the files, and what else it says.

    Its format is FORMAT, unless `more` has another.
    """
    listed = {name: {"size": size, "sha256": sha} for name, (size, sha) in files.items()}
    return to_json({"format": FORMAT, **more, "files": listed}).encode()


def _without_hash(folder: Path, files: Files) -> str | None:
    """Return which file below the folder the list does not have: whoever reads it can't know
    whether it is right."""
    names = (path.relative_to(folder).as_posix() for path in files_below(folder))
    unlisted = (name for name in names if name not in files and name != FILES)
    return next((f"{FILES} has no hash of {name}" for name in unlisted), None)


def _files_here(folder: Path) -> Files:
    """Return the files below a folder as they are, but shards as their manifests say."""
    from pion.files import sha256_file

    files = dict(_hashes_of_shards(folder))  # computed when they were written
    for path in files_below(folder):
        name = path.relative_to(folder).as_posix()
        if name not in files:
            files[name] = (path.stat().st_size, sha256_file(path))
    return files


def _hashes_of_shards(folder: Path) -> Files:
    """Return the shards of prepared data, by the manifests next to them."""
    from pion.data.shards import Manifest, flags_path

    files: dict[str, tuple[int, str]] = {}
    for path in folder.glob("*/*/manifest.json"):
        subfolder = path.parent.relative_to(folder)
        for shard in Manifest.read(path).shards:
            if shard.remote is None:
                files[f"{subfolder}/{shard.name}"] = (shard.bytes, shard.sha256)
            if shard.flags_sha256 is not None:
                name = f"{subfolder}/{flags_path(Path(shard.name))}"
                files[name] = (shard.flags_bytes, shard.flags_sha256)
    return files


def _is_of_shard(name: str, files: Files) -> bool:
    """Return whether a file of prepared data is a shard of text to train on, or the record that its
    writer left next to it, which is for preparing alone."""
    if name.endswith(".json"):
        shards = (PurePosixPath(name).with_suffix(kind).as_posix() for kind in (".npy", ".bin"))
        return any(shard in files and _is_text_shard(shard, files) for shard in shards)
    return _is_text_shard(name, files)


def _is_text_shard(name: str, files: Files) -> bool:
    """Return whether prepared data has a shard of text to train on under this name. A shard of
    conversations has a second file."""
    from pion.data.row_flags import SEQUENCES
    from pion.data.shards import flags_path

    path = PurePosixPath(name)
    other = path.name == SEQUENCES or name.endswith(".flags.npy")
    shard = path.suffix in (".npy", ".bin") and not other
    return (
        shard
        and len(path.parts) == 3
        and path.parts[1] == "train"
        and flags_path(Path(name)).as_posix() not in files
    )


def _first(problems: Iterable[str | None]) -> str | None:
    return next((problem for problem in problems if problem is not None), None)
