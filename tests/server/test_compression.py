"""Answers are compressed for those who accept it, but never streams and files."""

import gzip

import pytest

from powermean.artefacts import ArtefactStore
from tests.support.live_server import listening, stream
from tests.support.reports import post_rows, row
from tests.support.service_driver import ADMIN_KEY, example_result


def test_a_history_is_sent_compressed_if_the_client_accepts_it(service):
    attempt = service.running()
    post_rows(attempt, *(row(step, value=step / 7) for step in range(20)))
    path = f"/v1/jobs/{attempt.claim.job_id}/metrics"
    plain = service.person.get(path, headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    with service.person.stream("GET", path, headers={"Accept-Encoding": "gzip"}) as answer:
        sent = b"".join(answer.iter_raw())
    assert answer.headers["content-encoding"] == "gzip"
    assert len(sent) < len(plain.content) / 2
    assert gzip.decompress(sent) == plain.content


@pytest.mark.slow
def test_events_and_files_are_sent_as_they_are(service):
    attempt = service.running()
    job_id = attempt.claim.job_id
    with (
        listening(service.app) as url,
        stream(url, job_id, ADMIN_KEY, **{"Accept-Encoding": "gzip"}) as events,
    ):
        assert "content-encoding" not in events.headers
    store = ArtefactStore(service.settings.artefacts_url)
    ref = store.put_bytes(f"jobs/{job_id}/model", "config.json", b"{}" * 1000)
    result = example_result(job_id) | {"model": {"files": {"config.json": ref.model_dump()}}}
    assert attempt.finish("finished", result=result).status_code == 204
    file = service.person.get(f"/v1/jobs/{job_id}/files/config.json", headers={"Accept-Encoding": "gzip"})
    assert (file.status_code, "content-encoding" in file.headers) == (200, False)
    assert file.content == b"{}" * 1000
