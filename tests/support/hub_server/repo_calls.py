"""The calls of the Hub's API about one repository: `/api/models/user/name/<action>/…`."""

import base64
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from tests.support.hub_server.hub import Failure
from tests.support.hub_server.repos import (
    LFS_SIZE,
    LFS_SUFFIXES,
    StoredFile,
    folder_entry,
)

if TYPE_CHECKING:
    pass

TREE_PAGE = 1000
COMMITS_PAGE = 50
LFS_PAGE = 50


def date(at):
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def at_revision(request, repo):
    return request.commit_at(repo, request.parts["rev"] or "main")


def info(request, repo):
    commit = at_revision(request, repo)
    repo_id = f"{request.parts['owner']}/{request.parts['name']}"
    request.answer(
        {
            "id": repo_id,
            "modelId": repo_id,
            "sha": commit.oid,
            "private": repo.private,
            "gated": "auto" if repo.gated else False,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "lastModified": "2026-01-01T00:00:00.000Z",
            "createdAt": "2026-01-01T00:00:00.000Z",
            "siblings": [{"rfilename": path} for path in sorted(commit.files)],
        }
    )


def refs(request, repo):
    def described(kind, names):
        return [
            {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": oid}
            for name, oid in names.items()
        ]

    request.answer(
        {
            "branches": described("heads", repo.branches),
            "tags": described("tags", repo.tags),
            "converts": [],
        }
    )


def make_branch(request, repo):
    request.must_write()
    repo.branches[request.parts["rev"]] = request.commit_at(repo, "main").oid
    request.answer({})


def make_tag(request, repo):
    request.must_write()
    repo.tags[json.loads(request.payload)["tag"]] = at_revision(request, repo).oid
    request.answer({})


def commits(request, repo):
    at_revision(request, repo)
    listed = [
        {"id": c.oid, "title": c.title, "message": "", "authors": [], "date": date(c.at)}
        for c in reversed(repo.commits)
    ]
    request.answer_page(listed, COMMITS_PAGE)


def super_squash(request, repo):
    request.must_write()
    at_revision(request, repo)
    with request.hub.lock:
        title = json.loads(request.payload)["message"]
        repo.squash(request.parts["rev"], title, request.hub.now())
    request.answer({})


def lfs_files(request, repo):
    request.must_write()
    if request.parts["rev"] == "batch":
        delete_lfs_files(request, repo)
        return
    pushed = {sha: at for sha, at in repo.lfs.items() if sha in request.hub.blobs}
    listed = [
        {
            "fileOid": sha,
            "filename": repo.name_of(sha) or "",
            "oid": sha,
            "pushedAt": date(at),
            "ref": "main",
            "size": len(request.hub.blobs[sha]),
        }
        for sha, at in pushed.items()
    ]
    request.answer_page(listed, LFS_PAGE)


def delete_lfs_files(request, repo):
    deletions = json.loads(request.payload)["deletions"]
    if deletions["rewriteHistory"]:
        raise Failure(501, "", "this Hub can't rewrite history")
    with request.hub.lock:
        for sha in deletions["sha"]:
            del repo.lfs[sha]
            if not any(sha in other.lfs for other in request.hub.repos.values()):
                del request.hub.blobs[sha]
    request.answer({})


def preupload(request, repo):
    request.must_write()
    commit = at_revision(request, repo)
    ignored = commit.files.get(".gitignore", StoredFile(b"", False)).content.decode().split()
    answers = []
    for wanted in json.loads(request.payload)["files"]:
        path = wanted["path"]
        lfs = wanted["size"] >= LFS_SIZE or path.endswith(LFS_SUFFIXES)
        known = commit.files.get(path)
        answers.append(
            {
                "path": path,
                "uploadMode": "lfs" if lfs else "regular",
                "shouldIgnore": any(pattern in path for pattern in ignored),
                "oid": known.etag if known else None,
            }
        )
    request.answer({"files": answers, "commitOid": commit.oid})


def commit(request, repo):
    request.must_write()
    branch, hub = request.parts["rev"], request.hub
    lines = [line for line in request.payload.splitlines() if line.strip()]
    header, *changes = [json.loads(line) for line in lines]
    with hub.lock:
        now = at_revision(request, repo)
        parent = now.oid if hub.ignores_parents else header["value"].get("parentCommit", now.oid)
        if parent != now.oid:
            raise Failure(412, "", "A commit has happened since. Please refresh and try again.")
        this_hour = sum(made.at > hub.now() - 3600 for made in repo.commits)
        if hub.commit_limit is not None and this_hour >= hub.commit_limit:
            raise Failure(
                429, "", "You have exceeded our hourly quotas for action: commit.", "3600"
            )
        files = dict(now.files)
        for change in changes:
            apply(request, repo, change["key"], change["value"], files)
        oid = repo.commit(branch, files, header["value"]["summary"], hub.now())
    url = f"{hub.url}/{request.parts['owner']}/{request.parts['name']}/commit/{oid}"
    request.answer({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})


def apply(request, repo, key, value, files):
    """Apply one line of a commit."""
    path = value["path"]
    match key:
        case "file":
            files[path] = StoredFile(base64.b64decode(value["content"]), False)
        case "lfsFile":
            sha = value["oid"]
            if sha not in repo.lfs or sha not in request.hub.blobs:
                raise Failure(400, "", "LFS pointer pointed to a file that does not exist")
            files[path] = StoredFile(request.hub.blobs[sha], True)
        case "deletedFile":
            if path not in files:
                raise Failure(404, "EntryNotFound", f"A file with this name doesn't exist: {path}")
            del files[path]
        case "deletedFolder":
            for inside in [p for p in files if p.startswith(path.rstrip("/") + "/")]:
                del files[inside]
        case _:
            raise Failure(400, "", f"unknown operation {key}")


def tree(request, repo):
    commit = at_revision(request, repo)
    root = f"{request.parts['rest'].rstrip('/')}/" if request.parts["rest"] else ""
    inside = {p: f for p, f in sorted(commit.files.items()) if p.startswith(root)}
    if root and not inside:
        raise Failure(404, "EntryNotFound", f"{root} does not exist")
    deep = request.query.get("recursive", "false").lower() in ("true", "1")
    entries = {}
    for path, stored in inside.items():
        *folders, _ = path.removeprefix(root).split("/")
        for depth in range(1, len(folders) + 1):
            if deep or depth == 1:
                folder = root + "/".join(folders[:depth])
                entries[folder] = folder_entry(folder)
        if deep or not folders:
            entries[path] = stored.entry(path)
    request.answer_page(list(entries.values()), TREE_PAGE)


def paths_info(request, repo):
    commit = at_revision(request, repo)
    try:
        paths = json.loads(request.payload)["paths"]
    except ValueError:
        paths = parse_qs(request.payload.decode()).get("paths", [])
    if len(paths) > 1000:
        raise Failure(413, "", "too many parameters")
    entries = []
    for path in paths:
        if path in commit.files:
            entries.append(commit.files[path].entry(path))
        elif any(p.startswith(f"{path}/") for p in commit.files):
            entries.append(folder_entry(path))
    request.answer(entries)


def auth_check(request, repo):
    request.must_have_access(repo)
    request.answer({})


# By action; no action describes the repository.
CALLS = {
    "": info,
    "revision": info,
    "refs": refs,
    "branch": make_branch,
    "tag": make_tag,
    "commits": commits,
    "super-squash": super_squash,
    "lfs-files": lfs_files,
    "preupload": preupload,
    "commit": commit,
    "tree": tree,
    "paths-info": paths_info,
    "auth-check": auth_check,
}
