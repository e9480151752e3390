"""A signature with other dependencies put in: for `app.dependency_overrides`, and for resources made per attempt."""

from __future__ import annotations

import functools
import inspect
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mqttapi.errors import ConfigurationError
from mqttapi.injection.functions import called, identity
from mqttapi.injection.methods import Method
from mqttapi.injection.params import Depends
from mqttapi.injection.signature import Analysis, check_payloads
from mqttapi.injection.sources import Call, Dependency, Resource, Signature, Source

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["is_factory", "override"]


def override(signature: Signature, overrides: Mapping[Any, Any]) -> Signature:
    """Put in what `overrides` has for a dependency, or for the type of a resource, wherever `signature` has it.

    For a type, what is neither a function nor a class nor `Depends(...)` is taken for the resource itself, which stays a
    resource here; and in place of a class that is a dependency for its object.

    Raises:
        ConfigurationError: When an override cannot be called, or leads back to what it replaces.
    """
    if not overrides:
        return signature
    method = signature.handler.original
    if isinstance(method, Method) and method.cls in overrides:
        _check_stand_in(method, overrides[method.cls])
    replacing = _Replacing(Analysis(signature.template, signature.resources, signature.handler.original), overrides)
    handler = replacing.call(signature.handler)
    if isinstance(method, Method) and method.cls in overrides:
        handler = replace(handler, function=method.of_object)
    overridden = replace(
        signature,
        dependencies=tuple(replacing.dependency(dependency) for dependency in signature.dependencies),
        handler=handler,
    )
    check_payloads(overridden)
    return overridden


def _check_stand_in(method: Method, value: object) -> None:
    """A function may return anything; of an object or a class it shows whether it has the method."""
    if (isinstance(value, type) or not is_factory(value)) and not hasattr(value, method.name):
        raise ConfigurationError(
            f"the override of {method.cls.__name__} is {value!r}, which has no method {method.name!r}. Give an object or "
            "a class that has it"
        )


class _Replacing:
    def __init__(self, analysis: Analysis, overrides: Mapping[Any, Any]) -> None:
        self._analysis = analysis
        self._overrides = {identity(key): value for key, value in overrides.items()}
        self._chain: list[Call] = []

    def source(self, source: Source) -> Source:
        if isinstance(source, Dependency):
            return self.dependency(source)
        if isinstance(source, Resource) and is_factory(self._overrides.get(identity(source.type))):
            return self._replaced(source.type, use_cache=True)
        return source

    def dependency(self, dependency: Dependency) -> Dependency:
        if identity(dependency.call.original) in self._overrides:
            return self._replaced(dependency.call.original, use_cache=dependency.use_cache)
        return Dependency(self.call(dependency.call), dependency.use_cache)

    def _replaced(self, original: Any, *, use_cache: bool) -> Dependency:
        value: Any = self._overrides[identity(original)]
        if isinstance(original, type) and not (callable(value) or isinstance(value, Depends)):
            value = functools.partial(_itself, value)  # an object in place of those that the class makes
        marker: Depends = value if isinstance(value, Depends) else Depends(value, use_cache=use_cache)
        where = f"the override of {called(original)}"
        if marker.dependency is None:
            raise ConfigurationError(f"{where} is {value!r}. Give a function or a class.")
        dependency = self._analysis.dependency(marker, where)
        return Dependency(self.call(dependency.call), dependency.use_cache)

    def call(self, call: Call) -> Call:
        if call in self._chain:
            chain = " → ".join(link.name for link in (*self._chain, call))
            raise ConfigurationError(f"dependency cycle: {chain}. An override must not need what it replaces.")
        self._chain.append(call)
        arguments = tuple((parameter, self.source(source)) for parameter, source in call.arguments)
        self._chain.pop()
        return replace(call, arguments=arguments)


def _itself(value: Any) -> Any:
    return value


def is_factory(value: object) -> bool:
    """Whether an override is called for each attempt, rather than being the thing itself."""
    return isinstance(value, Depends | type | functools.partial) or inspect.isroutine(value)
