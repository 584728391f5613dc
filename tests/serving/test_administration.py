"""Models are loaded, made the default and unloaded while the server works, and refusals are typed."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput

from cmamil_sdk.cli.app import main
from cmamil_sdk.client import AsyncClient
from cmamil_sdk.engines.cuda import device_names
from cmamil_sdk.errors import (
    BundleCorrupt,
    BundleNotFound,
    BundlePathForbidden,
    BundleUnsupported,
    CmamilError,
    DeadlineExceeded,
    FieldInvalid,
    ModelExists,
    ModelNeeded,
    ModelNotFound,
    ModelNotReady,
    ParityFailed,
    RequestIdReused,
    RoleMissing,
    SelfTestFailed,
    ServerDraining,
)
from cmamil_sdk.revision import installed_revision
from cmamil_sdk.serving import loading, trial
from cmamil_sdk.serving.bundle_roots import find_bundle
from cmamil_sdk.serving.config import ServerConfig
from cmamil_sdk.serving.models import LoadedModel
from cmamil_sdk.serving.server import Server

from .administering import ADMIN, CLINIC, admin_of, administered, clinic_of, write_version
from .programs import children
from .waiting import wait_until

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text("utf-8")
SECTION = PAGE.partition("## Changing models")[2].partition("\n## ")[0]


@pytest.fixture(scope="module")
def roots(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle root: version 2 of the bundle with other labels, one that is damaged, and traps."""
    root = tmp_path_factory.mktemp("administered") / "roots"
    write_version(tiny_bundle, root, "2", labels="new ")
    damaged = write_version(tiny_bundle, root, "damaged") / "aggregator.onnx"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    write_version(tiny_bundle, root, "forced", parity_failed="cosine 0.9")
    write_version(tiny_bundle, root, "newer", schema_version=99)
    (root / "link").symlink_to(root / "tiny" / "2")
    (root.parent / "outside").symlink_to(tiny_bundle)
    linked = write_version(tiny_bundle, root, "linked") / "encoder.onnx"
    linked.unlink()
    linked.symlink_to(tiny_bundle / "encoder.onnx")
    (root / "file").write_text("no bundle")
    (root / "empty").mkdir()
    return root


@pytest.fixture(scope="module")
def served(config: ServerConfig, roots: Path) -> Iterator[Server]:
    settings = config.model_copy(update={"jobs_file": roots.parent / "jobs.sqlite"})
    with administered(settings, roots.parent) as server:
        yield server


@pytest.fixture
def both(served: Server) -> Iterator[Server]:
    """With version 2 loaded, and version 1 the default; afterwards with version 1 alone."""
    with admin_of(served) as admin:
        admin.load_model("tiny/2")
        yield served
        if len(admin.models()) > 1:
            admin.set_default_version("tiny/1")
            admin.unload_model("tiny/2")


def versions(server: Server) -> dict[str, tuple[str, bool]]:
    """State and whether it is the default, by version."""
    with admin_of(server) as admin:
        return {m.name.rpartition("/")[2]: (m.state, m.is_default) for m in admin.models()}


def test_the_memory_of_an_unloaded_model_is_free(both: Server) -> None:
    pool = both._services.pool
    assert pool is not None
    with admin_of(both) as admin:
        (model,) = (m for m in both._services.models.loaded() if m.resource.endswith("/2"))
        assert all(model.number in slot.models for slot in pool.slots)
        admin.unload_model("models/tiny/versions/2")
        assert not any(model.number in slot.models for slot in pool.slots)
        assert model.number not in pool.engines and len(pool.setup.models) == 1
        aggregator = model.bundle._aggregator
        assert not hasattr(getattr(aggregator, "_rest", aggregator), "_session")


def test_what_was_answered_outlives_its_model(both: Server) -> None:
    identity = str(uuid.uuid4())
    with admin_of(both) as admin, clinic_of(both) as clinic:
        answer = clinic.predict("a.svs", model="tiny/2", request_id=identity)
        job = clinic.create_job("a.svs", model="tiny/2", request_id=identity)
        clinic.watch_job(job.name)
        admin.unload_model("tiny/2")
        again = clinic.predict("a.svs", model="tiny/2", request_id=identity)
        assert again == answer and again.seconds == answer.seconds
        same_job = clinic.create_job("a.svs", model="tiny/2", request_id=identity)
        assert same_job.name == job.name
        with pytest.raises(RequestIdReused):
            clinic.predict("a.svs", request_id=identity)
        with pytest.raises(ModelNotFound):
            clinic.predict("a.svs", model="tiny/2")


def test_what_cannot_be_unloaded(both: Server) -> None:
    with admin_of(both) as admin:
        with pytest.raises(ModelNeeded, match="make another version the default"):
            admin.unload_model("tiny/1")
        with pytest.raises(ModelNotFound):
            admin.unload_model("tiny/3")
        with pytest.raises(FieldInvalid, match="must read models/NAME/versions/VERSION"):
            admin.unload_model("tiny")
        with pytest.raises(ModelNotFound):
            admin.set_default_version("tiny/3")
        admin.unload_model("tiny/2")
        with pytest.raises(ModelNeeded, match="is the only model"):
            admin.unload_model("tiny/1")
    assert versions(both) == {"1": ("ready", True)}


def test_the_same_bundle_is_loaded_once_and_another_of_its_version_refused(
    both: Server, roots: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    with admin_of(both) as admin:
        before = both._services.models.loaded()
        for path in ("tiny/2", str(roots / "tiny" / "2"), "./tiny//2/"):
            assert admin.load_model(path).name == "models/tiny/versions/2"
        assert both._services.models.loaded() == before
        other = write_version(tiny_bundle, roots / "other", "2", labels="odd ")
        with pytest.raises(ModelExists, match="another models/tiny/versions/2"):
            admin.load_model(str(other))


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("", FieldInvalid),
        ("../outside", BundlePathForbidden),
        ("tiny/../tiny/2", BundlePathForbidden),
        ("link", BundlePathForbidden),
        ("tiny/linked", BundlePathForbidden),
        ("file", BundlePathForbidden),
        ("tiny/2\0", BundlePathForbidden),
        ("/", BundlePathForbidden),
        ("/etc", BundlePathForbidden),
        ("/no/such/place", BundlePathForbidden),
        ("OUTSIDE", BundlePathForbidden),
        ("tiny/3", BundleNotFound),
        ("empty", BundleCorrupt),
        ("tiny/damaged", BundleCorrupt),
        ("tiny/forced", ParityFailed),
        ("tiny/newer", BundleUnsupported),
    ],
)
def test_what_is_not_loaded(
    served: Server, roots: Path, path: str, error: type[CmamilError]
) -> None:
    path = path.replace("OUTSIDE", str(roots.parent / "outside"))
    with admin_of(served) as admin:
        with pytest.raises(error) as caught:
            admin.load_model(path)
        assert str(roots) not in str(caught.value)
    assert versions(served) == {"1": ("ready", True)}


def test_a_model_that_fails_its_golden_test_leaves_the_others(
    served: Server, roots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = {"fp32": -1.0, "bf16": -1.0}
    strict = f"from cmamil_sdk.bundle import load; load.GOLDEN_MAX_DIFFERENCE = {nothing}"
    program = f"{strict}; from cmamil_sdk.serving import trial; trial.main()"
    monkeypatch.setattr(trial, "TRIAL_COMMAND", (sys.executable, "-P", "-c", program))
    with admin_of(served) as admin, pytest.raises(SelfTestFailed, match="golden values"):
        admin.load_model("tiny/2")
    assert versions(served) == {"1": ("ready", True)}


@pytest.fixture
def slow_load(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Loading waits for this, after it has told so."""
    may_load = threading.Event()
    load = loading.load_model

    def wait_and_load(*arguments: Any) -> LoadedModel:
        may_load.wait(30)
        return load(*arguments)

    monkeypatch.setattr(loading, "load_model", wait_and_load)
    yield may_load
    may_load.set()


@pytest.mark.usefixtures("one_attempt")
def test_a_model_that_loads_is_not_ready_and_the_next_load_waits(
    served: Server, slow_load: threading.Event
) -> None:
    with (
        ThreadPoolExecutor(2) as threads,
        admin_of(served) as admin,
        clinic_of(served) as client,
    ):
        loads = [threads.submit(admin.load_model, "tiny/2") for _ in range(2)]
        wait_until(lambda: versions(served).get("2") == ("loading", False))
        with pytest.raises(ModelNotReady, match="is still loading"):
            client.predict("a.svs", model="tiny/2")
        assert client.health() == "SERVING" and client.predict("a.svs").bundle == "tiny/1"
        assert not any(each.done() for each in loads)
        slow_load.set()
        first, second = (each.result() for each in loads)
        assert first == second and first.state == "ready"
        assert len(served._services.models.loaded()) == 2
        admin.unload_model("tiny/2")


def test_a_job_waits_for_a_model_that_is_loaded_again(
    both: Server, slow_load: threading.Event
) -> None:
    predictor = both._services.predictor
    assert predictor is not None
    admission = predictor.admission
    with ThreadPoolExecutor(1) as threads, admin_of(both) as admin, clinic_of(both) as clinic:
        places, admission._max_active = admission._max_active, 0
        job = clinic.create_job("a.svs", model="tiny/2")
        admin.unload_model("tiny/2")
        load = threads.submit(admin.load_model, "tiny/2")
        wait_until(lambda: versions(both).get("2") == ("loading", False))
        admission._max_active = places
        assert clinic.predict("a.svs").bundle == "tiny/1"
        assert clinic.job(job.name).state == "RUNNING"
        slow_load.set()
        assert load.result().state == "ready"
        done = clinic.watch_job(job.name, timeout_s=30.0)
        assert done.prediction is not None and done.prediction.bundle == "tiny/2"


def test_a_load_that_nobody_waits_for_leaves_nothing(
    served: Server, slow_load: threading.Event
) -> None:
    async def give_up() -> None:
        address = f"127.0.0.1:{served.port}"
        async with AsyncClient(address, token=ADMIN, timeout_s=60.0) as client:
            task = asyncio.create_task(client.load_model("tiny/2"))
            while len(await client.models()) == 1:
                await asyncio.sleep(0.02)
            task.cancel()

    with admin_of(served, timeout_s=0.5) as hurried, pytest.raises(DeadlineExceeded):
        hurried.load_model("tiny/2")
    asyncio.run(give_up())
    slow_load.set()
    wait_until(lambda: versions(served) == {"1": ("ready", True)})
    pool = served._services.pool
    assert pool is not None and len(pool.setup.models) == 1
    with admin_of(served) as admin:
        assert admin.load_model("tiny/2").state == "ready"  # the next one is not kept waiting
        admin.unload_model("tiny/2")


def test_a_bundle_that_crashes_or_hangs_the_runtime_leaves_the_server_alone(
    served: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trials(work: str) -> None:
        monkeypatch.setattr(trial, "TRIAL_COMMAND", (sys.executable, "-S", "-c", work))

    before = children(os.getpid())
    with admin_of(served, timeout_s=5.0) as admin, clinic_of(served) as client:
        trials("import os; os.kill(os.getpid(), 11)")
        with pytest.raises(BundleUnsupported, match=r"testing tiny/2 ended .* by SIGSEGV"):
            admin.load_model("tiny/2")
        trials("import time; time.sleep(60)")
        with admin_of(served, timeout_s=0.5) as hurried, pytest.raises(DeadlineExceeded):
            hurried.load_model("tiny/2")
        wait_until(lambda: children(os.getpid()) == before)
        assert versions(served) == {"1": ("ready", True)}
        assert client.predict("a.svs").bundle == "tiny/1"


@pytest.mark.usefixtures("one_attempt")
def test_an_unload_waits_for_requests_and_no_longer_than_it_may(both: Server) -> None:
    models = both._services.models
    (model,) = (m for m in models.loaded() if m.resource.endswith("/2"))
    use = model.use()
    use.__enter__()
    try:
        with admin_of(both, timeout_s=0.3) as hurried, pytest.raises(DeadlineExceeded):
            hurried.unload_model("tiny/2")
        assert versions(both) == {"1": ("ready", True), "2": ("unloading", False)}
        with clinic_of(both) as client, pytest.raises(ModelNotFound):
            client.predict("a.svs", model="tiny/2")
        with admin_of(both) as admin, pytest.raises(ModelNotReady, match="unloaded"):
            admin.load_model("tiny/2")
        with model.use():  # by who found it before
            pass
    finally:
        use.__exit__(None, None, None)
    with pytest.raises(ModelNotFound, match="was unloaded"), model.use():
        pass
    wait_until(lambda: versions(both) == {"1": ("ready", True)})


def test_workers_that_come_back_have_what_was_loaded(both: Server) -> None:
    pool = both._services.pool
    assert pool is not None
    with admin_of(both) as admin, clinic_of(both) as client:
        for slot in pool.slots:
            assert slot.child is not None and slot.child.pid is not None
            os.kill(slot.child.pid, 9)
        wait_until(lambda: all(w.restarts for w in admin.server_info().workers))
        assert client.predict("a.svs", model="tiny/2").bundle == "tiny/2"


def test_the_open_inference_protocol_follows(both: Server) -> None:
    client = InferenceServerClient(f"127.0.0.1:{both.port}")
    who = {"authorization": f"Bearer {CLINIC}"}
    uri = InferInput("slide_uri", [1], "BYTES")
    uri.set_data_from_numpy(np.array([b"a.svs"], dtype=object))
    assert list(client.get_model_metadata("tiny-encoder", headers=who).versions) == ["1", "2"]
    assert client.is_model_ready("tiny-slide", "2", headers=who)
    answer = client.infer("tiny-slide", [uri], model_version="2", headers=who)
    assert answer.as_numpy("label")[0].startswith(b"new ")
    assert client.infer("tiny-slide", [uri], headers=who).get_response().model_version == "1"
    with admin_of(both) as admin:
        admin.set_default_version("tiny/2")
        answer = client.infer("tiny-slide", [uri], headers=who)
        assert answer.get_response().model_version == "2"
        admin.set_default_version("tiny/1")
    client.close()


def test_only_an_administrator_changes_models(served: Server) -> None:
    with clinic_of(served) as client:
        for call in (client.load_model, client.unload_model, client.set_default_version):
            with pytest.raises(RoleMissing, match="role admin, which clinic does not have"):
                call("tiny/2")


def test_a_server_without_bundle_roots_loads_nothing(tiny_bundle: Path) -> None:
    with pytest.raises(BundlePathForbidden, match="start it with bundle_roots"):
        find_bundle(str(tiny_bundle), ())


@pytest.mark.usefixtures("one_attempt")
def test_a_server_that_drains_loads_nothing(served: Server) -> None:
    predictor = served._services.predictor
    assert predictor is not None
    predictor.admission.draining = True
    try:
        with admin_of(served) as admin, pytest.raises(ServerDraining):
            admin.load_model("tiny/2")
    finally:
        predictor.admission.draining = False


def test_a_version_is_swapped_under_load_and_no_request_fails(served: Server) -> None:
    answers: list[tuple[str, str]] = []
    done = threading.Event()

    def ask_on() -> None:
        with clinic_of(served) as client:
            while not done.is_set():
                prediction = client.predict("a.svs")
                answers.append((prediction.bundle, prediction.label.partition(" ")[0]))

    with ThreadPoolExecutor(2) as threads, admin_of(served) as admin, clinic_of(served) as client:
        before = [w.restarts for w in admin.server_info().workers]
        work = [threads.submit(ask_on) for _ in range(2)]
        try:
            wait_until(lambda: len(answers) >= 2 or any(each.done() for each in work))
            loaded = admin.load_model("tiny/2")
            assert (loaded.name, loaded.state) == ("models/tiny/versions/2", "ready")
            assert not loaded.is_default and client.predict("a.svs").bundle == "tiny/1"
            assert client.predict("a.svs", model="tiny/2").label.startswith("new ")
            assert admin.set_default_version("tiny/2").is_default
            admin.unload_model("tiny/1")
            swapped = len(answers)
            wait_until(lambda: len(answers) >= swapped + 3 or any(each.done() for each in work))
        finally:
            done.set()
        for each in work:
            each.result()
        assert {bundle for bundle, _ in answers} == {"tiny/1", "tiny/2"}
        assert all((said == "new") == (bundle == "tiny/2") for bundle, said in answers)
        assert versions(served) == {"2": ("ready", True)}
        info = admin.server_info()
        assert list(info.engines) == list(info.defaults) == ["models/tiny/versions/2"]
        assert info.git_revision == installed_revision() and info.gpus == tuple(device_names())
        assert [w.restarts for w in admin.server_info().workers] == before
        with pytest.raises(ModelNotFound, match="it has models/tiny/versions/2"):
            client.predict("a.svs", model="tiny/1")


def test_the_commands_of_the_page_work(
    served: Server,
    roots: Path,
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """After the test above version 2 is the default, and the only one."""
    (lines,) = re.findall(r"^```bash\n(.*?)^```", SECTION, re.S | re.M)
    write_version(tiny_bundle, roots, "5")
    lines = lines.replace("demo/1", "tiny/2").replace("demo/2", "tiny/5").replace("case-17", "a")
    monkeypatch.chdir(tmp_path)
    for name, token in (("admin", ADMIN), ("clinic", CLINIC)):
        Path(f"{name}.token").touch(mode=0o600)
        Path(f"{name}.token").write_text(token)
    for line in lines.splitlines():
        with pytest.raises(SystemExit) as end:
            main([*line.split()[1:], "--server", f"127.0.0.1:{served.port}"])
        assert end.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith("models/tiny/versions/5 is ready, sha256 ")
    assert "models/tiny/versions/5 is the default\ntiny/2 is unloaded\n" in said
    assert said.count("models/tiny/versions/5*  ready") == 1
