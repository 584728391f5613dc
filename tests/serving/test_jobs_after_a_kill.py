"""A server that is killed in mid-run finishes its jobs when it is started again, each once."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cmamil_sdk.client import Client
from cmamil_sdk.serving.config import ServerConfig

from .programs import start_program
from .waiting import wait_until


def test_every_job_ends_once(
    config: ServerConfig, slides_root: Path, big_slide: Path, tmp_path: Path
) -> None:
    shutil.copy(big_slide, slides_root / "killed.svs")
    config = config.model_copy(
        update={"jobs_file": tmp_path / "jobs.sqlite", "max_active_jobs": 1, "workers": 1}
    )
    program, port = start_program(config)
    client = Client(f"127.0.0.1:{port}", timeout_s=120.0)
    try:
        made = [client.create_job("killed.svs").name for _ in range(4)]
        cancelled = made.pop()
        client.cancel_job(cancelled)
        wait_until(lambda: any(job.progress is not None for job in client.jobs(state="RUNNING")))
        with ThreadPoolExecutor(1) as threads:
            watching = threads.submit(client.watch_job, made[-1])
            program.kill()
            program.wait()
            program, _ = start_program(config.model_copy(update={"port": port}))
            again = [job.name for job in client.jobs() if not job.has_ended]
            assert again and made[-1] in again
            done = [client.watch_job(name) for name in made]
            assert watching.result() == done[-1]
        assert [job.state for job in done] == ["SUCCEEDED"] * 3
        assert len({str(job.prediction and job.prediction.probabilities) for job in done}) == 1
        # The one that was at work began anew, and nothing was lost, doubled or brought back to life.
        assert [job.name for job in client.jobs()] == [cancelled, *made[::-1]]
        assert client.job(cancelled).state == "CANCELLED"
        starts = [job.started for job in done]
        assert starts == sorted(starts)  # type: ignore[type-var]
    finally:
        client.close()
        program.kill()
        program.wait()
