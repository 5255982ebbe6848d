"""A Git repository in memory, with the ids that Git itself gives: blobs, trees, commits, branches, pull requests."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field


def object_id(kind: str, content: bytes) -> str:
    """The id of a Git object: sha1 over its header and its content."""
    return hashlib.sha1(f"{kind} {len(content)}\0".encode() + content).hexdigest()


@dataclass(frozen=True)
class Commit:
    """A whole tree, by path."""

    files: dict[str, str]
    parents: tuple[str, ...]
    message: str

    @property
    def id(self) -> str:
        return object_id("commit", json.dumps([self.files, self.parents, self.message]).encode())


@dataclass
class PullRequest:
    """``state`` is open, closed or merged."""

    number: int
    source: str
    target: str
    title: str
    text: str
    state: str = "open"


@dataclass
class Repository:
    """``owner/name`` with a branch ``main``."""

    path: str = "team/gitops"
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    trees: dict[str, dict[str, str]] = field(default_factory=dict)
    pull_requests: list[PullRequest] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.branches["main"] = self.add({"README.md": "our cluster\n", "other/app.yaml": "a: 1\n"}, (), "first")

    def add(self, files: dict[str, str], parents: tuple[str, ...], message: str) -> str:
        commit = Commit(files, parents, message)
        self.commits[commit.id] = commit
        return commit.id

    def files(self, branch: str = "main") -> dict[str, str]:
        return self.commits[self.branches[branch]].files

    def log(self, branch: str = "main") -> list[str]:
        """Ids from the tip to the first commit."""
        found, at = [], self.branches[branch]
        while at:
            found.append(at)
            at = (self.commits[at].parents or ("",))[0]
        return found

    def descends(self, commit: str, ancestor: str) -> bool:
        at = commit
        while at:
            if at == ancestor:
                return True
            at = (self.commits[at].parents or ("",))[0]
        return False

    def tree(self, files: dict[str, str]) -> str:
        """Id of a tree with ``files``; remembered."""
        name = object_id("tree", json.dumps(files, sort_keys=True).encode())
        self.trees[name] = files
        return name

    def entries(self, files: dict[str, str], *, recursive: bool) -> list[dict[str, str]]:
        """What a listing of ``files`` shows, paths relative to it."""
        found: dict[str, dict[str, str]] = {}
        for path, text in files.items():
            parts = path.split("/")
            for depth in range(1, len(parts) if recursive or len(parts) > 1 else 1):
                folder = "/".join(parts[:depth])
                inside = {p.removeprefix(f"{folder}/"): t for p, t in files.items() if p.startswith(f"{folder}/")}
                if recursive or depth == 1:
                    found[folder] = {"path": folder, "type": "tree", "mode": "040000", "sha": self.tree(inside)}
            if recursive or len(parts) == 1:
                blob = object_id("blob", text.encode())
                found[path] = {"path": path, "type": "blob", "mode": "100644", "sha": blob}
        return [found[path] for path in sorted(found)]

    def propose(self, source: str, target: str, title: str, text: str) -> PullRequest:
        request = PullRequest(len(self.pull_requests) + 1, source, target, title, text)
        self.pull_requests.append(request)
        return request

    def merge(self, number: int) -> None:
        """As a person does: the branch's changes onto the target, the branch is deleted."""
        request = self.pull_requests[number - 1]
        tip, target = self.branches[request.source], self.branches[request.target]
        start = next(one for one in self.log(request.source) if one in self.log(request.target))
        before, after = self.commits[start].files, self.commits[tip].files
        files = dict(self.commits[target].files)
        for path in before.keys() | after.keys():
            if before.get(path) != after.get(path):
                files.pop(path, None)
                files |= {path: after[path]} if path in after else {}
        self.branches[request.target] = self.add(files, (target, tip), f"Merge {request.title}")
        del self.branches[request.source]
        request.state = "merged"
