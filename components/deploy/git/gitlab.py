"""A repository on GitLab, by its REST API: https://docs.gitlab.com/api/ commits, repositories and merge_requests."""

from __future__ import annotations

from typing import Any

from components.deploy.git.host import BranchMoved, Changes, GitHost, Refused, parts_of, quoted

_PAGE = 100


class GitLab(GitHost):
    """gitlab.com, or a GitLab of one's own at ``api`` or https://HOST/api/v4."""

    def __init__(self, repository: str, api: str, token: str) -> None:
        host, path = parts_of(repository)
        super().__init__(repository, api or f"https://{host}/api/v4", {"PRIVATE-TOKEN": token})
        self._project = f"/projects/{quoted(path)}"

    def head(self, branch: str) -> str | None:
        try:
            found = self.ask("GET", f"{self._project}/repository/branches/{quoted(branch)}", known=(404,))
            return found["commit"]["id"]
        except Refused:
            # It says 404 for a project that the token may not see, too.
            self.ask("GET", self._project)
            return None

    def files(self, commit: str, directory: str) -> dict[str, str]:
        query = {"ref": commit, "path": directory, "recursive": "true", "per_page": str(_PAGE)}
        found: dict[str, str] = {}
        page = "1"
        while page:
            try:
                answer = self.send(
                    "GET", f"{self._project}/repository/tree", query=query | {"page": page}, known=(404,)
                )
            except Refused:
                return {}
            found |= {entry["path"]: entry["id"] for entry in answer.json() if entry["type"] == "blob"}
            page = answer.headers.get("x-next-page", "")
        return found

    def read(self, commit: str, path: str) -> str:
        return self.send("GET", f"{self._project}/repository/files/{quoted(path)}/raw", query={"ref": commit}).text

    def commit(self, branch: str, parent: str, changes: Changes, message: str, *, new: bool) -> str:
        present = self._present(parent, changes)
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
        if not new and self.head(branch) != parent:
            raise BranchMoved(f"{branch} has moved")
        try:
            return self.ask("POST", f"{self._project}/repository/commits", body=body, known=(400, 409))["id"]
        except Refused as refused:
            raise BranchMoved(str(refused)) from None

    def _present(self, commit: str, changes: Changes) -> set[str]:
        directories = {path.rpartition("/")[0] for path in changes}
        return {path for directory in directories for path in self.files(commit, directory)}

    def propose(self, branch: str, base: str, title: str, text: str) -> str:
        if found := self._open(branch, base):
            return found
        body = {
            "source_branch": branch,
            "target_branch": base,
            "title": title,
            "description": text,
            "remove_source_branch": True,
        }
        try:
            return self.ask("POST", f"{self._project}/merge_requests", body=body, known=(409,))["web_url"]
        except Refused as refused:
            if found := self._open(branch, base):
                return found
            raise BranchMoved(str(refused)) from None

    def _open(self, branch: str, base: str) -> str:
        query = {"state": "opened", "source_branch": branch, "target_branch": base}
        found = self.ask("GET", f"{self._project}/merge_requests", query=query)
        return found[0]["web_url"] if found else ""
