"""A lease in a store has one holder, is taken over from one that is silent, and is not resurrected by it."""

from __future__ import annotations

import time

import pytest

from dsctl_core.files import leases
from dsctl_core.files.leases import LEASE
from dsctl_core.remote.leases import RemoteWorker
from dsctl_core.remote.store import Remote
from tests.gcs_server import ObjectStore
from tests.lease_workers import taken_at_once
from tests.s3_server import Fault

GROUP = "a" * 16


@pytest.fixture
def remote(server: ObjectStore, request: pytest.FixtureRequest) -> Remote:
    bucket = f"leases-{abs(hash(request.node.name))}"
    server.make_bucket(bucket)
    return Remote(f"{server.scheme}://{bucket}/x")


def test_of_several_that_want_a_lease_at_once_one_gets_it_and_nothing_is_left(
    server: ObjectStore, remote: Remote
) -> None:
    server.faults += [Fault(LEASE, lose_answer=True, times=3), Fault(LEASE, status=503, times=3)]
    workers = [RemoteWorker(remote, "w", GROUP) for _ in range(3)]
    got = taken_at_once(workers, 4)
    assert sorted(got) == ["0", "1", "2", "3"]
    assert [worker.others() for worker in workers] == [2] * 3
    for worker in workers:
        worker.__exit__()
    assert list(remote.list()) == []


def test_one_that_comes_back_after_its_lease_was_taken_over_leaves_it_to_the_new_holder(
    remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = f"w/{GROUP}/a1{LEASE}"
    with RemoteWorker(remote, "w", GROUP) as late, RemoteWorker(remote, "w", GROUP) as other:
        assert late.take("a1")
        assert not other.take("a1")
        with monkeypatch.context() as patches:
            patches.setattr(leases, "STALE", -60.0)  # as if it was silent for long, and its process is alive
            assert other.take("a1")
        held = remote.stamp(lease)
        late._find_again(lease)  # what a beat does that finds another version
        late.release("a1")
        assert remote.stamp(lease) == held
        other.release("a1")
        assert late.take("a1")


def test_a_beat_keeps_a_lease_also_after_its_answer_was_lost(
    server: ObjectStore, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "BEAT", 0.2)
    lease = f"w/{GROUP}/a1{LEASE}"
    with RemoteWorker(remote, "w", GROUP) as worker:
        assert worker.take("a1")
        first = remote.stamp(lease)
        server.faults.append(Fault(LEASE, lose_answer=True, times=4))
        until = time.monotonic() + 30
        while time.monotonic() < until and len(server.asked(f"PUT /{remote.address[5:]}/{lease}")) < 9:
            time.sleep(0.05)
        assert first is not None
        assert worker._versions[lease] != first.version
    assert list(remote.list()) == []


def test_what_a_process_that_is_gone_has_left_is_removed(remote: Remote) -> None:
    with RemoteWorker(remote, "w", GROUP) as worker:
        about = {**leases.this_process(), "since": 1.0, "worker": "b2"}  # its number is of another process now
        for name in (f"w/{GROUP}/b2{leases.WORKER}", f"w/{GROUP}/c3{LEASE}"):
            remote.put(name, repr(about).replace("'", '"').encode())
        assert worker.take("c3")
        assert worker.alive() == {GROUP: 0}
    assert list(remote.list()) == []


def test_a_beat_or_a_note_in_the_midst_of_a_look_is_no_error(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    with RemoteWorker(remote, "w", GROUP) as holder, RemoteWorker(remote, "w", GROUP) as other:
        assert holder.take("a1")
        holder.note("b2", "1")
        real, texts = Remote.pull, iter("234")

        def written_meanwhile(self: Remote, *given: object) -> None:
            with monkeypatch.context() as patches:
                patches.setattr(Remote, "pull", real)
                holder._write(remote, f"w/{GROUP}/a1{LEASE}", over=holder._versions[f"w/{GROUP}/a1{LEASE}"])
                holder.note("b2", next(texts))
            real(self, *given)  # type: ignore[arg-type]

        monkeypatch.setattr(Remote, "pull", written_meanwhile)
        assert not other.take("a1")
        assert list(other.notes()) == []
        monkeypatch.setattr(Remote, "pull", real)
        assert [text for _, text in other.notes()] == ["3"]
        holder.forget_notes()
