"""The clients of the gRPC server: the local predictor's results and errors, from another machine."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

from cmamil_sdk.errors import DependencyMissing
from cmamil_sdk.predict import Prediction

try:
    from cmamil_sdk._client_asyncio import AsyncClient
    from cmamil_sdk._client_calls import (
        OnProgress,
        ask_deletion,
        ask_for_default,
        ask_health,
        ask_inspection,
        ask_models,
        ask_prediction,
        ask_server_info,
        ask_server_stats,
        ask_to_load,
        ask_to_unload,
        prediction_request,
    )
    from cmamil_sdk._client_features import (
        FeatureDtype,
        OnWarning,
        SlideFeatures,
        ask_features,
        feature_request,
        keep_features,
    )
    from cmamil_sdk._client_jobs import (
        PredictionJob,
        ask_cancellation,
        ask_job,
        ask_job_deletion,
        ask_jobs,
        ask_new_job,
        ask_watch,
    )
    from cmamil_sdk._client_results import (
        ModelFacts,
        SlideInspection,
        UploadedSlide,
    )
    from cmamil_sdk._client_retries import Retries
    from cmamil_sdk._client_server import (
        CacheLimits,
        CacheStats,
        CallCount,
        Durations,
        JobLimits,
        JobStats,
        ServerFacts,
        ServerLimits,
        ServerStats,
        UploadLimits,
        UploadStats,
        WorkerFacts,
    )
    from cmamil_sdk._client_sync import SyncCalls
    from cmamil_sdk._client_uploads import SlideFile
except ImportError as missing:
    raise DependencyMissing(
        f"The client needs {missing.name}, which is not installed; install cmamil-sdk[client]."
    ) from missing


class Client(SyncCalls):
    """Talks to one server; safe to share between threads.

    Example::

        with Client("127.0.0.1:50051") as client:
            prediction = client.predict("case-17.svs")
            print(prediction.label, prediction.probabilities)

    Every method raises the leaf of :mod:`cmamil_sdk.errors` that the server met, or
    :class:`ServerUnreachable` when none answers, or :class:`CertificateRefused` when TLS fails. A server
    that is starting, draining or away (UNAVAILABLE) is asked up to three times more within about two
    seconds; nothing else is retried. :class:`AsyncClient` has the same methods as coroutines.
    """

    def health(self) -> str:
        """``SERVING``, ``NOT_SERVING``, ...: whether the server takes work. Not retried.

        Raises:
            ServerUnreachable: nothing answers.
            CertificateRefused: client and server do not trust each other.
        """
        return self._ask(ask_health())

    def models(self) -> tuple[ModelFacts, ...]:
        """The models that the server has."""
        return self._ask(ask_models())

    def server_info(self) -> ServerFacts:
        """Versions, engines in use, workers, load."""
        return self._ask(ask_server_info())

    def server_stats(self) -> ServerStats:
        """Calls, stages and tiles since the server started, counted as its metrics are."""
        return self._ask(ask_server_stats())

    def load_model(self, bundle: str) -> ModelFacts:
        """Have the server load a bundle, and wait until it is ready; for administrators.

        Args:
            bundle: its directory beneath a bundle root of the server: absolute, or relative to a root.

        Raises:
            BundlePathForbidden, BundleNotFound: it lies elsewhere, or is not there.
            ModelExists: the server has that version already, with other content.
            CmamilError: the bundle cannot be loaded; what the server had serves on.
        """
        return self._ask(ask_to_load(bundle))

    def unload_model(self, model: str) -> None:
        """Have the server finish with ``NAME/VERSION``, and wait until its memory is free.

        Raises:
            ModelNeeded: it is the default of several versions, or the only model.
            DeadlineExceeded: requests are still at work with it; it goes all the same when they end.
        """
        self._ask(ask_to_unload(model))

    def set_default_version(self, model: str) -> ModelFacts:
        """Make ``NAME/VERSION`` what ``NAME`` alone means."""
        return self._ask(ask_for_default(model))

    def inspect(
        self, uri: str, *, mpp: float | None = None, model: str | None = None
    ) -> SlideInspection:
        """Say what a slide is and how many tiles ``model`` would take of it.

        Args:
            uri: a ``file:`` URI, an absolute path, a path relative to the server's slides roots, or
                an :class:`UploadedSlide`'s.
            mpp: microns per pixel of level 0, overriding the file.
            model: ``NAME`` or ``NAME/VERSION``; may be left out where the server has only one.
        """
        return self._ask(ask_inspection(uri, mpp=mpp, model=model))

    def predict(
        self,
        uri: str,
        *,
        mpp: float | None = None,
        top_k: int = 16,
        attention: bool = False,
        model: str | None = None,
        expected_sha256: str = "",
        request_id: str = "",
        bypass_cache: bool = False,
        on_progress: OnProgress | None = None,
        timeout_s: float | None = None,
    ) -> Prediction:
        """Predict one slide.

        Args:
            uri: a ``file:`` URI, an absolute path, a path relative to the server's slides roots, or
                an :class:`UploadedSlide`'s.
            mpp: microns per pixel of level 0, overriding the file.
            top_k: how many telling tiles to name, at most 1,000.
            attention: fetch the maps of all tiles, as the local predictor's have them.
            model: ``NAME`` or ``NAME/VERSION``; may be left out where the server has only one.
            expected_sha256: refuse any other file.
            request_id: a UUID that the server's log will show; sent again with the same arguments, it
                gets the same answer for 24 hours.
            bypass_cache: have the slide read and encoded for this request alone.
            on_progress: called in this thread, at most about twice a second; beside the local
                stages there is ``queued``.
            timeout_s: for this call, in place of the client's.

        Raises:
            InputError: the slide cannot be used.
            DeadlineExceeded: not done in time; the server stops working on it.
            QueueFull: the server has enough to do.
        """
        request = prediction_request(
            uri,
            mpp=mpp,
            top_k=top_k,
            attention=attention,
            model=model,
            expected_sha256=expected_sha256,
            request_id=request_id,
            bypass_cache=bypass_cache,
        )
        stream = ask_prediction(request, on_progress)
        retries = Retries(self.timeout_s if timeout_s is None else timeout_s)
        return self._retried(lambda left_s: self._stream(stream, left_s), retries)

    def extract_features(
        self,
        uri: str,
        *,
        out: Path | None = None,
        dtype: FeatureDtype = "float32",
        mpp: float | None = None,
        model: str | None = None,
        expected_sha256: str = "",
        request_id: str = "",
        bypass_cache: bool = False,
        on_progress: OnProgress | None = None,
        on_warning: OnWarning | None = None,
        timeout_s: float | None = None,
    ) -> SlideFeatures:
        """The features of one slide, as ``cmamil features`` makes them by a model's encoder and recipe.

        Args:
            uri: a ``file:`` URI, an absolute path, or a path relative to the server's slides roots.
            out: write them to this feature file as well.
            dtype: what features travel as: ``float32``, or ``float16``, half as long and rounded.
            mpp: microns per pixel of level 0, overriding the file.
            model: ``NAME`` or ``NAME/VERSION``; may be left out where the server has only one.
            expected_sha256: refuse any other file.
            request_id: a UUID that the server's log will show.
            bypass_cache: have the slide read and encoded for this request alone.
            on_progress: called in this thread, at most about twice a second.
            on_warning: called with each warning about the slide or the bundle.
            timeout_s: for this call, in place of the client's.

        Returns:
            The bag, features as float32, and where it comes from, as :func:`read_feature_file` does.

        Raises:
            InputError: the slide cannot be used.
            DeadlineExceeded: not done in time; the server stops working on it.
            QueueFull: the server has enough to do.
            OutputUnwritable: ``out`` cannot be written.
        """
        request = feature_request(
            uri,
            dtype=dtype,
            mpp=mpp,
            model=model,
            expected_sha256=expected_sha256,
            request_id=request_id,
            bypass_cache=bypass_cache,
        )
        retries = Retries(self.timeout_s if timeout_s is None else timeout_s)
        found = self._retried(
            lambda left_s: self._stream(
                ask_features(request, dtype, on_progress, on_warning), left_s
            ),
            retries,
        )
        return keep_features(found, out)

    def create_job(
        self,
        uri: str,
        *,
        mpp: float | None = None,
        top_k: int = 16,
        attention: bool = False,
        model: str | None = None,
        expected_sha256: str = "",
        request_id: str = "",
        bypass_cache: bool = False,
    ) -> PredictionJob:
        """Have the server predict a slide as a job, which needs nobody to wait for it.

        Arguments as of :meth:`predict`. With the ``request_id`` of a job that the server still has, the
        answer is that job; without, a new id is made, so that a call that is repeated makes one job.

        Raises:
            QueueFull: as many jobs wait as may.
            RequestIdReused: another request has this id.
            JobsDisabled: the server keeps no jobs.
        """
        return self._ask(
            ask_new_job(
                prediction_request(
                    uri,
                    mpp=mpp,
                    top_k=top_k,
                    attention=attention,
                    model=model,
                    expected_sha256=expected_sha256,
                    request_id=request_id or str(uuid.uuid4()),
                    bypass_cache=bypass_cache,
                )
            )
        )

    def job(self, name: str) -> PredictionJob:
        """A job as it stands, with its prediction or error once it has ended.

        Raises:
            JobNotFound: the server has no such job, or not one of yours.
        """
        return self._ask(ask_job(name))

    def jobs(self, *, state: str | None = None) -> Iterator[PredictionJob]:
        """Your jobs, an administrator's view of everybody's, the newest first; without predictions.

        ``state``: only those in it, for example ``RUNNING``. Pages are fetched as they are needed.
        """
        token: str | None = ""
        while token is not None:
            page, token = self._ask(ask_jobs(state, token))
            yield from page

    def watch_job(
        self,
        name: str,
        *,
        on_progress: OnProgress | None = None,
        timeout_s: float | None = None,
    ) -> PredictionJob:
        """Wait until a job has ended; returns it with its prediction or its error.

        While the server cannot be reached it is asked again, until the time is over: the job goes on
        when the server is back. Arguments as of :meth:`predict`.

        Raises:
            DeadlineExceeded: the time is over; the job goes on.
            JobNotFound: as :meth:`job`.
        """
        retries = Retries(self.timeout_s if timeout_s is None else timeout_s, lasting=True)
        return self._retried(
            lambda left_s: self._stream(ask_watch(name, on_progress), left_s), retries
        )

    def cancel_job(self, name: str) -> PredictionJob:
        """End a job that waits or is at work.

        Raises:
            JobFinished: it has ended.
            JobNotFound: as :meth:`job`.
        """
        return self._ask(ask_cancellation(name))

    def delete_job(self, name: str) -> None:
        """Have the server forget a job; one that has not ended is cancelled first.

        Raises:
            JobNotFound: as :meth:`job`.
        """
        self._ask(ask_job_deletion(name))

    def upload_slide(
        self,
        path: Path | str,
        *,
        on_progress: OnProgress | None = None,
        timeout_s: float | None = None,
    ) -> UploadedSlide:
        """Store a slide on the server, for predictions and inspections by its ``uri``.

        The same bytes have the same id; what the server has of this caller is not sent again.

        Args:
            path: of the file here; its name is shown in answers.
            on_progress: called in another thread, the stage ``upload`` in bytes.
            timeout_s: for the transfer, in place of the client's.

        Raises:
            SlideNotFound, SlideUnreadable: the file cannot be read here.
            UploadsDisabled, UploadsFull, SlideTooLarge: the server does not take it.
        """
        file = SlideFile(Path(path), on_progress)
        retries = Retries(self.timeout_s if timeout_s is None else timeout_s)
        return self._retried(lambda left_s: self._upload(file, left_s), retries)

    def delete_slide(self, slide_id: str) -> None:
        """Remove an uploaded slide of this caller's, named by its id or its ``uri``.

        Raises:
            SlideNotFound: this caller has no such slide there.
        """
        self._ask(ask_deletion(slide_id))


__all__ = [
    "AsyncClient",
    "CacheLimits",
    "CacheStats",
    "CallCount",
    "Client",
    "Durations",
    "JobLimits",
    "JobStats",
    "ModelFacts",
    "PredictionJob",
    "ServerFacts",
    "ServerLimits",
    "ServerStats",
    "SlideInspection",
    "UploadLimits",
    "UploadStats",
    "UploadedSlide",
    "WorkerFacts",
]
