"""Requests by and against the services' OpenAPIs, the same each time, and what every answer must be."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import schemathesis
from house import House
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from pydantic.json_schema import models_json_schema
from schemathesis import APIOperation, Case, GenerationMode

from services.datagen.api import RunCancel, RunCreate
from understudy.recipe import Recipe
from understudy.terms import Station


def some(many: int) -> settings:
    return settings(
        max_examples=many,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],  # what fails is shown as it came
        suppress_health_check=list(HealthCheck),
    )


def document(house: House, station: Station) -> dict[str, Any]:
    """The service's OpenAPI, with the schemas of the bodies that it reads by hand."""
    said: dict[str, Any] = copy.deepcopy(house.apps[station].openapi())
    if station != "datagen":
        return said
    kinds = (RunCreate, RunCancel, Recipe)
    _, found = models_json_schema([(kind, "validation") for kind in kinds], ref_template="#/components/schemas/{model}")
    found["$defs"]["RunCreate"]["properties"]["recipe"] = {"$ref": "#/components/schemas/Recipe"}
    said["components"]["schemas"] |= found["$defs"]
    for path, kind in (("/v1/runs", RunCreate), ("/v1/runs/{run}/cancel", RunCancel)):
        schema = {"$ref": f"#/components/schemas/{kind.__name__}"}
        said["paths"][path]["post"]["requestBody"] = {"content": {"application/json": {"schema": schema}}}
    upload = {
        "type": "object",
        "properties": {"file": {"type": "string", "format": "binary"}, "purpose": {"enum": ["fine-tune", ""]}},
    }
    said["paths"]["/v1/files"]["post"]["requestBody"] = {"content": {"multipart/form-data": {"schema": upload}}}
    return said


def cases(house: House, station: Station) -> Iterator[tuple[str, st.SearchStrategy[Case]]]:
    """Operation -> requests for it: by its schema and against it, about anything and about what exists."""
    for found in schemathesis.openapi.from_dict(document(house, station)).get_all_operations():
        operation = found.ok()
        known = house.known(operation.method)
        place = {
            each.name: st.sampled_from(known[each.name]) for each in operation.path_parameters if each.name in known
        }
        about = {each.name: st.sampled_from(known[each.name]) for each in operation.query if each.name in known}
        ways = []
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            ways.append(operation.as_strategy(generation_mode=mode))
            if place:
                ways.append(st.fixed_dictionaries(place).flatmap(partial(there, operation, mode)))
            if about:
                both = st.tuples(st.fixed_dictionaries(place), st.fixed_dictionaries(about))
                ways.append(both.flatmap(lambda these, mode=mode, operation=operation: there(operation, mode, *these)))  # type: ignore[misc]
        yield operation.label, st.one_of(ways)


def there(
    operation: APIOperation[Any, Any, Any, Any],
    mode: GenerationMode,
    place: dict[str, str],
    about: dict[str, str] | None = None,
) -> st.SearchStrategy[Case]:
    """Requests about what exists."""
    return operation.as_strategy(generation_mode=mode, path_parameters=place or None, query=about)


def holds(answer: Any, said: str, allowed: frozenset[int] = frozenset()) -> None:
    """No 5xx but those that are allowed, and errors in OpenAI's shape."""
    assert answer.status_code < 500 or answer.status_code in allowed, (
        f"{answer.status_code} {answer.text[:500]}\n{said}"
    )
    if answer.status_code >= 400 and answer.content:
        error = json.loads(answer.content)["error"]
        assert set(error) == {"message", "type", "param", "code"}, said
        assert isinstance(error["message"], str), said
        assert isinstance(error["code"], str | None), said
