"""Datasets, logs, checkpoints and model files over REST."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.exc import StatementError

from powermean.artefacts import ArtefactStore
from server.artefacts import datasets
from server.artefacts.logs import StoredChunk, StoredRange, read_text
from server.db.models import Dataset
from tests.support.reports import next_attempt
from tests.support.service_driver import ServiceDriver, error_of, example_result

ROWS = b'{"question": "1+1", "answer": 2}\n{"answer": 4, "question": "2+2", "extra": null}\n'


def upload(service, body, **query):
    return service.person.post("/v1/datasets", content=body, params=query)


def lines_of(answer):
    assert answer.status_code == 422, answer.text
    return {field["path"]: field["message"] for field in error_of(answer)["fields"]}


@pytest.mark.slow
def test_a_dataset_as_a_form_and_as_a_body_is_the_same(service):
    form = service.person.post("/v1/datasets", files={"file": ("sums.jsonl", ROWS)}, data={"name": "Sums"})
    assert form.status_code == 201, form.text
    made = form.json()
    assert (made["name"], made["rows"], made["fields"]) == ("Sums", 2, ["question", "answer"])
    assert made["size"] == len(ROWS)
    assert upload(service, ROWS, name="other").json() == made
    assert service.person.get(f"/v1/datasets/{made['id']}").json() == made
    assert service.person.get("/v1/datasets").json()["items"] == [made]


@pytest.mark.slow
def test_a_form_without_a_name_takes_the_files(service):
    answer = service.person.post("/v1/datasets", files={"file": ("a/sums.jsonl", ROWS)})
    assert answer.json()["name"] == "sums"


@pytest.mark.slow
def test_the_list_comes_in_pages(service):
    made = [upload(service, b'{"a": %d}' % number).json()["id"] for number in range(5)]
    found, cursor = [], None
    while True:
        page = service.person.get(
            "/v1/datasets", params={"limit": 2} | ({"cursor": cursor} if cursor else {})
        )
        found.append([one["id"] for one in page.json()["items"]])
        if len(found) == 1:
            upload(service, b'{"a": "later"}')  # what comes in meanwhile moves nothing
        if (cursor := page.json()["next"]) is None:
            break
    assert [len(ids) for ids in found] == [2, 2, 1]
    assert sorted(one for ids in found for one in ids) == sorted(made)
    for cursor in ("x", "2026-13-01/ds-1", "9999999/", "0001-01-01T00:00:00+23:59/ds"):
        refused = service.person.get("/v1/datasets", params={"cursor": cursor})
        assert refused.status_code == 422, refused.text


@pytest.mark.slow
def test_a_stored_dataset_is_what_was_sent(service):
    made = upload(service, ROWS).json()
    store = ArtefactStore(service.settings.artefacts_url)
    (ref,) = store.list(f"datasets/{made['id']}")
    assert store.get_bytes(ref) == ROWS


def test_a_store_that_vanishes_in_mid_upload_is_named_and_nothing_is_listed(service):
    place = service.app.state.artefacts.folder
    away = place.rename(place.with_name("away"))
    place.mkdir()  # what an unmounted disk leaves
    refused = upload(service, b'{"problem": "1"}')
    assert (refused.status_code, error_of(refused)["code"]) == (503, "artefact_store_unavailable")
    assert service.person.get("/v1/datasets").json()["items"] == []
    assert list(place.iterdir()) == []
    place.rmdir()
    away.rename(place)
    assert upload(service, b'{"problem": "1"}').status_code == 201


def test_each_wrong_line_is_named_and_nothing_is_stored(service):
    answer = upload(service, b'{"a": 1}\nnot json\n\n[1]\n{"a": NaN}\n\xff\n{"a": 1}')
    assert set(lines_of(answer)) == {"line 2", "line 3", "line 4", "line 5", "line 6"}
    assert service.person.get("/v1/datasets").json()["items"] == []


def test_a_field_that_every_row_must_have_is_missed_by_line(service):
    body = b'{"answer": 1}\n' * 16 + b'{"question": 1}\n'
    assert "no field 'answer'" in lines_of(upload(service, body, require="answer"))["line 17"]
    assert upload(service, body, require="question").status_code == 422


def test_the_first_line_without_a_field_is_known(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"a": 1, "b": 2}\n{"a": 1, "b": null, "c": 3}\n{"a": 1, "c": 3}\n{"b": 1}\n')
    found = datasets.examine(file)
    assert found.fields == ()
    assert found.lacking == {"a": 4, "b": 2, "c": 1}


def test_fields_are_bounded_so_that_a_row_costs_what_it_holds(service):
    rows = [json.dumps({f"f{number}": 1}) for number in range(1001)]
    wrong = lines_of(upload(service, "\n".join(rows).encode()))
    assert wrong == {"line 1001": "field 'f1000' is one more than the 1000 that a dataset has"}
    assert upload(service, "\n".join(rows[:1000] * 2).encode()).status_code == 201
    assert lines_of(upload(service, json.dumps({"x" * 201: 1}).encode())).keys() == {"line 1"}


@pytest.mark.parametrize(
    ("row", "field"),
    [
        (rb'{"a\ud800": 1}', "a\ufffd"),
        (rb'{"a": "\udfff"}', "a"),
        (rb'{"a": {"b": [1, "\uD83D"]}}', "a.b.1"),
    ],
)
def test_text_that_is_not_unicode_is_refused_with_its_line(service, row, field):
    wrong = lines_of(upload(service, b'{"a": "\\ud83d\\ude00"}\n' + row))
    said = f"not usable: field {field!r}: half of a surrogate pair is no character"
    assert wrong == {"line 2": said}
    twice = upload(service, rb'{"\ud800": 1, "\ud800": 2}')
    assert lines_of(twice).keys() == {"line 1"}
    assert service.person.get("/v1/datasets").json()["items"] == []


def test_a_broken_dataset_of_an_older_version_is_listed_and_deleted(service):
    made = upload(service, ROWS).json()
    with service.database.write() as session:
        try:
            session.get(Dataset, made["id"]).fields = ["a\ud800"]
            session.flush()
        except StatementError:  # Postgres did not take it
            pytest.skip("this database never held such a name")
    (listed,) = service.person.get("/v1/datasets").json()["items"]
    assert listed["fields"] == ["a\ufffd"]
    assert service.person.delete(f"/v1/datasets/{made['id']}").status_code == 204
    assert service.person.get("/v1/datasets").json()["items"] == []


@pytest.mark.slow
def test_a_dataset_is_deleted_unless_a_live_job_trains_on_it(service):
    made = upload(service, ROWS).json()
    path = f"/v1/datasets/{made['id']}"
    job_id = service.submit(data={"kind": "jsonl", "dataset": made["id"]})
    refused = service.person.delete(path)
    assert refused.status_code == 409
    assert job_id in error_of(refused)["message"]
    assert service.person.post(f"/v1/jobs/{job_id}/cancel").status_code == 200
    assert service.person.delete(path).status_code == 204
    assert service.person.get(path).status_code == 404
    assert service.person.delete(path).status_code == 404
    store = ArtefactStore(service.settings.artefacts_url)
    service.scheduler.turn()
    assert store.list(f"datasets/{made['id']}") == ()
    assert upload(service, ROWS).json()["id"] == made["id"]
    assert len(store.list(f"datasets/{made['id']}")) == 1


def test_members_delete_their_own_datasets_alone(service):
    made = upload(service, ROWS).json()
    ada = service.someone()
    assert ada.delete(f"/v1/datasets/{made['id']}").status_code == 403
    mine = ada.post("/v1/datasets", content=b'{"a": 1}').json()
    assert ada.delete(f"/v1/datasets/{mine['id']}").status_code == 204


def test_at_most_twenty_wrong_lines_are_named(service):
    assert len(lines_of(upload(service, b"x\n" * 1000))) == 20


@pytest.mark.parametrize("body", [b"", b"\n"])
def test_an_empty_dataset_is_refused(service, body):
    assert upload(service, body).status_code == 422


def test_a_line_that_is_too_long_is_named_and_the_next_one_read(service, monkeypatch):
    monkeypatch.setattr(datasets, "MAX_LINE", 20)
    wrong = lines_of(upload(service, b'{"a": 1}\n{"a": "' + b"x" * 90 + b'"}\n{"a": 2}\nwrong\n'))
    assert set(wrong) == {"line 2", "line 4"}


def test_a_form_needs_its_file_and_a_name_that_can_be_shown(service):
    answer = service.person.post("/v1/datasets", files={"other": ("x", ROWS)})
    assert lines_of(answer).keys() == {"file"}
    assert lines_of(upload(service, ROWS, name="a\nb")).keys() == {"name"}


def test_a_dataset_above_the_limit_is_refused(settings):
    service = ServiceDriver(settings.model_copy(update={"max_dataset": 2000}))
    try:
        pieces = iter([ROWS] * 100)
        assert service.person.post("/v1/datasets", content=ROWS * 100).status_code == 413
        assert service.person.post("/v1/datasets", content=pieces).status_code == 413
    finally:
        service.close()


@pytest.mark.slow
def test_a_log_is_stored_once_however_it_is_cut(service):
    attempt = service.running()
    text = "step 1: größer ✓\nstep 2: 😀\n"
    data = text.encode()

    def post(offset, part):
        return attempt.post("logs", {"offset": offset, "text": part.decode(errors="strict")})

    assert post(0, data[:8]).status_code == 204
    assert post(0, data[:8]).status_code == 204
    assert post(2, data[2:8]).status_code == 204
    assert post(0, data).status_code == 204
    assert post(len(data), b"").status_code == 204
    answer = service.person.get(f"/v1/jobs/{attempt.claim.job_id}/logs").json()
    assert answer == {"attempt": 1, "node_rank": 0, "offset": 0, "next_offset": len(data), "text": text}


def test_a_gap_in_a_log_is_refused_with_the_offset_to_go_on_from(service):
    attempt = service.running()
    attempt.post("logs", {"offset": 0, "text": "äb"})
    answer = attempt.post("logs", {"offset": 4, "text": "x"})
    assert answer.status_code == 409
    assert error_of(answer)["code"] == "conflict"
    assert "byte 3" in error_of(answer)["remedy"]


@pytest.mark.slow
def test_pieces_of_a_log_posted_at_the_same_time_are_stored_once(service):
    attempt = service.running()
    with ThreadPoolExecutor(6) as pool:
        chunk = {"offset": 0, "text": "the same\n"}
        answers = list(pool.map(lambda _: attempt.post("logs", chunk).status_code, range(6)))
    assert answers == [204] * 6
    assert service.person.get(f"/v1/jobs/{attempt.claim.job_id}/logs").json()["next_offset"] == 9


@pytest.mark.slow
def test_each_attempt_has_a_log_of_its_own(service):
    first = service.running()
    job_id = first.claim.job_id
    first.post("logs", {"offset": 0, "text": "first"})
    second = next_attempt(service, first)
    assert first.post("logs", {"offset": 5, "text": "late"}).status_code == 409
    assert service.person.get(f"/v1/jobs/{job_id}/logs").json()["text"] == ""
    second.post("logs", {"offset": 0, "text": "second"})
    assert service.person.get(f"/v1/jobs/{job_id}/logs").json()["text"] == "second"
    assert service.person.get(f"/v1/jobs/{job_id}/logs", params={"attempt": 1}).json()["text"] == "first"
    assert service.person.get(f"/v1/jobs/{job_id}/logs", params={"attempt": 3}).status_code == 404


def test_a_job_without_an_attempt_has_an_empty_log(service):
    answer = service.person.get(f"/v1/jobs/{service.submit()}/logs")
    assert answer.json() == {"attempt": 0, "node_rank": 0, "offset": 0, "next_offset": 0, "text": ""}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    parts=st.lists(st.text(st.sampled_from("aä✓😀\n"), min_size=1, max_size=12), min_size=1, max_size=5),
    limit=st.integers(4, 20),
)
def test_a_log_read_in_small_parts_is_whole_text(tmp_path, parts, limit):
    store = ArtefactStore(f"file://{tmp_path}/store")
    chunks, length = [], 0
    for part in parts:
        data = part.encode()
        chunks.append(StoredChunk(length, len(data), store.put_bytes("log", "log", data)))
        length += len(data)
    read, position = "", 0
    while position < length:
        end = min(position + limit, length)
        found = tuple(c for c in chunks if c.offset < end and c.offset + c.size > position)
        text = read_text(StoredRange(1, 0, position, end, found), store)
        assert text.offset == position
        assert text.next_offset > position
        read, position = read + text.text, text.next_offset
    assert read == "".join(parts)


def test_a_log_read_from_within_a_character_starts_at_the_next(service):
    attempt = service.running()
    attempt.post("logs", {"offset": 0, "text": "ä😀b"})
    answer = service.person.get(f"/v1/jobs/{attempt.claim.job_id}/logs", params={"offset": 3}).json()
    assert (answer["offset"], answer["text"]) == (6, "b")


def test_committed_checkpoints_are_listed_oldest_first(service):
    attempt = service.running()
    for step in (3, 5):
        assert attempt.commit(step).status_code == 204
    items = service.person.get(f"/v1/jobs/{attempt.claim.job_id}/checkpoints").json()["items"]
    assert [(item["step"], item["attempt"]) for item in items] == [(3, 1), (5, 1)]
    assert service.person.get("/v1/jobs/job-none/checkpoints").status_code == 404


@pytest.fixture
def finished(service):
    """A finished job whose model has two files, and their bytes."""
    attempt = service.running()
    job_id = attempt.claim.job_id
    store = ArtefactStore(service.settings.artefacts_url)
    contents = {"config.json": json.dumps({"a": 1}).encode(), "weights/ü 1.bin": bytes(range(256)) * 8}
    files = {
        name: store.put_bytes(f"jobs/{job_id}/model", name, data).model_dump()
        for name, data in contents.items()
    }
    answer = attempt.finish("finished", result=example_result(job_id) | {"model": {"files": files}})
    assert answer.status_code == 204, answer.text
    return job_id, contents


@pytest.mark.slow
def test_the_final_models_files_are_listed_and_downloaded(service, finished):
    job_id, contents = finished
    listed = service.person.get(f"/v1/jobs/{job_id}/files").json()["files"]
    assert {name: ref["size"] for name, ref in listed.items()} == {n: len(d) for n, d in contents.items()}
    for name, data in contents.items():
        answer = service.person.get(f"/v1/jobs/{job_id}/files/{name}")
        assert (answer.status_code, answer.content) == (200, data)
        assert answer.headers["content-disposition"].startswith("attachment; filename*=UTF-8''")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["etag"] == f'"{listed[name]["sha256"]}"'
        again = service.person.get(
            f"/v1/jobs/{job_id}/files/{name}", headers={"If-None-Match": answer.headers["etag"]}
        )
        assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    ("header", "start", "end"),
    [("bytes=0-0", 0, 1), ("bytes=10-", 10, 2048), ("bytes=-5", 2043, 2048), ("bytes=2000-9999", 2000, 2048)],
)
def test_a_range_of_a_file(service, finished, header, start, end):
    job_id, contents = finished
    data = contents["weights/ü 1.bin"]
    path = f"/v1/jobs/{job_id}/files/weights/ü 1.bin"
    answer = service.person.get(path, headers={"Range": header})
    assert (answer.status_code, answer.content) == (206, data[start:end])
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/2048"
    changed = service.person.get(path, headers={"Range": header, "If-Range": '"other"'})
    assert (changed.status_code, changed.content) == (200, data)


def test_a_range_past_the_end_is_refused(service, finished):
    answer = service.person.get(
        f"/v1/jobs/{finished[0]}/files/weights/ü 1.bin", headers={"Range": "bytes=2048-"}
    )
    assert answer.status_code == 416
    assert error_of(answer)["code"] == "range_not_satisfiable"


@pytest.mark.parametrize(
    "path", ["../config.json", "..%2f..%2fsecrets%2fattempt_token.key", "/etc/passwd", "weights", "", "nope"]
)
def test_only_files_of_the_model_can_be_had(service, finished, path):
    assert service.person.get(f"/v1/jobs/{finished[0]}/files/{path}").status_code == 404


def test_a_job_that_has_not_finished_has_no_files(service):
    answer = service.person.get(f"/v1/jobs/{service.submit()}/files")
    assert answer.status_code == 404
    assert "validating" in error_of(answer)["message"]


def test_a_model_file_that_is_lost_is_said_to_be_missing(service, finished):
    job_id, _ = finished
    ArtefactStore(service.settings.artefacts_url).delete_prefix(f"jobs/{job_id}/model")
    answer = service.person.get(f"/v1/jobs/{job_id}/files/config.json")
    assert answer.status_code == 404
    assert error_of(answer)["code"] == "artefact_missing"
