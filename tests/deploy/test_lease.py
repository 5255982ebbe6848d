"""Deployments of one service at the same time: one after the other, and the newest wins."""

from __future__ import annotations

import json
import os
import random
import threading
import time

import pytest

from components.core.errors import StageError, Transient
from components.deploy.kubernetes.cluster import Cluster, connect
from components.deploy.kubernetes.lease import DeployLease, Superseded
from tests.deploy.cluster.kserve import Fate
from tests.deploy.conftest import Team
from tests.waiting import wait_for

# More, to be surer: ROUNDS=200 python -m pytest tests/deploy/test_lease.py
ROUNDS = int(os.environ.get("ROUNDS", "4"))


@pytest.fixture
def api(team: Team) -> Cluster:
    return connect("")


def new_lease(api: Cluster, duration: float = 30.0) -> DeployLease:
    return DeployLease(api, "embed", poll=0.01, duration=duration)


def test_a_second_one_waits_for_the_first(api: Cluster) -> None:
    first, second = new_lease(api, duration=9.0), new_lease(api)
    got: list[str] = []

    def take() -> None:
        with second.hold(timeout=10):
            got.append("second")

    with first.hold(timeout=1):
        waiting = threading.Thread(target=take)
        waiting.start()
        # The first one hears of it when it renews, ends, and only then does the second one get the lease.
        wait_for(lambda: _superseded(first))
        assert got == []
        got.append("first")
    waiting.join()
    assert got == ["first", "second"]


def _superseded(first: DeployLease) -> bool:
    try:
        first.check()
    except Superseded:
        return True
    return False


def test_one_that_came_before_gives_way_even_while_it_waits(api: Cluster) -> None:
    first, second, third = new_lease(api), new_lease(api), new_lease(api)
    with first.hold(timeout=1):
        second.ticket = second._draw_ticket()
        third.ticket = third._draw_ticket()
        with pytest.raises(Superseded):
            second._acquire(timeout=5)


def test_a_lease_that_is_not_released_expires_and_its_holder_notices(api: Cluster) -> None:
    dead, heir = new_lease(api, duration=1.0), new_lease(api)
    dead.ticket = dead._draw_ticket()
    dead._acquire(timeout=1)
    began = time.monotonic()
    with heir.hold(timeout=10):
        assert time.monotonic() - began > 1.0
        with pytest.raises(Transient):
            dead.check_now()


def test_a_holder_that_lives_is_waited_for_only_so_long(api: Cluster) -> None:
    with (
        new_lease(api).hold(timeout=1),
        pytest.raises(Transient, match="does not end"),
        new_lease(api).hold(timeout=0.2),
    ):
        pass


def test_an_earlier_one_never_undoes_the_switch_of_a_later_one(team: Team) -> None:
    """The earlier one was held up between its last look and its write: the Service itself refuses it."""
    team.deploy("a")
    store = team.cluster.store
    alias = store.get("services", "embed-live")
    alias["metadata"]["annotations"]["nemotron-embed.kubeflow.org/ticket"] = "99"
    store.replace("services", "embed-live", alias)
    with pytest.raises(Superseded, match="a newer deployment of embed has switched"):
        team.deploy("b")
    assert team.live() == "a"
    assert len(team.releases()) == 1


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_two_at_the_same_time(team: Team, seed: int) -> None:
    interleave(team, seed)


def interleave(team: Team, seed: int) -> None:
    """Two deployments that start and proceed at random: the later one is live, whole, recorded and alone changed."""
    chance = random.Random(seed)
    team.deploy("a")
    for model in ("b", "c"):
        team.fate(model, Fate(ready_after=chance.randint(1, 8)))
    team.cluster.fault = lambda *_: time.sleep(chance.random() * 0.004)
    ended: dict[str, StageError | None] = {}

    def deploy(model: str, delay: float) -> None:
        time.sleep(delay)
        try:
            team.deploy(model, soak_seconds=0.02)
            ended[model] = None
        except StageError as error:
            ended[model] = error

    threads = [threading.Thread(target=deploy, args=(model, chance.random() * 0.3)) for model in ("b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    team.cluster.fault = lambda *_: None
    finished = [model for model, error in ended.items() if error is None]
    gave_way = [error for error in ended.values() if error is not None]
    assert finished, ended
    assert all(isinstance(error, Superseded) for error in gave_way), ended
    live = team.live()
    assert live == finished[-1]
    history = json.loads(team.cluster.store.objects["configmaps", "embed-releases"]["data"]["releases.json"])
    assert history[0]["model_digest"] == team.bundle(live).manifest.digest
    assert history[0]["release"] in team.releases()
    # The live one and one for a roll-back; what gave way holds no GPU.
    assert len(team.releases()) == 2
    assert team.cluster.store.objects["leases", "embed-deploy"]["spec"]["holderIdentity"] == ""
    again = team.deploy(live)
    assert len(again.checks) == 19
