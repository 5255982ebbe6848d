"""A repository on GitLab, by its REST API: https://docs.gitlab.com/api/ commits, repositories and merge_requests."""

from __future__ import annotations

from typing import Any

from components.deploy.git.host import BranchMoved, Changes, GitHost, Refused, quote_segment, split_address

_PAGE = 100


class GitLab(GitHost):
    """gitlab.com, or a self-managed GitLab at ``api`` or https://HOST/api/v4."""

    def __init__(self, repository: str, api: str, token: str) -> None:
        host, path = split_address(repository)
        super().__init__(repository, api or f"https://{host}/api/v4", {"PRIVATE-TOKEN": token})
        self._project = f"/projects/{quote_segment(path)}"

    def read_head(self, branch: str) -> str | None:
        path = f"{self._project}/repository/branches/{quote_segment(branch)}"
        try:
            return str(self.request_json("GET", path, known=(404,))["commit"]["id"])
        except Refused:
            # GitLab also answers 404 for a project that the token may not see.
            self.request_json("GET", self._project)
            return None

    def list_files(self, commit: str, directory: str) -> dict[str, str]:
        path = f"{self._project}/repository/tree"
        query = {"ref": commit, "path": directory, "recursive": "true", "per_page": str(_PAGE)}
        files: dict[str, str] = {}
        page = "1"
        while page:
            try:
                answer = self.request("GET", path, query=query | {"page": page}, known=(404,))
            except Refused:
                return {}
            files |= {entry["path"]: entry["id"] for entry in answer.json() if entry["type"] == "blob"}
            page = answer.headers.get("x-next-page", "")
        return files

    def read_file(self, commit: str, path: str) -> str:
        file = f"{self._project}/repository/files/{quote_segment(path)}/raw"
        return self.request("GET", file, query={"ref": commit}).text

    def commit(self, branch: str, parent: str, changes: Changes, message: str, *, new: bool) -> str:
        present = self._list_present(parent, changes)
        actions: list[dict[str, Any]] = []
        for path, text in sorted(changes.items()):
            if text is None:
                actions.append({"action": "delete", "file_path": path})
                continue
            action: dict[str, Any] = {"action": "update" if path in present else "create"}
            actions.append(action | {"file_path": path, "content": text})
        body: dict[str, Any] = {"branch": branch, "commit_message": message, "actions": actions}
        # start_sha makes the branch, or says what it must be at for this commit.
        body |= {"start_sha": parent} if new else {}
        if not new and self.read_head(branch) != parent:
            raise BranchMoved(f"{branch} has moved")
        try:
            path = f"{self._project}/repository/commits"
            return str(self.request_json("POST", path, body=body, known=(400, 409))["id"])
        except Refused as refused:
            raise BranchMoved(str(refused)) from None

    def _list_present(self, commit: str, changes: Changes) -> set[str]:
        directories = {path.rpartition("/")[0] for path in changes}
        return {path for directory in directories for path in self.list_files(commit, directory)}

    def propose(self, branch: str, base: str, title: str, text: str) -> str:
        if address := self._find_open_request(branch, base):
            return address
        body = {
            "source_branch": branch,
            "target_branch": base,
            "title": title,
            "description": text,
            "remove_source_branch": True,
        }
        try:
            return str(self.request_json("POST", f"{self._project}/merge_requests", body=body, known=(409,))["web_url"])
        except Refused as refused:
            if address := self._find_open_request(branch, base):
                return address
            raise BranchMoved(str(refused)) from None

    def _find_open_request(self, branch: str, base: str) -> str:
        query = {"state": "opened", "source_branch": branch, "target_branch": base}
        requests = self.request_json("GET", f"{self._project}/merge_requests", query=query)
        return str(requests[0]["web_url"]) if requests else ""
