"""What a Hub stores: repositories with commits, branches, tags and large files."""

import hashlib
import itertools
from dataclasses import dataclass, field

LFS_SIZE = 1 << 20
LFS_SUFFIXES = (".npy", ".safetensors", ".bin", ".pt", ".parquet", ".arrow", ".gz", ".zst")

_numbers = itertools.count()


def git_oid(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass(frozen=True)
class StoredFile:
    content: bytes
    lfs: bool

    @classmethod
    def of(cls, path, content):
        """Return the file as the Hub would store it: large files and well-known formats in LFS."""
        return cls(content, len(content) >= LFS_SIZE or path.endswith(LFS_SUFFIXES))

    @property
    def sha256(self):
        return hashlib.sha256(self.content).hexdigest()

    @property
    def etag(self):
        return self.sha256 if self.lfs else git_oid(self.content)

    def entry(self, path):
        """Return this file as the tree and paths-info calls describe it."""
        size = len(self.content)
        if not self.lfs:
            return {"type": "file", "path": path, "size": size, "oid": git_oid(self.content)}
        pointer = (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {size}\n"
        ).encode()
        return {
            "type": "file",
            "path": path,
            "size": size,
            "oid": git_oid(pointer),
            "lfs": {"oid": self.sha256, "size": size, "pointerSize": len(pointer)},
        }


def folder_entry(path):
    return {"type": "directory", "path": path, "size": 0, "oid": git_oid(path.encode())}


@dataclass(frozen=True)
class Commit:
    oid: str
    title: str
    at: float
    files: dict[str, StoredFile]


@dataclass
class Repo:
    """`lfs` maps the sha256 of each large file to the time when it was pushed."""

    private: bool = False
    gated: bool = False
    commits: list[Commit] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    lfs: dict[str, float] = field(default_factory=dict)

    def at(self, revision):
        """Return the commit that a branch, tag or full commit id names."""
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        return next((commit for commit in self.commits if commit.oid == oid), None)

    def commit(self, branch, files, title, at):
        oid = hashlib.sha1(f"{id(self)} {next(_numbers)} {title}".encode()).hexdigest()
        self.commits.append(Commit(oid, title, at, files))
        self.branches[branch] = oid
        return oid

    def squash(self, branch, title, at):
        """Replace the branch by one commit with its files. Older commits are gone unless named
        by another branch or a tag."""
        now = self.at(branch)
        others = {oid for name, oid in self.branches.items() if name != branch}
        named = others | set(self.tags.values())
        self.commits = [commit for commit in self.commits if commit.oid in named]
        self.commit(branch, now.files, title, at)

    def name_of(self, sha256):
        """Return a path with that large file, in the newest commit that has it."""
        for commit in reversed(self.commits):
            for path, stored in commit.files.items():
                if stored.lfs and stored.sha256 == sha256:
                    return path
        return None
