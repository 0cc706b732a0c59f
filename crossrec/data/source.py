"""Where the input lies: what the config names, or the embedded demo, written once.

config = resolve_input(config, store)   # data.events and data.items are now given
"""

from crossrec.config import Config
from crossrec.data.demo import make_demo, write_demo
from crossrec.data.demo_relations import draw_relations
from crossrec.data.demo_structure import KINDS
from crossrec.errors import ConfigError, explain
from crossrec.runlog import log
from crossrec.storage import Store


def resolve_input(config: Config, store: Store) -> Config:
    """Return the config with its input named; make the demo data where the config asks for it.

    Raises:
        ConfigError: there is neither input nor demo.
    """
    if config.data.events is not None:
        return config
    if config.data.demo_users is None:
        mend = "give data.events=... and data.items=..., or data.demo_users=4000"
        raise ConfigError(explain("data.events", "Parquet of events", "none", mend))
    kind, users = config.data.demo, config.data.demo_users
    folder = f"demo/{kind}-{users}-users-seed-{config.seed}"
    if store.exists(f"{folder}/made.json"):
        paths = {name: store.uri(f"{folder}/{name}") for name in ("events", "items")}
    else:
        log.info("demo: making %s users under %s", f"{users:,}", store.uri(folder))
        paths = write_demo(store, folder, users, config.seed, KINDS[kind])
        store.write_json(f"{folder}/made.json", paths)
    if config.data.demo_relations and config.data.relations is None:
        path = f"{folder}/relations/relations.parquet"
        if not store.exists(path):
            made = make_demo(users, config.seed, KINDS[kind])
            store.write_parquet(path, draw_relations(made, config.seed))
        paths = {**paths, "relations": store.uri(path)}
    return config.model_copy(update={"data": config.data.model_copy(update=paths)})
