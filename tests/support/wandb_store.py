"""What the loopback W&B server keeps, and its answers to the queries of the real client (wandb 0.31)."""

import base64
import hashlib
import json
import urllib.parse
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

Node = dict[str, Any]


def now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


def md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data).digest()).decode()


def global_id(kind: str, *parts: str) -> str:
    return base64.b64encode(":".join((kind, "v1", *parts)).encode()).decode()


@dataclass
class StoredArtifact:
    """One version of an artifact."""

    id: str
    name: str
    type: str
    run_id: str
    entity: str
    project: str
    version: int = 0
    metadata: dict[str, Any] = field(default_factory=dict)
    aliases: list[str] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict, repr=False)
    manifest: dict[str, bytes] = field(default_factory=dict, repr=False)
    digest: str = ""
    state: str = "COMMITTED"  # PENDING until the client commits


@dataclass
class StoredRun:
    """One run, as plain data: what tests put in, and what they look at."""

    entity: str
    project: str
    id: str
    name: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict, repr=False)
    artifacts: list[StoredArtifact] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)  # system metrics
    state: str = "running"
    created_at: str = field(default_factory=now)
    tags: list[str] = field(default_factory=list)
    client_config: dict[str, Any] = field(default_factory=dict)  # the client's own part of the config, `_wandb`

    @property
    def raw_config(self) -> Node:
        """As the service keeps it: each top-level key has its value below `value`."""
        tree = self.config | ({"_wandb": self.client_config} if self.client_config else {})
        return {key: {"value": value} for key, value in tree.items()}

    def update_config(self, raw: Node) -> None:
        values = {key: item.get("value") if isinstance(item, dict) else item for key, item in raw.items()}
        self.client_config = values.pop("_wandb", self.client_config)
        self.config = values


def matches(run: StoredRun, filters: Node) -> bool:
    """Whether `run` fulfils a filter in the form of MongoDB."""
    for key, wanted in filters.items():
        if key in ("$and", "$or"):
            found = [matches(run, part) for part in wanted]
            good = all(found) if key == "$and" else any(found)
        else:
            good = _compare(_lookup(run, key), wanted)
        if not good:
            return False
    return True


def _lookup(run: StoredRun, key: str) -> Any:
    """A field by its dotted path: `state`, `summary_metrics.epoch`, `config.distill.enable`."""
    section, *path = key.split(".")
    if not path:
        return getattr(run, section)
    value: Any = {"config": run.config, "summary_metrics": run.summary}[section]
    for part in path:
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _compare(value: Any, wanted: Any) -> bool:
    if not isinstance(wanted, dict):
        return value == wanted and isinstance(value, bool) == isinstance(wanted, bool)
    [(operator, limit)] = wanted.items()
    assert operator == "$gte", operator
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= limit


def connection(nodes: list[Node], first: int | None, after: str | None) -> Node:
    """A page of `nodes`; cursors are positions."""
    begin = int(after) + 1 if after else 0
    page = nodes[begin : begin + first if first else None]
    end = begin + len(page)
    return {
        "edges": [{"node": node, "cursor": str(i)} for i, node in enumerate(page, start=begin)],
        "totalCount": len(nodes),
        "pageInfo": {
            "__typename": "PageInfo",
            "endCursor": str(end - 1) if page else None,
            "hasNextPage": end < len(nodes),
        },
    }


class Store:
    """Runs by (entity, project, id), artifacts by id."""

    def __init__(self, entity: str):
        self.entity = entity
        self.url = ""  # of the server in front of us
        self.all_runs: dict[tuple[str, str, str], StoredRun] = {}
        self.all_artifacts: dict[str, StoredArtifact] = {}

    def run(self, variables: Node) -> StoredRun | None:
        return self.all_runs.get(self.key(variables))

    def key(self, variables: Node) -> tuple[str, str, str]:
        return (
            variables.get("entity") or variables.get("entityName") or self.entity,
            variables.get("project") or variables.get("projectName") or "uncategorized",
            variables.get("name") or variables.get("run") or variables.get("runName") or "",
        )

    def add_artifact(self, run: StoredRun, name: str, type: str, digest: str) -> StoredArtifact:
        """A new version, without files yet."""
        same = [item for item in self.all_artifacts.values() if (item.project, item.name) == (run.project, name)]
        artifact = StoredArtifact(
            id=global_id("Artifact", run.entity, run.project, name, str(len(same))),
            name=name, type=type, run_id=run.id, entity=run.entity, project=run.project,
            version=len(same), digest=digest,
        )  # fmt: skip
        self.all_artifacts[artifact.id] = artifact
        run.artifacts.append(artifact)
        return artifact

    def file_url(self, kind: str, *parts: str) -> str:
        return "/".join((self.url, kind, *(urllib.parse.quote(part, safe="") for part in parts)))

    # The nodes of the graph

    def project_node(self, entity: str, project: str) -> Node:
        owner = {"id": global_id("Entity", entity), "name": entity, "organization": None}
        return {
            "id": global_id("Project", project, entity), "internalId": "1", "name": project, "entityName": entity,
            "entity": owner, "readOnly": False, "createdAt": now(), "isBenchmark": False,
        }  # fmt: skip

    def run_node(self, run: StoredRun) -> Node:
        last_step = max((row.get("_step", 0) for row in run.history), default=-1)
        return {
            "id": global_id("Run", run.id, run.project, run.entity), "projectId": "1", "name": run.id,
            "displayName": run.name or run.id, "tags": run.tags, "sweepName": None, "state": run.state,
            "config": json.dumps(run.raw_config), "group": None, "jobType": None, "commit": None,
            "readOnly": False, "createdAt": run.created_at, "heartbeatAt": now(), "description": None,
            "notes": None, "systemMetrics": "{}", "summaryMetrics": json.dumps(run.summary),
            "historyLineCount": len(run.history), "logLineCount": 0, "eventsLineCount": len(run.events),
            "historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]),
            "eventsTail": json.dumps([json.dumps(row) for row in run.events[-1:]]),
            "historyKeys": {"lastStep": last_step, "sets": [], "keys": {}}, "fileCount": len(run.files),
            "stopped": False, "user": {"id": global_id("User", "me"), "name": "me", "username": "me"},
            "project": self.project_node(run.entity, run.project),
            "wandbConfig": json.dumps({"t": run.client_config.get("t", 1)}),  # without t, no run is resumed
        }  # fmt: skip

    def file_node(self, name: str, data: bytes, url: str) -> Node:
        return {
            "__typename": "File", "id": global_id("File", url), "name": name, "displayName": name, "url": url,
            "directUrl": url, "sizeBytes": len(data), "mimetype": "application/octet-stream", "updatedAt": now(),
            "md5": md5(data), "digest": None, "storagePath": None,
        }  # fmt: skip

    def artifact_node(self, artifact: StoredArtifact) -> Node:
        sequence = {
            "__typename": "ArtifactSequence", "id": global_id("Sequence", artifact.name), "name": artifact.name,
            "project": self.project_node(artifact.entity, artifact.project),
        }  # fmt: skip
        kind = {"__typename": "ArtifactAlias", "artifactCollection": sequence}
        aliases = [{"id": global_id("Alias", alias), "alias": alias, **kind} for alias in artifact.aliases]
        return {
            "__typename": "Artifact", "id": artifact.id, "artifactSequence": sequence,
            "versionIndex": artifact.version, "artifactType": {"name": artifact.type}, "description": None,
            "metadata": json.dumps(artifact.metadata), "ttlDurationSeconds": -2, "ttlIsInherited": True, "tags": [],
            "historyStep": None, "state": artifact.state, "size": sum(map(len, artifact.files.values())),
            "digest": artifact.digest, "digestAlgorithm": "MANIFEST_MD5", "commitHash": "0",
            "fileCount": len(artifact.files), "createdAt": now(), "updatedAt": now(), "aliases": aliases,
        }  # fmt: skip

    def find_artifact(self, variables: Node) -> StoredArtifact | None:
        """By `name:alias`, or by collection and alias; an alias may be a version, v0."""
        name, _, alias = (variables.get("name") or variables.get("collection") or "").partition(":")
        alias = alias or variables.get("alias") or variables.get("aliasName") or "latest"
        found = [item for item in self.all_artifacts.values() if item.name == name and item.state == "COMMITTED"]
        return next((item for item in reversed(found) if alias in (f"v{item.version}", *item.aliases)), None)
