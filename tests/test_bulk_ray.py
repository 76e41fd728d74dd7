"""Runs on Ray: a real cluster of two nodes on this machine, equal to local ones although workers are lost."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from avgrad import InputError
from avgrad.bulk import Run
from tests.bulk_small import contents, localizer, make_collection, run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_collection(tmp_path_factory.mktemp("collection"), 120)


@pytest.fixture(scope="module")
def local(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(folder, tmp_path_factory.mktemp("local") / "run", localizer=localizer(size=160))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of four processors each, as far as Ray knows, with raylets and object stores of their own."""
    import ray
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "object_store_memory": 200_000_000})
    nodes.add_node(num_cpus=4, object_store_memory=200_000_000)
    ray.init(address=nodes.address, log_to_driver=False)
    nodes.wait_for_nodes()
    assert len([node for node in ray.nodes() if node["Alive"]]) == 2
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def workers(cluster: Any) -> list[psutil.Process]:
    """The processes that run the model, on all nodes."""
    found = []
    for node in cluster.list_all_nodes():
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        for child in raylet.children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # they come and go
                if "MapBatches(_Locate)" in " ".join(child.cmdline()):
                    found.append(child)
    return found


def test_equal_rows_on_two_nodes_although_workers_are_killed(
    cluster: Any, folder: Path, local: Run, tmp_path: Path
) -> None:
    out, killed = tmp_path / "run", []

    def kill() -> None:
        while not over.wait(0.2):
            done = len(list((out / "shards").glob("*.parquet"))) if out.exists() else 0
            victims = workers(cluster)
            if victims and done >= 2 and len(killed) < 2 and (not killed or time.monotonic() > killed[-1] + 2):
                with suppress(ProcessLookupError):
                    os.kill(victims[0].pid, signal.SIGKILL)
                killed.append(time.monotonic())

    over = threading.Event()
    thread = threading.Thread(target=kill)
    thread.start()
    try:
        found = run(folder, out, ray="local", localizer=localizer(size=160))
    finally:
        over.set()
        thread.join()
    assert killed, "the run was over before a worker was killed"
    assert contents(found) == contents(local)


def test_a_node_is_lost(cluster: Any, folder: Path, local: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    spare = cluster.add_node(num_cpus=4, object_store_memory=200_000_000)
    cluster.wait_for_nodes()

    def remove() -> None:
        while not list((out / "shards").glob("*.parquet")):
            if over.wait(0.2):
                return
        cluster.remove_node(spare, allow_graceful=False)
        removed.set()

    over, removed = threading.Event(), threading.Event()
    thread = threading.Thread(target=remove)
    thread.start()
    try:
        found = run(folder, out, ray="local", localizer=localizer(size=160))
    finally:
        over.set()
        thread.join()
    assert removed.is_set()
    assert contents(found) == contents(local)


def test_goes_on_with_what_the_local_backend_began(cluster: Any, folder: Path, local: Run, tmp_path: Path) -> None:
    import shutil

    out = tmp_path / "run"
    shutil.copytree(local.folder.path, out)
    for number in (0, 7, 20):
        (out / "shards" / f"{number:06d}.parquet").unlink()
    assert contents(run(folder, out, ray="local", localizer=localizer(size=160))) == contents(local)


def test_errors_of_the_model_come_back(cluster: Any, folder: Path, tmp_path: Path) -> None:
    broken = localizer()
    with torch.no_grad():
        next(iter(broken.model.parameters())).fill_(float("nan"))  # type: ignore[attr-defined]
        for parameter in broken.model.modality_trunks["vision"].parameters():  # type: ignore[attr-defined]
            parameter.fill_(float("nan"))
    prompts = localizer().encode(text="a dog")
    with pytest.raises(InputError, match="the heatmaps are not finite"):
        run(folder, tmp_path / "run", ray="local", localizer=broken, text=None, prompts=prompts)
