"""Every operator × every function of the catalogue × every dtype × {one point, a batch}, through both clients."""

import asyncio

import pytest

import nablad
from expectations import OPERATORS, Case, Operator, assert_agrees
from scenarios import SCENARIOS, Scenario

CASES = [
    pytest.param(scenario, dtype, operator, id=f"{scenario.function}-{dtype}-{name.replace(' ', '_')}")
    for scenario in SCENARIOS
    for dtype in scenario.dtypes
    for name, operator in OPERATORS.items()
    if operator.applies(Case(scenario, dtype))
]


@pytest.mark.parametrize(("scenario", "dtype", "operator"), CASES)
def test_agrees_with_closed_forms(
    client: nablad.Client, server_address: str, scenario: Scenario, dtype: str, operator: Operator
) -> None:
    case = Case(scenario, dtype)
    alone, batch = scenario.points[:1], scenario.points
    requests = [
        (points, case.arguments(points) | operator.options(case) | {"batched": len(points) > 1})
        for points in (alone, batch)
    ]
    for points, keywords in requests:
        assert_agrees(case, operator, getattr(client, operator.method)(scenario.function, **keywords), points)

    async def concurrently() -> list[nablad.results.Result]:
        async with nablad.aio.Client(server_address, timeout=120) as twin:
            calls = [getattr(twin, operator.method)(scenario.function, **keywords) for _, keywords in requests]
            return list(await asyncio.gather(*calls))

    for (points, _), result in zip(requests, asyncio.run(concurrently()), strict=True):
        assert_agrees(case, operator, result, points)


def test_the_table_covers_the_whole_catalogue(client: nablad.Client) -> None:
    assert {scenario.function for scenario in SCENARIOS} == {info.name for info in client.functions()}
