"""The file for Ray Serve, the manifest for Kubernetes and the dashboard: what they name exists."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from fastblt.cli import app
from fastblt.commands.errors import describe
from fastblt.commands.exit_status import FAILURE, USAGE
from fastblt.runtime.fleet.config import IMPORT_PATH
from fastblt.runtime.fleet.options import BundleChoice, FleetOptions
from fastblt.runtime.serving.model_host import ModelHost
from fastblt.runtime.serving.settings import ServingSettings

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "fleet"


def config(bundle: Path, *options: object) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["fleet", "config", str(bundle), *map(str, options)])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = yaml.safe_load(result.stdout)
    return found


def check(data: dict[str, Any]) -> dict[str, Any]:
    """Return the deployment of a file that Ray accepts, every field of which it knows."""
    from ray.serve.schema import DeploymentSchema, ServeApplicationSchema, ServeDeploySchema

    ServeDeploySchema.model_validate(data)
    [application] = data["applications"]
    [deployment] = application["deployments"]
    assert set(data) <= set(ServeDeploySchema.model_fields)
    assert set(application) <= set(ServeApplicationSchema.model_fields)
    assert set(deployment) <= set(DeploymentSchema.model_fields)
    FleetOptions.from_dict(application["args"])
    assert application["import_path"] == IMPORT_PATH
    found: dict[str, Any] = deployment
    return found


def test_ray_accepts_the_file(tiny_bundle: Path, tmp_path: Path) -> None:
    deployment = check(config(tiny_bundle))
    assert deployment["user_config"] == BundleChoice.of(tiny_bundle).to_dict()
    assert deployment["num_replicas"] == 1
    keys = tmp_path / "keys"
    keys.write_text("0123456789abcdef\n", encoding="utf-8")
    keys.chmod(0o600)
    data = config(
        tiny_bundle,
        *("--min-replicas", 2, "--max-replicas", 8, "--gpus", 0.25, "--cpus", 2, "--sequences", 4, "--surge", 50),
        *("--target-ongoing", 3, "--max-ongoing", 9, "--max-queued", 20, "--api-keys", keys, "--method", "s:8"),
    )
    deployment = check(data)
    assert deployment["autoscaling_config"]["target_ongoing_requests"] == 3
    assert (deployment["max_ongoing_requests"], deployment["max_queued_requests"]) == (9, 20)
    assert deployment["ray_actor_options"] == {"num_cpus": 2.0, "num_gpus": 0.25}
    assert data["applications"][0]["args"] == {"sequences": 4, "method": "s:8", "api_keys": str(keys)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--min-replicas", "3", "--max-replicas", "2"], "at least 3 and at most 2"),
        (["--gpus", "1.5"], "gpus: found 1.5"),
        (["--target-ongoing", "3"], "target_ongoing: found 3 for 1 replicas"),
        (["--method", "nothing"], "method 'nothing': unknown"),
        (["--backend", "nothing"], "nothing"),
    ],
)
def test_what_does_not_fit_is_refused(tiny_bundle: Path, options: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["fleet", "config", str(tiny_bundle), *options])
    assert result.exit_code == USAGE
    assert message in result.output


def test_a_template_that_is_not_there_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["fleet", "config", str(tiny_bundle), "--chat-template", str(tmp_path / "t")])
    assert (result.exit_code, result.stdout) == (FAILURE, "")
    assert "No such file" in result.stderr


def test_other_machines_are_warned_of(tiny_bundle: Path) -> None:
    result = CliRunner().invoke(app, ["fleet", "config", str(tiny_bundle), "--host", "0.0.0.0"])
    assert "without --api-keys anybody may ask" in " ".join(result.stderr.split())


@pytest.mark.parametrize("name", ["ray", "yaml"])
def test_without_the_extra_one_line_names_it(tiny_bundle: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "pip install 'fastblt[fleet]'" in describe(ModuleNotFoundError(f"No module named {name!r}", name=name))
    if name == "yaml":
        monkeypatch.setitem(sys.modules, "yaml", None)
        result = CliRunner().invoke(app, ["fleet", "config", str(tiny_bundle)])
        assert "pip install 'fastblt[fleet]'" in result.output
        assert result.stdout == ""


def test_every_figure_of_the_dashboard_exists() -> None:
    from fastblt.runtime.blt_runtime import BltRuntime

    def load() -> BltRuntime:
        raise AssertionError("nothing is loaded")

    registry = ModelHost(load, ServingSettings()).metrics.registry
    known: dict[str, set[str]] = {"swaps_total": {"result"}}
    for family in registry.collect():
        labels = set(getattr(registry._names_to_collectors[family.name], "_labelnames", ()))
        if family.type == "gauge":
            known[family.name.removeprefix("fastblt_")] = labels
        elif family.type == "counter":
            known[family.name.removeprefix("fastblt_") + "_total"] = labels
        else:
            known[family.name.removeprefix("fastblt_") + "_bucket_total"] = labels | {"le"}
    panels = json.loads((FOLDER / "grafana.json").read_text(encoding="utf-8"))["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    assert len(queries) > 12
    for query in queries:
        names = re.findall(r"ray_fastblt_(\w+)", query)
        assert names, query
        assert set(names) <= set(known), query
        used = {each.strip() for found in re.findall(r"by \(([^)]*)\)", query) for each in found.split(",")}
        assert used <= {"replica"}.union(*(known[name] for name in names)), query


def test_the_manifest_for_kubernetes_is_a_ray_service() -> None:
    manifest = yaml.safe_load((FOLDER / "kuberay.yaml").read_text(encoding="utf-8"))
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayService")
    assert set(manifest) == {"apiVersion", "kind", "metadata", "spec"}
    spec = manifest["spec"]
    assert set(spec) == {"serveConfigV2", "rayClusterConfig"}
    deployment = check(yaml.safe_load(spec["serveConfigV2"]))
    cluster = spec["rayClusterConfig"]
    assert set(cluster) == {"rayVersion", "enableInTreeAutoscaling", "headGroupSpec", "workerGroupSpecs"}
    [workers] = cluster["workerGroupSpecs"]
    assert set(workers) == {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    for group in (cluster["headGroupSpec"], workers):
        assert group["rayStartParams"].keys() <= {"dashboard-host", "num-cpus", "num-gpus"}
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        [container] = pod["containers"]
        assert {"name", "image", "resources", "volumeMounts"} <= set(container)
        mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert set(mounted) == {volume["name"] for volume in pod["volumes"]}
        assert deployment["user_config"]["bundle"].startswith(mounted["bundles"])
    gpus = deployment["ray_actor_options"]["num_gpus"]
    limits = workers["template"]["spec"]["containers"][0]["resources"]["limits"]
    replicas = deployment["autoscaling_config"]["max_replicas"]
    assert replicas * gpus <= workers["maxReplicas"] * int(limits["nvidia.com/gpu"])
