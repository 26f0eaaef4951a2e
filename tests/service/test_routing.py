"""Who takes which job: memory, turns among batches, several workers on one machine."""

from __future__ import annotations

import json
import os
import signal

import pytest
from service_machine import circuit_spec, our_processes, settings_without_worker, train_spec, wait_for

from extractor.jobs.cost.memory import bytes_needed
from extractor.spec.schema import SparseModelSpec, TrainSpec
from worker import processes
from worker.broker import fair_share, routing
from worker.broker.app import KEY_PREFIX
from worker.broker.routing import GB
from worker.client import service as client_service
from worker.client import submit as client_submit

QUICK = {"steps": 1, "seconds": 0}


def submit(machine, job: str, group: str = "", memory: int = 0, priority: str = "normal") -> str:
    service = machine.service
    return client_submit.submit(
        client_service.Service(settings_without_worker(), service.url, service.records),
        train_spec(),
        job,
        priority,
        group=group,
        memory=memory,
    )


def started(machine, jobs):
    """The jobs in the order in which they were begun."""
    return sorted(jobs, key=lambda job: float(machine.records.need(job)["started"]))


@pytest.mark.parametrize(
    ("memory", "queue"),
    [(0, "extract"), (8 * GB, "extract"), (8 * GB + 1, "extract.16g"), (75 * GB, "extract.80g"), (900 * GB, "extract.288g")],
)
def test_a_job_waits_at_the_smallest_step_that_holds_it(memory, queue):
    assert routing.queue_of("normal", memory) == queue
    assert routing.queue_of("whatever", memory) == queue
    assert routing.queue_of("high", memory) == queue.replace("extract", "extract.high")


def test_a_worker_takes_what_fits_the_rarest_first_and_priorities_before_that():
    assert routing.queues_for(25 * GB) == [
        *("extract.high.24g", "extract.high.16g", "extract.high"),
        *("extract.24g", "extract.16g", "extract"),
        *("extract.low.24g", "extract.low.16g", "extract.low"),
    ]
    assert routing.queues_for(4 * GB) == ["extract.high", "extract", "extract.low"]
    assert set(routing.queues_for(0)) == {queue for queues in routing.all_queues().values() for queue in queues}
    assert routing.reaches(0, 10**15)
    assert routing.reaches(25_757_220_864, 24 * GB)  # a card of 24 GB
    assert not routing.reaches(15 * GB, 16 * GB)


def test_the_memory_of_a_training_grows_with_its_model():
    small, large = (
        train_spec().model_copy(update={"train": TrainSpec(model=SparseModelSpec(n_layer=8, d_model=width))}) for width in (512, 2048)
    )
    assert 0 < 4 * bytes_needed(small) < bytes_needed(large) < 40 * GB
    assert 0 < bytes_needed(circuit_spec().model_copy(update={"model": "python-tiny"})) < GB
    assert bytes_needed(circuit_spec().model_copy(update={"model": "python-tiny", "subject": "dense"})) == 0, "pruned as it is"
    assert bytes_needed(circuit_spec()) == 0, "of a model that is nowhere nothing is known"


def test_the_memory_of_a_bridging_is_that_of_its_plan(models):
    from extractor.jobs.cost import bridging, constants

    spec = circuit_spec().model_copy(update={"model": str(models / "m0")})
    plan = bridging.bridging_cost(json.loads((models / "m0" / "config.json").read_text()), spec.bridge)
    assert bytes_needed(spec) == int(plan.bytes_needed(1) / constants.USABLE_SHARE)


def test_a_job_that_needs_more_than_any_worker_has_waits_for_one_that_has_it(machine):
    machine.plan(**QUICK)
    small = machine.worker("--memory", "8GB")
    submit(machine, "large", memory=30 * GB)
    submit(machine, "small", memory=1 * GB)
    machine.wait_state("small", "succeeded")
    assert machine.state_of("large") == "queued"
    assert machine.records.client.llen(f"{KEY_PREFIX}extract.40g") == 1
    shown = machine.extract("status")
    assert "1 queued job needs more memory than any live worker has" in shown.out
    assert machine.extract("status", "--json").json["out_of_reach"] == 1
    assert "30.0 GB of memory" in machine.extract("status", "large").out
    machine.worker("--memory", "40GB", "--max-jobs", "1")
    machine.wait_state("large", "succeeded")
    assert small.poll() is None


def test_a_submit_says_that_no_worker_has_the_memory(machine):
    machine.worker("--memory", "8GB")
    answer = machine.extract("train", "--set", "model.d_model=8192", "--set", "model.n_layer=40", "--no-worker")
    assert answer.code == 0, answer.err
    assert answer.err.startswith("warning: no live worker has the ")
    assert machine.records.need(answer.out.strip())["memory"] > str(40 * GB)


def test_a_message_that_got_lost_comes_back_to_the_step_of_its_job(machine):
    submit(machine, "large", memory=30 * GB)
    machine.records.client.delete(f"{KEY_PREFIX}extract.40g")
    machine.worker("--memory", "8GB", EXTRACT_REPUBLISH="0.5")
    wait_for(lambda: machine.records.client.llen(f"{KEY_PREFIX}extract.40g") == 1, "the message to come back")
    assert machine.state_of("large") == "queued"


def test_a_batch_of_many_jobs_lets_a_small_one_and_a_single_job_pass(machine):
    machine.plan(**QUICK)
    many = [submit(machine, f"many-{number}", group="many", priority="low") for number in range(20)]
    assert machine.records.client.llen(f"{KEY_PREFIX}extract.low") == fair_share.MIN_ACTIVE
    few = [submit(machine, f"few-{number}", group="few", priority="low") for number in range(3)]
    single = submit(machine, "single", priority="low")
    urgent = submit(machine, "urgent")
    machine.worker()
    for job in (*many, *few, single, urgent):
        machine.wait_state(job, "succeeded", seconds=60)
    order = started(machine, [*many, *few, single, urgent])
    assert order[0] == urgent
    assert max(order.index(job) for job in (*few, single)) <= fair_share.MIN_ACTIVE + len(few) + 1
    assert [job for job in order if job in many] == many
    assert all(machine.records.need(job)["published"] == "1" for job in order)
    assert not machine.records.client.smembers("ex:groups")


def test_a_group_goes_on_though_its_client_and_its_workers_die(machine):
    machine.plan(**QUICK)
    jobs = [submit(machine, f"job-{number}", group="group") for number in range(12)]
    machine.records.client.delete(f"{KEY_PREFIX}extract")  # as if the client had died before it published
    for job in jobs[:4]:
        machine.records.cancel(job)
    first = machine.worker(EXTRACT_REPUBLISH="0.5")
    machine.wait_state(jobs[4], "succeeded")
    os.kill(first.pid, signal.SIGKILL)
    machine.worker(EXTRACT_REPUBLISH="0.5")
    for job in jobs[4:]:
        machine.wait_state(job, "succeeded", seconds=30)
    assert {machine.state_of(job) for job in jobs[:4]} == {"cancelled"}


def test_a_job_of_a_group_submitted_again_stands_in_line_once(machine):
    machine.plan(**QUICK)
    jobs = [submit(machine, f"job-{number}", group="group") for number in range(10)]
    machine.records.cancel(jobs[-1])
    service = client_service.Service(settings_without_worker(), machine.service.url, machine.records)
    client_submit.submit_again(service, train_spec(), jobs[-1], group="group")
    machine.worker()
    for job in jobs:
        machine.wait_state(job, "succeeded", seconds=30)
    assert machine.states(jobs[-1]) == ["queued", "running", "succeeded"]
    assert machine.records.client.llen(f"{KEY_PREFIX}extract") == 0


@pytest.fixture
def gpus(tmp_path, monkeypatch):
    """Two GPUs, as far as nvidia-smi can tell."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        '#!/bin/sh\ncase "$*" in *query-gpu=index*) printf "0\\n1\\n";;\n'
        '*"--id 0"*) echo "NVIDIA T4, 15360, 3";;\n*"--id 1"*) echo "NVIDIA A10G, 23028, 5";;\n*) exit 1;; esac\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_one_command_starts_a_worker_on_each_gpu_and_replaces_one_that_dies(machine, gpus):
    url = machine.service.url
    fleet = machine.spawn("worker", "--each-gpu", "--json", EXTRACT_REDIS_URL=url)

    def devices():
        return {worker.device: worker for worker in machine.records.workers() if not is_dead(worker)}

    wait_for(lambda: len(devices()) == 2, "two workers")
    assert set(devices()) == {"NVIDIA T4, 15 GiB", "NVIDIA A10G, 22 GiB"}
    assert {worker.capacity for worker in devices().values()} == {15360 << 20, 23028 << 20}
    lost = devices()["NVIDIA T4, 15 GiB"]
    os.kill(processes.ProcessId.parse(lost.process).pid, signal.SIGKILL)
    wait_for(lambda: devices().get("NVIDIA T4, 15 GiB", lost).name != lost.name, "another in its place")
    envs = {name: environment_of(worker)["CUDA_VISIBLE_DEVICES"] for name, worker in devices().items()}
    assert envs == {"NVIDIA T4, 15 GiB": "0", "NVIDIA A10G, 22 GiB": "1"}
    fleet.terminate()
    out, _ = fleet.communicate(timeout=30)
    assert json.loads(out.splitlines()[-1])["failed"] == 0
    assert not [pid for pid in our_processes(machine.home) if "worker" in command_of(pid)]


def is_dead(worker) -> bool:
    return processes.is_gone(processes.ProcessId.parse(worker.process), same_machine=True)


def environment_of(worker) -> dict[str, str]:
    with open(f"/proc/{processes.ProcessId.parse(worker.process).pid}/environ") as file:
        return dict(item.split("=", 1) for item in file.read().split("\0") if "=" in item)


def command_of(pid: int) -> list[str]:
    with open(f"/proc/{pid}/cmdline") as file:
        return file.read().split("\0")


def test_several_workers_on_cpus_leave_together_when_there_is_nothing_to_do(machine):
    machine.plan(**QUICK)
    jobs = [machine.submit() for _ in range(3)]
    fleet = machine.spawn("worker", "--processes", "2", "--threads", "1", "--idle-exit", "1")
    assert fleet.wait(timeout=60) == 0
    assert {machine.state_of(job) for job in jobs} == {"succeeded"}
    assert not machine.records.workers()


@pytest.mark.parametrize(
    "options", ["--each-gpu --processes 2", "--each-gpu", "--processes 2 --alive-file x", "--memory 0GB", "--memory much"]
)
def test_a_fleet_that_cannot_be_is_refused_in_a_line(machine, monkeypatch, options):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.chdir(machine.home)
    answer = machine.extract("worker", *options.split())
    assert answer.code == 2
    assert answer.err.count("\n") == 1, answer.err
