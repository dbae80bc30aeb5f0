"""The config that is being run: whether its keys name something, and their values are allowed."""

from __future__ import annotations

import difflib
import inspect
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import psutil
import torch
from monai.bundle import ConfigParser
from monai.utils import optional_import

from .checks import RULES, SettingError, check_settings
from .command_line import end_plainly, on_command_line

# Keys that MONAI's experiment tracking adds to a config.
TRACKING = ("tracking_uri", "experiment_name", "run_name", "save_execute_config")

# Host or GPU memory that a training step takes, in bytes a voxel of a batch: the float32 activations of the decoder at
# full size and their gradients, and what the loss makes of them (measured by `make benchmark ONLY=memory`).
BYTES_PER_VOXEL = 300


def check_config() -> dict[str, Any]:
    """Check a config before any work: that each key names something, and each value that has a rule keeps it.

    From then on a mistake that is found later ends the command line with its message alone, as one found here does.

    Returns:
        The keys at the top that have a rule, and their values.

    Raises:
        SettingError: at the first mistake; it names the key, the value and what is allowed.
    """
    parser = find_parser()
    config: dict[str, Any] = parser.get()
    end_plainly(verbose=config.get("verbose") is True)
    _check_processes(os.environ)
    _check_command_line(sys.argv)
    _check_names(config)
    _check_arguments(config, parser)
    # an overlay for several configs (smoke.json) has keys that this one knows nothing of: checked all the same
    settings = check_settings(**{key: parser.get_parsed_content(key) for key in config if key in RULES})
    _check_resources(settings)
    return settings


def find_parser() -> ConfigParser:
    """Find the parser of the config that is being run.

    MONAI hands a component its own arguments and nothing of the config around it; but the parser stands further up on
    the call stack, for it is what makes the component.
    """
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, ConfigParser):
            return caller
        frame = frame.f_back
    raise RuntimeError("no config is being run.")


def _suggest(name: str, names: Any) -> str:
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]}?" if close else "."


def _check_processes(environment: Mapping[str, str]) -> None:
    """Refuse to be one of several processes, as torchrun starts them: each would write the same files."""
    size = environment.get("WORLD_SIZE", "1")
    if size != "1":
        raise SettingError(f"WORLD_SIZE={size}: this config runs in one process; start it without torchrun.")


def _check_command_line(arguments: list[str]) -> None:
    """Find what the command line itself would make of a value without a word: nothing, or another one."""
    if not on_command_line():
        return
    for key, value in itertools.pairwise(arguments):
        if key.startswith("--") and value == "None":
            raise SettingError(f"{key[2:]}=None: MONAI would leave it out and run the default; leave it out yourself.")
        if key.startswith("--") and "#" in value:
            raise SettingError(f"{key[2:]}={value}: the command line would cut it at '#'; must have none.")


def _check_names(config: Mapping[str, Any]) -> None:
    """Refuse a plain key that nothing in the config refers to; overrides of unknown names come after the config's own.

    An overlay for any config (smoke.json) says so by ``any_config``, and may set keys that are known elsewhere.
    """
    names = list(config)
    own = names.index("initialize") + 1
    text = json.dumps(config, default=str)
    for name in names[own:]:
        plain = not isinstance(config[name], dict) and not (
            isinstance(config[name], list) and any(isinstance(item, dict | str) for item in config[name])
        )
        known = name.startswith("_") or name in TRACKING or name == "any_config"
        known = known or (config.get("any_config") is True and name in RULES)
        if plain and not known and not re.search(rf"@{re.escape(name)}\b", text):
            others = [key for key in names[:own] if key in RULES]
            raise SettingError(f"{name}={config[name]!r}: no such key in this config{_suggest(name, others)}")


def _components(value: Any, key: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Go through the components of a config, with their ids."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if isinstance(value, dict) and "_target_" in value:
        yield key, value
    for name, item in items:
        yield from _components(item, f"{key}#{name}" if key else str(name))


def _check_arguments(config: Mapping[str, Any], parser: ConfigParser) -> None:
    """Refuse an argument that the component it is given to does not know."""
    for key, component in _components({name: value for name, value in config.items() if name != "_meta_"}):
        target = component["_target_"]
        if not isinstance(target, str) or target.startswith(("$", "@")) or component.get("_disabled_") is True:
            continue
        module, _, name = target.rpartition(".")
        if not module:  # one of MONAI's own, by its name alone
            modules = parser.locator.get_component_module_name(target) or ""
            module = modules[0] if isinstance(modules, list) else modules
        function: Callable | None
        function, found = optional_import(module, name=name)
        if not found or function is None:
            continue  # MONAI says what it can't find
        try:
            parameters = inspect.signature(function).parameters
        except (TypeError, ValueError):
            continue
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            continue
        for argument in component:
            if not argument.startswith("_") and argument not in parameters:
                raise SettingError(
                    f"{key}#{argument}={component[argument]!r}: {name} has no such argument"
                    f"{_suggest(argument, parameters)}"
                )


def _check_resources(settings: Mapping[str, Any]) -> None:
    """Refuse what the machine has not: many times more workers than cores, or a batch beyond its memory."""
    workers, cores = settings.get("num_workers", 0), os.cpu_count() or 1
    if workers > 4 * cores:
        raise SettingError(f"num_workers={workers}: must be at most {4 * cores}, four for each of the {cores} cores.")
    size = settings.get("image_size", 0)
    keys = ("train_batch_size", "encode_batch_size", "sample_batch_size", "val_batch_size")
    # the second stage trains on latents, and sees volumes in batches of encode_batch_size
    seen = keys[1:] if "encode_batch_size" in settings else keys
    batch = max((settings[key] for key in seen[:1] if key in settings), default=settings.get("sample_batch_size", 1))
    needed = BYTES_PER_VOXEL * batch * size**3
    if torch.device(settings.get("device", "cpu") if settings.get("device") != "auto" else "cpu").type == "cuda":
        there, where = torch.cuda.get_device_properties(0).total_memory, "the GPU has"
    else:
        there, where = psutil.virtual_memory().available, "free are"
    if needed > there:
        raise SettingError(
            f"image_size={size}: batches of {batch} take about {needed / 2**30:.1f} GiB of memory; {where} "
            f"{there / 2**30:.1f} GiB. A smaller batch or image_size fits."
        )
