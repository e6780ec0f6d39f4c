"""The model's configuration as models see and complete it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

Tree = dict[str, Any]


def get_input_config_by_name(model_config: Mapping[str, Any], name: str) -> Tree | None:
    """The properties of the configured input of that name; None where there is none."""
    return _by_name(model_config, "input", name)


def get_output_config_by_name(model_config: Mapping[str, Any], name: str) -> Tree | None:
    """The properties of the configured output of that name; None where there is none."""
    return _by_name(model_config, "output", name)


def using_decoupled_model_transaction_policy(model_config: Mapping[str, Any]) -> bool:
    """Whether the model may send any number of responses to a request."""
    return bool(model_config.get("model_transaction_policy", {}).get("decoupled", False))


class ModelConfig:
    """What `auto_complete_config` receives, completes and returns.

    Args:
        model_config: the configuration as JSON.
    """

    def __init__(self, model_config: str) -> None:
        self._model_config: Tree = json.loads(model_config)
        self._name = self._model_config["name"]

    def as_dict(self) -> Tree:
        """The configuration, under the names of `config.pbtxt`."""
        return self._model_config

    def set_max_batch_size(self, max_batch_size: int) -> None:
        """Set how many rows a batch may have.

        Raises:
            ValueError: the configuration allows more.
        """
        configured = self._model_config.get("max_batch_size", 0)
        if configured > max_batch_size:
            raise ValueError(
                f"{self._name}/config: max_batch_size: found {configured}; expected at most"
                f" {max_batch_size} by"
                " auto_complete_config"
            )
        self._model_config["max_batch_size"] = max_batch_size

    def set_dynamic_batching(self) -> None:
        """Use the dynamic batcher where the configuration names no scheduler.

        Raises:
            ValueError: it names another one.
        """
        for other in ("sequence_batching", "ensemble_scheduling"):
            if other in self._model_config:
                raise ValueError(
                    f"{self._name}/config: {other}: found; expected dynamic_batching by auto_complete_config"
                )
        self._model_config.setdefault("dynamic_batching", {})

    def set_model_transaction_policy(self, transaction_policy_dict: Mapping[str, Any]) -> None:
        """Say whether the model is decoupled.

        Raises:
            ValueError: another property than `decoupled`, or the configuration says otherwise.
        """
        self._known("model_transaction_policy", transaction_policy_dict, ("decoupled",))
        policy = self._model_config.setdefault("model_transaction_policy", {})
        for key, value in transaction_policy_dict.items():
            if policy.setdefault(key, value) != value:
                raise ValueError(
                    f"{self._name}/config: model_transaction_policy.{key}: found {policy[key]}; expected"
                    f" {value} by"
                    " auto_complete_config"
                )

    def add_input(self, input: Mapping[str, Any]) -> None:  # noqa: A002  Triton's name, given by keyword
        """Add an input, or complete the one of the same name.

        Args:
            input: `name`, `data_type`, `dims`, and perhaps `optional`.

        Raises:
            ValueError: another property, a missing one, or the configuration says otherwise.
        """
        self._add("input", input, ("name", "data_type", "dims", "optional"))

    def add_output(self, output: Mapping[str, Any]) -> None:
        """Add an output, or complete the one of the same name.

        Args:
            output: `name`, `data_type`, `dims`.

        Raises:
            ValueError: another property, a missing one, or the configuration says otherwise.
        """
        self._add("output", output, ("name", "data_type", "dims"))

    def _add(self, role: str, given: Mapping[str, Any], known: tuple[str, ...]) -> None:
        self._known(role, given, known)
        for key in ("name", "data_type", "dims"):
            if key not in given:
                raise ValueError(
                    f"{self._name}: auto_complete_config: {role} {given.get('name', '')!r}: {key} is missing;"
                    f" expected name, data_type and dims"
                )
        tensors = self._model_config.setdefault(role, [])
        current = _by_name(self._model_config, role, given["name"])
        if current is None:
            tensors.append(dict(given))
            return
        for key, unset in (("data_type", "TYPE_INVALID"), ("dims", []), ("optional", None)):
            if key not in given:
                continue
            found = current.get(key, unset)
            if found not in (unset, given[key]):
                raise ValueError(
                    f"{self._name}/config: {role} {given['name']!r}: {key}: found {found}; expected"
                    f" {given[key]} by"
                    " auto_complete_config"
                )
            current[key] = given[key]

    def _known(self, role: str, given: Mapping[str, Any], known: tuple[str, ...]) -> None:
        for key in given:
            if key not in known:
                raise ValueError(
                    f"{self._name}: auto_complete_config: {role}: found property {key!r}; expected only"
                    f" {', '.join(known)}"
                )


def _by_name(model_config: Mapping[str, Any], role: str, name: str) -> Tree | None:
    return next((tensor for tensor in model_config.get(role, ()) if tensor["name"] == name), None)
