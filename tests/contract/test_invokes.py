"""The ability to answer synchronous calls, on each engine of this machine: what callers get."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import random
import zipfile
from pathlib import Path

import pytest

from oscar.compute.crew import Limits
from oscar.errors import BadRequest, InvocationTimeout, TooManyRequests, Unavailable
from oscar.model.service import Service
from oscar.model.storage import MinIOProvider
from oscar.objects.s3 import S3Store
from tests import s3_server
from tests.contract.conftest import CONTAINERS, REAL
from tests.invoking import House, Street, alive, as_json, encoded, lasting, until

ODD = "two  spaces * $HOME `id` \"double\" 'single' \\ back\nnew line\ttab é €\r!#~{}[]?;&|<>\n\n"


pytestmark = pytest.mark.parametrize("street", ["process", *CONTAINERS, REAL], indirect=True)

# What goes in.


@pytest.mark.brief
def test_json_comes_verbatim(street: Street) -> None:
    body = b'{"a":  "two  spaces *",\n "b": [1, 2]}'

    async def scenario(house: House) -> None:
        service = house.service('cat "$INPUT_FILE_PATH"')
        assert (await house.call(service, body)).body == body
        assert (await house.call(house.service('printf %s "$EVENT"', name="event"), body)).body == body

    street.live(scenario)


def test_other_bodies_are_base64_of_any_bytes(street: Street) -> None:
    content = random.Random(1).randbytes(100_000)

    async def scenario(house: House) -> None:
        service = house.service('cat "$INPUT_FILE_PATH" > "$TMP_OUTPUT_DIR/copy"; cat "$EVENT_FILE"')
        answer = await house.call(service, encoded(content))
        assert base64.b64decode(answer.body) == content
        assert answer.log == encoded(content)

    street.live(scenario)


def test_a_big_body(street: Street) -> None:
    content = random.Random(2).randbytes(50 * 1024 * 1024)

    async def scenario(house: House) -> None:
        service = house.service('cat "$INPUT_FILE_PATH" > "$TMP_OUTPUT_DIR/copy"')
        answer = await house.call(service, encoded(content))
        assert base64.b64decode(answer.body) == content
        body = house.folder.parent / "body"
        body.write_bytes(encoded(content))
        assert (await house.call(service, body)).body == answer.body

    street.live(scenario)


def test_a_body_that_is_neither_is_refused_and_costs_no_worker(street: Street) -> None:
    async def scenario(house: House) -> None:
        service = house.service("echo fine")
        with pytest.raises(BadRequest):
            await house.call(service, b"not base64!")
        assert await house.text(service) == "fine\n"
        assert house.stats().cold_starts == 1

    street.live(scenario)


def test_defect_7_values_survive_the_shell(street: Street) -> None:
    """Whitespace was collapsed and patterns expanded, because the event went through an unquoted echo."""

    async def scenario(house: House) -> None:
        variables = {"ODD": ODD, "EMPTY": "", "PATHS": "/*", "SECOND": "x" * 100_000}
        service = house.service(
            'printf %s "$ODD"; printf "%s|" "$EMPTY" "$PATHS" "$TOKEN" "${#SECOND}"',
            environment={"variables": variables},
        )
        said = await house.text(service, environment={"TOKEN": ODD})
        assert said == f"{ODD}|/*|{ODD}|100000|"
        event = as_json({"key": "a  b * $HOME 'x'", "text": ODD})
        assert await house.text(house.service('printf %s "$EVENT"', name="event"), event) == event.decode()

    street.live(scenario)


def test_all_bytes_survive_the_shell(street: Street) -> None:
    every = bytes(range(1, 256)) * 2

    async def scenario(house: House) -> None:
        service = house.service('printf %s "$EVERY" > "$TMP_OUTPUT_DIR/bytes"')
        answer = await house.call(service, environment={"EVERY": os.fsdecode(every)})
        assert base64.b64decode(answer.body) == every

    street.live(scenario)


def test_each_request_has_its_own_variables(street: Street) -> None:
    async def scenario(house: House) -> None:
        service = house.service(
            'echo "$ONE-$TWO"; export ONE=changed', environment={"variables": {"TWO": "2"}}
        )
        assert await house.text(service, environment={"ONE": "1", "TWO": "other"}) == "1-other\n"
        assert await house.text(service) == "-2\n"
        assert house.stats().cold_starts == 1

    street.live(scenario)


# What comes out.


def test_no_file_answers_with_what_was_printed(street: Street) -> None:
    async def scenario(house: House) -> None:
        # Programs that open /dev/stderr anew must not cut off what was printed before.
        service = house.service("echo one; echo two >/dev/stderr; echo three >&2; printf four >/dev/stdout")
        assert await house.text(service) == "one\ntwo\nthree\nfour"

    street.live(scenario)


def test_one_file_and_several(street: Street) -> None:
    async def scenario(house: House) -> None:
        one = await house.call(house.service('echo log; printf "a\\0b" > "$TMP_OUTPUT_DIR/a b"', name="one"))
        assert base64.b64decode(one.body) == b"a\0b"
        assert one.log == b"log\n"
        script = 'cd "$TMP_OUTPUT_DIR"; mkdir -p sub/deep; echo 1 > one; echo 2 > sub/deep/two; : > sub/empty'
        several = await house.call(house.service(script, name="several"))
        with zipfile.ZipFile(io.BytesIO(base64.b64decode(several.body))) as archive:
            found = {name: archive.read(name) for name in archive.namelist()}
        assert found == {"one": b"1\n", "sub/deep/two": b"2\n", "sub/empty": b""}
        again = await house.call(
            house.service('ls -A "$TMP_OUTPUT_DIR" "$TMP_INPUT_DIR" | wc -l', name="several")
        )
        assert again.exit_code == 0

    street.live(scenario)


def test_nothing_of_a_request_is_left_for_the_next(street: Street) -> None:
    async def scenario(house: House) -> None:
        script = """
            ls -A "$TMP_OUTPUT_DIR"; ls -A "$TMP_INPUT_DIR" | wc -l; ls "$TMP_INPUT_DIR/.."; echo "${EVENT:-none}"
            if [ "$ONE" = files ]; then
                mkdir -p "$TMP_OUTPUT_DIR/deep/er" "$TMP_INPUT_DIR/x"; : > "$TMP_OUTPUT_DIR/deep/er/file"
                : > "$TMP_INPUT_DIR/x/.hidden"
            fi
        """
        service = house.service(script)
        clean = await house.text(service, b'{"first": 1}')
        await house.call(service, encoded(b"second"), environment={"ONE": "files"})
        assert await house.text(service, b'{"first": 1}') == clean
        assert house.stats().cold_starts == 1
        assert b"second" not in b"".join(
            path.read_bytes() for path in house.folder.rglob("*") if path.is_file()
        )

    street.live(scenario)


@pytest.mark.brief
def test_a_failing_script_answers_with_its_code_and_print(street: Street) -> None:
    async def scenario(house: House) -> None:
        service = house.service('echo trouble; echo x > "$TMP_OUTPUT_DIR/file"; exit 7')
        answer = await house.call(service)
        assert (answer.exit_code, answer.body, answer.log) == (7, b"trouble\n", b"trouble\n")
        assert (await house.call(house.service("kill -9 $$", name="killed"))).exit_code == 137
        assert (await house.call(house.service("if", name="broken"))).exit_code not in {0, None}
        assert [crew.cold_starts for crew in house.workers.stats()] == [1, 1, 1]

    street.live(scenario)


def test_long_output(street: Street) -> None:
    async def scenario(house: House) -> None:
        lines = 200_000
        service = house.service(f"i=0; while [ $i -lt {lines} ]; do echo $i; i=$((i+1)); done")
        said = await house.text(service)
        assert said == "".join(f"{number}\n" for number in range(lines))

    street.live(scenario)


def test_output_over_the_limit_keeps_head_and_tail(street: Street) -> None:
    async def scenario(house: House) -> None:
        service = house.service(
            "echo first; i=0; while [ $i -lt 2000 ]; do echo $i; i=$((i+1)); done; echo last"
        )
        said = await house.text(service)
        assert said.startswith("first\n0\n")
        assert said.endswith("1999\nlast\n")
        assert "left out" in said
        assert len(said) < 1100

    street.live(scenario, Limits(log=1000))


def test_inputs_and_outputs_of_storage(street: Street, tmp_path: Path) -> None:
    """A storage event sent to /run: its object is fetched, results are stored, the print is the answer."""
    with s3_server.running(tmp_path, host=street.host) as server:
        key, secret = s3_server.ALICE.access_key, s3_server.ALICE.secret_key
        store = S3Store(server.endpoint, key, secret)
        street.own = MinIOProvider(endpoint=server.endpoint, access_key=key, secret_key=secret)
        event = {
            "Key": "private/in/a picture.txt",
            "Records": [
                {
                    "eventSource": "minio:s3",
                    "eventTime": "2026-01-01T00:00:00Z",
                    "s3": {"bucket": {"name": "private"}, "object": {"key": "in/a+picture.txt"}},
                }
            ],
        }

        async def scenario(house: House) -> None:
            source = tmp_path / "source"
            source.write_text("content")
            await store.upload("private", "in/a picture.txt", source)
            service = house.service(
                'echo "$STORAGE_OBJECT_KEY"; tr a-z A-Z < "$INPUT_FILE_PATH" > "$TMP_OUTPUT_DIR/loud.txt"',
                input=[{"storage_provider": "minio.default", "path": "private/in"}],
                output=[{"storage_provider": "minio.default", "path": "private/out"}],
            )
            assert await house.text(service, as_json(event)) == "in/a picture.txt\n"
            found = await store.download("private", "out/loud.txt", tmp_path / "loud")
            assert found.size == 7
            assert (tmp_path / "loud").read_text() == "CONTENT"
            body = await house.call(service, encoded(b"body"))
            assert base64.b64decode(body.body) == b"BODY", "a call with a body answers with its files as well"

        street.live(scenario, store=store)


# Many at once.


def test_sixteen_clients(street: Street) -> None:
    async def scenario(house: House) -> None:
        service = house.service('cat "$INPUT_FILE_PATH"')

        async def client(number: int) -> None:
            for turn in range(10):
                body = as_json({"client": number, "turn": turn})
                assert (await house.call(service, body)).body == body

        await asyncio.gather(*(client(number) for number in range(16)))
        assert house.stats().requests == 160
        assert house.stats().waiting == 0

    street.live(scenario)


def test_one_request_at_a_time_in_a_worker(street: Street) -> None:
    async def scenario(house: House) -> None:
        service = house.service(
            "mkdir /tmp/busy || exit 9; i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done; rmdir /tmp/busy",
            synchronous={"max_scale": 2},
        )
        answers = await asyncio.gather(*(house.call(service) for _ in range(20)))
        assert {answer.exit_code for answer in answers} == {0}
        assert house.stats().cold_starts <= 2

    street.live(scenario)


def test_the_waiting_line_has_a_limit(street: Street) -> None:
    async def scenario(house: House) -> None:
        word = lasting()
        service = house.service(f"sleep {word}", synchronous={"max_scale": 1})
        calls = [asyncio.create_task(house.call(service))]
        await until(lambda: alive(word))
        calls += [asyncio.create_task(house.call(service)) for _ in range(2)]
        await until(lambda: house.stats().waiting == 2)
        with pytest.raises(TooManyRequests) as refused:
            await house.call(service)
        assert refused.value.status == 429
        assert int(refused.value.headers["Retry-After"]) > 0
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        await until(lambda: not alive(word))
        assert await house.text(house.service("echo next", name="next")) == "next\n"

    street.live(scenario, Limits(queue=2))


def test_waiting_has_a_limit(street: Street) -> None:
    async def scenario(house: House) -> None:
        word = lasting()
        service = house.service(f"sleep {word}", synchronous={"min_scale": 1, "max_scale": 1})
        await house.workers.apply(service)  # a start may take longer than callers wait
        await until(lambda: house.stats().idle == 1)
        first = asyncio.create_task(house.call(service))
        await until(lambda: alive(word))
        with pytest.raises(Unavailable) as refused:
            await house.call(service)
        assert refused.value.status == 503
        assert "Retry-After" in refused.value.headers
        first.cancel()
        await asyncio.wait([first])

    street.live(scenario, Limits(wait=1.5))


# Ends before its time.


def test_timeout_stops_the_script(street: Street) -> None:
    async def scenario(house: House) -> None:
        word = lasting()
        service = house.service(f'[ "$FAST" ] && exit 0; echo begun; sleep {word}; sleep {word}')
        with pytest.raises(InvocationTimeout) as late:
            await house.call(service, timeout=1.0)
        assert late.value.status == 504
        assert not alive(word), "who hears of the timeout can rely on it"
        assert await house.text(service, environment={"FAST": "yes"}) == ""

    street.live(scenario)


def test_a_client_that_goes_stops_the_script(street: Street) -> None:
    async def scenario(house: House) -> None:
        word = lasting()
        service = house.service(f'[ "$FAST" ] && exit 0; trap "" TERM INT HUP; sleep {word}; sleep {word}')
        call = asyncio.create_task(house.call(service))
        await until(lambda: alive(word))
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until(lambda: not alive(word))
        assert await house.text(service, environment={"FAST": "yes"}) == ""

    street.live(scenario)


def test_a_client_that_goes_while_it_waits_costs_nothing(street: Street) -> None:
    async def scenario(house: House) -> None:
        service = house.service('[ "$SLOW" ] && sleep 0.5; echo done', synchronous={"max_scale": 1})
        first = asyncio.create_task(house.text(service, environment={"SLOW": "1"}))
        await until(lambda: house.workers.stats() and house.stats().busy == 1)
        second = asyncio.create_task(house.call(service))
        await until(lambda: house.stats().waiting == 1)
        second.cancel()
        third = asyncio.create_task(house.text(service))
        assert await first == "done\n"
        assert await third == "done\n"
        assert house.stats().cold_starts == 1

    street.live(scenario)


# How many workers there are.


def test_min_scale_is_warm_before_the_first_call(street: Street) -> None:
    async def scenario(house: House) -> None:
        service = house.service("echo warm", synchronous={"min_scale": 2, "max_scale": 3})
        await house.workers.apply(service)
        await until(lambda: house.stats().idle == 2)
        assert await house.text(service) == "warm\n"
        assert house.stats().cold_starts == 2

    street.live(scenario)


def test_scale_to_zero_and_back(street: Street) -> None:
    async def scenario(house: House) -> None:
        service = house.service("echo here")
        assert await house.text(service) == "here\n"
        names = await house.present()
        assert len(names) == 1
        await until(lambda: (house.stats().idle, house.stats().busy) == (0, 0))
        assert await house.text(service) == "here\n"
        assert house.stats().cold_starts == 2
        assert house.stats().cold_start_ms

    street.live(scenario, Limits(idle=0.3))


def test_an_update_replaces_workers_and_lets_requests_end(street: Street) -> None:
    async def scenario(house: House) -> None:
        word = lasting()
        old = house.service(f'echo old; [ "$HOLD" ] && sleep 1 && : {word}', synchronous={"min_scale": 2})
        await house.workers.apply(old)
        await until(lambda: house.stats().idle == 2)
        under_way = asyncio.create_task(house.call(old, environment={"HOLD": "1"}))
        await until(lambda: house.stats().busy == 1)
        new = house.service("echo new", synchronous={"min_scale": 1})
        await house.workers.apply(new)
        assert await house.text(new) == "new\n"
        assert (await under_way).body == b"old\n"
        for _ in range(5):
            assert await house.text(new) == "new\n"
        await until(lambda: house.stats().idle == 1 and house.stats().busy == 0)

    street.live(scenario)


def test_applying_the_same_again_keeps_the_workers(street: Street) -> None:
    async def scenario(house: House) -> None:
        service: Service = house.service("echo same", synchronous={"min_scale": 1})
        for _ in range(3):
            await house.workers.apply(house.service("echo same", synchronous={"min_scale": 1}))
            assert await house.text(service) == "same\n"
        assert house.stats().cold_starts == 1

    street.live(scenario)


def test_user_isolation(street: Street) -> None:
    async def scenario(house: House) -> None:
        script = 'cat /tmp/seen 2>/dev/null; echo "$WHO" >> /tmp/seen'
        alone = house.service(script, isolation_level="USER")
        for user, seen in [
            ("ann", ""),
            ("bob", ""),
            ("ann", "ann\n"),
            ("bob", "bob\n"),
            ("ann", "ann\nann\n"),
        ]:
            assert await house.text(alone, user=user, environment={"WHO": user}) == seen
        shared = house.service(script, name="shared")
        assert await house.text(shared, user="ann", environment={"WHO": "ann"}) == ""
        assert await house.text(shared, user="bob", environment={"WHO": "bob"}) == "ann\n"

    street.live(scenario)
