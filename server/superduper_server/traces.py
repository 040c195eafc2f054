"""OpenTelemetry traces, where they are asked for: a span a request, and in it queue and model.

Off unless `SUPERDUPER_TRACES` says `on`; else OpenTelemetry is not even imported. Where the spans
go, how many of them, and under which name, its own variables say (`OTEL_...`).
"""

import time
from collections.abc import Mapping
from typing import Any

from superduper import settings
from superduper.errors import InvalidInput, MissingExtra
from superduper.serving.batches import Request

NAME = "superduper"


def tracer_of_settings() -> "Tracer | None":
    """The tracer that the environment asks for, or None.

    Raises InvalidInput for a setting that is neither on nor off, MissingExtra if OpenTelemetry is
    not installed.
    """
    said = settings.get("TRACES").lower()
    if said == "off":
        return None
    if said != "on":
        raise InvalidInput(f"SUPERDUPER_TRACES={said[:20]!r}: it is on or off")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise MissingExtra.of("traces", "SUPERDUPER_TRACES=on") from error
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracer(provider)


class Tracer:
    """Makes the spans of one server; for the event loop's thread."""

    def __init__(self, provider: Any) -> None:
        from opentelemetry import context, trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer(NAME)
        self._propagator = TraceContextTextMapPropagator()
        self._trace = trace
        self._context = context
        # The batcher's clock has no date.
        self._epoch_ns = time.time_ns() - int(time.monotonic() * 1e9)

    def begin(self, method: str, headers: Mapping[str, str], request_id: str) -> Any:
        """The span of a request, below the sender's if it sent a `traceparent`."""
        return self._tracer.start_span(
            method,
            context=self._propagator.extract(headers),
            kind=self._trace.SpanKind.SERVER,
            attributes={"http.request.method": method, "superduper.request_id": request_id},
        )

    def inside(self, span: Any) -> Any:
        """A context in which what is begun belongs to a span."""
        return self._trace.use_span(span, end_on_exit=False, record_exception=False)

    def end(self, span: Any, method: str, route: str, status: int) -> None:
        """The request has been answered."""
        span.update_name(f"{method} {route}")
        span.set_attribute("http.route", route)
        span.set_attribute("http.response.status_code", status)
        if status >= 500:
            span.set_status(self._trace.StatusCode.ERROR)
        span.end()

    def here(self) -> Any:
        """What `note` needs to know where it belongs."""
        return self._context.get_current()

    def note(self, where: Any, model: str, request: Request) -> None:
        """The spans of a prediction that has been answered: its time in the queue, its batch's."""
        done = time.monotonic()
        attributes = {"superduper.model": model, "superduper.rows": len(request.values)}
        run_at = request.run_at or done  # nobody ran it: it was late
        self._span("queue", where, request.put_at, run_at, attributes)
        if request.run_at:
            self._span("model", where, run_at, done, attributes)

    def _span(self, name: str, where: Any, began: float, ended: float, attributes: Any) -> None:
        span = self._tracer.start_span(
            name, context=where, start_time=self._ns(began), attributes=attributes
        )
        span.end(self._ns(ended))

    def _ns(self, seconds: float) -> int:
        return self._epoch_ns + int(seconds * 1e9)

    def close(self) -> None:
        """Send what has not been sent."""
        self._provider.shutdown()
