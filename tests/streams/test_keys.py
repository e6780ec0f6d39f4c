"""Who may use `generate`: as for `infer`, keys, their models, rates and priorities count."""

from __future__ import annotations

from pathlib import Path

from tests.security.credentials import key_of, write_keys
from tests.streams.conftest import MakeFleet
from tests.streams.models import ONE, SQUARE
from tests.streams.test_generate import asked, error_of, events_of


async def test_keys(make_fleet: MakeFleet, tmp_path: Path) -> None:
    keys = write_keys(
        tmp_path / "keys.yaml",
        alice={"models": [SQUARE]},
        slow={"models": ["*"], "rate": 0.001, "burst": 1},
        looks={"models": ["*"], "permissions": ["management"]},
    )
    async with make_fleet(SQUARE, ONE, keys_file=keys) as fleet:
        for stream in (True, False):
            for who, model, expected in (
                ("", SQUARE, (401, "unauthenticated")),
                ("nobody", SQUARE, (401, "unauthenticated")),
                ("looks", SQUARE, (403, "forbidden")),
                ("alice", ONE, (403, "forbidden")),
            ):
                headers = {"x_api_key": key_of(who)} if who else {}
                async with asked(fleet, model, {"IN": 1}, stream=stream, **headers) as answer:
                    assert (await error_of(answer))[:2] == expected, (who, model)
        async with asked(fleet, SQUARE, {"IN": 2}, x_api_key=key_of("alice")) as answer:
            assert len(await events_of(answer)) == 2
        async with asked(fleet, SQUARE, {"IN": 1}, x_api_key=key_of("slow")) as answer:
            assert len(await events_of(answer)) == 1
        async with asked(fleet, SQUARE, {"IN": 1}, x_api_key=key_of("slow")) as answer:
            assert (await error_of(answer))[:2] == (429, "rate_limited")
            assert int(answer.headers["retry-after"]) > 0
