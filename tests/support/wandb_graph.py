"""The GraphQL operations of the client (wandb 0.31) that the loopback server answers, each by its name."""

import json
import re
from collections.abc import Callable
from typing import Any

from wandb_store import Node, Store, StoredRun, connection, global_id, matches

Handler = Callable[[Store, Node], Node]


def _viewer(store: Store, _: Node) -> Node:
    teams = connection([{"name": store.entity, "id": global_id("Entity", store.entity)}], None, None)
    viewer = {
        "id": global_id("User", "me"), "name": "me", "username": "me", "email": "me@example.invalid", "admin": False,
        "flags": "{}", "entity": store.entity, "deletedAt": None, "apiKeys": {"edges": []}, "teams": teams,
    }  # fmt: skip
    return {"viewer": viewer} | _server_info(store, _)


def _server_info(_: Store, __: Node) -> Node:
    return {"serverInfo": {"features": [], "cliVersionInfo": {"max_cli_version": "99.0.0"}}}


# Runs


def _upsert_run(store: Store, variables: Node) -> Node:
    run = store.run(variables)
    inserted = run is None
    if run is None:
        key = store.key(variables)
        run = store.all_runs[key] = StoredRun(*key)
    run.state = variables.get("state") or "running"
    run.name, run.tags = variables.get("displayName") or run.name, variables.get("tags") or run.tags
    if variables.get("config"):
        run.update_config(json.loads(variables["config"]))
    if variables.get("summaryMetrics"):
        run.summary.update(json.loads(variables["summaryMetrics"]))
    return {"upsertBucket": {"bucket": store.run_node(run), "inserted": inserted}}


def _resume_status(store: Store, variables: Node) -> Node:
    run, (entity, project, _) = store.run(variables), store.key(variables)
    return {"model": store.project_node(entity, project) | {"bucket": run and store.run_node(run)}}


def _run(store: Store, variables: Node) -> Node:
    run, (entity, project, _) = store.run(variables), store.key(variables)
    return {"project": store.project_node(entity, project) | {"run": run and store.run_node(run)}}


def _runs(store: Store, variables: Node) -> Node:
    entity, project, _ = store.key(variables)
    everything = [run for run in store.all_runs.values() if (run.entity, run.project) == (entity, project)]
    if not everything:
        return {"project": None}
    filters = json.loads(variables.get("filters") or "{}")
    runs = [run for run in everything if matches(run, filters)]
    order = variables.get("order") or "+created_at"
    if order.lstrip("+-") != "created_at":
        raise NotImplementedError(order)
    runs.sort(key=lambda run: run.created_at, reverse=order.startswith("-"))
    page = connection(runs, variables.get("perPage"), variables.get("cursor"))
    for edge in page["edges"]:
        edge["node"] = store.run_node(edge["node"])
    return {"project": store.project_node(entity, project) | {"runCount": len(runs), "runs": page}}


def _run_files(store: Store, variables: Node) -> Node:
    run, (entity, project, _) = store.run(variables), store.key(variables)
    if run is None:
        return _run(store, variables)
    pattern = re.compile(re.escape(variables.get("pattern") or "%").replace("%", ".*"))
    wanted = variables.get("fileNames") or [name for name in sorted(run.files) if pattern.fullmatch(name)]
    nodes = [
        store.file_node(name, run.files[name], store.file_url("run-files", entity, project, run.id, name))
        for name in wanted
        if name in run.files
    ]
    files = connection(nodes, variables.get("fileLimit"), variables.get("fileCursor"))
    return {"project": store.project_node(entity, project) | {"run": store.run_node(run) | {"files": files}}}


def _create_run_files(store: Store, variables: Node) -> Node:
    entity, project, run = store.key(variables)
    files = [
        {"name": name, "uploadUrl": store.file_url("run-files", entity, project, run, name)}
        for name in variables["files"]
    ]
    return {"createRunFiles": {"runID": global_id("Run", run), "uploadHeaders": [], "files": files}}


# Artifacts


def _output_artifacts(store: Store, variables: Node) -> Node:
    run, (entity, project, _) = store.run(variables), store.key(variables)
    if run is None:
        return _run(store, variables)
    nodes = [store.artifact_node(item) for item in run.artifacts if item.state == "COMMITTED"]
    page = connection(nodes, variables.get("perPage"), variables.get("cursor"))
    return {"project": store.project_node(entity, project) | {"run": {"artifacts": page}}}


def _artifact_type(store: Store, variables: Node) -> Node:
    artifact = store.find_artifact(variables)
    return {"project": {"artifact": artifact and store.artifact_node(artifact)}}


def _artifact_files(store: Store, variables: Node) -> Node:
    artifact = store.find_artifact(variables)
    if artifact is None:
        return {"project": {"artifactCollection": None}}
    nodes = [
        store.file_node(name, data, store.file_url("artifact-files", artifact.id, name))
        for name, data in sorted(artifact.files.items())
        if name in (variables.get("fileNames") or artifact.files)
    ]
    page = connection(nodes, variables.get("perPage"), variables.get("cursor"))
    return {
        "project": {"artifactCollection": {"__typename": "ArtifactSequence", "artifactMembership": {"files": page}}}
    }


def _create_artifact(store: Store, variables: Node) -> Node:
    given = variables["input"]
    run = store.run(given)
    assert run is not None, "an artifact of no run"
    names = given.get("artifactCollectionNames") or [given["artifactCollectionName"]]
    artifact = store.add_artifact(run, names[0], given["artifactTypeName"], given["digest"])
    artifact.state = "PENDING"
    artifact.metadata = json.loads(given.get("metadata") or "{}")
    artifact.aliases = [item["alias"] for item in given.get("aliases") or []]
    sequence = {"id": global_id("Sequence", artifact.name), "latestArtifact": None}
    return {"createArtifact": {"artifact": {"id": artifact.id, "state": artifact.state, "artifactSequence": sequence}}}


def _create_manifest(store: Store, variables: Node) -> Node:
    artifact = store.all_artifacts[variables["artifactID"]]
    url = store.file_url("manifest", artifact.id)
    file = {
        "id": global_id("File", artifact.id), "name": "wandb_manifest.json", "displayName": "wandb_manifest.json",
        "uploadUrl": url if variables.get("includeUpload") else None, "uploadHeaders": [], "directUrl": url,
    }  # fmt: skip
    return {"createArtifactManifest": {"artifactManifest": {"id": artifact.id, "file": file}}}


def _create_artifact_files(store: Store, variables: Node) -> Node:
    nodes = []
    for given in variables["input"]["artifactFiles"]:
        url = store.file_url("artifact-files", given["artifactID"], given["name"])
        node: dict[str, Any] = {
            "id": global_id("File", url), "name": given["name"], "displayName": given["name"], "storagePath": url,
            "uploadUrl": url, "uploadHeaders": [], "uploadMultipartUrls": None, "artifact": {"id": given["artifactID"]},
        }  # fmt: skip
        nodes.append(node)
    return {"createArtifactFiles": {"files": connection(nodes, None, None)}}


def _commit_artifact(store: Store, variables: Node) -> Node:
    artifact = store.all_artifacts[variables["artifactID"]]
    artifact.state = "COMMITTED"
    return {"commitArtifact": {"artifact": {"id": artifact.id, "digest": artifact.digest}}}


OPERATIONS: dict[str, Handler] = {
    "Viewer": _viewer,
    "GetDefaultEntity": _viewer,
    "ServerFeaturesQuery": _server_info,
    "UpsertBucket": _upsert_run,
    "RunResumeStatus": _resume_status,
    "RunStoppedStatus": _run,
    "Run": _run,
    "Runs": _runs,
    "RunFiles": _run_files,
    "CreateRunFiles": _create_run_files,
    "RunOutputArtifacts": _output_artifacts,
    "ArtifactMembershipFiles": _artifact_files,
    "ArtifactType": _artifact_type,
    "CreateArtifact": _create_artifact,
    "CreateArtifactManifest": _create_manifest,
    "CreateArtifactFiles": _create_artifact_files,
    "CommitArtifact": _commit_artifact,
}
