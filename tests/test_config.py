"""A configuration file means what it says; what it cannot mean is refused with the key and a way out."""

# ruff: noqa: E501 - a table of messages is read best with one case in a line

from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from helpers import error_of

from utils.config import Config, config_to_dict, load_config
from utils.errors import UserError

PUBLISHED = {
    "road_network_encoder_config": {
        "road_id_emb_dim": 64,
        "len_emb_dim": 16,
        "type_emb_dim": 16,
        "lon_emb_dim": 16,
        "lat_emb_dim": 16,
        "intersection_emb_dim": 128,
        "zone_id_emb_dim": 128,
        "road_id_num_embeddings": None,
        "type_num_embeddings": None,
        "zone_id_num_embeddings": 300,
    },
    "trajectory_encoder_config": {"hidden_dim": 128, "num_heads": 2, "num_layers": 2, "dropout": 0.0, "max_len": 2000},
    "navigator_config": {"hidden_dim": 128},
    "optimizer_config": {
        "max_epoch": 25,
        "batch_size": 256,
        "learning_rate": 0.001,
        "weight_decay": 0.1,
        "warmup_ratio": 0.1,
        "max_norm": 1.0,
    },
}
PUBLISHED_WARMUP = {"Beijing": 0.1, "Porto": 0.1, "San_Francisco": 0.05}


def with_published_keys(config: Config) -> dict:
    """The sections and keys of the published files only."""
    values = config_to_dict(config)
    return {section: {key: values[section][key] for key in keys} for section, keys in PUBLISHED.items()}


@pytest.fixture
def yaml_file(workplace: Path) -> Path:
    return workplace / "c.yaml"


def message_for(path: Path, text: str, *overrides: str) -> str:
    path.write_text(text)
    return error_of(load_config, "Any", path, overrides)


# Files that are accepted ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", PUBLISHED_WARMUP)
def test_the_public_files_load_with_the_published_values(dataset: str) -> None:
    expected = {
        **PUBLISHED,
        "optimizer_config": PUBLISHED["optimizer_config"] | {"warmup_ratio": PUBLISHED_WARMUP[dataset]},
    }
    assert with_published_keys(load_config(dataset)) == expected


def test_the_public_files_still_have_their_form_for_values_from_the_data() -> None:
    for dataset in PUBLISHED_WARMUP:
        tree = yaml.safe_load((Path(__file__).parents[1] / "config" / f"{dataset}.yaml").read_text())
        assert tree["road_network_encoder_feature"]["road_attr"] == dict.fromkeys(["len", "type", "lon", "lat"])


def test_a_data_set_without_a_file_takes_the_published_values() -> None:
    assert with_published_keys(load_config("Atlantis")) == PUBLISHED


def test_the_folder_in_which_one_works_does_not_matter(workplace: Path) -> None:
    assert load_config("San_Francisco").optimizer_config.warmup_ratio == 0.05


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "optimizer_config:\n", "\ufeffoptimizer_config:\n  max_epoch: 25\n"]
)
def test_what_is_left_out_has_its_default(text: str, yaml_file: Path) -> None:
    yaml_file.write_text(text)
    assert load_config("Any", yaml_file) == Config()


def test_every_value_that_is_loaded_can_be_written_and_loaded_again(yaml_file: Path) -> None:
    config = load_config("San_Francisco", overrides=["trajectory_encoder_config.dropout=0.25"])
    yaml_file.write_text(yaml.safe_dump(config_to_dict(config)))
    assert load_config("Any", yaml_file) == config


@pytest.mark.parametrize(("text", "value"), [("1e-3", 1e-3), ("5.E-4", 5e-4), ("1", 1.0), ("0.5", 0.5), ("+2e0", 2.0)])
def test_a_number_may_be_written_as_everybody_writes_it(text: str, value: float, yaml_file: Path) -> None:
    yaml_file.write_text(f"optimizer_config:\n  learning_rate: {text}\n")
    assert load_config("Any", yaml_file).optimizer_config.learning_rate == value
    assert load_config(overrides=[f"optimizer_config.learning_rate={text}"]).optimizer_config.learning_rate == value


def test_one_section_may_be_shared_by_an_anchor(yaml_file: Path) -> None:
    yaml_file.write_text(
        "navigator_config: &size {hidden_dim: 128}\ntrajectory_encoder_config: {<<: *size, num_heads: 4}\n"
    )
    assert load_config("Any", yaml_file).trajectory_encoder_config.num_heads == 4


# Overrides -----------------------------------------------------------------------------------------------------


def test_overrides_replace_their_keys_and_nothing_else_and_the_last_wins() -> None:
    overrides = ["optimizer_config.max_epoch=2", "data.on_bad_trip = skip", "optimizer_config.max_epoch=3"]
    found, plain = load_config("Beijing", overrides=overrides), load_config("Beijing")
    assert (found.optimizer_config.max_epoch, found.data.on_bad_trip) == (3, "skip")
    differing = [f.name for f in fields(found) if getattr(found, f.name) != getattr(plain, f.name)]
    assert differing == ["optimizer_config", "data"]


def test_sizes_that_fit_only_together_may_be_overridden_one_by_one() -> None:
    widths = {"road_network_encoder_config": ("intersection_emb_dim", "zone_id_emb_dim")}
    widths |= {"trajectory_encoder_config": ("hidden_dim",), "navigator_config": ("hidden_dim",)}
    overrides = ["road_network_encoder_config.road_id_emb_dim=32"]
    overrides += [f"{section}.{key}=96" for section, keys in widths.items() for key in keys]
    assert load_config(overrides=overrides).navigator_config.hidden_dim == 96


def test_a_mapping_of_keys_or_of_sections_overrides_too() -> None:
    by_key = load_config("Beijing", None, {"optimizer_config.max_epoch": 3, "distill.lambda": 0.5})
    by_section = load_config("Beijing", None, {"optimizer_config": {"max_epoch": 3}, "distill": {"lambda": 0.5}})
    assert by_key == by_section
    assert (by_key.optimizer_config.max_epoch, by_key.distill.lambda_) == (3, 0.5)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "optimizer_config=3",
            "optimizer_config is a section, expected one of its keys, such as optimizer_config.max_epoch=...",
        ),
        ("optimizer_config.max_epoch=", "optimizer_config.max_epoch: found nothing, expected a whole number"),
        ("optimizer_config.max_epoch=two", "optimizer_config.max_epoch: found 'two' (text), expected a whole number"),
        ("optimizer_config.max_epoch=0", "optimizer_config.max_epoch: found 0, expected at least 1"),
        ("optimizer_config.max_epoch=[1", "the value is not valid YAML"),
    ],
)
def test_an_override_that_cannot_be_meant_is_refused(override: str, message: str) -> None:
    assert error_of(load_config, "Beijing", None, [override]) == f"--set {override}: {message}"


@pytest.mark.parametrize("key", ["max_epoch", "optimizer_config.max_epochs", "optimizer.max_epoch"])
def test_an_unknown_key_is_told_with_the_nearest_one_and_without_its_value(key: str) -> None:
    message = f"--set {key}: unknown key '{key}'; did you mean 'optimizer_config.max_epoch'?"
    assert error_of(load_config, "Beijing", None, [f"{key}=3"]) == message


@pytest.mark.parametrize(
    "key", ["__class__.x", "__dict__.x", "optimizer_config.__class__", ".max_epoch", "a.b.c", "data."]
)
def test_an_override_reaches_keys_of_the_configuration_only(key: str) -> None:
    assert f"unknown key '{key}'" in error_of(load_config, "Beijing", None, [f"{key}=1"])


# Files that are refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: b: c", "line 1, column 5: not valid YAML (mapping values are not allowed here)"),
        (
            "optimizer_config:\n\tmax_epoch: 2",
            "line 2, column 1: not valid YAML (found character '\\t' that cannot start any token)",
        ),
        (
            "optimizer_config: {max_epoch: 2",
            "line 1, column 32: not valid YAML (expected ',' or '}', but got '<stream end>')",
        ),
        ("a: \0", "not valid YAML (unacceptable character #x0000: special characters are not allowed)"),
        (
            "data: !!python/object/apply:os.getcwd []",
            "line 1, column 7: not valid YAML (could not determine a constructor for the tag 'tag:yaml.org,2002:python/object/apply:os.getcwd')",
        ),
        ("data:\ndata:\n", "line 2, column 1: not valid YAML (key 'data' stands twice)"),
        (
            "data: {on_bad_trip: skip, on_bad_trip: error}",
            "line 1, column 27: not valid YAML (key 'on_bad_trip' stands twice)",
        ),
        ("- 1\n- 2", "found a list, expected sections such as 'optimizer_config:'"),
        ("optimizer_config", "found 'optimizer_config' (text), expected sections such as 'optimizer_config:'"),
        ("optimizer_config: 3", "optimizer_config: found 3 (a whole number), expected a section of keys"),
        ("optimizer_config: [max_epoch]", "optimizer_config: found a list, expected a section of keys"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused_where_it_fails(text: str, message: str, yaml_file: Path) -> None:
    assert message_for(yaml_file, text) == f"c.yaml: {message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimizer_confg: {}", "unknown key 'optimizer_confg'; did you mean 'optimizer_config'?"),
        (
            "optimizer_config: {learning_rte: 1}",
            "unknown key 'optimizer_config.learning_rte'; did you mean 'optimizer_config.learning_rate'?",
        ),
        (
            "optimizer_config: {num_heads: 2}",
            "unknown key 'optimizer_config.num_heads'; did you mean 'trajectory_encoder_config.num_heads'?",
        ),
        (
            "optimizer_config: {zzz: 2}",
            "unknown key 'optimizer_config.zzz'; the closest known key is 'optimizer_config.",
        ),
        ("1: 2", "unknown key '1'; the closest known key is '"),
    ],
)
def test_an_unknown_key_is_refused_with_the_closest_known_one(text: str, message: str, yaml_file: Path) -> None:
    assert message_for(yaml_file, text).startswith(f"c.yaml: {message}")


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("optimizer_config.max_epoch", "2.0", "found 2.0 (a number), expected a whole number"),
        ("optimizer_config.max_epoch", "'2'", "found '2' (text), expected a whole number"),
        ("optimizer_config.max_epoch", "true", "found True (true or false), expected a whole number"),
        ("optimizer_config.max_epoch", "", "found nothing, expected a whole number"),
        ("optimizer_config.batch_size", "[1]", "found a list, expected a whole number"),
        ("optimizer_config.batch_size", "{a: 1}", "found a section, expected a whole number"),
        ("optimizer_config.learning_rate", "fast", "found 'fast' (text), expected a number"),
        ("optimizer_config.learning_rate", "2001-01-01", "found datetime.date(2001, 1, 1) (date), expected a number"),
        ("data.on_bad_trip", "no", "found False (true or false), expected text"),
        ("optimizer_config.max_epoch", "0", "found 0, expected at least 1"),
        ("optimizer_config.batch_size", "-1", "found -1, expected at least 1"),
        ("optimizer_config.accum_steps", "0", "found 0, expected at least 1"),
        ("optimizer_config.learning_rate", "0", "found 0.0, expected more than 0.0"),
        ("optimizer_config.learning_rate", ".nan", "found nan, expected a finite number"),
        ("optimizer_config.learning_rate", "1e999", "found inf, expected a finite number"),
        ("optimizer_config.learning_rate", "1" + 400 * "0", "found inf, expected a finite number"),
        ("optimizer_config.weight_decay", "-0.1", "found -0.1, expected at least 0.0"),
        ("optimizer_config.warmup_ratio", "1.0", "found 1.0, expected less than 1.0"),
        ("optimizer_config.max_norm", "0.0", "found 0.0, expected more than 0.0"),
        ("trajectory_encoder_config.dropout", "1", "found 1.0, expected less than 1.0"),
        ("road_network_encoder_config.zone_id_num_embeddings", "1", "found 1, expected at least 2"),
        ("training.precision", "fp16", "found 'fp16', expected one of auto, float32, bfloat16, float16"),
        ("data.on_bad_trip", "ignore", "found 'ignore', expected one of error, skip"),
        (
            "road_network_encoder_config.intersection_emb_dim",
            "64",
            "found 64, expected 128 (the sum of the five road embedding widths)",
        ),
        (
            "road_network_encoder_config.zone_id_emb_dim",
            "64",
            "found 64, expected 128 (the sum of the five road embedding widths)",
        ),
        (
            "trajectory_encoder_config.hidden_dim",
            "64",
            "found 64, expected 128 (the sum of the five road embedding widths)",
        ),
        ("navigator_config.hidden_dim", "64", "found 64, expected 128 (the sum of the five road embedding widths)"),
        ("trajectory_encoder_config.num_heads", "3", "found 3, expected a divisor of 2 * hidden_dim = 256"),
    ],
)
def test_a_value_of_the_wrong_type_or_size_is_refused_in_the_file_and_on_the_command_line(
    key: str, text: str, message: str, yaml_file: Path
) -> None:
    section, name = key.split(".")
    assert message_for(yaml_file, f"{section}:\n  {name}: {text}\n") == f"c.yaml: {key}: {message}"
    assert message_for(yaml_file, "", f"{key}={text}").endswith(f"--set {key}={text}: {key}: {message}")


def test_an_odd_width_is_refused_since_half_of_it_are_cosines(yaml_file: Path) -> None:
    text = """\
road_network_encoder_config: {len_emb_dim: 15, intersection_emb_dim: 127, zone_id_emb_dim: 127}
trajectory_encoder_config: {hidden_dim: 127}
navigator_config: {hidden_dim: 127}
"""
    expected = "c.yaml: trajectory_encoder_config.hidden_dim: found 127, expected an even number (cosines and sines of the time)"
    assert message_for(yaml_file, text) == expected


def test_the_form_for_values_from_the_data_must_stay_empty(yaml_file: Path) -> None:
    expected = "c.yaml: road_network_encoder_feature.road_attr.len: found 3 (a whole number), expected nothing"
    assert message_for(yaml_file, "road_network_encoder_feature: {road_attr: {len: 3}}").startswith(expected)


def test_aliases_that_repeat_themselves_do_not_hang_the_reader(yaml_file: Path) -> None:
    lines = ["  a0: &a0 {x: }"]
    lines += [f"  a{i}: &a{i} {{" + ", ".join(f"k{j}: *a{i - 1}" for j in range(9)) + "}" for i in range(1, 12)]
    yaml_file.write_text("road_network_encoder_feature: &all\n  again: *all\n" + "\n".join(lines))
    assert load_config("Any", yaml_file) == Config()


@pytest.mark.parametrize("name", ["absent.yaml", "folder", "c.yaml/below", "a" * 300, "latin.yaml"])
def test_a_file_that_cannot_be_read_is_named(name: str, yaml_file: Path) -> None:
    yaml_file.touch()
    (yaml_file.parent / "folder").mkdir()
    (yaml_file.parent / "latin.yaml").write_bytes(b"# caf\xe9")
    reason = "no such configuration file" if name == "absent.yaml" else "cannot be read ("
    assert error_of(load_config, "Any", name).startswith(f"{name}: {reason}")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("wandb.project=a/b", "wandb.project: found 'a/b', expected a name of up to 128 characters"),
        ("wandb.project=", "wandb.project: found nothing, expected text"),
        ("wandb.entity=a#b", "wandb.entity: found 'a#b'"),
        ("wandb.tags=['']", "wandb.tags: found '', expected tags of 1 to 64 characters"),
        (f"wandb.tags=[{'x' * 65}]", "expected tags of 1 to 64 characters"),
        ("wandb.tags=beijing", "wandb.tags: found 'beijing' (text), expected a list of texts"),
        (f"wandb.run_name={'x' * 129}", "wandb.run_name: found 129 characters, expected at most 128"),
    ],
)
def test_names_that_wandb_would_refuse_are_errors(override: str, expected: str) -> None:
    with pytest.raises(UserError) as error:
        load_config(overrides=[override])
    assert expected in str(error.value)
