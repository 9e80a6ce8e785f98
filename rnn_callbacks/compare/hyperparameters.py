"""What a run was set to: from ``hparams.yaml``, LightningCLI's ``config.yaml``, or what the event file says."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import yaml

Value = str | int | float | bool | None
Hyperparameters = dict[str, Value]

# Settings that do not make another configuration: where files go, who logs and watches, and the seed.
SEEDS = ("seed", "seed_everything", "*.seed", "*_seed", "*.seed_everything", "random_state", "*.random_state")
IGNORED = (
    *("_instantiator", "config", "config.*", "ckpt_path", "*.ckpt_path", "*default_root_dir", "*log_dir", "*save_dir"),
    *("trainer.logger*", "trainer.callbacks*", "trainer.enable_*", "trainer.log_every_n_steps", "trainer.devices"),
)
LONGEST_LIST = 8  # items that are written out; of longer lists their number
DEEPEST_LIST = 3  # lists in lists
LONGEST_TEXT = 1000  # letters
MOST, DEEPEST = 10_000, 16  # settings, and groups in groups; a few lines that name each other can say millions


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Plain values only: Python objects in a file become the words that stand there, and nothing is ever built."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge what ``<<`` names, each key once: merged again and again, keys said twice would double each time."""
        super().flatten_mapping(node)
        node.value = list({_identity(key): (key, value) for key, value in node.value}.values())


def _identity(key: yaml.Node) -> tuple[str, Any]:
    return key.tag, key.value if isinstance(key, yaml.ScalarNode) else id(key)


def _words(loader: _Loader, suffix: str, node: yaml.Node) -> Any:
    """The plain content of a node with a tag that names a Python object."""
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        inside = loader.construct_sequence(node, deep=True)
        if suffix.endswith("multiarray.scalar"):
            return _numpy_number(inside)
        return inside if "tuple" in suffix else [suffix.strip(":"), *inside]
    return loader.construct_scalar(node) or suffix.strip(":")


def _numpy_number(inside: list[Any]) -> Any:
    """A NumPy number as `yaml.dump` writes it: what its type is made from, and its bytes."""
    try:
        made, content = inside
        dtype = np.dtype(made["args"][0]).newbyteorder(made["state"][1])
        return np.frombuffer(content, dtype)[0].item() if dtype.kind in "biuf" else str(inside)
    except (KeyError, IndexError, TypeError, ValueError):
        return str(inside)[:LONGEST_TEXT]


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", _words)
_Loader.add_multi_constructor("!", _words)
# Dates stay the text that they are; 1e-3 is a number, which YAML 1.1 reads as text and Lightning's CLI as a number.
_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in known if not tag.endswith(":timestamp")]
    for letter, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(text: str) -> Hyperparameters:
    """Settings of a YAML file, nested ones as ``outer.inner``.

    Raises:
        ValueError: when it is no YAML, or no mapping.
    """
    try:
        found = yaml.load(text, _Loader)  # a SafeLoader
    except Exception as error:  # YAML's own and, for values that are not of their tag, whatever Python raises
        mark = getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"settings cannot be read: {reason}{place}") from error
    if not isinstance(found, dict | None):
        raise ValueError(f"settings cannot be read: it holds {type(found).__name__}, no settings by name")
    return flattened(found or {})


def flattened(settings: Mapping[Any, Any]) -> Hyperparameters:
    """Nested settings side by side, ``outer.inner``; lists as text, and so are groups that are too large or deep."""
    found: Hyperparameters = {}
    left: list[tuple[str, int, Any]] = [("", 0, settings)]  # a stack: the next one last
    count = 0
    while left:
        name, depth, value = left.pop()
        if not isinstance(value, Mapping):
            found[name] = _plain(value)
        elif depth and (depth > DEEPEST or count + len(value) > MOST):
            found[name] = f"{len(value)} settings"
        else:
            count += len(value)
            inside = [(f"{name}.{key}" if depth else str(key), depth + 1, inner) for key, inner in value.items()]
            left += reversed(inside)
    return found


def _plain(value: Any) -> Value:
    if isinstance(value, (list, tuple, set)):
        return _listed(list(value), DEEPEST_LIST)[:LONGEST_TEXT]
    if value is None or isinstance(value, (bool, float)) or (isinstance(value, int) and value.bit_length() <= 64):
        return value
    return f"a number of {value.bit_length()} bits" if isinstance(value, int) else str(value)


def _listed(values: list[Any], depth: int) -> str:
    """A list as text; never longer than its beginning, however often lists in it are named."""
    count, shown = len(values), values[: LONGEST_LIST if len(values) <= LONGEST_LIST else 2]
    inside = [_item(value, depth - 1) for value in shown]
    return f"[{', '.join(inside)}]" if count <= LONGEST_LIST else f"{count} items, [{', '.join(inside)}, ...]"


def _item(value: Any, depth: int) -> str:
    if isinstance(value, (list, tuple, set)):
        return _listed(list(value), depth) if depth else "[...]"
    if isinstance(value, Mapping):
        inside = [f"{json.dumps(str(key))}: {_item(of, depth - 1)}" for key, of in list(value.items())[:LONGEST_LIST]]
        return f"{{{', '.join(inside)}}}" if depth else "{...}"
    return json.dumps(_plain(value))


def is_seed(name: str) -> bool:
    """Whether a setting only chooses the random numbers."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in SEEDS)


def matters(name: str) -> bool:
    """Whether a setting makes another configuration."""
    return not is_seed(name) and not any(fnmatch.fnmatchcase(name, pattern) for pattern in IGNORED)
