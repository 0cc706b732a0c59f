import datetime as dt
import json
from pathlib import Path

import pytest
from pydantic import BaseModel

from crossrec.config import Config, ScoreConfig
from crossrec.configfile import load_config
from crossrec.errors import ConfigError


def write(tmp_path: Path, text: str = "") -> str:
    path = tmp_path / "job.yaml"
    path.write_text(f"storage:\n  root: out\n{text}", encoding="utf-8")
    return str(path)


def test_later_sources_win(tmp_path: Path) -> None:
    path = write(tmp_path, "score:\n  top_k: 20\n")
    assert ScoreConfig().top_k == 50
    assert load_config(path, []).score.top_k == 20
    assert load_config(path, ["score.top_k=100"]).score.top_k == 100


def test_argument_makes_a_section_that_the_file_lacks(tmp_path: Path) -> None:
    assert load_config(write(tmp_path), ["train.epochs=3"]).train.epochs == 3


def test_empty_file_with_arguments_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("")
    assert load_config(str(path), ["storage.root=s3://b/x"]).storage.root == "s3://b/x"


@pytest.mark.parametrize("run_id", ["2014-06-08", "20140608", "1e5", "true", "null", "a.b-c_d"])
def test_run_id_is_text_as_typed(tmp_path: Path, run_id: str) -> None:
    assert load_config(write(tmp_path), [f"run_id={run_id}"]).run_id == run_id


@pytest.mark.parametrize("run_id", ["", "..", "a/b", ".hidden", "a b", "x" * 129])
def test_run_id_that_is_no_plain_name_is_refused(tmp_path: Path, run_id: str) -> None:
    with pytest.raises(ConfigError, match="run_id: expected"):
        load_config(write(tmp_path), [f"run_id={run_id}"])


def test_default_run_id_is_the_date_in_utc(tmp_path: Path) -> None:
    before = dt.datetime.now(dt.UTC).date()
    run_id = dt.date.fromisoformat(load_config(write(tmp_path), []).run_id)
    assert before <= run_id <= dt.datetime.now(dt.UTC).date()


def test_value_with_an_equals_sign_stays_whole(tmp_path: Path) -> None:
    config = load_config(write(tmp_path), ["storage.root=/data/day=3"])
    assert config.storage.root == "/data/day=3"


def test_small_number_as_yaml_reads_it_is_a_number(tmp_path: Path) -> None:
    # PyYAML reads 1e-4 as text.
    assert load_config(write(tmp_path), ["train.learning_rate=1e-4"]).train.learning_rate == 0.0001


def test_as_of_is_a_moment(tmp_path: Path) -> None:
    config = load_config(write(tmp_path), ["data.as_of=2014-04-23T00:00:00Z"])
    assert config.data.as_of == dt.datetime(2014, 4, 23, tzinfo=dt.UTC)


def test_list_is_given_as_yaml(tmp_path: Path) -> None:
    assert load_config(write(tmp_path), ["score.domains=[a/b, shop]"]).score.domains == (
        "a/b",
        "shop",
    )


def test_a_name_that_is_text_elsewhere_is_given_as_yaml(tmp_path: Path) -> None:
    """`data.items` is a path, `evaluate.groups.items` a list of columns."""
    given = ["data.items=[a]", "data.events=b", "evaluate.groups.items=[brand]"]
    config = load_config(write(tmp_path), given)
    assert (config.data.items, config.evaluate.groups.items) == ("[a]", ("brand",))


def test_misspelt_key_names_the_one_that_is_meant(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"score\.topk: expected a known key.*did you mean top_k\?"
    ):
        load_config(write(tmp_path), ["score.topk=5"])


def test_misspelt_section_names_the_one_that_is_meant(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"scores: expected a known key.*did you mean score\?"):
        load_config(write(tmp_path, "scores:\n  top_k: 3\n"), [])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("score.top_k=0", r"score\.top_k: expected greater than or equal to 1, found 0"),
        ("score.top_k=many", r"score\.top_k: expected a valid integer.*found 'many'"),
        ("train.learning_rate=.nan", r"train\.learning_rate: expected .*finite"),
        ("data.buckets=31", r"data\.buckets: expected greater than or equal to 32, found 31"),
        ("model.trainable=some", r"model\.trainable: expected 'head', 'top' or 'all'"),
        ("model.width=129", r"model: width must be a multiple of heads; 129"),
        ("train.batch_size=3 train.accumulate=4", r"batch_size must be at least num_workers"),
        ("train.num_workers=2 train.min_workers=3", r"min_workers must be at most num_workers; 3"),
        ("train.strategy=fsdp", r"train\.strategy fsdp: the backbone learns nothing"),
        ("train.strategy=fsdp model.adapter=adalora", r"fsdp: adalora ranks whole matrices"),
        ("train.unfreeze_epochs=1", r"train\.unfreeze_epochs: the backbone learns nothing"),
        ("train.layer_decay=0.9", r"train\.layer_decay: the backbone learns nothing"),
        ("model.image_trainable=all", r"model: image_trainable needs image_backbone"),
        (
            "model.image_backbone=x model.image_trainable=top train.strategy=fsdp",
            r"train\.strategy fsdp: it shares out text backbones, not model\.image_backbone",
        ),
        ("model.adapter_targets=[query]", r"adapter_targets needs model\.adapter lora or adalora"),
        (
            "model.adapter=adalora train.unfreeze_epochs=1",
            r"adalora needs all of its layers from the start",
        ),
        ("data.events=x", r"data: data\.events and data\.items go together"),
        ("score.top_k", r"argument 'score\.top_k': expected section\.key=value, found no '='"),
        ("=3", r"argument '=3': expected section\.key=value"),
        ("run_id.x=3", r"run_id"),
        ("score.top_k={", r"argument score\.top_k: expected a YAML value, found '{'"),
    ],
)
def test_wrong_value_is_told_with_its_key(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, "run_id: night\n"), override.split(" "))


def test_a_model_of_images_that_learns_has_layers_to_tell_apart(tmp_path: Path) -> None:
    said = ["model.image_backbone=x", "model.image_trainable=top", "train.layer_decay=0.9"]
    config = load_config(write(tmp_path), said)
    assert (config.model.images_learn, config.model.backbone_learns) == (True, False)


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"score\.top_k.* \| .*train\.epochs|epochs.* \| .*top_k"):
        load_config(write(tmp_path), ["score.top_k=0", "train.epochs=-1"])


def test_missing_root_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("seed: 3\n")
    with pytest.raises(ConfigError, match="storage: expected a value, found none; give storage"):
        load_config(str(path), [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "expected sections with keys, found list"),
        ("a: [1\n", "expected valid YAML"),
        ("a: \udcff", "expected valid YAML"),
    ],
)
def test_broken_file_is_told(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=message):
        load_config(str(path), [])


def test_missing_file_is_told() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: expected a YAML config file, found No"):
        load_config("nowhere.yaml", [])


def test_secrets_are_in_no_repr_and_not_in_what_is_written(tmp_path: Path) -> None:
    text = "  options:\n    secret: hunter2\n"
    config = load_config(write(tmp_path, text), [])
    assert config.storage.options == {"secret": "hunter2"}
    assert "hunter2" not in f"{config!r} {config}"
    assert "hunter2" not in json.dumps(config.public())


def test_secret_of_the_wrong_type_is_not_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path), ["storage.options=hunter2"])
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("secret=12:34", "12:34"),
        ("secret=0123", "0123"),
        ("secret=1234", "1234"),
        ("key=2014-06-08", "2014-06-08"),
        ("token=yes", "yes"),
        ("account_key=1e5", "1e5"),
        ("secret=null", None),
        ("token={type: service_account}", {"type": "service_account"}),
        ("endpoint_url=http://localhost:9000", "http://localhost:9000"),
        ("anon=true", True),
        ("default_block_size=5242880", 5_242_880),
        ("timeout=2.5", 2.5),
        ("version=1.50", "1.50"),
        ("config_kwargs={read_timeout: 8}", {"read_timeout": 8}),
    ],
)
def test_an_option_is_text_unless_it_can_be_nothing_but_a_value(
    tmp_path: Path, option: str, expected: object
) -> None:
    config = load_config(write(tmp_path), [f"storage.options.{option}"])
    (found,) = config.storage.options.values()
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize("secret", ["#abc", "@abc", "{abc", "[a", "abc: def", "'a", "a #b"])
def test_a_secret_may_be_what_yaml_cannot_read(tmp_path: Path, secret: str) -> None:
    config = load_config(write(tmp_path), [f"storage.options.secret={secret}"])
    assert config.storage.options == {"secret": secret}


def test_an_option_of_options_is_read_as_one(tmp_path: Path) -> None:
    given = ["config_kwargs.read_timeout=8", "client_kwargs.aws_secret_access_key=12:34"]
    config = load_config(write(tmp_path), [f"storage.options.{text}" for text in given])
    assert config.storage.options == {
        "config_kwargs": {"read_timeout": 8},
        "client_kwargs": {"aws_secret_access_key": "12:34"},
    }


WEBHOOK = "https://hooks.example.org/T0/hunter2#1"


def test_webhook_is_text_as_typed_and_in_no_repr(tmp_path: Path) -> None:
    config = load_config(write(tmp_path), [f"notify.webhook={WEBHOOK}"])
    assert config.notify.webhook is not None
    assert config.notify.webhook.get_secret_value() == WEBHOOK
    assert load_config(write(tmp_path), ["notify.webhook=null"]).notify.webhook is None
    said = (repr(config), str(config.notify), json.dumps(config.public()), config.model_dump_json())
    assert not [text for text in said if "hunter2" in text]


@pytest.mark.parametrize(
    "override",
    [
        "notify.webhook=ftp://hunter2",
        "notify.webhook=hooks.example.org/hunter2",
        "notify.webhook=https:///hunter2",
        "notify.webhook=https://h:hunter2/",
        "notify=https://h/hunter2",
        "notify={webhook: https://h/hunter2",
        "storage.options={secret: hunter2",
        "storage=[{root: /x, options: {secret: hunter2}}]",
        "storage=hunter2",
        "storage.root.options.secret=hunter2",
        "storage.options.secret:hunter2",
        "storage.options: {secret: hunter2}",
    ],
)
def test_secret_that_is_wrong_is_refused_without_being_told(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError, match=r"(notify|storage).*: expected") as error:
        load_config(write(tmp_path), [override])
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "storage:\n- root: /x\n  options: {secret: hunter2}\n",
        "storage:\n  root:\n    options: {secret: hunter2}\n",
        "storage: hunter2\n",
    ],
)
def test_storage_of_the_wrong_shape_is_refused_without_being_told(
    tmp_path: Path, text: str
) -> None:
    path = tmp_path / "misplaced.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"storage.*: expected .*, found a \w+; ") as error:
        load_config(str(path), [])
    assert "hunter2" not in str(error.value)


def test_broken_file_is_told_by_its_place_not_by_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("storage:\n  root: /x\n  options: {secret: hunter2\nseed: 3: 4\n")
    with pytest.raises(ConfigError, match=r"in line 4, column 5; mend the file") as error:
        load_config(str(path), [])
    assert "hunter2" not in str(error.value)


def test_ratings_are_no_probabilities(tmp_path: Path) -> None:
    given = ["train.objective=mse", "train.probabilities=true"]
    with pytest.raises(ConfigError, match="under mse scores are ratings"):
        load_config(write(tmp_path), given)


def test_leave_one_out_knows_no_chances_of_days_ahead(tmp_path: Path) -> None:
    given = ["evaluate.protocol=leave_one_out", "train.probabilities=true"]
    with pytest.raises(ConfigError, match=r"needs evaluate\.protocol time"):
        load_config(write(tmp_path), given)


def test_config_is_frozen(tmp_path: Path) -> None:
    config = load_config(write(tmp_path), [])
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3


def sections(model: type[BaseModel]) -> list[type[BaseModel]]:
    inner = [info.annotation for info in model.model_fields.values()]
    found = [kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return [model, *(section for kind in found for section in sections(kind))]


def test_every_key_says_what_it_is() -> None:
    keys = {
        f"{section.__name__}.{name}": info.description
        for section in sections(Config)
        for name, info in section.model_fields.items()
        if not (isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel))
    }
    assert len(keys) > 30
    assert [key for key, description in keys.items() if not description] == []


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ('[{action: pin, where: [[a, "=", b]], domian: shop}]', r"did you mean domain\?"),
        ('[{action: pin, where: [[a, "=", b]], first_day: 2026-13-01}]', "expected a YAML value"),
        ("[{action: pin, where: [[item_id, in, b42]]}]", "needs a list"),
        ("[{action: pin, where: [[a, ===, b]]}]", "not a valid operator"),
    ],
)
def test_mistakes_in_editors_rules_are_told(tmp_path: Path, rule: str, said: str) -> None:
    (tmp_path / "night.yaml").write_text("storage: {root: /s}\n")
    with pytest.raises(ConfigError, match=said) as told:
        load_config(str(tmp_path / "night.yaml"), [f"score.rules={rule}"])
    assert "\n" not in str(told.value)


def test_a_date_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "night.yaml").write_text("data: {as_of: 2026-13-01}\n")
    with pytest.raises(ConfigError, match="a date or number that is none"):
        load_config(str(tmp_path / "night.yaml"), [])
