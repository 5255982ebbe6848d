"""GitHub's REST API on a repository: what deploy asks for, with GitHub's statuses, bodies and reasons.

https://docs.github.com/rest/git/refs, /trees, /commits, /rest/repos/contents, /rest/pulls (version 2022-11-28).
"""

from __future__ import annotations

import base64
import re
from typing import Any

from tests.deploy.git.repository import Repository

DOCS = "https://docs.github.com/rest"
Answer = tuple[int, Any]


class GitHubApi:
    """Below ``/api/v3`` on a host of one's own. ``token`` is the one that may write."""

    prefix = "/api/v3"
    authorization = "Bearer {}"
    header = "Authorization"

    def __init__(self, repository: Repository) -> None:
        self.repository = repository

    def unauthorised(self) -> Answer:
        return 401, {"message": "Bad credentials", "documentation_url": DOCS, "status": "401"}

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> tuple[int, Any, dict[str, str]]:
        for pattern, act in self.routes().items():
            wanted, _, expression = pattern.partition(" ")
            found = re.fullmatch(f"{self.prefix}/repos/{self.repository.path}{expression}", path)
            if found and method == wanted:
                return (*act(query, body, *found.groups()), {})
        return 404, {"message": "Not Found", "documentation_url": DOCS, "status": "404"}, {}

    def routes(self) -> dict[str, Any]:
        return {
            "GET ": lambda *_: (200, {"full_name": self.repository.path}),
            "GET /git/ref/heads/(.+)": self.get_reference,
            "GET /git/commits/(.+)": self.get_commit,
            "GET /git/trees/(.+)": self.get_tree,
            "GET /contents/(.+)": self.get_contents,
            "POST /git/trees": self.make_tree,
            "POST /git/commits": self.make_commit,
            "POST /git/refs": self.make_reference,
            "PATCH /git/refs/heads/(.+)": self.move_reference,
            "GET /pulls": self.list_pulls,
            "POST /pulls": self.make_pull,
        }

    def get_reference(self, _: Any, __: Any, branch: str) -> Answer:
        if branch not in self.repository.branches:
            return 404, {"message": "Not Found", "documentation_url": DOCS, "status": "404"}
        return 200, self.reference(branch)

    def reference(self, branch: str) -> dict[str, Any]:
        return {"ref": f"refs/heads/{branch}", "object": {"type": "commit", "sha": self.repository.branches[branch]}}

    def get_commit(self, _: Any, __: Any, commit: str) -> Answer:
        if commit not in self.repository.commits:
            return 404, {"message": "Not Found", "documentation_url": DOCS, "status": "404"}
        tree = self.repository.tree(self.repository.commits[commit].files)
        return 200, {"sha": commit, "tree": {"sha": tree}}

    def get_tree(self, query: dict[str, str], _: Any, tree: str) -> Answer:
        files = self.repository.trees[tree]
        entries = self.repository.entries(files, recursive=query.get("recursive") == "1")
        return 200, {"sha": tree, "tree": entries, "truncated": False}

    def get_contents(self, query: dict[str, str], _: Any, path: str) -> Answer:
        text = self.repository.commits[query["ref"]].files[path]
        return 200, {"type": "file", "encoding": "base64", "content": base64.encodebytes(text.encode()).decode()}

    def make_tree(self, _: Any, body: Any) -> Answer:
        files = dict(self.repository.trees[body["base_tree"]])
        for entry in body["tree"]:
            assert entry["mode"] == "100644" and entry["type"] == "blob"
            if "content" in entry:
                files[entry["path"]] = entry["content"]
            elif entry["sha"] is None:
                del files[entry["path"]]
        return 201, {"sha": self.repository.tree(files)}

    def make_commit(self, _: Any, body: Any) -> Answer:
        made = self.repository.add(self.repository.trees[body["tree"]], tuple(body["parents"]), body["message"])
        return 201, {"sha": made}

    def make_reference(self, _: Any, body: Any) -> Answer:
        branch = body["ref"].removeprefix("refs/heads/")
        if branch in self.repository.branches:
            return 422, {"message": "Reference already exists", "documentation_url": DOCS, "status": "422"}
        self.repository.branches[branch] = body["sha"]
        return 201, self.reference(branch)

    def move_reference(self, _: Any, body: Any, branch: str) -> Answer:
        if not self.repository.descends(body["sha"], self.repository.branches[branch]):
            return 422, {"message": "Update is not a fast forward", "documentation_url": DOCS, "status": "422"}
        self.repository.branches[branch] = body["sha"]
        return 200, self.reference(branch)

    def list_pulls(self, query: dict[str, str], _: Any) -> Answer:
        owner = self.repository.path.split("/")[0]
        found = [
            self.shown(request)
            for request in self.repository.pull_requests
            if request.state == query["state"] and f"{owner}:{request.source}" == query["head"]
            and request.target == query["base"]
        ]  # fmt: skip
        return 200, found

    def make_pull(self, _: Any, body: Any) -> Answer:
        for request in self.repository.pull_requests:
            if request.state == "open" and (request.source, request.target) == (body["head"], body["base"]):
                errors = [{"message": f"A pull request already exists for team:{body['head']}.", "code": "custom"}]
                return 422, {"message": "Validation Failed", "errors": errors, "documentation_url": DOCS}
        made = self.repository.propose(body["head"], body["base"], body["title"], body["body"])
        return 201, self.shown(made)

    def shown(self, request: Any) -> dict[str, Any]:
        address = f"https://git.example.com/{self.repository.path}/pull/{request.number}"
        return {"number": request.number, "state": request.state, "html_url": address}
