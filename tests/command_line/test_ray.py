"""Jobs on a real Ray cluster of two nodes: one is killed in the middle of a build, or they are on two hosts."""

import json
import os
import signal

import mlflow
import psutil
import pytest

from steps.store import names
from steps.store.variants import find_variants, logged_models
from tests import network, ray_cluster
from tests.command_line.test_launching import INSTALLED, MAIN, ONNX, check_main_job, start
from tests.conftest import PROJECT
from tests.support import wait_until

pytestmark = [
    pytest.mark.service,
    pytest.mark.skipif(not INSTALLED("hydra_ray_launcher"), reason="hydra_ray_launcher is not installed"),
]
TOKENS = range(12, 17)


@pytest.fixture
def cluster():
    with ray_cluster.running() as cluster:
        yield cluster


def unfinished_build(client, raylet):
    """Return the run of a job of this node whose model is half made; None if there is none."""
    workers = {child.pid for child in raylet.children(recursive=True)}
    for model in logged_models(client, "0"):
        if str(model.status) == "PENDING" and model.source_run_id:
            run = client.get_run(model.source_run_id)
            if json.loads(run.data.tags[names.PROCESS])["pid"] in workers:
                return run.info.run_id
    return None


def test_a_killed_node_costs_no_variant_and_leaves_nothing_to_promote(cluster, checkpoint, figure):
    cluster.add_node()
    second = cluster.add_node()
    words = [*ONNX, f"generation.max_tokens={','.join(map(str, TOKENS))}"]
    words += ["launcher=ray", f"launcher.address={cluster.address}"]
    # Ray tells the nodes in which folder the step was typed: there they find the project.
    process = start("build", words, PROJECT, **ray_cluster.ENVIRONMENT)
    client = mlflow.MlflowClient()
    try:
        lost = wait_until(lambda: process.poll() is not None or unfinished_build(client, second), seconds=120)
        assert process.poll() is None, process.communicate()
        os.kill(second.pid, signal.SIGKILL)
        output, errors = process.communicate(timeout=300)
    finally:
        process.kill()
    assert (process.returncode, errors) == (0, ""), output
    variants = find_variants(client, "0")
    assert sorted(variant.config.generation.max_tokens for variant in variants) == list(TOKENS)
    others = [model for model in logged_models(client, "0") if model.model_id not in {one.model_id for one in variants}]
    assert {(model.source_run_id, str(model.status)) for model in others} == {(lost, "FAILED")}
    assert not [model for model in others if names.FINGERPRINT in model.tags]
    assert client.get_run(lost).info.status == "FAILED"
    assert not mlflow.search_runs(filter_string="attributes.status = 'RUNNING'", output_format="list")
    assert not psutil.pid_exists(second.pid) or second.status() == psutil.STATUS_ZOMBIE
    figure(f"Ray: a node killed during a build: {len(variants)} of {len(TOKENS)} variants, {len(others)} model FAILED")


@pytest.mark.skipif(network.missing() is not None, reason=str(network.missing()))
def test_the_main_job_runs_on_two_hosts(checkpoint, figure):
    """Each job of the build and of the evaluation runs on the host that Ray chose, and both hosts have some."""
    with network.two_hosts() as hosts, ray_cluster.running(hosts[0]) as cluster:
        raylets = [cluster.add_node(host=host) for host in hosts]
        words = [*MAIN, "launcher=ray", f"launcher.address={cluster.address}"]
        process = start("main", words, PROJECT, host=hosts[0], **ray_cluster.ENVIRONMENT)
        workers = [set(), set()]

        def has_ended():
            for pids, raylet in zip(workers, raylets, strict=True):
                pids |= {child.pid for child in raylet.children(recursive=True)}
            return process.poll() is not None

        try:
            wait_until(has_ended, seconds=300)
            output, errors = process.communicate(timeout=10)
        finally:
            process.kill()
    assert process.returncode == 0, output + errors
    check_main_job(output)
    runs = mlflow.search_runs(output_format="list")
    pids = [json.loads(run.data.tags[names.PROCESS])["pid"] for run in runs if names.PROCESS in run.data.tags]
    shares = [sum(pid in host_workers for pid in pids) for host_workers in workers]
    assert all(shares), shares
    figure(f"Ray: main on two hosts with a network: {shares[0]} and {shares[1]} runs of jobs")


def test_a_cluster_that_is_not_there_is_one_sentence(tmp_path):
    process = start("build", [*ONNX, "launcher=ray", "launcher.address=127.0.0.1:1"], tmp_path)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    expected = "no Ray answers at 127.0.0.1:1 (Connection refused). Start it, or leave the address out."
    assert errors == f"error: launcher.address: {expected}\n"
