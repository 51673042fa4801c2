"""Requests drawn from the API's own description never make the server fail."""

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error

from sightline.app.gate import KEY_HEADER
from sightline.app.server import Context

HOST = {"host": "127.0.0.1:7860"}
OPERATIONS = 21


@pytest.fixture(scope="module")
def operations(application: FastAPI) -> list[schemathesis.schemas.APIOperation]:
    schema = schemathesis.openapi.from_asgi("/api/v1/openapi.json", application, headers=HOST)
    return [found.ok() for found in schema.get_all_operations()]


def test_the_description_is_complete(
    operations: list[schemathesis.schemas.APIOperation],
) -> None:
    labels = {one.label for one in operations}
    assert {"POST /api/v1/jobs", "GET /api/v1/jobs/{id}/results/{name}"} <= labels
    assert len(labels) == OPERATIONS


@pytest.mark.parametrize("number", range(OPERATIONS))
def test_no_request_makes_the_server_fail(
    operations: list[schemathesis.schemas.APIOperation], number: int, context: Context
) -> None:
    operation = operations[number]
    headers = {**HOST, KEY_HEADER: context.sessions.key_of("0" * 32)}

    @settings(
        max_examples=10, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    @given(case=operation.as_strategy())
    def check(case: schemathesis.Case) -> None:
        case.call_and_validate(headers=headers, checks=[not_a_server_error])

    check()
