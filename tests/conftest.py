"""Models of all folders' tests, built once per session, and the check that keeps the fast tier fast.

Nothing here imports torch before a test asks for a model: ``make test-fast`` and the tests of folders without models
start at once.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from components.core.encoder.config import EncoderConfig
from components.recipe.plan import resolve_settings
from components.recipe.stages import by_name
from tests.exported import Exported

FAST_TIER = "not slow"
# Twice what a test of the fast tier may take on an idle core, and twice again for a slow machine. CPU time, not time:
# a busy neighbour makes no test fail.
FAST_CPU_SECONDS = 8.0
_CPU_BEFORE = pytest.StashKey[float]()
_ALL_SLOW = re.compile(r"^pytestmark = (\[\s*)?pytest\.mark\.slow\b", re.MULTILINE)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave a file whose tests are all slow unread in the fast tier: most of them import torch and transformers."""
    if config.option.markexpr != FAST_TIER or collection_path.suffix != ".py":
        return None
    return bool(_ALL_SLOW.search(collection_path.read_text(encoding="utf-8"))) or None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    """Note the CPU time before the fixtures of ``item`` are made: they count as well."""
    item.stash[_CPU_BEFORE] = _cpu_seconds()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fail a test of the fast tier that does not belong there."""
    result = yield
    used = _cpu_seconds() - item.stash[_CPU_BEFORE]
    if item.config.option.markexpr == FAST_TIER and used > FAST_CPU_SECONDS:
        pytest.fail(f"took {used:.1f} s of CPU time: make it faster, or mark it @pytest.mark.slow", pytrace=False)
    return result


def _cpu_seconds() -> float:
    """CPU time of this process and of those that it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@pytest.fixture(scope="session", autouse=True)
def stack_without_sources() -> Iterator[None]:
    """Leave the lines of source out of ``inspect.stack``.

    kfp 2.17 calls it in every setter of a task to name the caller: below the frames of pytest, and with torch imported,
    that takes most of the time of compiling a pipeline.
    """
    with patch.object(inspect, "stack", functools.partial(inspect.stack, context=0)):
        yield


@pytest.fixture(scope="session")
def models() -> Any:
    """The module tests.models, which imports torch."""
    return importlib.import_module("tests.models")


@pytest.fixture(scope="session")
def small_config() -> EncoderConfig:
    return resolve_settings([by_name("prep")], profile_name="small", values={})["prep"].encoder()


@pytest.fixture(scope="session")
def minilm(tmp_path_factory: pytest.TempPathFactory, small_config: EncoderConfig, models: Any) -> Exported:
    """fp32, probes of a BEIR folder."""
    return models.write_minilm(tmp_path_factory.mktemp("minilm"), small_config)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory, small_config: EncoderConfig, models: Any) -> Exported:
    """fp16, prefixes, another dimension, weights in a file of their own, probes that export ships."""
    return models.write_llama(tmp_path_factory.mktemp("llama"), small_config)
