"""A repository on GitHub, by its REST API: https://docs.github.com/rest/git and /rest/pulls, version 2022-11-28."""

from __future__ import annotations

import base64

from components.deploy.git.host import BranchMoved, Changes, GitHost, Refused, split_address

_TRUNCATED = "the repository has more files below git_path than GitHub lists"


class GitHub(GitHost):
    """github.com, or GitHub Enterprise at ``api`` or https://HOST/api/v3."""

    def __init__(self, repository: str, api: str, token: str) -> None:
        host, path = split_address(repository)
        usual_api = "https://api.github.com" if host == "github.com" else f"https://{host}/api/v3"
        headers = {
            "Authorization": f"Bearer {token}",
            "Accept": "application/vnd.github+json",
            "X-GitHub-Api-Version": "2022-11-28",
        }
        super().__init__(repository, api or usual_api, headers)
        self._owner, self._repo = path.split("/", 1)[0], f"/repos/{path}"

    def read_head(self, branch: str) -> str | None:
        try:
            return str(self.request_json("GET", f"{self._repo}/git/ref/heads/{branch}", known=(404,))["object"]["sha"])
        except Refused:
            self.request_json("GET", self._repo)
            return None

    def list_files(self, commit: str, directory: str) -> dict[str, str]:
        tree = self.request_json("GET", f"{self._repo}/git/commits/{commit}")["tree"]["sha"]
        for name in directory.split("/"):
            entries = self.request_json("GET", f"{self._repo}/git/trees/{tree}")["tree"]
            tree = next((e["sha"] for e in entries if e["path"] == name and e["type"] == "tree"), None)
            if tree is None:
                return {}
        answer = self.request_json("GET", f"{self._repo}/git/trees/{tree}", query={"recursive": "1"})
        if answer.get("truncated"):
            raise Refused(422, _TRUNCATED)
        return {f"{directory}/{entry['path']}": entry["sha"] for entry in answer["tree"] if entry["type"] == "blob"}

    def read_file(self, commit: str, path: str) -> str:
        answer = self.request_json("GET", f"{self._repo}/contents/{path}", query={"ref": commit})
        return base64.b64decode(answer["content"]).decode("utf-8")

    def commit(self, branch: str, parent: str, changes: Changes, message: str, *, new: bool) -> str:
        base = self.request_json("GET", f"{self._repo}/git/commits/{parent}")["tree"]["sha"]
        entries = [
            {"path": path, "mode": "100644", "type": "blob"} | ({"sha": None} if text is None else {"content": text})
            for path, text in sorted(changes.items())
        ]
        tree = self.request_json("POST", f"{self._repo}/git/trees", body={"base_tree": base, "tree": entries})["sha"]
        content = {"message": message, "tree": tree, "parents": [parent]}
        commit = str(self.request_json("POST", f"{self._repo}/git/commits", body=content)["sha"])
        try:
            # Not a fast forward, or made by somebody else: 422 for both.
            if new:
                reference = {"ref": f"refs/heads/{branch}", "sha": commit}
                self.request_json("POST", f"{self._repo}/git/refs", body=reference, known=(409, 422))
            else:
                moved = {"sha": commit, "force": False}
                self.request_json("PATCH", f"{self._repo}/git/refs/heads/{branch}", body=moved, known=(409, 422))
        except Refused as refused:
            raise BranchMoved(str(refused)) from None
        return commit

    def propose(self, branch: str, base: str, title: str, text: str) -> str:
        if address := self._find_open_request(branch, base):
            return address
        body = {"title": title, "head": branch, "base": base, "body": text}
        try:
            return str(self.request_json("POST", f"{self._repo}/pulls", body=body, known=(422,))["html_url"])
        except Refused as refused:
            if address := self._find_open_request(branch, base):
                return address
            raise BranchMoved(str(refused)) from None

    def _find_open_request(self, branch: str, base: str) -> str:
        query = {"state": "open", "head": f"{self._owner}:{branch}", "base": base}
        requests = self.request_json("GET", f"{self._repo}/pulls", query=query)
        return str(requests[0]["html_url"]) if requests else ""
