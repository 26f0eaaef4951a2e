"""What deploy/ holds, each file under its own tool: hadolint, Compose, kustomize, the schemas of Kubernetes and KEDA, a PromQL parser.

The tools are programs inside packages of the `dev` extra. `promtool test rules` runs by hand: no package brings it.
What they cannot know, whether our own commands, options, variables and server flags exist, is asked of our own code and of a real server.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore
import jsonschema
import kubernetes_validate
import promql_parser
import pytest
import redis
import yaml
from worlds import ROOT

from worker import cli, settings
from worker.broker.app import KEY_PREFIX
from worker.broker.embedded_redis import find_binary
from worker.broker.routing import GB, all_queues, queues_for

DEPLOY = ROOT / "deploy"
METRICS = {
    "extract_jobs": {"state"},
    "extract_workers": {"state"},
    "extract_queue_length": {"queue"},
    "extract_queue_oldest_seconds": set(),
    "extract_lease_age_seconds_max": set(),
    "up": {"job"},
}
GRACE = 600  # seconds that a worker has to leave


def run(program: str, *arguments: str | Path, at: Path = DEPLOY) -> str:
    """A tool of the environment these tests run in, not one of the same name elsewhere on the machine."""
    path = Path(sysconfig.get_path("scripts")) / program
    done = subprocess.run([path, *arguments], cwd=at, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def deploy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of deploy/ with secrets in it, as an operator has it."""
    copy = tmp_path_factory.mktemp("operator") / "deploy"
    shutil.copytree(DEPLOY, copy, ignore=shutil.ignore_patterns("secrets", ".env"))
    subprocess.run([copy / "make-secrets", copy / "secrets", "valkey"], check=True)
    shutil.copytree(copy / "secrets", copy / "kubernetes" / "base" / "secrets")
    return copy


@pytest.fixture(scope="module")
def services(deploy: Path) -> dict[str, Any]:
    """The services of compose.yaml as Compose understands them."""
    return composed(deploy, COMPOSE_PROFILES="gpu")


@pytest.fixture(scope="module", params=["cpu", "gpu", "cpu s3", "gpu s3"])
def manifests(request: pytest.FixtureRequest, deploy: Path) -> list[dict[str, Any]]:
    """Every object that `kubectl apply -k` would make, results in a folder and in a bucket."""
    workers, _, storage = request.param.partition(" ")
    if not storage:
        return built(deploy, workers)
    chosen = deploy / "kubernetes" / workers / "kustomization.yaml"
    before = chosen.read_text()
    assert before.count("components: [../folder]") == 1, "or the operator's page says what cannot be done"
    chosen.write_text(before.replace("../folder", f"../{storage}", 1))
    try:
        return built(deploy, workers)
    finally:
        chosen.write_text(before)


def composed(deploy: Path, **lines: str) -> dict[str, Any]:
    """The services of compose.yaml with those lines in the file .env."""
    (deploy / ".env").write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
    try:
        return json.loads(run("docker-compose", "-f", "compose.yaml", "config", "--format", "json", at=deploy))["services"]
    finally:
        (deploy / ".env").unlink()


def built(deploy: Path, workers: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(run("kubectl", "kustomize", f"kubernetes/{workers}", at=deploy)) if document]


def test_hadolint_finds_nothing_in_the_dockerfile():
    assert run("hadolint", "Dockerfile") == ""


@pytest.mark.parametrize("script", ["make-secrets", "in-venv"])
def test_shellcheck_finds_nothing_in_the_scripts(script: str):
    assert run("shellcheck", script) == ""


def test_compose_starts_workers_that_may_take_their_time_to_leave(services: dict[str, Any]):
    workers = {name: service for name, service in services.items() if name.startswith("worker")}
    assert set(workers) == {"worker-cpu", "worker-gpu0", "worker-gpu1"}
    for service in workers.values():
        assert (service["init"], service["stop_grace_period"], service["read_only"]) == (True, "10m0s", True)
        assert int(service["environment"]["EXTRACT_STOP_GRACE"]) < GRACE
    gpus = [workers[f"worker-gpu{n}"]["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"] for n in range(2)]
    assert gpus == [["0"], ["1"]]


def test_compose_s_gpu_workers_can_be_all_there_are_and_keep_results_in_a_bucket(deploy: Path):
    bucket = {"EXTRACT_ROOT": "s3://lab/jobs", "AWS_DEFAULT_REGION": "eu-central-1", "AWS_ENDPOINT_URL": "https://minio.lab"}
    services = composed(deploy, COMPOSE_PROFILES="gpu", CPU_WORKERS="0", **bucket)
    assert {name: service.get("scale") for name, service in services.items() if name == "worker-cpu"} == {"worker-cpu": 0}
    for name in ("worker-cpu", "worker-gpu0", "worker-gpu1"):
        environment = services[name]["environment"]
        assert bucket.items() <= environment.items()
        assert settings.from_env(without_files(environment)).store == "s3://lab/jobs"
        assert environment["AWS_SHARED_CREDENTIALS_FILE"] in {secret["target"] for secret in services[name]["secrets"]}
    unset = composed(deploy)["worker-cpu"]["environment"]
    assert [unset[name] for name in ("AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL")] == [None, None], "an empty address would be one"
    assert settings.from_env(without_files(unset)).store is None


def without_files(environment: dict[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if value is not None and not name.endswith("_FILE")}


def test_compose_builds_each_image_once_whatever_workers_there_are(deploy: Path):
    for lines, images in (({}, {"extractor:cpu"}), ({"COMPOSE_PROFILES": "gpu", "CPU_WORKERS": "0"}, {"extractor:cpu", "extractor:cuda"})):
        services = composed(deploy, **lines).values()
        builds = [service["image"] for service in services if "build" in service and service.get("scale") != 0]
        assert sorted(builds) == sorted(images) == sorted({s["image"] for s in services if s["image"].startswith("extractor")})


def test_compose_hands_out_secrets_as_files_and_listens_on_loopback(deploy: Path, services: dict[str, Any]):
    text = json.dumps(services)
    for path in (deploy / "secrets").glob("*.password"):
        assert path.read_text() not in text
    for service in services.values():
        assert all(port["host_ip"] == "127.0.0.1" for port in service.get("ports", []))
        for secret in service.get("secrets", []):
            assert any(secret["source"] in (path.name.replace(".", "_"), path.stem) for path in (deploy / "secrets").iterdir())


def test_kubernetes_accepts_every_object(manifests: list[dict[str, Any]]):
    known = json.loads((ROOT / "tests" / "keda_crds.json").read_text())
    for document in manifests:
        if document["apiVersion"].startswith("keda.sh/"):
            jsonschema.validate(document, known[document["kind"]])
        else:
            kubernetes_validate.validate(document, "1.37", strict=True)
        assert document["kind"] == "Namespace" or document["metadata"]["namespace"] == "extractor"
    for document in manifests:
        if document["kind"] == "ScaledJob":
            job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, "spec": document["spec"]["jobTargetRef"]}
            kubernetes_validate.validate(job, "1.37", strict=True)


def test_what_the_manifests_name_is_there(manifests: list[dict[str, Any]]):
    made = {(document["kind"], document["metadata"]["name"]) for document in manifests}
    for pod in pods(manifests):
        for volume in pod["spec"].get("volumes", []):
            if "secret" in volume:
                assert ("Secret", volume["secret"]["secretName"]) in made
            if "persistentVolumeClaim" in volume:
                assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in made
        for container in pod["spec"]["containers"]:
            for source in container.get("envFrom", []):
                if "secretRef" in source:
                    assert f"create secret generic {source['secretRef']['name']} --from-literal=" in (DEPLOY / "README.md").read_text()
                else:
                    assert ("ConfigMap", source["configMapRef"]["name"]) in made
            mounts = {mount["name"] for mount in container["volumeMounts"]}
            volumes = {volume["name"] for volume in pod["spec"].get("volumes", [])}
            assert mounts - volumes <= {"data"}, "all but what a volumeClaimTemplate gives"
    for document in manifests:
        if document["kind"] == "ScaledJob":
            assert ("TriggerAuthentication", document["spec"]["triggers"][0]["authenticationRef"]["name"]) in made
        if document["kind"] == "TriggerAuthentication":
            keys = {(ref["name"], ref["key"]) for ref in document["spec"]["secretTargetRef"]}
            secrets = {d["metadata"]["name"]: d["data"] for d in manifests if d["kind"] == "Secret"}
            assert all(key in secrets[name] for name, key in keys)


def test_every_pod_that_works_on_results_reaches_them(manifests: list[dict[str, Any]]):
    environment = next(d["data"] for d in manifests if d["kind"] == "ConfigMap")
    chosen = settings.from_env(without_files(environment))
    claims = [d["metadata"]["name"] for d in manifests if d["kind"] == "PersistentVolumeClaim"]
    assert claims == ([] if chosen.store else ["results"])
    workers = []
    for pod in pods(manifests):
        for container in pod["spec"]["containers"]:
            if container.get("args", [""])[:2] in (["extract", "worker"], ["extract", "gc"]):
                workers.append(container["args"][1])
                mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
                volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
                secrets = [source["secretRef"]["name"] for source in container["envFrom"] if "secretRef" in source]
                if chosen.store:
                    assert (secrets, "/results" in mounts) == (["storage"], False)
                else:
                    assert volumes[mounts[str(chosen.root)]]["persistentVolumeClaim"] == {"claimName": "results"}
                    assert secrets == []
    assert set(workers) == {"worker", "gc"}


def test_the_weekly_gc_looks_and_never_takes_finished_results(manifests: list[dict[str, Any]]):
    [job] = [d["spec"] for d in manifests if d["kind"] == "CronJob"]
    [container] = job["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert "--dry-run" in container["args"]
    assert "--results" not in container["args"], "it does not know the sweeps of its users' machines"
    assert (job["concurrencyPolicy"], job.get("suspend", False)) == ("Forbid", False)


def test_every_pod_is_unprivileged_and_workers_may_take_their_time_to_leave(manifests: list[dict[str, Any]]):
    workers = []
    for pod in pods(manifests):
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        assert pod["metadata"]["labels"]["app.kubernetes.io/part-of"] == "extractor", "or Valkey would not let it in"
        for container in pod["spec"]["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            if "worker" in container.get("args", []):
                workers.append((pod["spec"]["terminationGracePeriodSeconds"], container["livenessProbe"]["exec"]["command"][-1]))
    grace = next(d["data"]["EXTRACT_STOP_GRACE"] for d in manifests if d["kind"] == "ConfigMap")
    assert workers
    for seconds, probe in workers:
        assert int(grace) < seconds == GRACE
        minutes = int(re.search(r"-mmin -(\d+)", probe)[1])  # type: ignore[index]
        assert minutes * 60 > GRACE, "a worker that leaves no longer touches the file"


def test_there_is_a_scaled_job_for_each_queue_and_a_gpu_for_each_pod(deploy: Path):
    documents = list(yaml.safe_load_all(run("kubectl", "kustomize", "kubernetes/gpu", at=deploy)))
    jobs = {d["metadata"]["name"]: d["spec"] for d in documents if d["kind"] == "ScaledJob"}
    lists = {name: {trigger["metadata"]["listName"] for trigger in spec["triggers"]} for name, spec in jobs.items()}
    taken = queues_for(80 * GB)
    wanted = {priority: {KEY_PREFIX + queue for queue in queues if queue in taken} for priority, queues in all_queues().items()}
    assert lists == {f"worker-{priority}": queues for priority, queues in wanted.items()}
    for spec in jobs.values():
        container = spec["jobTargetRef"]["template"]["spec"]["containers"][0]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
        assert container["args"][:4] == ["extract", "worker", "--max-jobs", "1"]
        assert spec["rollout"]["strategy"] == "gradual"


def test_every_command_of_ours_that_a_manifest_runs_exists(services: dict[str, Any], manifests: list[dict[str, Any]]):
    lines = [service["command"] for service in services.values() if service.get("command")]
    lines += [container["args"] for pod in pods(manifests) for container in pod["spec"]["containers"]]
    lines.append(json.loads(re.search(r"^CMD (\[.*\])$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)[1]))  # type: ignore[index]
    ours = [line[1:] for line in lines if line[0] == "extract"]
    assert {"worker", "metrics", "gc", "caretaker"} <= {line[0] for line in ours}
    for name, *arguments in ours:
        if "--alive-file" in arguments:
            arguments[arguments.index("--alive-file") + 1] = "/dev/shm/extract-test-alive"
        command = cli.group.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None, f"extract {name}"
        command.make_context(name, list(arguments))


def test_every_variable_of_ours_that_deploy_names_is_one():
    known = set(re.findall(r"EXTRACT_[A-Z_]+", Path(settings.__file__).read_text()))
    known |= {name for path in (ROOT / "extractor").rglob("*.py") for name in re.findall(r"EXTRACT_[A-Z_]+", path.read_text())}
    known |= {"EXTRACT_REDIS_URL_FILE", "EXTRACT_CA_DAYS", "EXTRACT_CERT_DAYS"}
    files = [path for path in DEPLOY.rglob("*") if path.is_file() and not {"secrets", "__pycache__"} & set(path.parts)]
    named = {name for path in files for name in re.findall(r"\bEXTRACT_[A-Z_]+", path.read_text())}
    assert named <= known


def test_every_variable_of_amazon_s_that_deploy_names_is_one():
    sources = [Path(botocore.__file__).with_name(f"{name}.py") for name in ("configprovider", "credentials", "utils")]
    known = {name for path in sources for name in re.findall(r"AWS_[A-Z_]+", path.read_text())} | {"AWS_ENDPOINT_URL"}
    files = [path for path in DEPLOY.rglob("*") if path.is_file() and not {"secrets", "__pycache__"} & set(path.parts)]
    named = {name for path in files for name in re.findall(r"\bAWS_[A-Z_]+", path.read_text())}
    assert {"AWS_ACCESS_KEY_ID", "AWS_SHARED_CREDENTIALS_FILE", "AWS_DEFAULT_REGION"} < named <= known


def test_compose_and_kubernetes_run_the_same_valkey(services: dict[str, Any], manifests: list[dict[str, Any]]):
    container = next(d for d in manifests if d["kind"] == "StatefulSet")["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == services["valkey"]["image"]
    assert [part.replace("/run/secrets/valkey/", "/run/secrets/") for part in container["args"]] == services["valkey"]["command"]


def test_a_real_server_takes_the_flags_and_the_users(deploy: Path, services: dict[str, Any], tmp_path: Path):
    """All flags but those of TLS, which the bundled server lacks: tests/service/test_security.py has more."""
    words = services["valkey"]["command"]
    flags = {name: value for name, value in zip(words[1::2], words[2::2], strict=True) if not name.startswith("--tls-")}
    flags |= {"--dir": str(tmp_path), "--aclfile": flags["--aclfile"].replace("/run", str(deploy)), "--unixsocket": "s.sock"}
    program = find_binary(settings.from_env({})).path
    process = subprocess.Popen(
        [program, *(word for flag in flags.items() for word in flag)], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 20
        while not (tmp_path / "s.sock").exists():
            assert process.poll() is None, process.stdout and process.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        connection = redis.Redis(unix_socket_path=str(tmp_path / "s.sock"), username="probe", password="any")
        assert connection.ping()
        operator = redis.Redis(
            unix_socket_path=str(tmp_path / "s.sock"), username="operator", password=(deploy / "secrets" / "operator.password").read_text()
        )
        assert operator.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert operator.config_get("appendonly") == {"appendonly": "yes"}
    finally:
        process.kill()
        process.communicate()


def test_prometheus_scrapes_our_metrics_and_every_rule_is_about_them():
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yaml").read_text())
    assert config["rule_files"] == ["alerts.yaml"]
    assert {"job_name": "extractor", "static_configs": [{"targets": ["metrics:9464"]}]} in config["scrape_configs"]
    [group] = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())["groups"]
    assert len(group["rules"]) >= 5
    for rule in group["rules"]:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert set(rule["annotations"]) == {"summary", "action"}
        selectors = list(selectors_of(promql_parser.parse(rule["expr"])))
        assert selectors
        for name, labels in selectors:
            assert labels <= METRICS[name], f"{rule['alert']}: {name} has no label {labels - METRICS[name]}"


def test_every_alert_is_tried_by_promtools_tests():
    [group] = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())["groups"]
    tests = yaml.safe_load((DEPLOY / "prometheus" / "alerts_test.yaml").read_text())["tests"]
    fired = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case["exp_alerts"]}
    assert fired | {"ExtractorQueueIsOld"} == {rule["alert"] for rule in group["rules"]}


def test_every_path_and_command_that_the_operators_page_names_exists():
    page = (DEPLOY / "README.md").read_text()
    made = re.compile(r"secrets(/|$)|deploy/\.env")
    for name in set(re.findall(r"\bdeploy/[\w./-]*[\w/]", page)):
        assert made.search(name) or (ROOT / name).exists(), name
    for name in set(re.findall(r"\bextract ([a-z]+)\b", page)):
        assert name in cli.COMMANDS, f"extract {name}"


def pods(manifests: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The pod templates of all objects."""
    for document in manifests:
        spec = document.get("spec", {})
        template = spec.get("jobTargetRef", spec.get("jobTemplate", {}).get("spec", spec)).get("template")
        if template:
            yield template


def selectors_of(node: Any) -> Iterator[tuple[str, set[str]]]:
    """Every metric that a PromQL expression reads, with the labels it asks for."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node.name, {matcher.name for matcher in node.matchers.matchers}
    for part in ("lhs", "rhs", "expr", "args", "vector_selector"):
        inner = getattr(node, part, None)
        for child in inner if isinstance(inner, list) else [inner] if inner is not None else []:
            yield from selectors_of(child)
