"""The config that is being run: whether its keys name something, and their values are allowed."""

from __future__ import annotations

import inspect
import itertools
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch
from monai.bundle import DEFAULT_MLFLOW_SETTINGS, ConfigParser, ConfigWorkflow
from monai.utils import ensure_tuple, optional_import

from .checks import ARGUMENTS, RULES, SettingError, check_settings, suggest
from .command_line import end_plainly, on_command_line
from .environment import select_device

Caller = TypeVar("Caller")

# Keys that MONAI's experiment tracking adds to a config.
_SETTINGS: dict[str, Any] = DEFAULT_MLFLOW_SETTINGS["configs"]  # type: ignore[assignment]
TRACKING = tuple(key for key, value in _SETTINGS.items() if not isinstance(value, dict))

# Overlays that run in one process alone, by a key of theirs.
ALONE = {
    "adversarial_loss": "train_autoencoder_gan.json",
    "control": "evaluate_conditional.json",
    "sweep_steps": "inference_sweep.json",
}

# Host memory that a pass takes beside what it starts from, in bytes a voxel of a batch: growth of the largest resident
# set in float32, at 64^3, of the networks on blocks of 4^3 voxels. A training step keeps every activation for its
# gradients; encoding and generating keep none.
BYTES_PER_VOXEL = {"encode_batch_size": 40, "train_batch_size": 190, "sample_batch_size": 50}
# The same of networks that see the voxels themselves (those of version 0.4.0; a discriminator).
BYTES_PER_VOXEL_UNBLOCKED = {"encode_batch_size": 130, "train_batch_size": 900, "sample_batch_size": 210}


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
    if on_command_line():
        _check_command_line(sys.argv, config)
    idle = _check_names(config)
    _check_overlays(os.environ, config)
    _check_arguments(config, parser)
    # what an overlay sets for other configs has to be allowed all the same, but limits nothing here
    settings = check_settings(((key, parser.get_parsed_content(key)) for key in config if key in RULES), idle)
    _check_processes(os.environ, config, {key: value for key, value in settings.items() if key not in idle})
    _check_latents(config, settings, parser)
    _check_resources(config, settings, select_device(settings.get("device", "cpu")))
    return settings


def find_parser() -> ConfigParser:
    """Find the parser of the config that is being run.

    MONAI hands a component its own arguments and nothing of the config around it; but the parser stands further up on
    the call stack, for it is what makes the component.
    """
    parser = _find_caller(ConfigParser)
    if parser is None:
        raise RuntimeError("no config is being run.")
    return parser


def _find_caller(kind: type[Caller]) -> Caller | None:
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, kind):
            return caller
        frame = frame.f_back
    return None


def _check_overlays(environment: Mapping[str, str], config: Mapping[str, Any]) -> None:
    """Refuse to be one of several processes, as torchrun starts them, that do not share the work.

    Raises:
        SettingError: when the config has no ``multi_gpu`` overlay, or one of ``ALONE``.
    """
    processes = int(environment.get("WORLD_SIZE", "1"))
    if processes > 1 and "rank" not in config:
        allowed = "without torchrun, or with its multi_gpu overlay."
        raise SettingError(f"WORLD_SIZE={processes}: this config runs in one process; start it {allowed}")
    alone = next((overlay for key, overlay in ALONE.items() if key in config), None)
    if processes > 1 and alone:
        raise SettingError(f"WORLD_SIZE={processes}: {alone} runs in one process; start one.")


def _check_processes(environment: Mapping[str, str], config: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Refuse shares that the processes and passes can't have.

    Raises:
        SettingError: when there are fewer volumes than processes, or when processes times ``accumulation_steps`` does
            not divide a training's batch.
    """
    processes, passes = int(environment.get("WORLD_SIZE", "1")), settings.get("accumulation_steps", 1)
    if passes > 1 and "adversarial_loss" in config:
        raise SettingError(f"accumulation_steps={passes}: must be 1 with train_autoencoder_gan.json.")
    for key in ("val_size", "test_size", "num_samples"):
        if settings.get(key, processes) < processes:
            raise SettingError(f"{key}={settings[key]}: must be at least {processes}, the processes that share them.")
    size = settings.get("train_batch_size", 0)
    if isinstance(config.get("train"), dict) and size % (processes * passes):
        raise SettingError(
            f"train_batch_size={size}: must be a multiple of {processes * passes}, the processes that share it times "
            "accumulation_steps."
        )


def _check_command_line(arguments: Iterable[str], config: Mapping[str, Any]) -> None:
    """Find what MONAI's command line would make of a value without a word: nothing, or another one."""
    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--") else [word])]
    for key, value in itertools.pairwise(words):
        if not key.startswith("--"):
            continue
        if value == "None":
            raise SettingError(f"{key[2:]}=None: MONAI would leave it out and run the default; leave it out yourself.")
        if "#" in value and not value.startswith("--"):
            raise SettingError(f"{key[2:]}={value}: the command line would cut it at '#'; must have none.")
        if key == "--meta_file" and not value.startswith("[") and not Path(value).is_file():
            raise SettingError(f"meta_file={value!r}: no such file; leave it out for configs/metadata.json.")
    workflow = _find_caller(ConfigWorkflow)
    names = list(config)
    steps = [key for key in names[names.index("initialize") + 1 :] if isinstance(config[key], list)]
    steps = [key for key in steps if key != "finalize" and any(isinstance(step, dict | str) for step in config[key])]
    if workflow is not None and workflow.run_id not in config:
        raise SettingError(f"{workflow.run_id!r} is nothing that this config runs: must be {' or '.join(steps)}.")


def _check_names(config: Mapping[str, Any]) -> set[str]:
    """Refuse a plain key that nothing in the config refers to; overrides of unknown names come after the config's own.

    An overlay for any config (smoke.json) says so by ``any_config``, and may set keys that are known elsewhere.

    Returns:
        Those of its keys that nothing here refers to.
    """
    idle = set()
    names = list(config)
    own = names.index("initialize") + 1
    text = json.dumps(config, default=str)
    for name in names[own:]:
        plain = not isinstance(config[name], dict) and not (
            isinstance(config[name], list) and any(isinstance(item, dict | str) for item in config[name])
        )
        known = name.startswith("_") or name in TRACKING or name == "any_config"
        if plain and not known and not re.search(rf"@{re.escape(name)}\b", text):
            if config.get("any_config") is True and name in RULES:
                idle.add(name)
                continue
            others = [key for key in names[:own] if key in RULES]
            raise SettingError(f"{name}={config[name]!r}: no such key in this config{suggest(name, others)}")
    sections = {name: part for name, part in config.items() if isinstance(part, dict) and not name.startswith("_")}
    for name, part in sections.items():
        if name in RULES:  # a value that is a dictionary, as a request's
            continue
        for key, value in part.items() if "_target_" not in part else ():
            if not isinstance(value, dict | list) and not re.search(
                rf"@{re.escape(name)}(#|::){re.escape(key)}\b", text
            ):
                raise SettingError(f"{name}#{key}={value!r}: no such key in this config{suggest(key, part)}")
    return idle


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
            raise SettingError(f"{key}#_target_={target!r}: no such class or function, or its package is missing.")
        try:
            parameters = inspect.signature(function).parameters
        except (TypeError, ValueError):
            continue
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            continue
        for argument in component:
            value = component[argument]
            is_allowed, allowed = ARGUMENTS.get(argument, (None, ""))
            # what refers to something else is checked where that stands
            if is_allowed and not str(value).startswith(("@", "$", "%")) and not is_allowed(value):
                raise SettingError(f"{key}#{argument}={value!r}: must be {allowed}.")
            if not argument.startswith("_") and argument not in parameters:
                raise SettingError(
                    f"{key}#{argument}={value!r}: {name} has no such argument{suggest(argument, parameters)}"
                )


def _check_latents(config: Mapping[str, Any], settings: Mapping[str, Any], parser: ConfigParser) -> None:
    """Refuse strides and shapes of latents that are not those of the autoencoder."""
    stride = settings.get("latent_stride", 1)
    definition = config.get("autoencoder_def")
    if isinstance(definition, dict):
        name = next((name for name in ("channels", "num_channels") if name in definition), None)
        channels = name and parser.get_parsed_content(f"autoencoder_def#{name}")
        levels = len(ensure_tuple(channels))
        blocks = [settings.get(key, 1) for key in ("block_size", "latent_block_size")]
        expected = math.prod(blocks) * 2 ** (levels - 1)
        if stride != expected:
            raise SettingError(
                f"autoencoder_def#channels={channels}, block_size={blocks[0]}, latent_block_size={blocks[1]}, "
                f"latent_stride={stride}: {blocks[0]} x {blocks[1]} x {2 ** (levels - 1)}, for {levels - 1} halvings; "
                f"the stride must be {expected}."
            )
    if "latent_shape" in settings and "image_size" in settings:
        size = settings["image_size"] // stride
        if list(settings["latent_shape"][1:]) != [size] * 3:
            raise SettingError(
                f"latent_shape={settings['latent_shape']}: must be the channels and {[size] * 3}, by "
                f"image_size={settings['image_size']} and latent_stride={stride}."
            )
        if (settings.get("decode_window") or 0) > size:
            raise SettingError(f"decode_window={settings['decode_window']}: must be at most {size}, the latents' size.")


def _check_resources(config: Mapping[str, Any], settings: Mapping[str, Any], device: torch.device) -> None:
    """Refuse what the machine has not: many times more workers than cores, or a batch beyond its memory."""
    workers, cores = settings.get("num_workers", 0), os.cpu_count() or 1
    if workers > 4 * cores:
        raise SettingError(f"num_workers={workers}: must be at most {4 * cores}, four for each of the {cores} cores.")
    # The second stage trains on latents, and sees volumes in batches of encode_batch_size. An overlay for any config
    # sets batches of training where nothing is trained.
    trains = isinstance(config.get("train"), dict)
    key = next((key for key in BYTES_PER_VOXEL if key in settings and (trains or key != "train_batch_size")), None)
    if key is None or "image_size" not in settings:
        return
    batch = settings[key]
    if key == "train_batch_size":  # of a GPU its own process alone has the memory
        processes = int(os.environ.get("WORLD_SIZE", "1")) if device.type == "cuda" else 1
        batch //= settings.get("accumulation_steps", 1) * processes
    if key == "sample_batch_size":
        batch = max(batch, settings.get("network_batch_size", 1))
    blocked = settings.get("block_size", 1) >= 4 and "adversarial_loss" not in config
    needed = (BYTES_PER_VOXEL if blocked else BYTES_PER_VOXEL_UNBLOCKED)[key] * batch * settings["image_size"] ** 3
    if device.type == "cuda":
        there, where = torch.cuda.get_device_properties(device).total_memory, "the GPU has"
    else:
        there, where = psutil.virtual_memory().available, "free are"
    less = {"train_batch_size": " or more accumulation_steps", "sample_batch_size": " and network_batch_size"}
    if needed > there:
        raise SettingError(
            f"image_size={settings['image_size']}: batches of {batch} take about {needed / 2**30:.1f} GiB of memory; "
            f"{where} {there / 2**30:.1f} GiB. A smaller image_size or {key}{less.get(key, '')} takes less."
        )
