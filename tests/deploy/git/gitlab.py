"""GitLab's REST API on a repository: what deploy asks for, with GitLab's statuses, bodies and reasons.

https://docs.gitlab.com/api/commits, /api/branches, /api/repositories, /api/repository_files, /api/merge_requests.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote, unquote

from tests.deploy.git.repository import Repository

_PAGE = 3  # Small: listings come in pages.
Answer = tuple[int, Any]


class GitLabApi:
    """Below ``/api/v4``."""

    prefix = "/api/v4"
    authorization = "{}"
    header = "PRIVATE-TOKEN"

    def __init__(self, repository: Repository) -> None:
        self.repository = repository

    def unauthorised(self) -> Answer:
        return 401, {"message": "401 Unauthorized"}

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> tuple[int, Any, dict[str, str]]:
        project = f"{self.prefix}/projects/{quote(self.repository.path, safe='')}"
        if not path.startswith(project):
            return 404, {"message": "404 Project Not Found"}, {}
        for pattern, act in self.routes().items():
            wanted, _, expression = pattern.partition(" ")
            found = re.fullmatch(expression, path.removeprefix(project))
            if found and method == wanted:
                answer = act(query, body, *map(unquote, found.groups()))
                return answer if len(answer) == 3 else (*answer, {})
        return 404, {"error": "404 Not Found"}, {}

    def routes(self) -> dict[str, Any]:
        return {
            "GET ": lambda *_: (200, {"path_with_namespace": self.repository.path}),
            "GET /repository/branches/([^/]+)": self.get_branch,
            "GET /repository/tree": self.get_tree,
            "GET /repository/files/([^/]+)/raw": self.get_file,
            "POST /repository/commits": self.make_commit,
            "GET /merge_requests": self.list_requests,
            "POST /merge_requests": self.make_request,
        }

    def get_branch(self, _: Any, __: Any, branch: str) -> Answer:
        if branch not in self.repository.branches:
            return 404, {"message": "404 Branch Not Found"}
        return 200, {"name": branch, "commit": {"id": self.repository.branches[branch]}}

    def get_tree(self, query: dict[str, str], _: Any) -> tuple[int, Any, dict[str, str]]:
        files = self.repository.commits[query["ref"]].files
        folder = query["path"]
        inside = {
            path.removeprefix(f"{folder}/"): text for path, text in files.items() if path.startswith(f"{folder}/")
        }
        if not inside:
            return 404, {"message": "404 Tree Not Found"}, {}
        entries = [
            {"id": one["sha"], "name": one["path"].split("/")[-1], "type": one["type"], "mode": one["mode"],
             "path": f"{folder}/{one['path']}"}
            for one in self.repository.entries(inside, recursive=query["recursive"] == "true")
        ]  # fmt: skip
        assert int(query["per_page"]) <= 100
        first = (int(query["page"]) - 1) * _PAGE
        more = str(int(query["page"]) + 1) if first + _PAGE < len(entries) else ""
        return 200, entries[first : first + _PAGE], {"x-next-page": more}

    def get_file(self, query: dict[str, str], _: Any, path: str) -> Answer:
        return 200, self.repository.commits[query["ref"]].files[path]

    def make_commit(self, _: Any, body: Any) -> Answer:
        branch, start = body["branch"], body.get("start_sha")
        exists = branch in self.repository.branches
        if start and exists:
            return 400, {
                "message": f"A branch called '{branch}' already exists. Switch to that branch in order to make changes"
            }
        if not start and not exists:
            return 400, {"message": "You can only create or edit files when you are on a branch"}
        parent = start or self.repository.branches[branch]
        files = dict(self.repository.commits[parent].files)
        for action in body["actions"]:
            path, kind = action["file_path"], action["action"]
            if kind == "create" and path in files:
                return 400, {"message": "A file with this name already exists"}
            if kind in ("update", "delete") and path not in files:
                return 400, {"message": "A file with this name doesn't exist"}
            files.pop(path, None)
            files |= {} if kind == "delete" else {path: action["content"]}
        made = self.repository.add(files, (parent,), body["commit_message"])
        self.repository.branches[branch] = made
        return 201, {"id": made, "short_id": made[:8], "parent_ids": [parent]}

    def list_requests(self, query: dict[str, str], _: Any) -> Answer:
        state = {"opened": "open", "merged": "merged"}[query["state"]]
        found = [
            self.shown(request)
            for request in self.repository.pull_requests
            if (request.state, request.source, request.target)
            == (state, query["source_branch"], query["target_branch"])
        ]
        return 200, found

    def make_request(self, _: Any, body: Any) -> Answer:
        source, target = body["source_branch"], body["target_branch"]
        for request in self.repository.pull_requests:
            if request.state == "open" and (request.source, request.target) == (source, target):
                reason = f"Another open merge request already exists for this source branch: !{request.number}"
                return 409, {"message": [reason]}
        made = self.repository.propose(source, target, body["title"], body["description"])
        return 201, self.shown(made)

    def shown(self, request: Any) -> dict[str, Any]:
        address = f"https://git.example.com/{self.repository.path}/-/merge_requests/{request.number}"
        return {"iid": request.number, "state": request.state, "web_url": address}
